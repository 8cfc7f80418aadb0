"""Builds a tiny instance of the very config on the CPU, through the script's own code, and observes what it does.

    probe(config, entry="pretrain", root=Path.cwd(), overrides=["arch.num_heads=4"]) -> findings

Torch and our packages are imported when `probe` is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import engine.registry
from engine.cli.resolve import observe_script
from verification.codes import CODES
from verification.finding import Finding

CODES_OBSERVED = tuple(f"DYN{number}" for number in range(700, 719))
"""The deeper codes that have a probe; each family has some of them."""


def probe(
    resolved: Mapping[str, Any],
    *,
    entry: str,
    root: Path,
    only: Iterable[str] = CODES_OBSERVED,
    overrides: Sequence[str] = (),
) -> list[Finding]:
    """Findings about a resolved config: one PASS, or what is wrong, per code.

    Args:
        entry: the script, `pretrain` or `pretrain.py`.
        root: the repository that holds it; its packages are those of this process.
        only: the codes to observe.
        overrides: the command's overrides, for DYN716.

    Raises:
        ValueError: a code in `only` that is none.
    """
    from verification.probes.session import observe

    if unknown := sorted(set(only) - set(CODES)):
        raise ValueError(f"no probe observes {', '.join(unknown)}: choose among {', '.join(CODES)}")
    engine.registry.ROOT = root = root.resolve()
    script = observe_script(root / f"{Path(entry).stem}.py").module
    assert script is not None
    return observe(resolved, script=script, codes=sorted(only), overrides=overrides)
