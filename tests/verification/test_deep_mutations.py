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
from typing import Any

import pytest
import torch

from engine.cli.resolve import resolve
from tests.conftest import run_forked
from tests.verification import faults_etrm
from tests.verification.faults_deep import FAULTS
from tests.verification.mutations import Fault, copy_repository, overlay
from tests.verification.probing import OBSERVED, SLOW, probe
from verification.finding import Finding

ROOT = Path(__file__).resolve().parents[2]
OURS = ("models", "losses", "tasks", "evaluators", "dataset", "pretrain", "pretrain_etrm")


@functools.cache
def of_command(job: str) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """`python SCRIPT WORDS...`, composed by this repository: (config, script, overrides)."""
    _, script, *words = shlex.split(job)
    trace = resolve(ROOT / script, words, root=ROOT)
    assert trace.resolved is not None, trace.problems
    return trace.resolved, Path(script).stem, tuple(trace.overrides)


def observe(root: Path, job: str, codes: Sequence[str]) -> list[Finding]:
    """What the probes say about the code in `root`, which is imported in its own process."""
    result = run_forked(_child, str(root), list(codes), *of_command(job), cwd=root)
    assert result.code == 0, result.output
    return [Finding(**row) for row in json.loads(result.output.splitlines()[-1])]


def _child(root: str, codes: list[str], config: dict, entry: str, words: Sequence[str]) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in OURS or n.startswith("verification.probes")]:
        del sys.modules[name]
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    findings = probe(config, entry=entry, root=Path(root).resolve(), only=codes, overrides=words)
    assert Path(sys.modules["models"].__file__ or "").is_relative_to(Path(root).resolve())
    print(json.dumps([asdict(finding) for finding in findings]))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.empty(2, device="meta").erfinv_()  # loads what a model without memory needs, once and not in every child
    return copy_repository(ROOT, tmp_path_factory.mktemp("pristine") / "repo")


SHOWN_FAST = {"etrm-cached-for-episode", "etrm-rate-not-applied", "etrm-frozen-decays"}
FIRST = {fault.codes: fault.name for fault in reversed(FAULTS)}.values()  # one of each code; the others are slow tests


@pytest.mark.parametrize(
    "fault",
    [fault if fault.name in {*FIRST, *SHOWN_FAST} else SLOW(fault) for fault in (*FAULTS, *faults_etrm.FAULTS)],
    ids=lambda fault: fault.name,
)
def test_a_fault_of_behaviour_is_observed(fault: Fault, pristine: Path, tmp_path: Path) -> None:
    findings = observe(overlay(pristine, tmp_path / fault.name, fault.edits), fault.job, fault.codes)
    failed = {f.code for f in findings if f.level == "FAIL"}
    assert failed == set(fault.codes), [f"{f.level} {f.code} {f.message}" for f in findings]


def test_unchanged_code_passes_every_probe(pristine: Path) -> None:
    findings = observe(pristine, FAULTS[0].job, OBSERVED)
    assert {f.code for f in findings} >= set(OBSERVED)
    assert not [f for f in findings if f.level in ("FAIL", "WARN")]
