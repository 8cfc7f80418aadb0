"""Every planted fault is caught with its code, and nothing that is right is called wrong.

docs/verification-mutations.md counts them by code; write it anew with `python -m tests.verification.test_mutations`.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.verification import (
    faults_config,
    faults_deep,
    faults_etrm,
    faults_feudal,
    faults_job,
    faults_language,
    faults_model,
    faults_none,
    faults_script,
)
from tests.verification.mutations import Fault, copy_repository, overlay
from verification.codes import ALSO_OBSERVED, CODES, OBSERVED
from verification.finding import Finding
from verification.static import verify_all, verify_command, verify_file

ROOT = Path(__file__).resolve().parents[2]
FAULTS = (
    *faults_job.FAULTS,
    *faults_config.FAULTS,
    *faults_script.FAULTS,
    *faults_model.FAULTS,
    *faults_language.FAULTS,
    *faults_feudal.FAULTS,
    *faults_etrm.COMMANDS,
)
GOOD = (*faults_none.GOOD, *faults_language.GOOD)
STEPS = {
    "1": "Step 1: job",
    "2": "Step 2: script and task",
    "3": "Step 3: recipe",
    "4": "Step 4: architecture",
    "5": "Step 5: model",
    "data": "Data",
    "dyn": "Behaviour",
    "doc": "Pages",
}
PAGE = ROOT / "docs" / "verification-mutations.md"
VERDICT = "SUM600"
"""The guide's last line: fails with whatever failed before it."""


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_repository(ROOT, tmp_path_factory.mktemp("pristine") / "repo")


def examine(case: Fault, pristine: Path, probes: bool) -> list[Finding]:
    """What the rules, and where asked for the probes, say about `case`.

    All trees stand at one path, one after the other: compositions are kept by path and content, so most are made once.
    A command alone is judged by the code of this process.
    """
    if not (case.edits or case.everything or case.jobs is not None):
        return _findings(case, ROOT, probes, local_data=False)
    place = pristine.parent / "planted"
    try:
        return _findings(case, overlay(pristine, place, case.edits), probes)
    finally:
        shutil.rmtree(place)


def _findings(case: Fault, root: Path, probes: bool, **how: bool) -> list[Finding]:
    if case.everything:
        reports = verify_all(root, probes=False)
    elif case.jobs is not None:
        file = root / "jobs" / "jobs-planted.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(case.jobs, encoding="utf-8")
        reports = verify_file(file, root=root, probes=probes)
    else:
        intent = dict(case.intent) or None
        reports = [verify_command(shlex.split(case.job), root=root, intent=intent, probes=probes, **how)]
    return [finding for report in reports for finding in report.findings]


def report_lines(findings: list[Finding]) -> str:
    return "\n".join(f"{f.level} {f.code} {f.place} {f.message}" for f in findings if f.level in ("FAIL", "WARN"))


# --- the faults -------------------------------------------------------------------------------------------------------


def some_slow(cases: Sequence[Fault], kinds: Sequence[object], one_of: int = 1) -> list[Any]:
    """(case, probes): each case by the rules alone, where they decide it (kind None), and one of `one_of` such cases
    with the probes in the slow tests; the first case of every other kind with the probes, the others in the slow tests.
    """
    rows: list[Any] = []
    known: set[object] = {None}
    decided = 0
    for case, kind in zip(cases, kinds, strict=True):
        if kind is None:
            decided += 1
            rows.append(pytest.param(case, False, id=f"{case.name}-rules"))
        if not case.everything and (kind is not None or decided % one_of == 0):
            rows.append(pytest.param(case, True, id=case.name, marks=pytest.mark.slow if kind in known else ()))
        known.add(kind)
    return rows


SHOWN = {*OBSERVED, *ALSO_OBSERVED} - {"CFG255", "ARC340"}
STEPS_OF = [CODES[min(fault.codes)].step if fault.probes or set(fault.codes) & SHOWN else None for fault in FAULTS]
"""The step of what a tiny instance shows, which takes seconds: one of each step is fast. None where the rules judge."""
TENTHS = [number // 10 if good.edits and not good.everything else None for number, good in enumerate(GOOD)]
"""Of changed code that is right, nine of ten are slow."""


@pytest.mark.parametrize(("fault", "probes"), some_slow(FAULTS, STEPS_OF, one_of=10))
def test_a_planted_fault_is_caught_with_its_code_and_no_other(fault: Fault, probes: bool, pristine: Path) -> None:
    findings = examine(fault, pristine, probes)
    right = {f.code for f in findings if f.level == fault.level}
    assert right >= set(fault.codes), f"{fault.what}: no {fault.level} {fault.codes}\n{report_lines(findings)}"
    failed = {f.code for f in findings if f.level == "FAIL"}
    allowed = {VERDICT, *fault.follows, *(fault.codes if fault.level == "FAIL" else ())}
    assert failed <= allowed, f"{fault.what}: also failed\n{report_lines(findings)}"
    for finding in findings:
        if finding.code in fault.codes and finding.level == fault.level:
            assert len(finding.message) > 15, finding
            assert "\n" not in finding.message, finding
            assert finding.fix, finding
            assert str(pristine.parent) not in finding.message, f"a temporary folder is named: {finding.message}"


def test_the_table_is_large_and_its_codes_are_known() -> None:
    assert len(FAULTS) >= 40
    names = Counter(case.name for case in (*FAULTS, *GOOD, *faults_etrm.FAULTS))
    assert max(names.values()) == 1, names.most_common(1)
    assert {code for fault in FAULTS for code in (*fault.codes, *fault.follows)} <= CODES.keys()


# --- no false alarms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("good", "probes"), some_slow(GOOD, TENTHS))
def test_what_is_right_raises_no_alarm(good: Fault, probes: bool, pristine: Path) -> None:
    findings = examine(good, pristine, probes)
    assert findings, "nothing was verified"
    alarms = [f for f in findings if f.level == "FAIL" or (f.level == "WARN" and f.code in good.quiet)]
    assert not alarms, f"{good.what}\n{report_lines(alarms)}"


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> str:
    """What is planted: the number of faults by step and code."""
    faults = (*FAULTS, *faults_deep.FAULTS, *faults_etrm.FAULTS)
    lines = [
        "# Planted faults",
        "",
        f"{len(faults)} slips, each made in a copy of this repository, must be reported by `scripts/verify_path.py` under",
        f"their code; {len(GOOD)} unusual but correct things must raise no failure. The faults are in tests/verification/faults_*.py.",
        "Generated: `python -m tests.verification.test_mutations`.",
        "",
        "| | faults | codes |",
        "|---|---|---|",
    ]
    for step, title in STEPS.items():
        codes = Counter(fault.codes[0] for fault in faults if CODES[fault.codes[0]].step == step)
        shown = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
        lines.append(f"| {title} | {codes.total()} | {shown} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        f"{PAGE.name} is stale: python -m tests.verification.test_mutations"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
