"""The public ARC builder's algorithm, step by step and in one process: what ours has to agree with, byte for byte.

Numpy's global legacy generator, sha256 of every augmented puzzle, one padded canvas at a time
(`python -m tests.dataset.bench_arc_data` measures against it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Grid = np.ndarray
Examples = list[tuple[Grid, Grid]]


def dihedral(grid: Grid, tid: int) -> Grid:
    if tid < 4:
        return np.rot90(grid, k=tid)
    if tid < 6:
        return np.fliplr(grid) if tid == 4 else np.flipud(grid)
    return np.transpose(grid) if tid == 6 else np.fliplr(np.rot90(grid, k=1))


def grid_hash(grid: Grid) -> str:
    return hashlib.sha256(bytes(grid.shape) + grid.tobytes()).hexdigest()


def puzzle_hash(examples: Examples) -> str:
    hashes = sorted(f"{grid_hash(question)}|{grid_hash(answer)}" for question, answer in examples)
    return hashlib.sha256("|".join(hashes).encode()).hexdigest()


def canvases(question: Grid, answer: Grid, moved: bool) -> list[Grid]:
    row = column = 0
    if moved:
        row = np.random.randint(0, 30 - max(question.shape[0], answer.shape[0]) + 1)  # noqa: NPY002
        column = np.random.randint(0, 30 - max(question.shape[1], answer.shape[1]) + 1)  # noqa: NPY002
    out = []
    for grid in (question, answer):
        high, wide = grid.shape
        canvas = np.pad(grid + 2, ((row, 30 - row - high), (column, 30 - column - wide)))
        if row + high < 30:
            canvas[row + high, column : column + wide] = 1
        if column + wide < 30:
            canvas[row : row + high, column + wide] = 1
        out.append(canvas.flatten())
    return out


def group_of(name: str, train: Examples, test: Examples, count: int) -> list[tuple[str, Examples, Examples]]:
    group, hashes = [(name, train, test)], {puzzle_hash(train + test)}
    for _ in range(5 * count):
        tid = np.random.randint(0, 8)  # noqa: NPY002
        table = np.concatenate([np.zeros(1, np.uint8), np.random.permutation(np.arange(1, 10, dtype=np.uint8))])  # noqa: NPY002
        changed = [[(dihedral(table[q], tid), dihedral(table[a], tid)) for q, a in part] for part in (train, test)]
        if (key := puzzle_hash(changed[0] + changed[1])) not in hashes:
            hashes.add(key)
            group.append((f"{name}|||t{tid}|||{''.join(map(str, table))}", changed[0], changed[1]))
        if len(group) > count:
            break
    return group


def build(
    subsets: Sequence[tuple[str, dict[str, Any], dict[str, Any]]],
    test_set: str,
    *,
    num_aug: int,
    seed: int = 42,
    encoder: bool = False,
) -> dict[str, Any]:
    """{"identifiers", "test_puzzles", "train", "test"} of (name, challenges, solutions) of each subset; the splits as
    arrays by name. `encoder`: whole tasks are held out, demonstrations before tests, with `num_demos`."""
    np.random.seed(seed)  # noqa: NPY002
    data: dict[str, list] = {"train": [], "test": []}
    test_puzzles = {}
    for subset, challenges, solutions in subsets:
        for task, grids in solutions.items():
            for number, grid in enumerate(grids):
                challenges[task]["test"][number]["output"] = grid
        tasks = list(challenges.items())
        np.random.shuffle(tasks)  # noqa: NPY002
        for name, task in tasks:
            parts: dict[str, Examples] = {"train": [], "test": []}
            for kind, entries in task.items():
                split = "test" if kind == "test" and subset == test_set else "train"
                parts[split] += [(np.array(e["input"], np.uint8), np.array(e["output"], np.uint8)) for e in entries]
            if encoder:
                held, kinds = subset == test_set, {"train": [], "test": []}
                for kind, entries in task.items():
                    kinds[kind] = [(np.array(e["input"], np.uint8), np.array(e["output"], np.uint8)) for e in entries]
                group = group_of(name, kinds["train"], kinds["test"], num_aug)
                data["test" if held else "train"].append([(title, a + b, len(a)) for title, a, b in group])
                if held:
                    test_puzzles[name] = task
                continue
            group = group_of(name, parts["train"], parts["test"], num_aug)
            data["train"].append([(title, train, 0) for title, train, _ in group])
            if subset == test_set:
                test_puzzles[name] = task
                data["test"].append([(title, test, 0) for title, _, test in group])
    numbers: dict[str, int] = {}
    for title in (title for groups in data.values() for group in groups for title, *_ in group):
        numbers.setdefault(title, len(numbers) + 1)
    out: dict[str, Any] = {"identifiers": ["<blank>", *numbers], "test_puzzles": test_puzzles}
    for split, groups in data.items():
        arrays: dict[str, list] = {"inputs": [], "labels": [], "puzzle_identifiers": [], "num_demos": []}
        puzzles, ends = [0], [0]
        for group in groups:
            for title, examples, demonstrations in group:
                arrays["num_demos"].append(demonstrations)
                stays = np.random.randint(0, len(examples))  # noqa: NPY002
                for number, (question, answer) in enumerate(examples):
                    question, answer = canvases(question, answer, split == "train" and number != stays)
                    arrays["inputs"].append(question)
                    arrays["labels"].append(answer)
                puzzles.append(len(arrays["inputs"]))
                arrays["puzzle_identifiers"].append(numbers[title])
            ends.append(len(puzzles) - 1)
        stacked = {name: np.array(values) for name, values in arrays.items()}
        out[split] = {**stacked, "puzzle_indices": np.array(puzzles), "group_indices": np.array(ends)}
    return out
