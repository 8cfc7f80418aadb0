"""The table of rules: each has the codes that it judges and a predicate over a traced command.

The meaning of the codes (step, what holds, why it matters, fix) is in verification/codes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from engine.cli.keys import inert_reason
from verification.codes import CODES
from verification.finding import BLIND, Finding, Level
from verification.link import Link
from verification.subject import Subject

Predicate = Callable[[Subject], Iterable[Finding]]
BROKEN = (
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    SyntaxError,
    RecursionError,
    OSError,
    ImportError,
)


class NotApplicable(Exception):
    """Raised by a rule that has nothing to judge; its text is the reason in a SKIP."""


@dataclass(frozen=True)
class Rule:
    """A predicate and the codes that it judges."""

    codes: tuple[str, ...]
    judge: Predicate
    at_launch: bool = True
    """False if it reads sources or a finished run, for which a launch does not wait."""
    implied: bool = False
    """Whether a code that the rule does not report holds; else it was not judged."""


RULES: list[Rule] = []


def rule(*codes: str, at_launch: bool = True) -> Callable[[Predicate], Predicate]:
    """Register a predicate. It yields what is wrong, or raises NotApplicable; otherwise its codes hold.

    Raises: ValueError for codes without a row in the table.
    """
    if unknown := [code for code in codes if code not in CODES]:
        raise ValueError(f"codes without a row in verification/codes.py: {', '.join(unknown)}")

    def register(judge: Predicate) -> Predicate:
        RULES.append(Rule(codes, judge, at_launch, implied=True))
        return judge

    return register


def finding(code: str, level: Level | str, message: str, file: str = "", line: int = 0, fix: str = "") -> Finding:
    """A finding; a FAIL or WARN without a fix gets that of the table."""
    row = CODES[code]
    wrong = level in ("FAIL", "WARN")
    return Finding(code, cast(Level, level), row.step, message, fix or (row.fix if wrong else ""), file, line)


def run_rules(subject: Subject, *, launch: bool = False) -> list[Finding]:
    """Judge a subject by all rules, in order. One that does not apply is a SKIP, one that fails a VER900."""
    family_rules = subject.family.rules if subject.family else ()
    findings: list[Finding] = []
    for one in (*RULES, *family_rules):
        if launch and not one.at_launch:
            continue
        results: list[Finding] = []
        reason = "" if one.implied else "there was nothing to judge"
        try:
            results.extend(one.judge(subject))
        except NotApplicable as error:
            reason = str(error)
        except BROKEN as error:
            reason = f"{one.judge.__name__} could not be carried out: {type(error).__name__}: {error}"
            results.append(finding("VER900", "WARN", reason))
        judged = {item.code for item in results}
        level = "SKIP" if reason else "PASS"
        findings += results
        findings += [finding(code, level, reason or CODES[code].title) for code in one.codes if code not in judged]
    return settled(findings)


def settled(findings: list[Finding]) -> list[Finding]:
    """Drop findings that others supersede: PASS and SKIP of codes with a FAIL or WARN, SKIP of codes that were judged,
    and all but the last SKIP of the other codes (a family's comes after the common one)."""
    wrong = {item.code for item in findings if item.level in ("FAIL", "WARN")}
    judged = {item.code for item in findings if item.level != "SKIP"}
    keep = [item for item in findings if item.level not in ("PASS", "SKIP") or item.code not in wrong]
    last = {item.code: item for item in keep}
    return [item for item in keep if item.level != "SKIP" or (item.code not in judged and last[item.code] is item)]


# --- preconditions of rules -------------------------------------------------------------------------------------------


def need_script(subject: Subject) -> None:
    """Raise NotApplicable if the command leads to no script with @hydra.main."""
    script = subject.trace.script
    if script is None:
        raise NotApplicable(subject.problems.get("script", "no script"))
    if not script.mains:
        raise NotApplicable(f"{subject.script_file} takes no Hydra config")


def need_config(subject: Subject) -> dict[str, Any]:
    """The resolved config. Raises NotApplicable."""
    need_script(subject)
    if subject.resolved is None:
        links = ("config", "compose", "resolve", "schema")
        raise NotApplicable(f"{BLIND}: {next((subject.problems[k] for k in links if k in subject.problems), '')}")
    return subject.resolved


def need_model(subject: Subject) -> Link:
    """The description of the model class. Raises NotApplicable if there is none."""
    need_config(subject)
    if subject.model.problem:
        raise NotApplicable(f"the model class is not found: {subject.model.problem}")
    return subject.model


def inert(subject: Subject, key: str) -> str:
    """Why a key has no effect with this config, as its field declares; "" if it has one."""
    return inert_reason(subject.schema, key, subject.resolved or {}) if subject.schema else ""
