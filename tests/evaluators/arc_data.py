"""A small ARC data set, and the public evaluator's rules in plain loops: what the vectorised ones are held against."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from dataset.writing import SplitArrays, write_dataset

SIDE = 6
Grid = np.ndarray


def dihedral(grid: Grid, number: int) -> Grid:
    """Spec of the public builder: 0 none, 1 to 3 quarter turns counter-clockwise, 4 fliplr, 5 flipud, 6 transpose,
    7 fliplr of the first turn."""
    if number < 4:
        return np.rot90(grid, number)
    return {4: np.fliplr, 5: np.flipud, 6: np.transpose, 7: lambda g: np.fliplr(np.rot90(g))}[number](grid)


def augmented(grid: Grid, symmetry: int, colours: str) -> Grid:
    return dihedral(np.array([int(c) for c in colours])[grid], symmetry)


def restored(grid: Grid, symmetry: int, colours: str) -> Grid:
    back = dihedral(grid, [0, 3, 2, 1, 4, 5, 6, 7][symmetry])
    return np.array([colours.index(str(old)) for old in range(10)])[back] if back.size else back


def tokens(grid: Grid, side: int = SIDE) -> np.ndarray:
    canvas = np.zeros((side, side), dtype=np.uint8)
    rows, columns = grid.shape
    canvas[:rows, :columns] = grid + 2
    if rows < side:
        canvas[rows, :columns] = 1
    if columns < side:
        canvas[:rows, columns] = 1
    return canvas.ravel()


def naive_crop(sequence: np.ndarray, side: int) -> Grid:
    canvas = sequence.reshape(side, side)
    best, size, width = 0, (0, 0), side
    for rows in range(1, side + 1):
        for column in range(1, width + 1):
            if not 2 <= canvas[rows - 1, column - 1] <= 11:
                width = column - 1
                break
        if rows * width > best:
            best, size = rows * width, (rows, width)
    return canvas[: size[0], : size[1]].astype(int) - 2


def make_tasks(rng: np.random.Generator, count: int, hidden: bool = False) -> dict:
    """Tasks with one to three test grids; each answer is its input mirrored."""
    tasks = {}
    for number in range(count):
        pairs = []
        for _ in range(2 + 1 + number % 3):
            grid = rng.integers(0, 10, rng.integers(2, SIDE + 1, size=2))
            pairs.append({"input": grid.tolist(), "output": np.fliplr(grid).tolist()})
        tasks[f"task{number}"] = {"train": pairs[:2], "test": pairs[2:]}
    if hidden:
        del tasks["task0"]["test"][0]["output"]
    return tasks


def write_arc(root: Path, *, count: int = 5, copies: int = 3, seed: int = 0, leakage: bool | None = False, **options):
    """A data set with `copies` augmentations of each task beside it; returns (tasks, names)."""
    rng = np.random.default_rng(seed)
    tasks = make_tasks(rng, count, **options)
    names = ["<blank>"]
    arrays: dict[str, dict[str, list]] = {
        split: {"inputs": [], "labels": [], "ids": [], "puzzles": [0], "groups": [0]} for split in ("train", "test")
    }
    for task, content in tasks.items():
        variants = [(0, "0123456789")]
        while len(variants) <= copies:
            variants.append((int(rng.integers(8)), "0" + "".join(map(str, rng.permutation(np.arange(1, 10))))))
        for place, (symmetry, colours) in enumerate(variants):
            names.append(f"{task}|||t{symmetry}|||{colours}" if place else task)
            for split, table in arrays.items():
                for pair in content[split]:
                    for key, side in (("inputs", "input"), ("labels", "output")):
                        grid = np.array(pair.get(side, [[0]]))
                        table[key].append(tokens(augmented(grid, symmetry, colours)))
                table["ids"].append(len(names) - 1)
                table["puzzles"].append(len(table["inputs"]))
        for table in arrays.values():
            table["groups"].append(len(table["ids"]))
    splits = {
        split: SplitArrays(
            np.stack(t["inputs"]),
            np.stack(t["labels"]),
            np.array(t["ids"]),
            np.array(t["puzzles"]),
            np.array(t["groups"]),
        )
        for split, t in arrays.items()
    }
    card = {"name": root.name, "source": "test"} | ({} if leakage is None else {"leakage": {"empty": not leakage}})
    write_dataset(root, splits, vocab_size=12, seq_len=SIDE * SIDE, card=card, identifiers=names)
    (root / "test_puzzles.json").write_text(json.dumps(tasks))
    return tasks, names


def naive_scores(tasks: dict, names: list[str], rows: list[tuple[int, np.ndarray, np.ndarray, float]], ks) -> dict:
    """Votes and scores as the public evaluator counts them; rows: identifier, input and answer tokens, q logit."""
    votes: dict = defaultdict(list)
    for identifier, asked, answer, logit in rows:
        if identifier == 0:
            continue
        task, *rest = names[identifier].split("|||")
        symmetry, colours = (int(rest[0][1:]), rest[1]) if rest else (0, "0123456789")
        question = restored(naive_crop(asked, SIDE), symmetry, colours)
        given = restored(naive_crop(answer, SIDE), symmetry, colours)
        confidence = 1 / (1 + np.exp(-np.float64(np.float32(logit))))
        votes[task, question.tobytes(), question.shape].append((given.tolist(), confidence))
    shares: dict = {k: [] for k in ks}
    submission = {}
    for task, content in tasks.items():
        solved = {k: [] for k in ks}
        submission[task] = []
        for pair in content["test"]:
            question = np.array(pair["input"])
            table: dict = {}
            for grid, confidence in votes[task, question.tobytes(), question.shape]:
                entry = table.setdefault(json.dumps(grid), [0, 0.0])
                entry[0] += 1
                entry[1] += confidence
            ranking = sorted(table.items(), key=lambda item: (item[1][0], item[1][1] / item[1][0]), reverse=True)
            grids = [json.loads(text) for text, _ in ranking]
            for k in ks:
                solved[k].append(pair["output"] in grids[:k])
            first = [grid or [[0]] for grid in grids[:2]] or [[[0]]]
            first += first[:1] * (2 - len(first))
            submission[task].append({f"attempt_{n}": grid for n, grid in enumerate(first, start=1)})
        for k in ks:
            shares[k].append(solved[k])
    return {
        "pass": {k: float(np.mean([np.mean(one) for one in shares[k]])) for k in ks},
        "all_pairs": {k: float(np.mean([all(one) for one in shares[k]])) for k in ks},
        "submission": submission,
    }
