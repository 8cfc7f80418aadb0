"""Builds a tiny instance of the very config on the CPU, through the script's own code, and observes what it does.

    probe(config, entry="pretrain", root=Path.cwd(), overrides=["arch.num_heads=4"]) -> findings

Torch and our packages are imported when `probe` is called. `root` is the examined repository: where its code is not
the code of this process, the probes run in a process of their own. Results are kept by a hash of the shrunk config.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verification.finding import Finding

__all__ = ["CODES_OBSERVED", "forget", "probe"]

CODES_OBSERVED = (
    "DYN700",
    "DYN701",
    "DYN702",
    "DYN703",
    "DYN705",
    "DYN706",
    "DYN707",
    "DYN709",
    "DYN712",
    "DYN716",
    "DYN717",
    "DYN718",
)
"""What is observed of every model in embedding mode; families register more."""


def probe(
    config: Any, *, entry: str, root: Path, only: Iterable[str] | None = None, overrides: Sequence[str] | None = None
) -> list[Finding]:
    """Findings (step "dyn") about a config: one PASS, or what is wrong, per code.

    Args:
        config: a structured config (`load_synced_config`), a composed DictConfig, or a resolved mapping.
        entry: the script, `pretrain` or `pretrain.py`.
        root: the repository that holds it.
        only: the codes to observe; all by default. DYN700 always comes first: nothing works on what cannot be built.
        overrides: the command's overrides, for DYN716; None takes those that a structured config remembers.

    Raises:
        ValueError: a code in `only` that no probe has.
    """
    from verification.probes.session import observe

    return observe(config, entry=entry, root=Path(root), only=only, overrides=overrides)


def forget() -> None:
    """Drop all kept results (after the examined code has changed within this process)."""
    from verification.probes.session import MEMO

    MEMO.clear()
