"""The on-disk format of grid data sets: groups of puzzles of examples.

    <root>/identifiers.json     list, index = puzzle identifier, [0] = "<blank>"
    <root>/card.json            origin of the data, counts, content hash (ours, optional)
    <root>/{train,test}/dataset.json                    PuzzleMetadata
    <root>/{train,test}/<set>__inputs.npy               [N, T] tokens
    <root>/{train,test}/<set>__labels.npy               [N, T] tokens
    <root>/{train,test}/<set>__puzzle_identifiers.npy   [P]
    <root>/{train,test}/<set>__puzzle_indices.npy       [P + 1] example offsets
    <root>/{train,test}/<set>__group_indices.npy        [G + 1] puzzle offsets
    <root>/{train,test}/<set>__num_demos.npy            [P] with "data_mode": "encoder" (dataset/fewshot.py)

With "storage": "compact" in dataset.json, grids and augmentations are stored in place of inputs and labels, whose rows
are computed when they are read (dataset/arc/compact.py): `load_split` and `PuzzleSplit.batch` give the same.

N examples, T sequence length, P puzzles, G groups. A group is an original task, a puzzle one augmentation of
it, an example one input/output pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from dataset.arc.compact import ExpandedRows, open_compact
from dataset.checks import WatchedFile, check_card, check_counts, check_rows, check_tokens
from dataset.metadata import (
    IGNORE,
    INDICES,
    NUM_DEMOS,
    SHARED,
    PuzzleMetadata,
    load_array,
    need,
    read_card,
    read_json_file,
    read_metadata,
)
from engine.io import UsageError


@dataclass(frozen=True, eq=False)
class PuzzleSplit:
    """One set of one split. Inputs and labels are memory-mapped, or computed when read; the indices are in memory."""

    root: Path
    split: str
    set_name: str
    """Unique among the splits loaded together: the reference's rule, `all`, `all1`, `all2`, …"""
    metadata: PuzzleMetadata
    inputs: np.ndarray | ExpandedRows
    """[N, T]"""
    labels: np.ndarray | ExpandedRows
    """[N, T]"""
    puzzle_identifiers: np.ndarray
    """[P], as in the file."""
    puzzle_indices: np.ndarray
    """[P + 1] int64"""
    group_indices: np.ndarray
    """[G + 1] int64"""
    whole: bool = True
    """Whether every token was checked when the set was opened; else each batch is checked."""
    identifier_offset: int = 0
    """Added to every identifier but the blank one, so that data sets trained together do not share embedding rows."""
    files: tuple[WatchedFile, ...] = ()
    """The files of inputs and labels."""
    num_demos: np.ndarray | None = None
    """[P] int64: the number of each puzzle's first examples that are demonstrations; None in embedding mode."""
    leakage: str = ""
    """What a part of the model that another run trained has seen of these puzzles: a key of
    evaluators.voting.tasks.LEAKAGE."""

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    @property
    def num_puzzles(self) -> int:
        return len(self.puzzle_identifiers)

    @property
    def num_groups(self) -> int:
        return len(self.group_indices) - 1

    @cached_property
    def _examples_per_puzzle(self) -> int:
        """Examples of each puzzle if all have equally many; else 0."""
        counts = np.unique(np.diff(self.puzzle_indices))
        return int(counts[0]) if len(counts) == 1 else 0

    def puzzles_of(self, examples: np.ndarray) -> np.ndarray:
        """The puzzle index of each example index."""
        if self._examples_per_puzzle:
            return examples // self._examples_per_puzzle
        return np.searchsorted(self.puzzle_indices, examples, side="right") - 1

    def questions(self) -> np.ndarray:
        """Ascending indices of the examples to evaluate: all, in encoder mode those that are not demonstrations."""
        examples = np.arange(self.num_examples)
        if self.num_demos is None:
            return examples
        puzzles = self.puzzles_of(examples)
        return examples[examples >= self.puzzle_indices[puzzles] + self.num_demos[puzzles]]

    def batch(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Rows as int32: inputs [n, T], labels [n, T] (ignored ones -100), puzzle_identifiers [n].

        Raises: RunFailure if a file was truncated since it was opened.
        """
        return widened(self.rows(examples))

    def rows(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """As `batch`, with tokens in the narrowest type (`token_type`): int8 for uint8, a quarter of the bytes."""
        for file in self.files:
            file.require_whole()
        dtype = token_type(self.metadata)
        stored = _take_rows(self.labels, examples)
        labels = _narrow(stored, dtype)
        if (ignored := self.metadata.ignore_label_id) is not None:
            # By addition: a masked assignment takes seven times as long if half of the cells are padding.
            shift = (stored == ignored).view(np.int8).astype(dtype, copy=False)
            shift *= np.array(IGNORE - ignored).astype(dtype)  # may wrap around, and so does the sum
            labels = np.add(shift, labels, out=shift)
        inputs = _take_rows(self.inputs, examples)  # after the labels, which the cache still held
        if not self.whole:
            self._check_batch(inputs, stored, examples)
        identifiers = self.puzzle_identifiers[self.puzzles_of(examples)].astype(np.int32)
        if self.identifier_offset:
            identifiers[identifiers != self.metadata.blank_identifier_id] += self.identifier_offset
        return {"inputs": _narrow(inputs, dtype), "labels": labels, "puzzle_identifiers": identifiers}

    def padding(self, rows: int) -> dict[str, np.ndarray]:
        """`rows` padding rows with the keys of `batch`."""
        return empty_batch(rows, self.metadata)

    def _check_batch(self, inputs: np.ndarray, labels: np.ndarray, examples: np.ndarray) -> None:
        for array, read in ((self.inputs, inputs), (self.labels, labels)):
            path = Path(str(getattr(array, "filename", self.root / self.split)))
            check_rows(path, read, examples, self.metadata, labels=read is labels)


def token_type(metadata: PuzzleMetadata) -> np.dtype:
    """The smallest signed type that holds every token and -100: int8 for a vocabulary of at most 128."""
    return np.min_scalar_type(-max(metadata.vocab_size, -IGNORE))


def _take_rows(array: np.ndarray | ExpandedRows, examples: np.ndarray) -> np.ndarray:
    """The rows of these examples; from a file by `take`, which needs two thirds of the time of indexing."""
    return np.asarray(array).take(examples, axis=0) if isinstance(array, np.ndarray) else array[examples]


def _narrow(stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Stored rows as `dtype`: a view of single bytes, else a copy."""
    return stored.view(dtype) if stored.itemsize == dtype.itemsize == 1 else stored.astype(dtype)


def widened(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`PuzzleSplit.rows` as int32."""
    return {name: values.astype(np.int32, copy=False) for name, values in rows.items()}


def empty_batch(rows: int, metadata: PuzzleMetadata) -> dict[str, np.ndarray]:
    """`rows` padding rows: pad_id, -100, blank identifier; the same layout as `PuzzleSplit.batch`."""
    shape = (rows, metadata.seq_len)
    return {
        "inputs": np.full(shape, metadata.pad_id, dtype=np.int32),
        "labels": np.full(shape, IGNORE, dtype=np.int32),
        "puzzle_identifiers": np.full(rows, metadata.blank_identifier_id, dtype=np.int32),
    }


def _check_offsets(path: Path, offsets: np.ndarray, least: int) -> None:
    ordered = len(offsets) >= 1 and offsets[0] == 0 and bool((np.diff(offsets) >= least).all())
    need(ordered, path, f"must start at 0 and rise by at least {least} each")


def _check_end(path: Path, offsets: np.ndarray, end: int, of: str) -> None:
    need(offsets[-1] == end, path, f"must end at the number of {of} ({end}), ends at {offsets[-1]}")


def _load_set(root: Path, split: str, metadata: PuzzleMetadata, name: str) -> PuzzleSplit:
    folder = root / split
    path = {array: folder / f"{name}__{array}.npy" for array in INDICES}
    identifiers = load_array(path["puzzle_identifiers"], 1, mapped=False)
    puzzles = load_array(path["puzzle_indices"], 1, mapped=False).astype(np.int64)
    groups = load_array(path["group_indices"], 1, mapped=False).astype(np.int64)
    _check_offsets(path["puzzle_indices"], puzzles, 0)
    need(
        len(puzzles) == len(identifiers) + 1,
        path["puzzle_indices"],
        f"expected {len(identifiers) + 1} offsets",
    )
    _check_offsets(path["group_indices"], groups, 1)
    _check_end(path["group_indices"], groups, len(identifiers), "puzzles")
    top = metadata.num_puzzle_identifiers
    fits = len(identifiers) == 0 or (identifiers.min() >= 0 and identifiers.max() < top)
    need(
        bool(fits),
        path["puzzle_identifiers"],
        f"identifiers must be 0 to {top - 1} (num_puzzle_identifiers {top})",
    )
    part = partial(
        PuzzleSplit,
        root,
        split,
        name,
        metadata,
        puzzle_identifiers=identifiers,
        puzzle_indices=puzzles,
        num_demos=_load_num_demos(folder, name, puzzles) if metadata.data_mode == "encoder" else None,
    )
    if metadata.storage == "compact":
        inputs, labels = open_compact(
            folder,
            name,
            partial(load_array, mapped=False),
            seq_len=metadata.seq_len,
            vocab_size=metadata.vocab_size,
            puzzle_indices=puzzles,
            group_indices=groups,
        )
        return part(inputs=inputs, labels=labels, group_indices=groups)
    files = [folder / f"{name}__{array}.npy" for array in ("inputs", "labels")]
    tokens = [load_array(file, 2, mapped=True) for file in files]
    length = tokens[0].shape[1]
    need(length == metadata.seq_len, files[0], f"rows have {length} tokens, dataset.json says {metadata.seq_len}")
    need(
        tokens[1].shape == tokens[0].shape,
        files[1],
        f"shape {tokens[1].shape} differs from the inputs' {tokens[0].shape}",
    )
    _check_end(path["puzzle_indices"], puzzles, len(tokens[0]), "examples")
    whole = all(
        [
            check_tokens(file, values, metadata, labels=file is files[1])
            for file, values in zip(files, tokens, strict=True)
        ]
    )
    watched = tuple(map(WatchedFile, files))
    return part(inputs=tokens[0], labels=tokens[1], group_indices=groups, whole=whole, files=watched)


def _load_num_demos(folder: Path, name: str, puzzle_indices: np.ndarray) -> np.ndarray:
    path = folder / f"{name}__{NUM_DEMOS}.npy"
    counts = load_array(path, 1, mapped=False).astype(np.int64)
    need(len(counts) == len(puzzle_indices) - 1, path, f"expected {len(puzzle_indices) - 1} numbers, one a puzzle")
    room = np.diff(puzzle_indices)
    fits = bool(((counts >= 1) & (counts < room)).all())
    need(fits, path, "every puzzle needs a demonstration, and an example that is none")
    return counts


def load_split(root: str | Path, split: str, set_name: str | None = None) -> PuzzleSplit:
    """Load one set of `<root>/<split>`; `set_name` may be omitted if there is only one.

    Raises: UsageError naming the file that is missing, unreadable or inconsistent.
    """
    root = Path(root)
    metadata = read_metadata(root, split)
    if set_name is None and len(metadata.sets) > 1:
        raise UsageError(f"{root / split} holds the sets {', '.join(metadata.sets)}: name one, or use load_splits")
    name = metadata.sets[0] if set_name is None else set_name
    need(name in metadata.sets, root / split, f"has no set {name!r}, only {', '.join(metadata.sets)}")
    return _load_set(root, split, metadata, name)


def load_splits(
    roots: Sequence[str | Path], split: str, *, like: Sequence[PuzzleSplit] | None = None
) -> list[PuzzleSplit]:
    """Load every set of every root, to be used together.

    Identifiers of later roots are shifted so that no two roots share an embedding row (except that of the blank
    identifier). `like`: the training splits, whose shifts are used then; a root that was not trained on must have the
    identifiers of one that was, or the blank one only.

    Raises: UsageError naming both files if the roots disagree.
    """
    if not roots:
        raise UsageError("data_paths is empty: name at least one data set folder")
    splits: list[PuzzleSplit] = []
    used: dict[str, int] = {}
    shift = 0
    for root in map(Path, roots):
        metadata = read_metadata(root, split)
        check_agreement([*(like or []), *splits], metadata, root / split / "dataset.json")
        offset = shift if like is None else _trained_offset(root, metadata, like)
        loaded = [_load_set(root, split, metadata, name) for name in metadata.sets]
        check_counts(root, split, metadata, loaded)
        _check_names_and_card(root, split, metadata)
        for part in loaded:
            count = used.get(part.set_name, 0)
            used[part.set_name] = count + 1
            unique = f"{part.set_name}{count}" if count else part.set_name
            splits.append(dataclasses.replace(part, set_name=unique, identifier_offset=offset))
            if like is not None:
                _check_table(splits[-1], part.set_name, combined_identifiers(like))
        shift += metadata.num_puzzle_identifiers - 1
    return splits


def _check_table(split: PuzzleSplit, set_name: str, rows: int) -> None:
    """Raise UsageError if an identifier of `split` is outside the `rows` of the trained embedding table."""
    if not len(split.puzzle_identifiers) or int(split.puzzle_identifiers.max()) + split.identifier_offset < rows:
        return
    identifier = int(split.puzzle_identifiers.max())
    names = split.root / "identifiers.json"
    path = split.root / split.split / f"{set_name}__puzzle_identifiers.npy"
    listed = read_json_file(names) if names.exists() else []
    named = f" ({listed[identifier]})" if isinstance(listed, list) and identifier < len(listed) else ""
    raise UsageError(
        f"{path}: puzzle {identifier}{named} lies beyond the embedding table, which has {rows} rows: evaluate on the "
        "data set that the model was trained on"
    )


def _check_names_and_card(root: Path, split: str, metadata: PuzzleMetadata) -> None:
    """Raise UsageError if dataset.json contradicts identifiers.json or card.json; either may be missing."""
    names = root / "identifiers.json"
    if names.exists():
        listed, count = read_json_file(names), metadata.num_puzzle_identifiers
        need(isinstance(listed, list), names, "expected a list of names")
        need(len(listed) == count, names, f"holds {len(listed)} names, {split}/dataset.json counts {count}")
    if (root / "card.json").exists():
        check_card(root / split / "dataset.json", read_card(root / "card.json"), metadata)


def check_agreement(others: Sequence[PuzzleSplit], metadata: PuzzleMetadata, path: Path) -> None:
    """Raise UsageError, naming both files, unless `metadata` can be used together with the loaded splits."""
    for other in others[:1]:
        for key in SHARED:
            mine, theirs = getattr(metadata, key), getattr(other.metadata, key)
            if mine != theirs:
                first = other.root / other.split / "dataset.json"
                raise UsageError(f"data sets are incompatible: {key} is {theirs} in {first} and {mine} in {path}")


def _trained_offset(root: Path, metadata: PuzzleMetadata, trained: Sequence[PuzzleSplit]) -> int:
    if metadata.num_puzzle_identifiers == 1:
        return 0
    for split in trained:
        if split.root.resolve() == root.resolve():
            return split.identifier_offset
    names = read_json_file(root / "identifiers.json")
    for split in trained:
        if read_json_file(split.root / "identifiers.json") == names:
            return split.identifier_offset
    known = ", ".join(str(split.root) for split in trained)
    raise UsageError(f"{root}/identifiers.json names puzzles that were not trained on: it matches none of {known}")


def combined_identifiers(splits: Sequence[PuzzleSplit]) -> int:
    """Rows of the embedding table for these splits together."""
    return max(s.identifier_offset + s.metadata.num_puzzle_identifiers for s in splits)
