"""Pictures of runs for a report: a strip of a model's ACT steps, and tasks of the last ARC evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from engine.errors import UsageError
from engine.registry import families
from reports.overview.collect import RunView
from reports.overview.page import pictures_of
from viewer.examples import (
    CPU_WORK,
    Selection,
    StoredRun,
    make_headline,
    open_puzzle_run,
    select_examples,
    trajectories_of,
)
from viewer.output import png_of
from viewer.picture import draw_picture
from viewer.task_picture import draw_tasks
from viewer.tasks import read_record

MOST_STRIPS = 24
CANDIDATES = 64
"""Most candidates of which a strip shows the most interesting one."""
TASKS = 4
RECORD = re.compile(r"step_(\d+)_.*arc_tasks\.json")
Drawing = tuple[str, bytes]
"""Caption, PNG."""


def draw_missing(runs: Sequence[RunView]) -> tuple[dict[Path, list[Drawing]], list[str]]:
    """(pictures of each run, notes on those that could not be drawn): the tasks of its last ARC evaluation and, if the
    run has no picture, a strip of its ACT steps. All strips together may cost as much as one call of visualize.py.
    """
    pictures: dict[Path, list[Drawing]] = {}
    lacking = [run for run in runs if has_steps(run.entry) and not pictures_of(run)]
    strips, notes = lacking[:MOST_STRIPS], []
    for run in runs:
        try:
            tasks = draw_last_tasks(run.path)
            pictures[run.path] = [] if tasks is None else [tasks]
            if run in strips:
                pictures[run.path].append(draw_strip(run.path, work=CPU_WORK / len(strips)))
        except UsageError as error:
            notes.append(f"not drawn: {error}")
    if len(lacking) > MOST_STRIPS:
        notes.append(f"not drawn: {len(lacking) - MOST_STRIPS} runs beyond the first {MOST_STRIPS}")
    return pictures, notes


def has_steps(entry: str) -> bool:
    """Whether runs of this entry script have ACT steps that can be drawn."""
    return any(one.entry == entry and one.function("loading", "load_puzzle_run") is not None for one in families())


def draw_strip(run: Path, *, work: float) -> Drawing:
    """Draw one test example of the run over its ACT steps: the most interesting of the candidates that `work` FLOPs
    allow. Runs on the CPU, so that no training is disturbed.

    Raises: UsageError: no checkpoint, no data, or a model that is too large for `work`.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # do not print the chosen device
        opened = open_puzzle_run(run, device="cpu")
    among = int(min(CANDIDATES, work / opened.task.model.flops(1)["eval"]))
    if among < 1:
        raise UsageError(f"{run} takes too long to be drawn in passing: scripts/visualize.py draws it")
    chosen = select_examples(opened, 1, among=among)
    picture = draw_picture(chosen.trajectories, make_headline(opened, chosen))
    return f"thinking step {opened.opened.checkpoint.step}", png_of(picture)


def draw_examples(run: StoredRun, numbers: Sequence[int]) -> Image.Image:
    """Draw examples of the split: a row for each, a column for each ACT step."""
    shown = trajectories_of(run, numbers)
    chosen = Selection(shown, len(shown), sum(trajectory.solved_from is not None for trajectory in shown))
    return draw_picture(shown, make_headline(run, chosen))


def draw_last_tasks(run: Path) -> Drawing | None:
    """Draw the first tasks of the last record that an evaluation wrote into the run; None if there is none.

    Raises: UsageError for a damaged record.
    """
    records = [
        (int(match[1]), file) for file in run.glob("evaluations/*.json") if (match := RECORD.fullmatch(file.name))
    ]
    if not records:
        return None
    _, file = max(records)
    record = read_record(file)
    shown = dataclasses.replace(record, tasks=record.tasks[:TASKS])
    picture = draw_tasks(shown, f"{len(shown.tasks)} of {len(record.tasks)} tasks")
    return file.stem.replace("_", " "), png_of(picture)
