"""The tasks of an evaluation, read once from the data sets: the meaning of identifiers, test grids, solutions, and the
protocol of the score.

The layout is that of `dataset/arc/`: identifiers.json has `TASK` or `TASK|||t3|||0918273645` (symmetry, new colour of
each colour), test_puzzles.json the original tasks, card.json the leakage report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.arc.augment import IDENTITY, LARGEST, Augmentation, parse_name
from dataset.arc.tokens import side_of
from dataset.format import PuzzleSplit, load_splits
from dataset.metadata import read_card
from engine.errors import UsageError
from engine.io import Unreadable, read_json, reason_of
from evaluators.voting.grids import add_owner, keys_of, undo_augmentation

CLASSES = {
    "i": "zero-shot: no example of the evaluated tasks was trained on",
    "ii": "test-time training for each task",
    "iii": "joint transductive: demonstrations of the evaluated tasks are in the training data",
}
"""Protocol classes; scores of different classes are not comparable."""
LEAKAGE = {
    "clean": "leakage report empty",
    "leak": "leakage report NOT empty",
    "unchecked": "no leakage report, weights of unknown origin, or tasks of another data set than was trained on",
    "contaminated": "a loaded decoder was trained on evaluated tasks",
}


@dataclass(frozen=True)
class Protocol:
    """How a score was obtained."""

    name: str
    """One of `CLASSES`."""
    leakage: str
    """One of `LEAKAGE`."""

    @property
    def mark(self) -> str:
        """Part of every metric name, e.g. `iii_clean`."""
        return f"{self.name}_{self.leakage}"

    @property
    def words(self) -> str:
        """Description in one line."""
        return f"protocol class ({self.name}), {CLASSES[self.name]}; {LEAKAGE[self.leakage]}"


@dataclass(frozen=True)
class Question:
    """One test grid of one task."""

    task: str
    number: int
    """Index within its task, from 0."""
    grid: list[list[int]]
    solution: list[list[int]] | None
    """None if it is not public."""


class Tasks:
    """The questions of the splits of an evaluation, looked up by the identifiers in their batches.

    Raises: UsageError that names a missing or inconsistent file.
    """

    def __init__(self, splits: Sequence[PuzzleSplit]) -> None:
        try:
            self.side = side_of(splits[0].metadata.seq_len)
            if self.side > LARGEST:
                raise ValueError(f"a canvas of {self.side}x{self.side} is larger than {LARGEST}x{LARGEST}")
        except ValueError as error:
            raise UsageError(f"{splits[0].root} holds no ARC grids: {error}") from None
        self.questions: list[Question] = []
        self.demonstrations: dict[str, list[dict[str, Any]]] = {}
        self._owner: dict[tuple[Path, str], int] = {}  # task of a data set -> its number
        roots = list(dict.fromkeys(split.root for split in splits))
        for root in roots:
            self._read_tasks(root, alone=len(roots) == 1)
        self._read_names(splits)
        self._index()
        self.protocol = Protocol(protocol_class(splits), leakage_of(splits))

    @property
    def names(self) -> list[str]:
        """Names of all tasks, ordered by number."""
        return list(self.demonstrations)

    def find(self, identifiers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Question of each row, -1 if none: identifiers [n], keys of the test inputs [n, 2] -> [n].

        Equal grids of a task count as one question, the first.
        """
        if not len(self._keys):
            return np.full(len(keys), -1)
        keys = add_owner(keys, self._owners[self._row(identifiers)])
        rows = np.searchsorted(self._keys[:, 0], keys[:, 0])
        rows = np.minimum(rows, len(self._keys) - 1)
        known = (self._keys[rows] == keys).all(axis=1)
        return np.where(known, self._questions[rows], -1)

    def augmentation(self, identifiers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dihedral transform [n] and recolouring [n, 10] of each identifier [n]."""
        rows = self._row(identifiers)
        return self._tids[rows], self._tables[rows]

    def known(self, identifiers: np.ndarray) -> np.ndarray:
        """Whether each identifier [n] belongs to a task of these splits, bool [n]; False for the blank one."""
        rows = np.minimum(np.searchsorted(self._identifiers, identifiers), len(self._identifiers) - 1)
        known: np.ndarray = self._identifiers[rows] == identifiers
        return known

    def _row(self, identifiers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._identifiers, identifiers)

    def _read_tasks(self, root: Path, *, alone: bool) -> None:
        path = root / "test_puzzles.json"
        stored = _read(path)
        if not isinstance(stored, dict):
            raise UsageError(f"{path}: expected an object with a task for each name")
        for task, content in stored.items():
            name = task if alone or task not in self.demonstrations else f"{root.name}/{task}"
            try:
                self._owner[root, task] = len(self.demonstrations)
                self.demonstrations[name] = [
                    {"input": pair["input"], "output": pair["output"]} for pair in content["train"]
                ]
                for number, pair in enumerate(content["test"]):
                    self.questions.append(Question(name, number, pair["input"], pair.get("output")))
            except (TypeError, KeyError, AttributeError):
                raise UsageError(f"{path}: task {task!r} is not an object with train and test pairs") from None

    def _read_names(self, splits: Sequence[PuzzleSplit]) -> None:
        """Read task and augmentation of each identifier of the splits."""
        parsed: dict[int, tuple[int, Augmentation]] = {}
        for split in splits:
            path = split.root / "identifiers.json"
            names = _read(path)
            for identifier in np.unique(split.puzzle_identifiers).tolist():
                if identifier == split.metadata.blank_identifier_id:
                    continue
                if not isinstance(names, list) or identifier >= len(names):
                    count = len(names) if isinstance(names, list) else 0
                    raise UsageError(f"{path}: holds {count} names, and the {split.split} split has {identifier}")
                try:
                    task, augmentation = parse_name(str(names[identifier]))
                except ValueError as error:
                    raise UsageError(f"{path}: {error}") from None
                owner = self._owner.get((split.root, task), -1)
                parsed[identifier + split.identifier_offset] = (owner, augmentation)
        ordered = sorted(parsed.items())
        self._identifiers = np.array([identifier for identifier, _ in ordered], dtype=np.int64)
        # One extra row, for identifiers beyond the last.
        self._owners = np.array([*(owner for _, (owner, _) in ordered), -1], dtype=np.int64)
        augmentations = [*(augmentation for _, (_, augmentation) in ordered), IDENTITY]
        self._tids = np.array([augmentation.tid for augmentation in augmentations])
        self._tables = np.stack([augmentation.table for augmentation in augmentations])

    def _index(self) -> None:
        """Index the questions by the hash of task and grid."""
        numbers = {name: number for number, name in enumerate(self.demonstrations)}
        owners = np.array([numbers[question.task] for question in self.questions], dtype=np.int64)
        keys = add_owner(keys_of([question.grid for question in self.questions], self.side), owners)
        _, first, of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self.same_as = first[of.reshape(-1)]
        """First question with the same task and grid, to which their votes go; [questions]."""
        order = np.argsort(keys[first, 0], kind="stable")
        self._keys, self._questions = keys[first][order], first[order]
        self.solutions = keys_of([question.solution or [] for question in self.questions], self.side)
        """Keys of the solutions [questions, 2]; undefined where the solution is unknown."""


def unasked_questions(splits: Sequence[PuzzleSplit]) -> tuple[Tasks, list[Question]]:
    """(the tasks of the splits, the questions that no unaugmented puzzle asks, which a score leaves out).

    Raises: UsageError as `Tasks`.
    """
    tasks, asked = Tasks(splits), set[int]()
    for split in splits:
        examples = split.questions()
        examples = examples[np.isin(split.puzzles_of(examples), split.group_indices[:-1])]
        numbers = split.puzzle_identifiers[split.puzzles_of(examples)] + split.identifier_offset
        grids = split.batch(examples)["inputs"]
        asked |= set(tasks.find(numbers, undo_augmentation(grids, *tasks.augmentation(numbers))[1]).tolist())
    return tasks, [question for question, same in zip(tasks.questions, tasks.same_as, strict=True) if same not in asked]


def protocol_class(splits: Sequence[PuzzleSplit]) -> str:
    """iii if an evaluated identifier has training examples, of this run or of a loaded decoder; else i."""
    for split in splits:
        if split.split == "train" or split.leakage == "contaminated":
            return "iii"
        evaluated = split.puzzle_identifiers[split.puzzle_identifiers != split.metadata.blank_identifier_id]
        if any(np.isin(evaluated, train.puzzle_identifiers).any() for train in load_splits([split.root], "train")):
            return "iii"
    return "i"


def leakage_of(splits: Sequence[PuzzleSplit]) -> str:
    """Whether evaluation tasks are in the training data, by the data cards or by what is known of the model."""
    states = {split.leakage for split in splits if split.leakage}
    for root in {split.root for split in splits if not split.leakage}:
        card = read_card(root / "card.json") if (root / "card.json").exists() else {}
        report = card.get("leakage")
        empty = report.get("empty") if isinstance(report, dict) else None
        states.add("unchecked" if not isinstance(empty, bool) else "clean" if empty else "leak")
    return next(state for state in ("contaminated", "leak", "unchecked", "clean") if state in states)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist: arc@ARC reads data sets of `python -m dataset.build_arc_dataset`"
        ) from None
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None
