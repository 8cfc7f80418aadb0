"""The record of a speedrun: a JSON line in docs/results/speedruns.jsonl, and a row in the page next to it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import atomic_write_text, print_rank0
from engine.reading import Unreadable, parse_json
from engine.run.environment import describe_environment
from engine.run.files import read_json
from engine.run.load_run import open_checkpoint
from engine.task import TrainingPlan
from reports.cost.operations import stages, training_flops
from reports.machine.installation import cpu_name
from reports.output import writing
from reports.runs import curve
from reports.speedrun.tracks import Track

LINES, PAGE = "speedruns.jsonl", "speedruns.md"
BEGIN, END = "<!-- table: speedruns -->", "<!-- end -->"
HEAD = "| track | date | commit | hardware | seeds | result | training steps, FLOPs |\n|---|---|---|---|---|---|---|\n"


def seed_result(track: Track, run: Path) -> dict[str, Any]:
    """The result of one finished run. Raises: UsageError if it lacks the track's metric."""
    summary = read_json(run / "summary.json")
    step, final = summary.get("step"), (summary.get("results") or {}).get(track.metric)
    if type(step) is not int or final is None:
        raise UsageError(f"{run} has no {track.metric} in summary.json: the track needs the evaluation at the end")
    points = dict(curve(run, "time/cpu_s"))
    reached, opened = _reached(track, run)

    def flops(at: int) -> float | None:
        return training_flops(stages(opened.task.module, opened.batch_rows, steps=at, horizon=opened.total_steps))

    return {
        "value": final,
        "steps": step,
        "flops": flops(step),
        "training_cpu_s": points.get(step),
        "stand_in": summary.get("stand_in") is True,
        "reached": {
            f"{target:g}": at and {"step": at, "training_cpu_s": points.get(at), "flops": flops(at)}
            for target, at in reached.items()
        },
    }


def _reached(track: Track, run: Path) -> tuple[dict[float, int | None], TrainingPlan]:
    """(target -> step of the first checkpoint that reaches it, plan of the run)."""
    reached: dict[float, int | None] = dict.fromkeys(track.targets)
    saved = sorted((run / "checkpoints").glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))
    if not saved:
        raise UsageError(f"{run} has no checkpoint")
    for folder in saved if track.targets else saved[-1:]:
        with contextlib.redirect_stdout(io.StringIO()):  # the device would be printed each time
            opened = open_checkpoint(folder)
        if missing := [target for target, at in reached.items() if at is None]:
            value = opened.plan.task.evaluate(final=True)[track.metric]
            reached |= {target: opened.checkpoint.step for target in missing if value is not None and value >= target}
        if None not in reached.values():
            break
    return reached, opened.plan


def make_record(track: Track, commands: Mapping[int, Sequence[str]], runs: Mapping[int, Path]) -> dict[str, Any]:
    """The record of finished runs, one per seed. Raises: UsageError."""
    about = read_json(next(iter(runs.values())) / "environment.json") or describe_environment()
    git = about.get("git") or {}
    return {
        "track": track.name,
        "time": about.get("time"),
        "commit": git.get("commit"),
        "changed": bool(git.get("diff") or git.get("untracked")),
        "hardware": ", ".join([*about.get("accelerators", []), f"{cpu_name()}, {about.get('cpu_count')} cores"]),
        **{key: about.get(key) for key in ("python", "torch", "platform")},
        "metric": track.metric,
        "command": shlex.join(["python", track.words[0], *next(iter(commands.values()))[2:-2]]),
        "seeds": {str(seed): seed_result(track, run) for seed, run in runs.items()},
    }


def add_record(record: Mapping[str, Any], folder: Path) -> None:
    """Append a record to the lines in `folder`, and rewrite the table of the page there. Raises: UsageError."""
    lines, page = folder / LINES, folder / PAGE
    with writing(folder, "folder with --results"):
        before = lines.read_text() if lines.exists() else ""
        text = page.read_text() if page.exists() else f"# Speedruns\n\n{BEGIN}\n{END}\n"
        head, opened, rest = text.partition(BEGIN)
        _, closed, tail = rest.partition(END)
        if not (opened and closed):
            raise UsageError(f"{page} has no table between {BEGIN} and {END}: name another folder with --results")
        records = [*_records(before, lines), record]
        atomic_write_text(lines, before + json.dumps(record) + "\n")
        atomic_write_text(page, f"{head}{BEGIN}\n{HEAD}{''.join(map(row, records))}{END}{tail}")
    print_rank0(f"written     {lines}, {page}")


def _records(text: str, file: Path) -> list[dict[str, Any]]:
    try:
        return [parse_json(line) for line in text.encode().splitlines()]
    except Unreadable as error:
        raise UsageError(f"{file} is damaged ({error}): repair or remove the line, or name another folder") from None


def row(record: Mapping[str, Any]) -> str:
    """The table row of a record."""
    seeds = record["seeds"].values()
    commit = (record["commit"] or "-")[:7] + (" with changes" if record["changed"] else "")
    results = [_target(target, [seed["reached"][target] for seed in seeds]) for target in next(iter(seeds))["reached"]]
    values = [seed["value"] for seed in seeds]
    results.append(f"{record['metric']} {_spread(values)} at the end")
    if any(seed["stand_in"] for seed in seeds):
        results.append("stand-in data")
    counts = [seed["flops"] for seed in seeds if seed["flops"] is not None]
    work = f"{_spread([seed['steps'] for seed in seeds])}, {f'{statistics.median(counts):.3g}' if counts else '-'}"
    cells = (record["track"], str(record["time"])[:10], commit, record["hardware"], ", ".join(record["seeds"]))
    return f"| {' | '.join([*cells, '; '.join(results), work])} |\n"


def _target(target: str, reached: Sequence[Mapping[str, Any] | None]) -> str:
    arrivals = [each for each in reached if each is not None]
    if len(arrivals) < len(reached):
        return f"{target} by {len(arrivals)} of {len(reached)} seeds"
    seconds = [each["training_cpu_s"] for each in arrivals if each["training_cpu_s"] is not None]
    return f"{target} at step {_spread([each['step'] for each in arrivals])}, {_spread(seconds)} CPU s"


def _spread(values: Sequence[float]) -> str:
    """The median, with the range unless all values are equal."""
    if not values:
        return "-"
    low, middle, high = (f"{value:.4g}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
