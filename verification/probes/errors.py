"""Errors that are swallowed (SCR141): a call under each handler of exceptions fails once, and that must come out.

Python keeps a table of handlers with each function, so code without one costs nothing. The functions are those of our
packages that the script's launch, the building of a run, its steps and its evaluation enter, the engine's own included.
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
    """The failure; nothing has a reason to expect it."""


Point = tuple[CodeType, int]
"""A function, and where in its code the handler is that guards a call."""


@probe("SCR141", "SCR120", level="WARN")
def swallowed(tiny: Tiny) -> Iterator[str | Note]:
    """The launch, the check, the building, one training step and an evaluation, with one call failing each time."""
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
            if place not in places and not _comes_out(act, (code, handler), files):
                places[place] = None
                yield Note("WARN", f"{code.co_qualname} swallows every error of what it calls here", place)


class Files(dict[str, str]):
    """File -> its name below the root; "" for what is none of ours, or the verifier's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> str:
        path = Path(name).resolve()
        ours = path.is_relative_to(self.root) and path.is_file()
        self[name] = path.relative_to(self.root).as_posix() if ours else ""
        if self[name].startswith("verification/") or "site-packages" in name:
            self[name] = ""
        return self[name]


def _comes_out(act: Callable[[], Any], target: Point, files: Files) -> bool:
    """Whether a failure of the first call at `wanted` ends the act."""
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
    return not raised  # a call that was not made this time


@functools.lru_cache(maxsize=4096)
def _handler(code: CodeType, place: int) -> int | None:
    """Where the handler of a call at `place` begins, None where nothing guards it."""
    entries = [one for one in dis.Bytecode(code).exception_entries if one.start <= place < one.end]  # type: ignore[attr-defined]
    return entries[-1].target if entries else None


def _run(act: Callable[[], Any], seen: Callable[[Point, int], Any], files: Files) -> None:
    """`act`, reporting every guarded call of `files`, with its line."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        caller = frame.f_back if event == "call" else frame if event == "c_call" else None
        if caller is None or not caller.f_code.co_exceptiontable or not files[caller.f_code.co_filename]:
            return
        if (handler := _handler(caller.f_code, caller.f_lasti)) is not None:
            seen((caller.f_code, handler), caller.f_lineno)

    with profiled(profile):
        act()
