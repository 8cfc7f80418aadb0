"""The table of probes: a code, what holds when nothing is found, and a generator of what was found.

A probe yields one sentence per fault (a FAIL), or a `Note` of another level. A family of models adds its own with
`@observes(...)`; one that does not concern a model raises `Unobservable`, which becomes a SKIP.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from verification.finding import Finding, Level
from verification.probes.instance import Tiny, Unobservable


@dataclass(frozen=True)
class Note:
    """Something that a probe says besides faults."""

    level: Level
    message: str


Observation = Callable[[Tiny], Iterator["str | Note"]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One row of the table."""

    code: str
    passed: str
    """What has been observed when no fault was."""
    fix: str
    run: Observation


PROBES: dict[tuple[str, str], Probe] = {}
"""(code, data mode) -> its probe."""


def observes(code: str, *, passed: str, fix: str, data_modes: tuple[str, ...] = ("embedding",)) -> Callable:
    """Register the decorated generator under `code` for models of `data_modes`."""

    def register(run: Observation) -> Observation:
        for mode in data_modes:
            PROBES[code, mode] = Probe(code=code, passed=passed, fix=fix, run=run)
        return run

    return register


def look(probe: Probe, tiny: Tiny) -> list[Finding]:
    """Findings of one probe: its faults and notes, or a PASS. An error inside is a fault: the run would meet it too."""
    notes: list[Finding] = []
    faults: list[Finding] = []
    try:
        for said in probe.run(tiny):
            if isinstance(said, Note):
                notes.append(Finding(probe.code, said.level, "dyn", said.message))
            else:
                faults.append(Finding(probe.code, "FAIL", "dyn", said, probe.fix))
    except Unobservable as reason:
        return [*faults, *notes, Finding(probe.code, "SKIP", "dyn", f"not observed: {reason}")]
    except Exception as error:
        file, line = _place(error)
        text = f"stopped with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        faults.append(Finding(probe.code, "FAIL", "dyn", text, probe.fix, file, line))
    if faults:
        return [*faults, *(note for note in notes if note.level != "PASS")]
    return notes or [Finding(probe.code, "PASS", "dyn", probe.passed)]


def _place(error: BaseException) -> tuple[str, int]:
    """The innermost frame of the examined repository: (file, line)."""
    here = Path(__file__).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" not in path.parts and path.parent != here and path.is_file():
            return path.name if len(path.parts) < 3 else "/".join(path.parts[-3:]), frame.lineno or 0
    return "", 0
