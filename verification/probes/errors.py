"""Errors that are swallowed (SCR141): each call that could be guarded fails once, and the failure must come out.

Only functions that handle exceptions at all are looked at (their code has an exception table), so most code costs
nothing. The files are those that a reviewer reads: the script, what builds the run, task and model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from verification.probes.instance import Tiny, Unobservable, step
from verification.probes.registry import Note, observes
from verification.probes.wiring import reviewed_files

MOST = 60
"""Calls that are made to fail."""


class Injected(Exception):
    """The failure; nothing has a reason to expect it."""


Point = tuple[CodeType, int]
"""A function and the line in it from which something is called."""


@observes("SCR141", level="WARN", after=("SCR120",), passed="no error is swallowed")
def swallowed(tiny: Tiny) -> Iterator[str | Note]:
    """The check, the building, one training step and an evaluation, with one call failing each time."""
    files = {str(tiny.root / file): file for file in reviewed_files(tiny)}
    task = tiny.build(run=tiny.spec.exercised).task

    def build() -> Any:
        return tiny.build(run=tiny.spec.exercised)

    def check() -> None:
        tiny.launch.module.FAMILY.check(tiny.config(run=tiny.spec.exercised))

    acts: tuple[Callable[[], Any], ...] = (check, build, lambda: step(task, 1), lambda: task.evaluate(final=True))
    places: dict[tuple[str, int], None] = {}
    for act in acts:
        points: list[Point] = []
        try:
            _run(act, points.append, files)
        except Exception as error:
            raise Unobservable(f"the tiny run stops with {type(error).__name__}") from error
        for code, line in list(dict.fromkeys(points))[:MOST]:
            if (files[code.co_filename], line) not in places and not _comes_out(act, (code, line), files):
                places[files[code.co_filename], line] = None
                text = f"{code.co_qualname} swallows every error of what it calls here"
                yield Note("WARN", text, (files[code.co_filename], line))


def _comes_out(act: Callable[[], Any], wanted: Point, files: dict[str, str]) -> bool:
    """Whether a failure of the call at `wanted` ends the act."""
    raised = False

    def fail(point: Point) -> None:
        nonlocal raised
        if point == wanted and not raised:
            raised = True
            raise Injected("a probe of the verifier")

    try:
        _run(act, fail, files)
    except Exception:
        return True
    return not raised  # a call that was not made this time


def _run(act: Callable[[], Any], seen: Callable[[Point], Any], files: dict[str, str]) -> None:
    """`act`, reporting every call made from a function of `files` that handles exceptions."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        caller = frame.f_back if event == "call" else frame if event == "c_call" else None
        if caller is not None and caller.f_code.co_exceptiontable and caller.f_code.co_filename in files:
            seen((caller.f_code, caller.f_lineno))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(before)
