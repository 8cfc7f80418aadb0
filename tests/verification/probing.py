"""What the tests of the probes share: composed recipes, one probe at a time, planted faults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import engine.registry
from engine.cli.compose import compose_config
from engine.cli.resolve import observe_script
from tests.conftest import ROOT
from verification.codes import DEEP
from verification.finding import Finding

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
ENCODER = {"DYN704", "DYN708", "DYN710", "DYN711", "DYN713", "DYN714", "DYN715"}
OBSERVED = tuple(code for code in DEEP if code not in ENCODER)
"""The deeper codes that are observed of models in embedding mode; ENCODER: those of models with an encoder only."""
ATTENTION, MLP, HRM = "cfg_pretrain_sudoku_extreme_att", "cfg_pretrain_sudoku_extreme_mlp", "cfg_pretrain"


def rules_and_probes(
    name: str, values: Sequence[str], probed: Iterable[str] = (), fast: Iterable[str] = ()
) -> pytest.MarkDecorator:
    """The rules, which take milliseconds, for each of `values`; those `probed` (none named: all) with the probes, too:
    what a tiny instance adds takes seconds, and is in the slow tests. So are the rules for all but `fast` (all)."""
    some = set(probed) or set(values)
    assert some <= set(values)
    quick = set(fast) or set(values)
    marks = {value: () if value in quick else pytest.mark.slow for value in values}
    cases = [pytest.param(value, False, id=f"{value}-rules", marks=marks[value]) for value in values]
    cases += [SLOW(value, True, id=f"{value}-probes") for value in values if value in some]
    return pytest.mark.parametrize((name, "probes"), cases)


def probe(
    config: Any, *, entry: str, root: Path = ROOT, only: Iterable[str] = DEEP, overrides: Sequence[str] = ()
) -> list[Finding]:
    """What the probes `only` observe of a resolved config of the script `entry` below `root`."""
    from verification.probes.session import observe  # the tree in `root` may have its own

    engine.registry.ROOT = root
    script = observe_script(root / f"{Path(entry).stem}.py").module
    assert script is not None
    return observe(config, script=script, codes=sorted(only), overrides=overrides)


@functools.cache
def composed(name: str, *overrides: str) -> dict[str, Any]:
    config = compose_config([ROOT / "config"], name, list(overrides)).config
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return resolved


def findings_of(code: str, *overrides: str, recipe: str = ATTENTION, entry: str = "pretrain.py") -> list[Finding]:
    return probe(composed(recipe, *overrides), entry=entry, root=ROOT, only={code}, overrides=overrides)


def fails(code: str, *overrides: str, **how: str) -> str:
    """The messages of the FAILs, which must all be of `code`."""
    failures = [finding for finding in findings_of(code, *overrides, **how) if finding.level == "FAIL"]
    assert {finding.code for finding in failures} == {code}
    assert all(finding.fix and finding.step == "dyn" for finding in failures)
    return "; ".join(finding.message for finding in failures)


def around(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace `owner.name` by `wrapper(original, *args)`."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))
