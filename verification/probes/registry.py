"""The table of probes: for each code, a generator of faults.

A probe yields a sentence for each fault, or a `Note` of another level. It raises `Unobservable`, which becomes a SKIP,
if it does not apply to a model or cannot observe what it needs. Families add their own in their specification.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from verification.codes import CODES
from verification.finding import Finding, Level
from verification.link import place_of
from verification.probes.instance import Tiny, Unobservable
from verification.rule import finding


@dataclass(frozen=True)
class Note:
    """A report of a probe that is not a fault, or a fault with its place in the code."""

    level: Level
    message: str
    about: Any = None
    """The finding's place: a class or function, or (file, line)."""


Observation = Callable[[Tiny], Iterator["str | Note"]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row of the table."""

    code: str
    run: Observation
    passed: str = ""
    """Message if there is no fault; empty: the title in the table of codes."""
    fix: str = ""
    """Fix of a fault; empty: that of the table of codes."""
    level: Level = "FAIL"
    """Level of a fault that is a plain sentence."""
    act: bool | None = None
    """True: only for models with ACT steps, False: only for others, None: for all."""
    about: str = ""
    """Method of the task to which a finding without a place refers; empty: the model's training method."""
    after: tuple[str, ...] = ()
    """Codes after whose failure (or skip because of one) the probe is skipped, as there is nothing to observe."""


FIXED: Literal["fixed"] = "fixed"
PROBES: dict[tuple[str, bool | str | None], Probe] = {}
"""(code, `act` of the probe, or FIXED for models with a fixed number of steps) -> probe."""


def probe(code: str, *after: str, **options: Any) -> Callable[[Observation], Observation]:
    """Register the decorated generator under `code`. `options`: passed, fix, level, act, about (see `Probe`)."""

    def register(run: Observation) -> Observation:
        probe = Probe(code=code, run=run, after=after, **options)
        PROBES[code, probe.act] = probe
        return run

    return register


def run_probe(probe: Probe, tiny: Tiny) -> list[Finding]:
    """Findings of a probe: its faults and notes, or a PASS. An exception is a fault: the run would raise it, too."""
    findings: list[Finding] = []

    def add(level: Level, message: str, about: Any) -> None:
        fix = probe.fix if level in ("FAIL", "WARN") else ""
        findings.append(finding(probe.code, level, message, *place_of(about), fix=fix))

    try:
        for item in probe.run(tiny):
            note = item if isinstance(item, Note) else Note(probe.level, item)
            about = note.about
            if about is None and note.level in ("FAIL", "WARN"):
                about = subject_of(probe, tiny)
            add(note.level, note.message, about)
    except Unobservable as reason:
        add("SKIP", f"not observed: {reason}", None)
    except Exception as error:
        text = f"stopped with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        add("FAIL", text, place_of_error(error, tiny.root))
    if not findings:
        add("PASS", probe.passed or CODES[probe.code].title, None)
    failed = any(one.level in (probe.level, "FAIL") for one in findings)
    return [one for one in findings if not (failed and one.level == "PASS")]


def subject_of(probe: Probe, tiny: Tiny) -> Any:
    """The method of the task or of the model to which a probe refers, else their class."""
    owner, name = tiny.model_class, tiny.cache.get("train_forward") or "forward"
    if probe.about:
        owner, name = tiny.task_class, probe.about
    return getattr(owner, name, owner)


def place_of_error(error: BaseException, root: Path) -> tuple[str, int]:
    """(file, line) of the innermost frame in the examined repository; ("", 0) if there is none."""
    here = Path(__file__).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent != here and path.is_file() and path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix(), frame.lineno or 0
    return "", 0


def chosen(codes: Iterable[str], tiny: Tiny) -> list[Probe]:
    """The probes of `codes` that apply to the model of `tiny`, each after those that it depends on; a family's probe of
    a code is added to the common one."""
    kinds = (tiny.act_mode, tiny.spec.act, None)
    own = {probe.code: probe for probe in tiny.spec.probes()}
    common = {code: next((PROBES[code, kind] for kind in kinds if (code, kind) in PROBES), None) for code in codes}
    rows = {code: _both(row, own.get(code)) for code, row in common.items() if row or code in own}
    order = TopologicalSorter({code: [one for one in row.after if one in rows] for code, row in rows.items()})
    return [rows[code] for code in order.static_order()]


def _both(common: Probe | None, own: Probe | None) -> Probe:
    if common is None or own is None:
        row = common or own
        assert row is not None
        return row

    def run(tiny: Tiny) -> Iterator[str | Note]:
        yield from common.run(tiny)
        yield from own.run(tiny)

    return replace(common, run=run, passed=own.passed or common.passed)
