"""Tasks from JSON: one file a task, or the combined bundles `PREFIX_SUBSET_challenges.json` and `_solutions.json`.

A task is {"train": [{"input": grid, "output": grid}, ...], "test": [the same]}; the answers of a bundle's tests are in
its solutions. The order of tasks and of the two keys is kept: the public builder's numbers follow from it. A malformed
task is a UsageError that names file, task and place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset.arc.augment import COLOURS, LARGEST, SEPARATOR
from engine.io import UsageError, did_you_mean, read_object

KINDS = ("train", "test")
CHALLENGES, SOLUTIONS = "challenges", "solutions"


@dataclass(frozen=True, eq=False)
class Pair:
    """One demonstration or test."""

    kind: str
    """train or test."""
    input: np.ndarray
    """uint8 [h, w]"""
    output: np.ndarray | None
    """uint8 [h', w']; None if the answer is not known."""

    def fits(self, side: int) -> bool:
        """Whether both grids fit a canvas of side x side, turned or not."""
        return max(self.input.shape + (() if self.output is None else self.output.shape)) <= side


@dataclass(frozen=True, eq=False)
class Task:
    """One task; its pairs in the order of its file."""

    name: str
    path: Path
    pairs: tuple[Pair, ...]

    def of(self, kind: str) -> list[Pair]:
        """The demonstrations (train) or the tests (test)."""
        return [pair for pair in self.pairs if pair.kind == kind]

    def within(self, side: int) -> Task:
        """The task with only the pairs that fit a canvas of side x side."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair.fits(side)))

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """The task as in its file, with the two keys in their order; a test without an answer has no output."""
        out: dict[str, list[dict[str, Any]]] = {}
        for pair in self.pairs:
            entry = {"input": pair.input.tolist()}
            if pair.output is not None:
                entry["output"] = pair.output.tolist()
            out.setdefault(pair.kind, []).append(entry)
        return out


@dataclass(frozen=True, eq=False)
class Subset:
    """Tasks that belong together, such as the evaluation set of ARC-AGI-1."""

    name: str
    tasks: tuple[Task, ...]
    files: tuple[Path, ...]
    """The files they were read from."""

    def within(self, side: int) -> Subset:
        """The tasks with a demonstration that fits a canvas of side x side, with only the pairs that fit."""
        tasks = [task.within(side) for task in self.tasks]
        return replace(self, tasks=tuple(task for task in tasks if task.of("train")))


def read_grid(value: Any, place: str) -> np.ndarray:
    """Check a grid and return it as uint8 [h, w]. Raises: UsageError that begins with `place`."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise UsageError(f"{place}: expected a grid (a list of rows of whole numbers), got {_short(value)}")
    width = len(value[0])
    for number, row in enumerate(value):
        if len(row) != width:
            raise UsageError(f"{place}: row {number} has {len(row)} cells, row 0 has {width}: a grid is a rectangle")
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise UsageError(
                    f"{place}: row {number} holds {_short(cell)}, expected whole numbers 0 to {COLOURS - 1}"
                )
    if len(value) > LARGEST or width > LARGEST:
        raise UsageError(f"{place}: the grid has {len(value)}x{width} cells, expected at most {LARGEST}x{LARGEST}")
    return np.array(value, dtype=np.uint8)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def parse_task(name: str, content: Any, path: Path, solutions: Any = None, answers: Path | None = None) -> Task:
    """The task in parsed JSON; `solutions` are the answers of its tests if they are in a file of their own, `answers`.

    Raises: UsageError naming file, task and place.
    """
    place, apart = f"{path}: task {name}", f"{answers}: task {name}"
    if SEPARATOR in name:
        raise UsageError(f"{place}: its name holds {SEPARATOR}, which separates a task from its augmentation")
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in KINDS):
        raise UsageError(f'{place}: expected {{"train": [pairs], "test": [pairs]}}, got {_short(content)}')
    for kind, meaning in (("train", "demonstrations"), ("test", "tests")):
        if not content[kind]:
            raise UsageError(f"{place} has no {meaning}: expected at least one pair in {kind!r}")
    if solutions is not None and (not isinstance(solutions, list) or len(solutions) != len(content["test"])):
        actual = len(solutions) if isinstance(solutions, list) else _short(solutions)
        raise UsageError(f"{apart}: expected {len(content['test'])} solutions, one for each test, got {actual}")
    pairs = []
    for kind in (key for key in content if key in KINDS):
        for number, entry in enumerate(content[kind]):
            here = f"{place}, {kind} pair {number}"
            if not isinstance(entry, dict) or "input" not in entry:
                raise UsageError(f'{here}: expected {{"input": grid, "output": grid}}, got {_short(entry)}')
            answer, where = entry.get("output"), f"{here}, output"
            if kind == "test" and solutions is not None:
                answer, where = solutions[number], f"{apart}, solution {number}"
            if answer is None and kind == "train":
                raise UsageError(f"{here} has no output: a demonstration needs one")
            output = None if answer is None else read_grid(answer, where)
            pairs.append(Pair(kind, read_grid(entry["input"], f"{here}, input"), output))
    return Task(name, path, tuple(pairs))


def read_task(path: str | Path) -> Task:
    """Read a task file; the task is named after it. Raises: UsageError."""
    path = Path(path)
    return parse_task(path.stem, _read_object(path), path)


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: UsageError, also for a repeated key, one of whose values would be lost."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{path}: {twice!r} appears twice in one object")
        return content

    content = read_object(path)
    json.loads(path.read_bytes(), object_pairs_hook=without_repeats)
    return content


def read_bundles(prefix: str, subsets: Sequence[str]) -> Iterator[Subset]:
    """Read the named subsets of `PREFIX_SUBSET_challenges.json`, with their solutions if that file exists.

    Raises: UsageError naming the file, and the existing subsets if one is missing.
    """
    for name in subsets:
        path, answers = (Path(f"{prefix}_{name}_{kind}.json") for kind in (CHALLENGES, SOLUTIONS))
        if not path.is_file():
            stem, end = Path(prefix).name + "_", f"_{CHALLENGES}.json"
            there = [file.name[len(stem) : -len(end)] for file in path.parent.glob(f"{stem}*{end}")]
            raise UsageError(f"--subsets {name}: {path} does not exist; " + did_you_mean(name, there))
        content = _read_object(path)
        solutions: Mapping[str, Any] = _read_object(answers) if answers.is_file() else {}
        if not content:
            raise UsageError(f"{path} holds no tasks")
        if answers.is_file() and (missing := [task for task in content if task not in solutions]):
            raise UsageError(f"{answers}: task {missing[0]}: its solutions are missing ({len(missing)} in all)")
        if extra := [task for task in solutions if task not in content]:
            raise UsageError(f"{answers}: task {extra[0]} is not in {path} ({len(extra)} in all)")
        tasks = [parse_task(task, value, path, solutions.get(task), answers) for task, value in content.items()]
        yield Subset(name, tuple(tasks), (path, answers) if answers.is_file() else (path,))


def _visible(path: Path) -> bool:
    """Whether a path is neither hidden nor left by macOS or Jupyter, which both leave copies of tasks."""
    return not path.name.startswith(".") and path.name != "__MACOSX"


def shared_names(subsets: Sequence[Subset]) -> list[str]:
    """Names that different tasks share."""
    known: dict[str, Task] = {}
    shared: dict[str, None] = {}
    for task in (task for subset in subsets for task in subset.tasks):
        first = known.setdefault(task.name, task)
        if first is not task and first.to_json() != task.to_json():
            shared[task.name] = None
    return list(shared)


def read_folders(folders: Sequence[Path], subsets: Sequence[str] | None = None) -> list[Subset]:
    """Read every sub-folder with task files as a subset of its name, and a folder that has task files itself, too.

    Subsets and files are sorted by name, while HRM's builder takes the file system's order. `subsets` chooses some.

    Raises: UsageError if there are no tasks, or if a chosen subset is missing, naming the existing ones.
    """
    places: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--dataset-dirs {folder}: there is no such folder")
        for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path))]:
            files = sorted(filter(_visible, place.glob("*.json")))
            if bundle := next((file for file in files if file.stem.endswith("_" + CHALLENGES)), None):
                prefix = bundle.stem.removesuffix("_" + CHALLENGES).rpartition("_")[0]
                raise UsageError(
                    f"--dataset-dirs {folder}: {bundle} is a bundle of tasks: use --input-file-prefix {place / prefix}"
                )
            if files:
                places.setdefault(place.name, []).extend(files)
    for name in subsets or ():
        if name not in places:
            raise UsageError(f"--subsets {name}: no folder of that name holds tasks; " + did_you_mean(name, places))
    if not places:
        deeper = (file for folder in folders for depth in ("*/*/*.json", "*/*/*/*.json") for file in folder.glob(depth))
        nearest = next(filter(_visible, deeper), None)
        hint = f", but in {nearest.parent}: give {nearest.parent.parent}" if nearest else ""
        raise UsageError(f"--dataset-dirs {' '.join(map(str, folders))}: no JSON files in it, nor in its folders{hint}")
    chosen = subsets or list(places)
    return [Subset(name, tuple(map(read_task, places[name])), tuple(places[name])) for name in chosen]
