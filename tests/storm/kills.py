"""kill -9 at a file operation of a run, then the same command again: as if nothing had happened.

    python -m tests.storm --kills 100 --seed 0

Operations are counted in the child: every rename, removal, folder, link, truncation and fsync, and every file opened
for writing, below the working directory. The process dies just before the n-th.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.storm.child import Outcome, execute, judge

RUNS: dict[str, tuple[str, ...]] = {
    "pretrain.py": (
        "--config-name=cfg_pretrain_sudoku_4x4",
        "+debug=tiny",
        "device=cpu",
        "threads=1",
        "max_steps=8",
        "epochs=4",
        "eval_interval=1",
        "checkpoint_interval=2",
        "log_interval=2",
        "keep_last=1",
        "ema=true",
        "verify=off",
        "enable_csv=true",
        "run_dir=run",
        "data_paths=[data/debug-sudoku-4x4]",
    ),
    "train.py": (
        "+debug=tiny_text",
        "device=cpu",
        "threads=1",
        "max_iters=8",
        "eval_interval=2",
        "checkpoint_interval=2",
        "log_interval=1",
        "keep_last=1",
        "verify=off",
        "run_dir=run",
        "dataset=plain",
    ),
}
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.link"}


def _at_operations(act: Callable[[int], None]) -> None:
    """In this process: call `act(n)` before the n-th file operation below the working directory."""
    here, count, fsync = os.getcwd(), 0, os.fsync

    def step() -> None:
        nonlocal count
        count += 1
        act(count)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS:
            place = args[1] if event in ("os.rename", "os.symlink") else args[0]
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            place = args[0]
        else:
            return
        if isinstance(place, int) or os.path.abspath(os.fsdecode(place)).startswith(here):
            step()

    def counted(handle: Any) -> None:
        step()
        fsync(handle)

    sys.addaudithook(hook)
    os.fsync = counted


def counting(file: Path) -> Callable[[], None]:
    """For a child: leave the number of its file operations in `file`."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return lambda: _at_operations(lambda number: os.pwrite(handle, b"%d" % number, 0) and None)


def killing(number: int) -> Callable[[], None]:
    """For a child: die just before its file operation `number`."""
    return lambda: _at_operations(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == number else None)


def state_of(folder: Path) -> dict[str, Any]:
    """What two runs that are the same have in common: results, weights, pointers, links and no leftovers."""
    run = folder / "run"
    store = run / "checkpoints"

    def text(path: Path) -> str:
        return path.read_text() if path.is_file() else "(none)"

    lines = [json.loads(line) for line in text(run / "metrics.jsonl").splitlines()]
    weights = {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(store.glob("step_*/*.safetensors"))
    }
    summary, status = (json.loads(text(run / f"{name}.json")) for name in ("summary", "status"))
    return {
        "state": status["state"],
        "metrics": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines],
        "results": summary["results"],
        "pointers": {name: text(store / name).strip() for name in ("latest", "best")},
        "weights": weights,
        "links": {path.name: os.readlink(path) for path in sorted(run.iterdir()) if path.is_symlink()},
        "beside": sorted(path.name for path in folder.iterdir()),
        "leftovers": sorted(
            str(p.relative_to(folder)) for p in folder.rglob(".*") if ".tmp-" in p.name or ".old-" in p.name
        ),
    }


def _done(folder: Path) -> bool:
    try:
        return json.loads((folder / "run/status.json").read_bytes())["state"] == "done"
    except OSError:
        return False


def storm(base: Path, scratch: Path, count: int, seed: int) -> Iterator[str]:
    """`count` kills, half of them of pretrain.py; yields a line for each fault. `base` holds data/ and is left alone."""
    chance = random.Random(seed)
    whole: dict[str, tuple[dict[str, Any], int]] = {}
    for script, words in RUNS.items():
        place = _fresh(base, scratch / f"whole-{script}")
        outcome = execute(script, words, place, before=counting(scratch / "count"))
        if outcome.code:
            raise RuntimeError(f"{script} does not run: {outcome.output[-2000:]}")
        whole[script] = state_of(place), int((scratch / "count").read_text())
    for number in range(count):
        script = sorted(RUNS)[number % len(RUNS)]
        words = (*RUNS[script], f"checkpoint_background={str(number % 4 > 1).lower()}")
        expected, operations = whole[script]
        place, said = _fresh(base, scratch / "killed"), []
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randint(1, operations)
            outcome = execute(script, words, place, before=killing(at))
            said.append(f"{at}/{operations}")
            if outcome.code not in (0, -signal.SIGKILL):
                yield f"{script} killed at {said}: then {outcome.code}: {outcome.last}"
            if _done(place):  # the same command again would be another run
                break
        else:
            outcome = execute(script, words, place)
        if outcome.code == -signal.SIGKILL:
            outcome = Outcome(0, outcome.output, outcome.seconds)
        if fault := judge(outcome, 60) or (outcome.last if outcome.code else ""):
            yield f"{script} killed at {said}, then: {fault}: {outcome.output[-500:]}"
            continue
        found = state_of(place)
        for key, value in expected.items():
            if found[key] != value:
                shown = "" if key == "weights" else f": {found[key]!r:.300} instead of {value!r:.300}"
                yield f"{script} killed at {said}: other {key}{shown}"


def _fresh(base: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "data").symlink_to(base / "data")
    return place
