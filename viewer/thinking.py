"""Let a model think about examples of a split, and choose those worth drawing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dataset.format import PuzzleSplit
from engine.errors import UsageError
from engine.io import progress
from evaluators.intervals import wilson
from tasks.recursive_reasoning.loading import PuzzleRun
from viewer.boards import Headline, Layout, Thought, fitted, most_interesting

BATCH = 64
AMONG = 256
CPU_WORK = 4e12
"""Floating-point operations that looking for interesting examples may cost on a CPU: some ten seconds to a minute."""


@dataclass(frozen=True)
class Chosen:
    """What is drawn, and how the examples that it was chosen from came out."""

    thoughts: list[Thought]
    looked_at: int
    solved: int


def rows_of(splits: Sequence[PuzzleSplit], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of these numbers over all sets of the split: inputs, labels [n, T], puzzle_identifiers [n]."""
    base = np.cumsum([0] + [split.num_examples for split in splits])
    parts = []
    for number in numbers:
        owner = int(np.searchsorted(base, number, side="right")) - 1
        parts.append(splits[owner].batch(np.array([number - base[owner]])))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def think(run: PuzzleRun, layout: Layout, numbers: np.ndarray) -> list[Thought]:
    """The model's answers to these examples after every ACT step."""
    model, device = run.task.model, run.opened.runtime.device
    thoughts = []
    pieces = [numbers[begin : begin + BATCH] for begin in range(0, len(numbers), BATCH)]
    for piece in progress(pieces, total=len(pieces), label="thinking"):
        arrays = rows_of(run.splits, piece)
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        answers, halting, sure = [], [], []
        for output in model.think(batch, run.steps):
            answers.append(output.logits.argmax(dim=-1).cpu().numpy())
            halting.append(torch.sigmoid(output.q_halt_logits.float()).cpu().numpy())
            sure.append(torch.softmax(output.logits.float(), dim=-1).amax(dim=-1).cpu().numpy())
        for row, number in enumerate(piece):
            thoughts.append(
                fitted(
                    int(number), layout, arrays["inputs"][row], arrays["labels"][row],
                    np.stack([answer[row] for answer in answers]), np.array([q[row] for q in halting]),
                    np.stack([share[row] for share in sure]),
                )
            )  # fmt: skip
    return thoughts


def choose(run: PuzzleRun, layout: Layout, args: argparse.Namespace, count: int) -> Chosen:
    """The examples to draw: that of --example, else the `count` most interesting of those looked at.

    Raises:
        UsageError: there is no such example.
    """
    total = sum(split.num_examples for split in run.splits)
    if total == 0:
        raise UsageError(f"{run.data[0]['path']} has no examples in the {args.split} split")
    if args.example is not None:
        if not 0 <= args.example < total:
            raise UsageError(f"--example {args.example}: the {args.split} split has examples 0 to {total - 1}")
        pool = think(run, layout, np.array([args.example]))
    else:
        among = args.among
        if among is None:
            among = AMONG
            if run.opened.runtime.device.type == "cpu":
                among = int(min(AMONG, max(8.0, CPU_WORK / run.task.model.flops(1)["eval"])))
        among = min(total, max(among, count))
        pool = think(run, layout, np.unique(np.linspace(0, total - 1, among).round().astype(np.int64)))
    return Chosen(most_interesting(pool, count), len(pool), sum(t.solved_from is not None for t in pool))


def headline(run: PuzzleRun, split: str, chosen: Chosen) -> Headline:
    """The words of every drawing, the accuracy over all that were looked at included."""
    opened, thoughts = run.opened, chosen.thoughts
    weights = "averaged weights" if opened.weights == "ema" else "raw weights"
    solved = sum(thought.solved_from is not None for thought in thoughts)
    data = ", ".join(entry["path"].rsplit("/", 1)[-1] for entry in run.data)
    title = f"{run.name}  ·  step {opened.checkpoint.step}"
    subtitle = f"{data}, {split} split, {weights}, {run.steps} ACT steps; {solved} of {len(thoughts)} shown solved"
    share, (low, high) = chosen.solved / chosen.looked_at, wilson(chosen.solved, chosen.looked_at)
    accuracy = f"{share:.1%} ({chosen.solved} of {chosen.looked_at} looked at; 95 % interval {low:.1%} to {high:.1%})"
    if chosen.looked_at > len(thoughts):
        kinds = (["the last to be solved"] if solved else []) + (["unsolved ones"] if solved < len(thoughts) else [])
        subtitle += f"; of {chosen.looked_at} looked at {chosen.solved} are solved ({share:.1%})"
        subtitle += f", drawn: {' and '.join(kinds)}"
    facts = (
        ("Run", run.name), ("Checkpoint", f"step {opened.checkpoint.step}, {weights}"),
        ("Data", f"{data}, {split} split"), ("Exact accuracy", f"{accuracy} after {run.steps} ACT steps"),
    )  # fmt: skip
    return Headline(title, subtitle, facts)
