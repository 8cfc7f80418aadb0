"""Text data sets for verification, shared by every family that trains on text: their properties (from meta.json or the
table of named data sets), rules about them, and tiny data sets for probes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import Unreadable, read_bytes, read_json, reason_of, user_path
from verification.data import DataPath
from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding, need_config
from verification.rules.data import there
from verification.subject import Subject

FIXED = ("byte", "gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
"""Tokenizers with one fixed vocabulary; the others build theirs from the text."""
MODES = {"single": "dataset", "multidataset": "dataset_list", "multicontext": "multicontext_datasets"}


@dataclass(frozen=True)
class TextPath(DataPath):
    """A text data set. Unknown fields are empty or None."""

    tokenizer: str = ""
    vocabulary: str = ""
    """Name of the vocabulary: in two data sets of the same name a token id stands for the same piece of text."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens per split."""
    text: str = ""
    """Source of the text (table of named data sets): equal for two tokenizations of one text."""


def text_data(config: dict[str, Any], folder: Path, local: bool) -> list[TextPath]:
    """The data sets of a config that trains on text, in config order; empty for other configs."""
    key = MODES.get(str(config.get("training_mode")), "")
    names = config.get(key)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        return []
    return [read_text_data(str(name), key, folder, local, config.get("offline") != "error") for name in names]


def read_text_data(name: str, key: str, folder: Path, local: bool, stand_ins: bool) -> TextPath:
    """Describe data/`name`, or `name` itself if it is a path (relative to `folder`)."""
    from dataset.text.named import NAMED

    path = name if "/" in name or name.startswith("~") else f"data/{name}"
    root = folder / user_path(path)
    if local and root.exists():
        return _there(TextPath(path, key, "there", "tokens"), root)
    entry = NAMED.get(Path(path).name)
    if entry is None:
        return TextPath(path, key, "unknown")
    state = "published"
    if entry.generated or (entry.offline and stand_ins):
        state = "built on first use" if entry.generated else f"published, else {entry.offline} in its place"
    kind = entry.tokenizer
    text = f"{entry.source} {entry.local} {entry.generated} {entry.offline}"
    vocabulary = kind if kind in FIXED else f"{kind} of {text}"
    origin = "dataset/text/named.py"
    return TextPath(path, key, state, "tokens", origin=origin, tokenizer=kind, vocabulary=vocabulary, text=text)


def _there(path: TextPath, root: Path) -> TextPath:
    missing = [f"{split}.bin" for split in ("train", "val") if not (root / f"{split}.bin").is_file()]
    if missing:
        return replace(path, problem=f"{path.path} has no {' and no '.join(missing)}")
    meta = root / "meta.json"
    if not meta.exists() and not (root / "meta.pkl").exists():  # nanoGPT's rule
        return replace(path, tokenizer="gpt2", vocabulary="gpt2", origin=f"{path.path}/train.bin")
    try:
        content: Any = read_json(meta) if meta.exists() else {}
        kind, lengths = str(content.get("tokenizer", "")), dict(content.get("tokens") or {})
        state = read_bytes(root / "tokenizer.json") if (root / "tokenizer.json").exists() else b""
    except (OSError, ValueError, TypeError, AttributeError) as error:
        why = "does not describe a text data set"
        if isinstance(error, OSError | Unreadable):
            why = reason_of(error)
        return replace(path, problem=f"{path.path}/meta.json {why}")
    # A legacy meta.pkl is left to the run, which refuses anything but plain values.
    vocabulary = kind if kind in FIXED or not kind else f"{kind} {hashlib.sha256(state).hexdigest()[:8]}"
    return replace(path, tokenizer=kind, vocabulary=vocabulary, lengths=lengths, origin=f"{path.path}/{meta.name}")


def write_tokens(
    folder: Path,
    lengths: Mapping[str, int],
    vocab_size: int,
    seeds: Iterable[int],
    *,
    key: tuple[int, ...] = (),
    eot: int = 0,
) -> None:
    """Write a data set of random tokens; with `eot`, every `eot`-th token is the last id, which ends a document."""
    import numpy as np

    folder.mkdir(parents=True)
    for (split, count), seed in zip(lengths.items(), seeds, strict=True):
        tokens = np.random.default_rng((*key, count, seed)).integers(0, vocab_size - bool(eot), count)
        if eot:
            tokens[eot - 1 :: eot] = vocab_size - 1
        tokens.astype("<u2").tofile(folder / f"{split}.bin")
    meta: dict[str, Any] = {"vocab_size": vocab_size, "dtype": "uint16", "tokens": dict(lengths)}
    meta |= {"eot": vocab_size - 1} if eot else {}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


# --- rules ------------------------------------------------------------------------------------------------------------


def contents(subject: Subject) -> Iterator[Finding]:
    """DAT523: every token id is below vocab_size."""
    from dataset.text.stream import TokenStream

    for entry in there(subject):
        for split in ("train", "val"):
            place = f"{entry.path}/{split}"
            try:
                stream = TokenStream(subject.trace.cwd / entry.path, split)
            except UsageError as error:
                yield finding("DAT523", "FAIL", str(error), place)
                continue
            top, size = int(stream.tokens.max()), stream.meta.vocab_size
            text = f"{place}: {len(stream.tokens)} tokens, numbers up to {top}, vocab_size={size}"
            yield finding("DAT523", "PASS" if top < size else "FAIL", text, place)


def texts(subject: Subject, *keys: str) -> list[TextPath]:
    """The config's text data sets, or only those named by `keys`. Raises NotApplicable if there are none."""
    need_config(subject)
    sets = [one for one in subject.data if isinstance(one, TextPath) and (one.key in keys or not keys)]
    if not sets:
        raise NotApplicable(f"the config names no text{' in ' if keys else ''}{' or '.join(keys)}")
    return sets


def pretrained_tokens(subject: Subject) -> Iterator[Finding]:
    """DAT540: pretrained GPT-2 weights see GPT-2 tokens."""
    known = [entry for entry in texts(subject) if entry.tokenizer]
    if not known or (subject.resolved or {}).get("init_from") != "gpt2":
        raise NotApplicable("no pretrained vocabulary, or the tokenizer of the data is not known")
    for entry in (entry for entry in known if entry.tokenizer != "gpt2"):
        text = f"{entry.path} has tokens of '{entry.tokenizer}', init_from=gpt2 reads GPT-2's own tokens"
        yield finding("DAT540", "FAIL", text, entry.origin)


def one_vocabulary(subject: Subject) -> Iterator[Finding]:
    """DAT541: data sets that share one token table share one vocabulary."""
    kinds = {entry.vocabulary: entry for entry in texts(subject, "dataset_list") if entry.vocabulary}
    if len(kinds) > 1 and not (subject.resolved or {}).get("multidataset_wte"):
        names = ", ".join(f"{entry.path} ({entry.tokenizer})" for entry in kinds.values())
        text = f"{names} share one token table, their vocabularies differ"
        yield finding("DAT541", "WARN", text, *subject.place)


def aligned(subject: Subject) -> Iterator[Finding]:
    """DAT542: the streams of a multicontext run annotate one text, token by token."""
    streams, place = texts(subject, "multicontext_datasets"), subject.place
    paths = [entry.path for entry in streams]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield finding("DAT542", "WARN", f"{path} appears twice: one stream is a copy of the other", *place)
    for split in ("train", "val"):
        sizes = {entry.path: entry.lengths[split] for entry in streams if split in entry.lengths}
        if len(set(sizes.values())) > 1:
            cut = (subject.resolved or {}).get("multicontext_align") == "truncate"
            text = f"{split} has {', '.join(f'{n} tokens in {path}' for path, n in sizes.items())}"
            fix = "multicontext_align=truncate, if they begin together" if not cut else ""
            yield finding("DAT542", "WARN" if cut else "FAIL", text, *place, fix)
    if len({entry.text for entry in streams if entry.text}) > 1:
        yield finding("DAT542", "WARN", f"{', '.join(paths)} are not annotations of one text", *place)


RULES = (
    Rule(("DAT523",), contents, implied=True),
    Rule(("DAT540",), pretrained_tokens, implied=True),
    Rule(("DAT541",), one_vocabulary, implied=True),
    Rule(("DAT542",), aligned, implied=True),
)
