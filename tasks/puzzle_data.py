"""Puzzle data sets for verification, shared by every family that trains on puzzles: their properties (from dataset.json
or the catalogue), rules about them, and tiny data sets for probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import read_object, user_path
from verification.data import DataPath
from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding
from verification.rules.data import there
from verification.subject import Subject

ENCODER_FILE = "all__num_demos.npy"
CATALOGUE = "dataset/catalog.py"


def puzzle_data(config: dict[str, Any], folder: Path, local: bool) -> Iterator[DataPath]:
    """The data sets of data_paths and data_paths_test, relative to `folder`; `local`: whether to read files on disk."""
    for key in ("data_paths", "data_paths_test"):
        for path in config.get(key) or []:
            yield read_puzzles(str(path), key, folder, local, config.get("offline") != "error")


def read_puzzles(path: str, key: str, folder: Path, local: bool, stand_ins: bool = True) -> DataPath:
    """Describe one puzzle data set, from its dataset.json if it is on disk, else from the catalogue."""
    from dataset.catalog import BUILT, PUBLISHED
    from dataset.metadata import refuse_split

    root, name = folder / user_path(path), Path(path).name
    if not (local and root.exists()):
        entry: Any = BUILT.get(name) or PUBLISHED.get(name)
        if entry is None:
            return DataPath(path, key, "unknown")
        state = "built on first use" if name in BUILT else "published"
        if name not in BUILT and entry.offline and stand_ins:
            state = f"published, else {entry.offline} in its place"
        return DataPath(path, key, state, entry.data_mode, entry.groups, entry.mean_examples, origin=CATALOGUE)
    file = root / "train" / "dataset.json"
    try:
        refuse_split(root)
        content = read_object(file)
        groups, mean = content["total_groups"], float(content["mean_puzzle_examples"])
        if type(groups) is not int or groups < 0:
            raise TypeError(f"total_groups is {groups!r}")
        if not 0 <= mean < math.inf:
            raise ValueError(f"mean_puzzle_examples is {mean}")
    except (UsageError, ValueError, KeyError, TypeError) as error:
        why = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        if not isinstance(error, UsageError):  # a UsageError names the file already
            why = f"{path}/train/dataset.json: {why}"
        return DataPath(path, key, "there", problem=why)
    encoder = (root / "train" / ENCODER_FILE).exists()
    mode = content.get("data_mode") or ("encoder" if encoder else "embedding")
    problem = "" if (root / "test" / "dataset.json").exists() else f"{path} has no test/dataset.json"
    if encoder and mode == "embedding":
        problem = f"{path}/train holds {ENCODER_FILE} though dataset.json has data_mode={mode}"
    return DataPath(path, key, "there", mode, groups, mean, problem, f"{path}/train/dataset.json")


def training_groups(config: dict[str, Any], data: Iterable[DataPath]) -> int | None:
    """Number of training groups without those held out for validation; None if unknown."""
    from dataset.held_back import validation_count

    sizes = [entry.groups for entry in data if entry.key == "data_paths"]
    if not sizes or None in sizes:
        return None
    groups = sum(size or 0 for size in sizes)
    if config.get("select_on") == "validation" and config.get("eval_interval") not in (None, config.get("epochs")):
        groups -= validation_count(groups, config.get("validation_groups")) if groups > 1 else 0
    return groups


def write_puzzles(
    root: Path,
    draw: Callable[[Any, int], tuple[Any, Any]],
    splits: Mapping[str, tuple[int, int, int]],
    vocab_size: int,
    demonstrations: int = 0,
    builder: str = "",
) -> None:
    """Write a data set whose puzzles each have their own identifier and one example, besides any demonstrations.

    `splits`: name -> (puzzles, first identifier, seed); `draw`: (generator, puzzles) -> inputs and labels.
    """
    import numpy as np

    from dataset.writing import SplitArrays, write_dataset

    arrays = {}
    for split, (count, first, seed) in splits.items():
        inputs, labels = draw(np.random.default_rng((first, seed)), count)
        numbers, steps = np.arange(first, first + count), np.arange(count + 1)
        shown = np.full(count, demonstrations) if demonstrations else None
        arrays[split] = SplitArrays(inputs, labels, numbers, steps * (demonstrations + 1), steps, shown)
    last = max(first + count for count, first, _ in splits.values())
    write_dataset(
        root,
        arrays,
        vocab_size=vocab_size,
        seq_len=inputs.shape[1],
        card={"source": "generated", "name": "probe"} | ({"builder": builder} if builder else {}),
        identifiers=["<blank>", *(f"puzzle-{number}" for number in range(1, last))],
        data_mode="encoder" if demonstrations else "embedding",
    )
    (root / "test_puzzles.json").write_text("{}", encoding="utf-8")  # arc@ARC reads it


# --- rules: contents --------------------------------------------------------------------------------------------------


def rows_of(root: Path, split: str, kind: str) -> Iterator[Any]:
    """The rows of all sets of a split. Raises NotApplicable for damaged data, which DAT523 reports."""
    from dataset.format import load_splits

    try:
        parts = load_splits([root], split)
    except UsageError as error:
        raise NotApplicable(str(error)) from None
    for part in parts:
        yield from getattr(part, kind)


def overlapping_rows(subject: Subject, kind: str) -> int:
    """Number of rows of the test splits that the training splits contain too."""
    sets, root = there(subject), subject.trace.cwd
    train = [entry for entry in sets if entry.key == "data_paths"]
    test = [entry for entry in sets if entry.key == "data_paths_test"] or train
    known = {row.tobytes() for entry in train for row in rows_of(root / entry.path, "train", kind)}
    return sum(row.tobytes() in known for entry in test for row in rows_of(root / entry.path, "test", kind))


def disjoint(subject: Subject) -> Iterator[Finding]:
    """DAT520, DAT521: test examples, and their answers, are not among the training examples."""
    for code, level, kind, text in (
        ("DAT520", "FAIL", "inputs", "are also training examples"),
        ("DAT521", "WARN", "labels", "have the answer of a training example"),
    ):
        if count := overlapping_rows(subject, kind):
            yield finding(code, level, f"{count} test example(s) {text}", there(subject)[0].path)


def contents(subject: Subject) -> Iterator[Finding]:
    """DAT523: every token id is below vocab_size."""
    import numpy as np

    from dataset.format import load_splits

    for entry in there(subject):
        for split in ("train", "test"):
            place = f"{entry.path}/{split}"
            try:
                parts = load_splits([subject.trace.cwd / entry.path], split)
            except UsageError as error:
                yield finding("DAT523", "FAIL", str(error), place)
                continue
            top = max(int(np.max(rows, initial=0)) for part in parts for rows in (part.inputs, part.labels))
            count, size = sum(part.num_examples for part in parts), parts[0].metadata.vocab_size
            text = f"{place}: {count} rows, numbers up to {top}, vocab_size={size}"
            yield finding("DAT523", "PASS" if top < size else "FAIL", text, place)


RULES = (
    Rule(("DAT520", "DAT521"), disjoint, implied=True),
    Rule(("DAT523",), contents, implied=True),
)
