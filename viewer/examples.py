"""A model's answers to examples of a split, and the selection of those to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dataset.format import PuzzleSplit
from engine.errors import UsageError
from engine.io import progress, read_json
from evaluators.intervals import wilson
from viewer.trajectory import Headline, Layout, Trajectory, cropped, layout_of, most_interesting

BATCH = 64
MAX_CANDIDATES = 256
CPU_WORK = 4e12
"""Most FLOPs for examining candidates on a CPU: about ten seconds to a minute."""


class StoredRun(Protocol):
    """A run loaded by its family's `load_puzzle_run`: a checkpoint, and the examples for its model."""

    opened: Any
    """engine.run.load_run.OpenedCheckpoint"""
    split: str
    """test or train"""
    splits: list[PuzzleSplit]
    data: list[dict[str, Any]]
    """Path and hashes of each data set."""
    steps: int
    """ACT steps per example."""

    @property
    def task(self) -> Any:
        """Its `model` has `think(batch, steps)`, which yields an output for each ACT step, and `flops(rows)`."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Selection:
    """The examples to draw, and how many of the examined candidates are solved."""

    trajectories: list[Trajectory]
    examined: int
    solved: int


def rows_of(splits: Sequence[PuzzleSplit], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Examples by their index over all sets of the split: inputs, labels [n, T], puzzle_identifiers [n]."""
    parts = [split.batch(index) for split, index in (_place_of(splits, number) for number in numbers)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _place_of(splits: Sequence[PuzzleSplit], number: int) -> tuple[PuzzleSplit, np.ndarray]:
    """The set that has an example, and its index there [1]."""
    base = np.cumsum([0] + [split.num_examples for split in splits])
    owner = int(np.searchsorted(base, number, side="right")) - 1
    return splits[owner], np.array([number - base[owner]])


def puzzle_of(splits: Sequence[PuzzleSplit], number: int) -> str:
    """The name of an example's puzzle; empty if the data set only has the blank name."""
    split, index = _place_of(splits, number)
    identifier = int(split.puzzle_identifiers[split.puzzles_of(index)[0]])
    names = _names(split.root)
    return names[identifier] if identifier != split.metadata.blank_identifier_id and identifier < len(names) else ""


@lru_cache(maxsize=4)
def _names(root: Path) -> list[str]:
    path = root / "identifiers.json"
    names = read_json(path) if path.exists() else []
    return [str(name) for name in names] if isinstance(names, list) else []


def open_puzzle_run(run: str | Path, **options: Any) -> StoredRun:
    """Open a run whose ACT steps can be drawn, with its examples. `options`: those of its family's `load_puzzle_run`
    (split, data, steps, weights, device).

    Raises: UsageError for a run without such steps; the message lists drawings that the run made itself.
    """
    from engine.run.load_run import family_function

    try:
        load = family_function(run, "loading", "load_puzzle_run")
    except UsageError as error:
        drawn = sorted(file.name for file in Path(run).glob("*") if file.suffix in (".html", ".png"))
        hint = f"; this one has drawn {', '.join(drawn)} itself" if drawn else ""
        raise UsageError(f"{error}{hint}") from None
    opened: StoredRun = load(run, **options)
    return opened


def layout_of_run(run: StoredRun) -> Layout:
    """The layout of a run's examples."""
    metadata = run.splits[0].metadata
    return layout_of(metadata.seq_len, metadata.vocab_size)


def batch_of(run: StoredRun, numbers: Sequence[int]) -> dict[str, Any]:
    """A batch of examples for `model.think(batch)`: tensors on its device, `inputs` and `labels` [n, T] and
    `puzzle_identifiers` [n]."""
    import torch

    rows = rows_of(run.splits, np.asarray(numbers, dtype=np.int64))
    return {name: torch.from_numpy(array).to(run.opened.runtime.device) for name, array in rows.items()}


def trajectories_of(run: StoredRun, numbers: Sequence[int]) -> list[Trajectory]:
    """The model's answers to examples of the split after every ACT step."""
    import torch

    model, layout, trajectories = run.task.model, layout_of_run(run), []
    pieces = [numbers[begin : begin + BATCH] for begin in range(0, len(numbers), BATCH)]
    for piece in progress(pieces, total=len(pieces), label="thinking"):
        batch = batch_of(run, piece)
        arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
        answers, halting, sure = [], [], []
        for output in model.think(batch, run.steps):
            answers.append(output.logits.argmax(dim=-1).cpu().numpy())
            halting.append(torch.sigmoid(output.q_halt_logits.float()).cpu().numpy())
            sure.append(torch.softmax(output.logits.float(), dim=-1).amax(dim=-1).cpu().numpy())
        for row, number in enumerate(piece):
            trajectories.append(
                cropped(
                    int(number),
                    layout,
                    arrays["inputs"][row],
                    arrays["labels"][row],
                    np.stack([answer[row] for answer in answers]),
                    np.array([q[row] for q in halting]),
                    np.stack([share[row] for share in sure]),
                    puzzle_of(run.splits, int(number)),
                )
            )
    return trajectories


def select_examples(run: StoredRun, count: int, *, example: int | None = None, among: int | None = None) -> Selection:
    """Select the examples to draw: `example`, or the `count` most interesting of `among` candidates of the split.

    Raises:
        UsageError: there is no such example.
    """
    total = sum(split.num_examples for split in run.splits)
    if total == 0:
        raise UsageError(f"{run.data[0]['path']} has no examples in the {run.split} split")
    if example is not None:
        if not 0 <= example < total:
            raise UsageError(f"--example {example}: the {run.split} split has examples 0 to {total - 1}")
        pool = trajectories_of(run, [example])
    else:
        if among is None:
            among = MAX_CANDIDATES
            if run.opened.runtime.device.type == "cpu":
                among = int(min(MAX_CANDIDATES, max(8.0, CPU_WORK / run.task.model.flops(1)["eval"])))
        among = min(total, max(among, count))
        pool = trajectories_of(run, np.unique(np.linspace(0, total - 1, among).round().astype(int)).tolist())
    return Selection(most_interesting(pool, count), len(pool), sum(t.solved_from is not None for t in pool))


def make_headline(run: StoredRun, chosen: Selection) -> Headline:
    """The title and facts of a drawing, including the accuracy over all examined examples."""
    opened, trajectories = run.opened, chosen.trajectories
    weights = "averaged weights" if opened.weights == "ema" else "raw weights"
    solved = sum(trajectory.solved_from is not None for trajectory in trajectories)
    data = ", ".join(entry["path"].rsplit("/", 1)[-1] for entry in run.data)
    title = f"{run.name}  ·  step {opened.checkpoint.step}"
    subtitle = (
        f"{data}, {run.split} split, {weights}, {run.steps} ACT steps; {solved} of {len(trajectories)} shown solved"
    )
    share, (low, high) = chosen.solved / chosen.examined, wilson(chosen.solved, chosen.examined)
    accuracy = f"{share:.1%} ({chosen.solved} of {chosen.examined} examined; 95 % interval {low:.1%} to {high:.1%})"
    if chosen.examined > len(trajectories):
        kinds = (["the last to be solved"] if solved else []) + (
            ["unsolved ones"] if solved < len(trajectories) else []
        )
        subtitle += f"; of {chosen.examined} examined, {chosen.solved} are solved ({share:.1%})"
        subtitle += f", drawn: {' and '.join(kinds)}"
    facts = (
        ("Run", run.name),
        ("Checkpoint", f"step {opened.checkpoint.step}, {weights}"),
        ("Data", f"{data}, {run.split} split"),
        ("Exact accuracy", f"{accuracy} after {run.steps} ACT steps"),
    )
    return Headline(title, subtitle, facts)
