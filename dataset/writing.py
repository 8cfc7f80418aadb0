"""Writes a grid data set atomically as uint8 arrays, with a card that records its origin and content hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from dataset.arc import published as arc
from dataset.format import load_splits
from dataset.metadata import ARRAYS, NUM_DEMOS, SHARED, SPLITS, PuzzleMetadata, read_card, read_metadata, save_array
from dataset.published import BY_SIZE
from engine.io import REPLACED, TEMPORARY, UsageError, atomic_directory, file_lock, sha256_json

SET = "all"
CARD = "card.json"
OURS = frozenset((CARD, "identifiers.json", "test_puzzles.json", "leakage.json", "tasks", *SPLITS))
"""Files that puzzle builders, including the public ones, write into a data set's folder."""
# Data sets up to this size are hashed again when they are described; for larger ones the card's hash is used.
REHASH_BYTES = 512 << 20
TABLES = frozenset(f"{split}.csv" for split in SPLITS)


@dataclass(frozen=True, eq=False)
class SplitArrays:
    """One split in memory; shapes as in dataset/format.py."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray
    num_demos: np.ndarray | None = None
    """[P] number of demonstrations of each puzzle; None in embedding mode."""

    storage: ClassVar[str] = "arrays"

    @classmethod
    def of_boards(cls, inputs: np.ndarray, labels: np.ndarray, copies: int) -> SplitArrays:
        """Boards [N, T], each a puzzle of one example and every `copies` of them a group. All identifiers are 0: the
        boards are one task."""
        ends = np.arange(len(inputs) + 1)
        return cls(inputs, labels, np.zeros(len(inputs), dtype=np.int32), ends, ends[::copies])

    def counts(self) -> dict[str, int]:
        """Groups, puzzles and examples."""
        return {
            "groups": len(self.group_indices) - 1,
            "puzzles": len(self.puzzle_identifiers),
            "examples": len(self.inputs),
        }

    def save(self, folder: Path, name: str, vocab_size: int) -> None:
        """Write the arrays of the set `name`. Raises: ValueError for tokens beyond uint8 or the vocabulary."""
        for tokens in (self.inputs, self.labels):
            if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < min(vocab_size, 256):
                raise ValueError(f"{folder.name}: tokens must be in 0 to {min(vocab_size, 256) - 1}")
        for array in (*ARRAYS[self.storage], *(() if self.num_demos is None else (NUM_DEMOS,))):
            dtype = np.uint8 if array in ("inputs", "labels") else np.int32
            save_array(folder / f"{name}__{array}.npy", np.ascontiguousarray(getattr(self, array), dtype=dtype))


class WrittenSplit(Protocol):
    """A split that can save itself: `SplitArrays`, or one that is never completely in memory."""

    @property
    def storage(self) -> str:
        """A key of dataset.metadata.ARRAYS."""

    def counts(self) -> dict[str, int]:
        """Groups, puzzles and examples."""

    def save(self, folder: Path, name: str, vocab_size: int) -> None:
        """Write the arrays of the set `name`."""


def content_hash(root: str | Path) -> str:
    """sha256 over name, type, shape and bytes of every array, in a fixed order.

    Equal hashes mean equal data, on whatever machine and with however many workers they were built.
    """
    root, digest = Path(root), hashlib.sha256()
    for split in SPLITS:
        if not (root / split / "dataset.json").exists():
            continue
        metadata = read_metadata(root, split)
        for name in metadata.sets:
            for array in metadata.arrays:
                values = np.load(root / split / f"{name}__{array}.npy", mmap_mode="r", allow_pickle=False)
                digest.update(f"{split}/{name}/{array}/{values.dtype.str}/{values.shape}\n".encode())
                if values.size:
                    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


@contextlib.contextmanager
def building(root: str | Path) -> Iterator[Path]:
    """Hold the lock of the data set `root` while it is built, after removing what a killed build left behind.

    A second build of the same data set waits, and then finds it built; other data sets in the folder have other locks.

    Raises: UsageError if the lock cannot be created.
    """
    root = Path(os.path.abspath(root))
    if root.is_symlink():
        # Build at the link's target, often on a larger disk, and keep the link.
        root = Path(os.path.realpath(root))
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(root.parent / f".{root.name}.lock", wait=True))
        except OSError as error:
            hint = "make the folder writable, or build it in another one (--output-dir of its builder)"
            raise UsageError(f"{root} cannot be built there ({error.strerror}): {hint}") from None
        for leftover in root.parent.glob(f".{root.name}{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for replaced in root.parent.glob(f".{root.name}{REPLACED}*"):
            if root.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.rename(replaced, root)
        yield root


def refuse_existing(root: str | Path, *, overwrite: bool) -> None:
    """Raise UsageError if something at `root` may not be replaced by the build."""
    root = Path(root)
    if os.path.lexists(root) and not root.is_dir():
        raise UsageError(f"{root} is not a folder: choose another --output-dir")
    if root.is_dir() and overwrite:
        if any(root.iterdir()) and not any((root / s).is_dir() for s in SPLITS):
            raise UsageError(f"{root} is not a data set, so --overwrite leaves it alone: choose another --output-dir")
        if foreign := _foreign(root):
            raise UsageError(
                f"{root} holds {foreign}, which is not part of a data set, so --overwrite leaves it alone: "
                "choose another --output-dir"
            )
    if root.exists() and not overwrite:
        raise UsageError(f"{root} exists already: pass --overwrite to replace it, or choose another --output-dir")


def _foreign(root: Path) -> str:
    """The first file below `root`, relative to it, that no puzzle builder writes; empty if there is none."""
    for path in sorted(root.iterdir()):
        if path.name not in OURS and not (path.name in TABLES and _has_tables(root)):
            return path.name
        for inner in sorted(path.iterdir()) if path.name in SPLITS and path.is_dir() else ():
            if inner.name != "dataset.json" and not (inner.suffix == ".npy" and "__" in inner.name):
                return f"{path.name}/{inner.name}"
    return ""


def _has_tables(root: Path) -> bool:
    """Whether the card says that the CSV files are the build's own (--csv)."""
    try:
        return bool(read_card(root / CARD).get("csv"))
    except UsageError:
        return False


def write_dataset(
    root: str | Path,
    splits: Mapping[str, WrittenSplit],
    *,
    vocab_size: int,
    seq_len: int,
    card: Mapping[str, Any],
    identifiers: Sequence[str] = ("<blank>",),
    data_mode: str = "embedding",
    pad_id: int = 0,
    ignore_label_id: int | None = 0,
    overwrite: bool = False,
    check: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a data set atomically and return its card, with counts, vocabulary and content hash added.

    `check` is called with the temporary folder of the written files: its result is merged into the card, and if it
    raises, nothing is left behind.

    Raises: UsageError if `root` exists and `overwrite` is false, ValueError for arrays that do not fit uint8.
    """
    refuse_existing(root, overwrite=overwrite)
    with atomic_directory(root, replace=overwrite) as folder:
        for name, arrays in splits.items():
            counts = arrays.counts()
            metadata = {
                "pad_id": pad_id,
                "ignore_label_id": ignore_label_id,
                "blank_identifier_id": 0,
                "vocab_size": vocab_size,
                "seq_len": seq_len,
                "num_puzzle_identifiers": len(identifiers),
                "total_groups": counts["groups"],
                "mean_puzzle_examples": counts["examples"] / max(1, counts["puzzles"]),
                "total_puzzles": counts["puzzles"],
                "sets": [SET],
                "data_mode": data_mode,
                **({} if arrays.storage == "arrays" else {"storage": arrays.storage}),
            }
            (folder / name).mkdir()
            write_json(folder / name / "dataset.json", metadata)
            arrays.save(folder / name, SET, vocab_size)
        # one name a line by its separators: `indent` selects json's slow encoder, seconds for a million names
        names = json.dumps(list(identifiers), ensure_ascii=False, separators=(",\n", ": "))
        (folder / "identifiers.json").write_text(names + "\n", encoding="utf-8")
        for name in splits:
            load_splits([folder], name)  # before it is renamed into place: it can be loaded
        full = {
            **card,
            "data_mode": data_mode,
            "counts": {name: arrays.counts() for name, arrays in splits.items()},
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "pad_id": pad_id,
            "ignore_label_id": ignore_label_id,
            "blank_identifier_id": 0,
            **(check(folder) if check else {}),
            "content_hash": content_hash(folder),
        }
        write_json(folder / CARD, full)
    return full


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file in UTF-8; bytes of a path that are not UTF-8 become U+FFFD."""
    data = (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
    path.write_text(data.decode("utf-8", "replace"), encoding="utf-8")


def stand_in_reason(root: str | Path, card: Mapping[str, Any] | None = None) -> str | None:
    """Why the data set at `root` is not the published one that its name claims; None if it claims nothing else.

    `card`: its card, if the caller has read it already.
    """
    for known in BY_SIZE:
        if known.claims_to_be(root):
            return known.stand_in_reason(root, describe(root) if card is None else card)
    if arc.claims_to_be_published(root) and card is None and (Path(root) / CARD).exists():
        card = read_card(Path(root) / CARD)
    return arc.stand_in_reason(root, card or {})


def describe(root: str | Path) -> dict[str, Any]:
    """The card of a data set with its `path`, and `modified: true` if the arrays have changed since it was written.

    `metadata_hash` covers what gives the arrays their meaning (vocabulary, special tokens, identifiers), which
    content_hash does not. `stand_in: true` if the name claims other data.

    A data set without a card (built elsewhere) gets one: source `unknown`, counts and content hash.

    Raises: UsageError if there is no data set at `root`.
    """
    root = Path(root)
    card: dict[str, Any] = {"name": root.name, "source": "unknown"}
    if (root / CARD).exists():
        card = read_card(root / CARD)
    present = [split for split in SPLITS if (root / split / "dataset.json").exists()]
    if not present:
        raise UsageError(f"{root} is not a data set: it has no train/dataset.json")
    size = sum(file.stat().st_size for split in present for file in (root / split).glob("*.npy"))
    if "content_hash" not in card:
        card["counts"] = {split: _counts(read_metadata(root, split)) for split in present}
        card["content_hash"] = content_hash(root)
    elif size <= REHASH_BYTES:
        actual = content_hash(root)
        if actual != card["content_hash"]:
            card.update(modified=True, content_hash=actual)
    metadata = {split: read_metadata(root, split) for split in present}
    meaning = {
        split: {key: getattr(part, key) for key in (*SHARED, "num_puzzle_identifiers")}
        for split, part in metadata.items()
    }
    stand_in = {"stand_in": True} if stand_in_reason(root, card) else {}
    return {"path": str(root), **card, "metadata_hash": sha256_json(meaning), **stand_in}


def _counts(metadata: PuzzleMetadata) -> dict[str, int]:
    examples = round(metadata.total_puzzles * metadata.mean_puzzle_examples)
    return {"groups": metadata.total_groups, "puzzles": metadata.total_puzzles, "examples": examples}
