"""The table of probes: a code, what holds when nothing is found, and a generator of what was found.

A probe yields one sentence per fault, or a `Note` of another level. One that does not concern a model, or cannot see
what it needs, raises `Unobservable`, which becomes a SKIP. A family of models brings its own in its specification.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from verification.codes import CODES
from verification.finding import Finding, Level
from verification.link import place_of
from verification.probes.instance import Tiny, Unobservable


@dataclass(frozen=True)
class Note:
    """Something that a probe reports besides faults, or a fault with the code that it is about."""

    level: Level
    message: str
    about: Any = None
    """The finding's place: a class or function, or (file, line)."""


Observation = Callable[[Tiny], Iterator["str | Note"]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row of the table."""

    code: str
    passed: str
    """What has been observed when no fault was."""
    run: Observation
    fix: str = ""
    """What to do; empty: the table of codes has it."""
    level: Level = "FAIL"
    """Of a fault that is a plain sentence."""
    act: bool | None = None
    """True: only for models that think in steps. None: for all."""
    about: str = ""
    """The method of the task that a finding without a place is about; empty: the model's training method."""
    after: tuple[str, ...] = ()
    """Codes whose failure leaves nothing to observe here: the probe is then skipped."""


PROBES: dict[tuple[str, bool | None], Probe] = {}
"""(code, whether it is for models that think in steps) -> its probe; a family's own takes its place."""


def observes(code: str, *, passed: str, **options: Any) -> Callable[[Observation], Observation]:
    """Register the decorated generator under `code`. `options`: fix, level, act, about, after (see `Probe`)."""

    def register(run: Observation) -> Observation:
        probe = Probe(code=code, passed=passed, run=run, **options)
        PROBES[code, probe.act] = probe
        return run

    return register


def run_probe(probe: Probe, tiny: Tiny) -> list[Finding]:
    """Findings of one probe: its faults and notes, or a PASS. An error inside is a fault: the run would meet it too."""
    notes: list[Finding] = []
    faults: list[Finding] = []
    try:
        for item in probe.run(tiny):
            note = item if isinstance(item, Note) else Note(probe.level, item)
            if note.about is None and note.level in ("FAIL", "WARN"):
                note = replace(note, about=subject_of(probe, tiny))
            (faults if note.level == probe.level else notes).append(_finding(probe, note))
    except Unobservable as reason:
        return [*faults, *notes, _finding(probe, Note("SKIP", f"not observed: {reason}"))]
    except Exception as error:
        file, line = place_of_error(error, tiny.root)
        text = f"stopped with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        faults.append(Finding(probe.code, "FAIL", CODES[probe.code].step, text, _fix(probe), file, line))
    if faults:
        return [*faults, *(note for note in notes if note.level != "PASS")]
    return notes or [_finding(probe, Note("PASS", probe.passed))]


def subject_of(probe: Probe, tiny: Tiny) -> Any:
    """What a probe is about: a method of the task or of the model, else their class."""
    owner, name = tiny.model_class, tiny.kept.get("train_forward") or "forward"
    if probe.about:
        owner, name = tiny.task_class, probe.about
    return getattr(owner, name, owner)


def _fix(probe: Probe) -> str:
    return probe.fix or CODES[probe.code].fix


def _finding(probe: Probe, note: Note) -> Finding:
    file, line = place_of(note.about)
    fix = _fix(probe) if note.level == probe.level and note.level != "PASS" else ""  # type: ignore[comparison-overlap]
    return Finding(probe.code, note.level, CODES[probe.code].step, note.message, fix, file, line)


def place_of_error(error: BaseException, root: Path) -> tuple[str, int]:
    """The innermost frame of the examined repository: (file, line)."""
    here = Path(__file__).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent != here and path.is_file() and path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix(), frame.lineno or 0
    return "", 0


def chosen(codes: Iterable[str], tiny: Tiny) -> list[Probe]:
    """The probes of these codes that are about the model of `tiny`, each after those that it depends on."""
    own = {probe.code: probe for probe in tiny.spec.probes()}
    rows = [own.get(code) or PROBES.get((code, tiny.spec.act)) or PROBES.get((code, None)) for code in codes]
    wanted = {row.code: row for row in rows if row}
    order = TopologicalSorter({code: [one for one in row.after if one in wanted] for code, row in wanted.items()})
    return [wanted[code] for code in order.static_order()]
