"""Faults that only show when the model runs: each is caught by the probe that observes it.

Every fault runs in a forked process that imports the changed copy: torch is loaded already, so each costs tenths of a second.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.cli.compose import compose_config
from tests.conftest import run_forked
from tests.verification.faults_deep import FAULTS
from tests.verification.mutations import Fault, copy_repository, overlay
from tests.verification.probing import OBSERVED, SLOW, probe
from verification.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
OURS = ("models", "losses", "tasks", "evaluators", "dataset", "pretrain", "tasks.recursive_reasoning.args")
OVERRIDES = ["arch.puzzle_emb_ndim=64", "puzzle_emb_lr=0.01", "arch.L_cycles=2", "arch.no_ACT_continue=true"]


def resolved() -> dict:
    """A recipe with a puzzle embedding, so that every probe has something to look at."""
    composed = compose_config([ROOT / "config"], "cfg_pretrain_sudoku_4x4", OVERRIDES)
    return OmegaConf.to_container(composed.config, resolve=True)  # type: ignore[return-value]


def observe(root: Path, config: dict, codes: list[str]) -> list[Finding]:
    """What the probes say about the code in `root`, which is imported in a process of its own."""
    result = run_forked(_child, str(root), config, codes, cwd=root)
    assert result.code == 0, result.output
    return [Finding(**row) for row in json.loads(result.output.splitlines()[-1])]


def _child(root: str, config: dict, codes: list[str]) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in OURS or n.startswith("verification.probes")]:
        del sys.modules[name]
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    found = probe(config, entry="pretrain", root=Path(root).resolve(), only=codes)
    assert Path(sys.modules["models"].__file__ or "").is_relative_to(Path(root).resolve())
    print(json.dumps([finding.as_dict() for finding in found]))


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


FIRST = {fault.codes: fault for fault in reversed(FAULTS)}.values()  # one of each code; the others are slow tests


@pytest.mark.parametrize(
    "fault", [fault if fault in FIRST else SLOW(fault) for fault in FAULTS], ids=lambda fault: fault.name
)
def test_a_fault_of_behaviour_is_observed(fault: Fault, pristine: Path, config: dict, tmp_path: Path) -> None:
    findings = examine(fault, pristine, tmp_path, config)
    failed = {f.code for f in findings if f.level == "FAIL"}
    assert failed == set(fault.codes), [f"{f.level} {f.code} {f.message}" for f in findings]


def test_unchanged_code_passes_every_probe(pristine: Path, config: dict) -> None:
    findings = observe(pristine, config, list(OBSERVED))
    assert {f.code for f in findings} >= set(OBSERVED)
    assert not [f for f in findings if f.level in ("FAIL", "WARN")]
