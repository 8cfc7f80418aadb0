"""Which files a launch runs through, from argv to the first optimizer step, seen by Python's profiler.

    python tests/metrics/trace.py TREE RESULT.json pretrain.py [ARGUMENT...]

Run by `tests.metrics` in its own process: it makes TREE importable, runs the script as `__main__` and stops at the
first `step` of an optimizer in engine/optim. Code in child processes (probes, data workers) is not seen.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

MARK = 0.00123457  # a learning rate that occurs nowhere else
CONFIGS = {"PretrainConfig", "TrainConfig"}


class Done(BaseException):
    """The optimizer's first step has begun."""


class Trace:
    """Files whose functions ran, those that held the marked value, and the files entered with the config in hand."""

    def __init__(self, root: Path) -> None:
        self.prefix = f"{root}/"
        self.ran: set[str] = set()
        self.marked: set[str] = set()
        self.config_path: list[str] = []
        self.reached = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if self.reached or not code.co_filename.startswith(self.prefix) or code.co_name == "<module>":
            return
        file = code.co_filename.removeprefix(self.prefix)
        self.ran.add(file)
        if event == "call" and code.co_name == "step" and file.startswith("engine/optim/"):
            self.reached = True
            raise Done
        values = [*frame.f_locals.values(), argument]
        if file not in self.marked and any(holds_mark(value, depth=2) for value in values):
            self.marked.add(file)
        if event == "call" and any(type(value).__name__ in CONFIGS for value in values):
            self.config_path += [file] if self.config_path[-1:] != [file] else []


def holds_mark(value: Any, depth: int) -> bool:
    if type(value) is float:
        return value == MARK
    if type(value) is str:
        return str(MARK) in value
    if depth and type(value) in (list, tuple, dict):
        return any(holds_mark(item, depth - 1) for item in (value.values() if type(value) is dict else value))
    return depth > 0 and type(value).__name__ in CONFIGS and getattr(value, "lr", None) == MARK


def main(root: Path, result: Path, script: str, arguments: list[str]) -> None:
    sys.path[0] = str(root)
    sys.argv = [str(root / script), *arguments]
    trace = Trace(root)
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException as end:  # Done, or what the script makes of it
        if not trace.reached:
            raise SystemExit(f"no optimizer step: {end!r}") from end
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    imported = {
        file.removeprefix(trace.prefix)
        for module in list(sys.modules.values())
        if (file := getattr(module, "__file__", None) or "").startswith(trace.prefix)
    }
    seen: set[str] = set()
    returns = 0
    for file in trace.config_path:
        returns += file in seen
        seen.add(file)
    outcome = {
        "ran": sorted(trace.ran),
        "marked": sorted(trace.marked),
        "imported": sorted(imported),
        "config_files": sorted(seen),
        "config_returns": returns,
    }
    result.write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
