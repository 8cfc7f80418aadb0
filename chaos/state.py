"""The contents of a folder after a command has completed: two runs may differ only in wall-clock times."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.checkpoint.store import CheckpointStore
from engine.io import is_leftover
from engine.reading import Unreadable
from engine.run.files import is_finished, read_json
from reports.losses import compare_losses, read_losses

WEIGHTS = ("model.safetensors", "ema.safetensors", "state.safetensors", "state.json")
"""Files of a checkpoint that are equal byte for byte; its manifest has the time."""
LAUNCH_FILES = {
    "status.json",
    "environment.json",
    "identity.json",
    "config.yaml",
    "config.resolved.yaml",
    "all_config.yaml",
    "overrides.txt",
    "path_signature.json",
}
"""Files of a run that describe its last launch: when, on what, with which resume options."""
LOST_ON_FULL_DISK = ("best", "links", "samples", "evaluations")
"""Parts of a run that may be missing after a full disk."""
MEASURED = {"best_val_loss_and_iter.txt": 2}
"""CSV files -> number of fields at the end of each line that are memory and time."""
TIMES = ("time", "seconds", "created", "built", "duration")
"""Keys of JSON files with wall-clock times."""


def runs_in(place: Path) -> list[Path]:
    """The run directories in a folder, sorted."""
    return sorted(file.parent for file in place.rglob("identity.json") if not file.is_symlink())


def finished(place: Path, reference: Path) -> bool:
    """Whether all runs of `reference` are completed in `place` too: the same command would start a new run."""
    runs = [place / run.relative_to(reference) for run in runs_in(reference)]
    return bool(runs) and all(is_finished(run) for run in runs)


def state_of(place: Path) -> dict[str, Any]:
    """Everything that must equal that of an undisturbed run of the same command, by file or part."""
    runs = runs_in(place)
    state: dict[str, Any] = {}
    for run in runs:
        state |= {f"{run.relative_to(place)}: {part}": value for part, value in _run_state(run).items()}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink() or not path.is_file() or _is_log(name) or any(run in path.parents for run in runs):
            continue
        if not path.name.endswith(".lock"):
            state[name] = _content(path)
    folders = sorted(
        str(path.relative_to(place)) for path in [*place.iterdir(), *(p for r in runs for p in r.iterdir())]
    )
    state["names"] = [name for name in folders if not (place / name).is_symlink()]
    state["leftovers"] = [str(path.relative_to(place)) for path in _all(place) if is_leftover(path.name)]
    state["links to nothing"] = [str(p.relative_to(place)) for p in _all(place) if p.is_symlink() and not p.exists()]
    state["locks held"] = [str(path.relative_to(place)) for path in _all(place) if _is_held(path)]
    return state


def _all(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.rglob("*")) if not _is_log(str(path.relative_to(place))))


def _is_log(name: str) -> bool:
    return name.startswith((".cache/", "logs/")) or ".state/" in name


def _run_state(run: Path) -> dict[str, Any]:
    store = CheckpointStore(run, "")
    latest, best = store.latest(), store.best()
    state: dict[str, Any] = {
        "state": read_json(run / "status.json").get("state"),
        "summary.json": without_times(read_json(run / "summary.json")),
        "latest": latest and latest.name,
        "best": best and best.name,
        "metrics.jsonl": [without_times(json.loads(line)) for line in _lines(run / "metrics.jsonl")],
        "metrics.csv": _csv(run / "metrics.csv"),
    }
    state["links"] = {p.name: os.readlink(p) for p in sorted(run.iterdir()) if p.is_symlink() and p.name[:5] != "step_"}
    for pointer, folder in (("latest", latest), ("best", best)):
        for name in WEIGHTS if folder is not None else ():
            state[f"{pointer}/{name}"] = _content(folder / name)  # type: ignore[operator]
    for path in sorted(run.rglob("*")):
        inside = path.relative_to(run)
        own = inside.parts[0] in ("checkpoints", "wandb", "tensorboard") or inside.name in {*LAUNCH_FILES, ".lock"}
        if path.is_file() and not path.is_symlink() and not own and str(inside) not in state:
            state[str(inside)] = _content(path)
    return state


def without_times(value: Any) -> Any:
    """A JSON value without the keys for wall-clock times."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and not k.startswith("time/")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _csv(file: Path) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO("\n".join(_lines(file))))
    return [{name: value for name, value in row.items() if not str(name).startswith("time/")} for row in rows]


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.suffix == ".json" and path.name != "state.json":
        try:
            return without_times(json.loads(path.read_bytes()))
        except ValueError:
            pass
    if count := MEASURED.get(path.name):
        return [line.split(",")[:-count] for line in _lines(path)]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_held(path: Path) -> bool:
    """Whether `path` is a lock file that a process holds."""
    if path.is_symlink() or not path.is_file() or not path.name.endswith(".lock"):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def differences(
    expected: dict[str, Any], actual: dict[str, Any], reference: Path, place: Path, *, with_best: bool = True
) -> list[str]:
    """A line for each part in which the folder `place` (`actual`) differs from the undisturbed one (`expected`).

    Without `with_best`: a save that failed on a full disk may have been the best one, or one that a link names (the end
    of an epoch); its weights are lost, and so is an evaluation's report at that step.
    """
    lines = []
    for part in {**expected, **actual}:
        ours, theirs = expected.get(part), actual.get(part)
        run, _, name = part.rpartition(": ")
        if ours == theirs or (not with_best and run and name.partition("/")[0] in LOST_ON_FULL_DISK):
            continue
        if name == "metrics.jsonl" and ours and theirs:
            lines.append(f"{part}: {_metrics(reference / run, place / run)}")
        elif isinstance(ours, str) and len(ours) == 64:
            lines.append(f"{part}: {'other bytes' if theirs else 'is not there'}")
        elif (
            isinstance(ours, list) and isinstance(theirs, list) and all(isinstance(each, str) for each in ours + theirs)
        ):
            lost, new = (sorted({*a} - {*b}) for a, b in ((ours, theirs), (theirs, ours)))
            lines.append(
                f"{part}: {f'{lost} missing' if lost else ''}{' ' * bool(lost and new)}{f'{new} more' if new else ''}"
            )
        else:
            lines.append(f"{part}: {theirs!r:.200} instead of {ours!r:.200}")
    return lines


def _metrics(reference: Path, place: Path) -> str:
    try:
        differing, _ = compare_losses(read_losses(reference), read_losses(place))
    except (OSError, ValueError, Unreadable) as error:
        return str(error)
    if not differing:
        return "other lines, of the same values"
    first = differing[0]
    return (
        f"{len(differing)} metrics differ, first {first.metric} at step {first.step}: {first.second!r}, "
        f"not {first.first!r}"
    )
