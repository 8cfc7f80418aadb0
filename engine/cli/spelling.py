"""The user's own words for keys, put back into messages.

Code and messages name a key as the config does (`arch.n_layer`, `run_dir`). Whoever typed `--n_layer` or `--out_dir`
reads that word: the command line remembers it here, and what prints asks here. The table lies in the environment, so
that the jobs of a sweep, which are started with the config's names, use the words of the command that began them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping

VARIABLE = "LOOPFORGE_SPELLING"


def remember(typed: Mapping[str, str]) -> None:
    """Add key -> the word typed for it; both may be `key=value`, where a value has another spelling as well."""
    if typed:
        os.environ[VARIABLE] = json.dumps(_table() | dict(typed))


def forget() -> None:
    os.environ.pop(VARIABLE, None)


def as_typed(text: str) -> str:
    """`text` with each key that was typed in another spelling in that spelling."""
    table = _table()
    return _pattern(tuple(table)).sub(lambda match: table[match["key"]], text) if table else text


def _table() -> dict[str, str]:
    table: dict[str, str] = json.loads(os.environ.get(VARIABLE, "{}"))
    return table


@functools.cache
def _pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Where one of `keys` is meant: a word of its own, no part of a path or of a longer key.

    A key that is a plain word (accumulation) may be prose: only `=` or `:` behind it tells.
    """
    ordered = sorted(keys, key=len, reverse=True)
    names = [re.escape(key) + ("" if re.search(r"[._=]", key) else "(?=[=:])") for key in ordered]
    return re.compile(rf"(?<![\w./-])(?:--)?(?P<key>{'|'.join(names)})(?![\w/-]|\.\w)")
