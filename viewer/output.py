"""Writes drawings; they only replace drawings of the same command, never other files."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from engine.errors import UsageError
from engine.io import atomic_write_bytes, atomic_write_json, print_rank0
from reports.output import check_own, writing
from viewer.examples import StoredRun
from viewer.tasks import Record
from viewer.trajectory import Headline, Layout, Trajectory

SUFFIXES = (".png", ".gif", ".html")
DEFAULT_COUNTS = {".png": 4, ".gif": 4, ".html": 32}
"""Number of examples without --examples."""
MARK = b"Loopforge visualize"
"""Mark in the first bytes of every drawing."""


def default_file(run: StoredRun, args: argparse.Namespace) -> Path:
    """`thinking_step_N.png` in the run folder; the name contains every setting that is not the default."""
    opened = run.opened
    parts = [f"thinking_step_{opened.checkpoint.step}"]
    if run.split != "test":
        parts.append(run.split)
    if args.example is not None:
        parts.append(f"example-{args.example}")
    if args.data:
        parts.append("data-" + "-".join(entry["content_hash"][:8] for entry in run.data))
    if run.steps != opened.config.arch.get("halt_max_steps", run.steps):
        parts.append(f"steps-{run.steps}")
    if args.weights == "raw" and opened.checkpoint.has_ema:
        parts.append("raw")
    run_dir: Path = opened.run_dir
    return run_dir / ("_".join(parts) + ".png")


def check_target(target: Path) -> None:
    """Raise UsageError if `target` is a folder or a file that this command did not write, or cannot be written."""
    check_own(target, MARK, "drawing of visualize.py", example="thinking.html")


def check_count(count: int, suffix: str, layout: Layout, steps: int) -> None:
    """Raise UsageError if a file of this kind cannot hold that many examples."""
    from viewer.animation import animation_capacity
    from viewer.page import page_capacity
    from viewer.picture import picture_capacity

    most = {
        ".png": lambda: picture_capacity(layout, steps),
        ".gif": lambda: animation_capacity(steps),
        ".html": lambda: page_capacity(layout, steps),
    }
    if count > (holds := most[suffix]()):
        size = f"{layout.rows}x{layout.columns} boards over {steps} steps"
        roomier = page_capacity(layout, steps)
        other = f"; --out NAME.html holds {roomier}" if suffix != ".html" and roomier > holds else ""
        if not holds:
            raise UsageError(f"--steps {steps}: a {suffix} has no room for {size}{other}")
        raise UsageError(f"--examples {count}: a {suffix} of {size} holds at most {holds}{other}")


def write(target: Path, trajectories: list[Trajectory], headline: Headline) -> str:
    """Draw in the format of `target`'s suffix, and return the line that reports it.

    Raises:
        UsageError: the file cannot be written.
    """
    from viewer.animation import draw_animation
    from viewer.page import draw_page
    from viewer.picture import draw_picture

    if target.suffix.lower() == ".html":
        data = draw_page(trajectories, headline).encode("utf-8")
        size = f"{len(trajectories)} examples, {len(data) / 1e6:.2f} MB"
    elif target.suffix.lower() == ".gif":
        data = draw_animation(trajectories, headline)
        with Image.open(io.BytesIO(data)) as animation:
            size = f"{trajectories[0].steps} frames, {animation.width} x {animation.height}"
    else:
        picture = draw_picture(trajectories, headline)
        data, size = png_of(picture), f"{picture.width} x {picture.height}"
    return _written(target, data, size)


def _written(target: Path, data: bytes, size: str) -> str:
    with writing(target, "file with --out"):
        atomic_write_bytes(target, data)
    return f"written {target} ({size})"


def png_of(picture: Image.Image) -> bytes:
    """A picture as a PNG file with the mark of this command."""
    stream, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("Software", MARK.decode())
    picture.save(stream, format="PNG", optimize=True, pnginfo=notes)
    return stream.getvalue()


def draw_record(args: argparse.Namespace) -> None:
    """Print the first tasks of the record of an evaluation (arc_tasks.json), or draw all of them into a file."""
    from viewer.task_picture import print_tasks
    from viewer.tasks import read_record
    from viewer.terminal import make_console

    defaults = {"split": "test", "data": None, "steps": None, "weights": None, "example": None, "among": None}
    for name, default in {**defaults, "device": "auto", "terminal": False}.items():
        if getattr(args, name) != default:
            raise UsageError(f"--{name} has no meaning for the record of an evaluation, {args.checkpoint}")
    target = None if args.out is None else args.out.absolute()
    if target is not None and target.suffix.lower() == ".gif":
        raise UsageError(f"--out {args.out}: tasks are drawn as .png or .html; a run gives a .gif over its ACT steps")
    record = read_record(args.checkpoint)
    if target is not None:
        check_target(target)
    title = args.checkpoint.stem
    print_rank0(f"{title}: {len(record.tasks)} tasks, {sum(task.solved is True for task in record.tasks)} solved")
    print_rank0(record.meaning)
    count = args.examples or DEFAULT_COUNTS[".png"]
    if target is None:
        print_tasks(make_console(args.no_color), record.tasks[:count])
    else:
        print_rank0(write_tasks(target, record, title))


def write_tasks(target: Path, record: Record, title: str) -> str:
    """Draw the tasks of a record as a page or a picture, by `target`'s suffix, and return the line that reports it.

    Raises:
        UsageError: the file cannot be written.
    """
    from viewer.gallery import MAX_TASKS, draw_gallery
    from viewer.task_picture import draw_tasks

    if target.suffix.lower() == ".html":
        scores = ((name.rpartition("/")[2], value) for name, value in record.scores.items() if value is not None)
        shown = ", ".join(f"{name} {value:.2%}" for name, value in scores if "@" in name and name[-1].isdigit())
        facts = [("Protocol", record.meaning), *([("Scores", shown)] if shown else [])]
        data = draw_gallery(record, title, facts).encode("utf-8")
        size = f"{min(MAX_TASKS, len(record.tasks))} tasks, {len(data) / 1e6:.2f} MB"
    else:
        picture = draw_tasks(record, title)
        data, size = png_of(picture), f"{picture.width} x {picture.height}"
    return _written(target, data, size)


def check_record(target: Path) -> None:
    """Raise UsageError if `target`, or the picture next to it, is a file that these commands did not write."""
    from viewer.tasks import read_record

    check_target(target.with_suffix(".png"))
    if target.exists() or target.is_symlink():
        try:
            read_record(target)
        except UsageError:
            raise UsageError(
                f"{target} exists and is not a record of predict.py: remove it or name another with --out"
            ) from None


def show_prediction(record: dict[str, Any], target: Path, *, no_color: bool) -> None:
    """Print the task of a prediction, and write it as JSON with a picture next to it. Raises: UsageError."""
    from viewer.task_picture import print_tasks
    from viewer.tasks import record_from
    from viewer.terminal import make_console

    shown = record_from(record, str(target))
    print_tasks(make_console(no_color), shown.tasks)
    with writing(target, "file with --out"):
        atomic_write_json(target, record)
    print_rank0(f"written {target}")
    print_rank0(write_tasks(target.with_suffix(".png"), shown, target.stem))
