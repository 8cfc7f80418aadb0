"""Faults that only show when the model runs: each is caught by the probe that observes it.

Every fault runs in a forked process that imports the changed copy: torch is loaded already, so each costs tenths of a second.
"""

from __future__ import annotations

import functools
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.cli.compose import compose_config
from engine.cli.resolve import Trace, resolve
from tests.conftest import run_forked
from tests.verification import faults_etrm
from tests.verification.faults_deep import FAULTS
from tests.verification.mutations import Fault, copy_repository, overlay
from tests.verification.probing import OBSERVED, SLOW, probe
from verification.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
OURS = ("models", "losses", "tasks", "evaluators", "dataset", "pretrain", "pretrain_etrm")
OVERRIDES = ["arch.puzzle_emb_ndim=64", "puzzle_emb_lr=0.01", "arch.L_cycles=2", "arch.no_ACT_continue=true"]


def resolved() -> dict:
    """A recipe with a puzzle embedding, so that every probe has something to look at."""
    composed = compose_config([ROOT / "config"], "cfg_pretrain_sudoku_4x4", OVERRIDES)
    return OmegaConf.to_container(composed.config, resolve=True)  # type: ignore[return-value]


@functools.cache
def of_command(job: str) -> Trace:
    """`python SCRIPT WORDS...`, composed by this repository."""
    _, script, *words = shlex.split(job)
    return resolve(ROOT / script, words, root=ROOT)


def observe(
    root: Path, config: dict, codes: list[str], entry: str = "pretrain", words: Sequence[str] = ()
) -> list[Finding]:
    """What the probes say about the code in `root`, which is imported in a process of its own."""
    result = run_forked(_child, str(root), config, codes, entry, tuple(words), cwd=root)
    assert result.code == 0, result.output
    return [Finding(**row) for row in json.loads(result.output.splitlines()[-1])]


def _child(root: str, config: dict, codes: list[str], entry: str, words: Sequence[str]) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in OURS or n.startswith("verification.probes")]:
        del sys.modules[name]
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    found = probe(config, entry=entry, root=Path(root).resolve(), only=codes, overrides=words)
    assert Path(sys.modules["models"].__file__ or "").is_relative_to(Path(root).resolve())
    print(json.dumps([asdict(finding) for finding in found]))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_repository(ROOT, tmp_path_factory.mktemp("pristine") / "repo")


@pytest.fixture(scope="module")
def config() -> dict:
    torch.empty(2, device="meta").erfinv_()  # loads what a model without memory needs, once and not in every child
    return resolved()


def examine(fault: Fault, pristine: Path, place: Path, config: dict) -> list[Finding]:
    """What its probes say about `fault`, in a tree of its own below `place`."""
    root = overlay(pristine, place / fault.name, fault.edits)
    return observe(root, config, list(fault.codes))


SHOWN_FAST = {"etrm-cached-for-episode", "etrm-rate-not-applied", "etrm-frozen-decays"}
FIRST = {fault.codes: fault for fault in reversed(FAULTS)}.values()  # one of each code; the others are slow tests


@pytest.mark.parametrize(
    "fault", [fault if fault in FIRST else SLOW(fault) for fault in FAULTS], ids=lambda fault: fault.name
)
def test_a_fault_of_behaviour_is_observed(fault: Fault, pristine: Path, config: dict, tmp_path: Path) -> None:
    findings = examine(fault, pristine, tmp_path, config)
    failed = {f.code for f in findings if f.level == "FAIL"}
    assert failed == set(fault.codes), [f"{f.level} {f.code} {f.message}" for f in findings]


@pytest.mark.parametrize(
    "fault",
    [fault if fault.name in SHOWN_FAST else SLOW(fault) for fault in faults_etrm.FAULTS],
    ids=lambda fault: fault.name,
)
def test_a_fault_of_learning_from_demonstrations_is_observed(fault: Fault, pristine: Path, tmp_path: Path) -> None:
    root, trace = overlay(pristine, tmp_path / fault.name, fault.edits), of_command(fault.job)
    assert trace.script is not None
    assert trace.resolved is not None, trace.problems
    findings = observe(root, trace.resolved, list(fault.codes), trace.script.path.stem, trace.overrides)
    failed = {f.code for f in findings if f.level == "FAIL"}
    assert failed == set(fault.codes), [f"{f.level} {f.code} {f.message}" for f in findings]


def test_unchanged_code_passes_every_probe(pristine: Path, config: dict) -> None:
    findings = observe(pristine, config, list(OBSERVED))
    assert {f.code for f in findings} >= set(OBSERVED)
    assert not [f for f in findings if f.level in ("FAIL", "WARN")]
