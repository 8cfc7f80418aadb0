"""Small ARC tasks for tests: random grids, with a symmetric task and one that fills the canvas among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Tasks = dict[str, dict[str, list[dict[str, Any]]]]


def random_tasks(count: int, seed: int, *, least: int = 1, side: int = 6) -> Tasks:
    """`count` tasks of one to three demonstrations and one or two tests; in every second one the tests stand first."""
    generator = np.random.default_rng(seed)

    def grid() -> list[list[int]]:
        return generator.integers(0, 10, generator.integers(least, side + 1, 2)).tolist()

    tasks = {}
    for number in range(count):
        pairs = {
            kind: [{"input": grid(), "output": grid()} for _ in range(generator.integers(1, most + 1))]
            for kind, most in (("train", 3), ("test", 2))
        }
        order = ("test", "train") if number % 2 else ("train", "test")
        tasks[f"{seed}{number:03}"] = {kind: pairs[kind] for kind in order}
    return tasks


def symmetric_task() -> dict[str, list[dict[str, Any]]]:
    """Two colours that no transform changes: it has only 9 different colourings, and the order of its pairs is free."""
    square, other = [[1, 1], [1, 1]], [[1]]
    return {
        "train": [{"input": square, "output": other}, {"input": other, "output": square}],
        "test": [{"input": square, "output": square}],
    }


def write_bundle(folder: Path, subset: str, tasks: Tasks, *, solutions: bool = True) -> str:
    """The combined files of a subset; returns the prefix."""
    folder.mkdir(exist_ok=True)
    questions = {
        name: {kind: [e if kind == "train" else {"input": e["input"]} for e in task[kind]] for kind in task}
        for name, task in tasks.items()
    }
    (folder / f"t_{subset}_challenges.json").write_text(json.dumps(questions))
    if solutions:
        answers = {name: [e["output"] for e in task["test"]] for name, task in tasks.items()}
        (folder / f"t_{subset}_solutions.json").write_text(json.dumps(answers))
    return str(folder / "t")


def write_folder(folder: Path, tasks: Tasks) -> Path:
    """A file for each task."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in tasks.items():
        (folder / f"{name}.json").write_text(json.dumps(task))
    return folder
