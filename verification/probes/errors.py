"""Probe of swallowed errors (SCR141): a call guarded by each exception handler fails once, which must not be hidden.

Python stores a table of handlers with each function, so code without one costs nothing. Examined are the functions of
our packages that the script's launch, the building of a run, its steps and its evaluation call, including the engine's.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from verification.probes.instance import Tiny, Unobservable, evaluate, step
from verification.probes.launch import launched, profiled
from verification.probes.registry import Note, probe

MOST = 60
"""Calls that are made to fail."""


class Injected(Exception):
    """The injected failure, which no code has a reason to expect."""


Point = tuple[CodeType, int]
"""A function, and the offset in its code of the handler that guards a call."""


@probe("SCR141", "SCR120", level="WARN")
def swallowed(tiny: Tiny) -> Iterator[str | Note]:
    """Launch, check, building, a training step and an evaluation, each with one failing call at a time."""
    files = Files(tiny.root)
    task = tiny.build(run=tiny.spec.exercised).task

    def start() -> None:
        if (error := launched(tiny.launch.module, tiny.settings).error) is not None:
            raise error

    acts: tuple[Callable[[], Any], ...] = (
        start,
        lambda: tiny.launch.module.FAMILY.check(tiny.config(run=tiny.spec.exercised)),
        lambda: tiny.build(run=tiny.spec.exercised),
        lambda: step(task, 1),
        lambda: evaluate(task),
    )
    places: dict[tuple[str, int], None] = {}
    for act in acts:
        points: dict[Point, int] = {}
        try:
            _run(act, points.setdefault, files)
        except Exception as error:
            raise Unobservable(f"the tiny run stops with {type(error).__name__}") from error
        for (code, handler), line in list(points.items())[:MOST]:
            place = (files[code.co_filename], line)
            if place not in places and not _propagates(act, (code, handler), files):
                places[place] = None
                yield Note("WARN", f"{code.co_qualname} swallows every error of what it calls here", place)


class Files(dict[str, str]):
    """File -> its name below the root; "" for files that are not ours, and for the verifier's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> str:
        path = Path(name).resolve()
        ours = path.is_relative_to(self.root) and path.is_file()
        self[name] = path.relative_to(self.root).as_posix() if ours else ""
        if self[name].startswith("verification/") or "site-packages" in name:
            self[name] = ""
        return self[name]


def _propagates(act: Callable[[], Any], target: Point, files: Files) -> bool:
    """Whether a failure of the first call at `target` ends the act."""
    raised = False

    def fail(point: Point, line: int) -> None:
        nonlocal raised
        if point == target and not raised:
            raised = True
            raise Injected("a probe of the verifier")

    try:
        _run(act, fail, files)
    except Exception:
        return True
    return not raised  # else the call was not made this time


@functools.lru_cache(maxsize=4096)
def _handler(code: CodeType, place: int) -> int | None:
    """The offset of the handler that guards a call at offset `place`; None if there is none."""
    entries = [one for one in dis.Bytecode(code).exception_entries if one.start <= place < one.end]  # type: ignore[attr-defined]
    return entries[-1].target if entries else None


def _run(act: Callable[[], Any], seen: Callable[[Point, int], Any], files: Files) -> None:
    """Run `act` and call `seen(point, line)` for every guarded call in `files`."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        caller = frame.f_back if event == "call" else frame if event == "c_call" else None
        if caller is None or not caller.f_code.co_exceptiontable or not files[caller.f_code.co_filename]:
            return
        if (handler := _handler(caller.f_code, caller.f_lasti)) is not None:
            seen((caller.f_code, handler), caller.f_lineno)

    with profiled(profile):
        act()
