"""Judges a run that is about to start by the rules and by cached observations of its config. Nothing is composed, built
or executed again, so it takes well below a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.cli.resolve import resolve
from engine.config import source_of, with_place
from engine.errors import UsageError
from engine.io import print_rank0
from engine.registry import FAMILIES, ROOT, Family
from launcher.command import parse
from verification import rules  # noqa: F401  they register on import
from verification.finding import Finding, Report
from verification.observed import observed
from verification.rule import run_rules, settled
from verification.signature import compare_signatures, make_signature
from verification.subject import Subject

__all__ = ["check_launch", "compare_signatures", "enforce", "preflight", "review"]
SETTLED = ("JOB020", "JOB030")
"""Codes that hold at a launch: Hydra has composed the config and the strict schema has accepted it; a config of
--config-dir need not be in config/."""


def review(config: Any, entry: str) -> tuple[Subject, Report]:
    """Judge a checked config as `engine.config.load_synced_config` returns it; `entry` is the script without .py."""
    words = source_of(config).overrides
    trace = resolve(ROOT / f"{entry}.py", words, root=ROOT, cwd=Path.cwd(), launched=config)
    subject = Subject(trace=trace, command=parse(["python", f"{entry}.py", *words]), kind="launch", job=entry)
    findings = settled([*run_rules(subject, launch=True), *observed(subject, start=False)])
    findings = [one for one in findings if one.code not in SETTLED]
    return subject, Report(entry, findings=findings, signature=make_signature(subject), subject=subject)


def check_launch(family: Family, config: Any) -> dict[str, Any]:
    """Check everything that can be checked before data are read: names and keys, then the path from command to model.

    Raises: UsageError.
    """
    if family.entry not in FAMILIES:
        text = "so its runs could not be read again: add the script to FAMILIES of engine/registry.py"
        raise UsageError(f"{family.entry}.py is not a known entry script, {text}")
    try:
        family.check(config)
    except UsageError as error:
        raise with_place(error, source_of(config)) from error
    return preflight(config, family.entry)


def preflight(config: Any, entry: str) -> dict[str, Any]:
    """Check the chain of a run and return its path signature.

    `config.verify` (strict where the schema has no such key): strict stops at a FAIL, warn prints it, off skips all.
    Warnings are printed, one line each.

    Raises: UsageError with code, message and fix of the first FAIL, under strict.
    """
    level = getattr(config, "verify", "strict")
    if level == "off":
        return {}
    _, report = review(config, entry)
    enforce(report, level, f"python scripts/verify_path.py -- python {entry}.py ...", print_rank0)
    return report.signature


def enforce(report: Report, level: str, command: str, emit: Callable[[str], None]) -> None:
    """Apply `verify=level` to a launch: warnings are emitted, one line each; strict stops at a FAIL.

    `command` shows all findings. Raises: UsageError with code, message and fix of the first FAIL.
    """
    if level == "off":
        return
    for finding in report.of("WARN"):
        emit(f"warning: {line_of(finding)}")
    failures = sorted(report.of("FAIL"), key=lambda finding: finding.code.startswith("SUM"))  # causes first
    if failures and level == "strict":
        more = f" (and {len(failures) - 1} more: {command})" if len(failures) > 1 else ""
        readable = report.subject is not None and report.subject.resolved  # else the run itself refuses it
        hint = "; verify=warn only warns" if readable else ""
        raise UsageError(f"{line_of(failures[0])}{more}{hint}")
    for finding in failures:
        emit(f"warning: {line_of(finding)}")


def line_of(finding: Finding) -> str:
    """A finding in one line: code, place, message, fix."""
    place = f" {finding.place}:" if finding.place else ""
    return f"{finding.code}{place} {finding.message}" + (f": {finding.fix}" if finding.fix else "")
