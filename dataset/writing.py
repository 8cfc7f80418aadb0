"""Writing a grid data set: complete or absent, uint8, with a card of its origin and content hash."""

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
"""What builders of puzzles, the public ones too, leave in a data set's folder."""
# Data sets up to this size are hashed anew when they are described; of larger ones the card is believed.
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
    """[P], how many examples of each puzzle are demonstrations; None in embedding mode."""

    storage: ClassVar[str] = "arrays"

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
            kind = np.uint8 if array in ("inputs", "labels") else np.int32
            save_array(folder / f"{name}__{array}.npy", np.ascontiguousarray(getattr(self, array), dtype=kind))


class WrittenSplit(Protocol):
    """A split that writes itself: `SplitArrays`, or one that is never in memory as a whole."""

    @property
    def storage(self) -> str:
        """How it is stored, a key of dataset.metadata.ARRAYS."""

    def counts(self) -> dict[str, int]:
        """Groups, puzzles and examples."""

    def save(self, folder: Path, name: str, vocab_size: int) -> None:
        """Write the arrays of the set `name`."""


def content_hash(root: str | Path) -> str:
    """sha256 over name, type, shape and bytes of every array, in a fixed order.

    Equal hashes mean equal data, wherever and with however many workers they were built.
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
    """Hold the lock of the data set `root` while it is built; clears what a killed build of it left behind.

    Builds of other data sets in the same folder are not held up; a second build of this one waits, then finds it done.
    """
    root = Path(os.path.abspath(root))
    if root.is_symlink():
        # The data go where the link points, to a larger disk as a rule, and the link stays.
        root = Path(os.path.realpath(root))
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(root.parent / f".{root.name}.lock", wait=True))
        except OSError as error:
            raise UsageError(f"{root} cannot be built there ({error.strerror}): choose another --output-dir") from None
        for leftover in root.parent.glob(f".{root.name}{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for replaced in root.parent.glob(f".{root.name}{REPLACED}*"):
            if root.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.rename(replaced, root)
        yield root


def refuse_existing(root: str | Path, *, overwrite: bool) -> None:
    """Raise UsageError when something is at `root` that the build may not replace."""
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
    """The first file below `root`, relative to it, that no builder of puzzles writes; empty without one."""
    for path in sorted(root.iterdir()):
        if path.name not in OURS and not (path.name in TABLES and _has_tables(root)):
            return path.name
        for inner in sorted(path.iterdir()) if path.name in SPLITS and path.is_dir() else ():
            if inner.name != "dataset.json" and not (inner.suffix == ".npy" and "__" in inner.name):
                return f"{path.name}/{inner.name}"
    return ""


def _has_tables(root: Path) -> bool:
    """Whether the card counts the CSV files of its build (--csv) among the data set's own."""
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
    blank_identifier_id: int = 0,
    overwrite: bool = False,
    check: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a data set atomically and return its card.

    `check` sees the written files under their temporary name; what it returns joins the card, what it raises
    leaves nothing behind. The card gets counts, vocabulary and content hash here.

    Raises: UsageError when `root` exists and `overwrite` is false, ValueError on arrays that do not fit
    uint8.
    """
    refuse_existing(root, overwrite=overwrite)
    with atomic_directory(root, replace=overwrite) as folder:
        for name, arrays in splits.items():
            counts = arrays.counts()
            metadata = {
                "pad_id": pad_id,
                "ignore_label_id": ignore_label_id,
                "blank_identifier_id": blank_identifier_id,
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
        # a name a line; `indent` would take the slow encoder, seconds for a million names
        names = json.dumps(list(identifiers), ensure_ascii=False, separators=(",\n", ": "))
        (folder / "identifiers.json").write_text(names + "\n", encoding="utf-8")
        for name in splits:
            load_splits([folder], name)  # what is renamed into place can be loaded
        full = {
            **card,
            "data_mode": data_mode,
            "counts": {name: arrays.counts() for name, arrays in splits.items()},
            "vocab_size": vocab_size,
            "seq_len": seq_len,
            "pad_id": pad_id,
            "ignore_label_id": ignore_label_id,
            "blank_identifier_id": blank_identifier_id,
            **(check(folder) if check else {}),
            "content_hash": content_hash(folder),
        }
        write_json(folder / CARD, full)
    return full


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """A file of JSON in UTF-8; of a path that is not, the bytes that are no character become U+FFFD."""
    data = (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
    path.write_text(data.decode("utf-8", "replace"), encoding="utf-8")


def stand_in_reason(root: str | Path, card: Mapping[str, Any] | None = None) -> str | None:
    """What the data set at `root` is in place of the published one that its name promises; None where it is that.

    `card` is what its folder has, where the caller has read it.
    """
    for known in BY_SIZE:
        if known.claims_to_be(root):
            return known.stand_in_reason(root, describe(root) if card is None else card)
    if arc.claims_to_be_published(root) and card is None and (Path(root) / CARD).exists():
        card = read_card(Path(root) / CARD)
    return arc.stand_in_reason(root, card or {})


def describe(root: str | Path) -> dict[str, Any]:
    """The card of a data set with its `path`; `modified: true` where the arrays changed since.

    `metadata_hash` is of what gives the arrays their meaning (vocabulary, special tokens, identifiers), which
    content_hash leaves out. `stand_in: true` where the name promises other data.

    A data set without a card (built elsewhere) gets one: source `unknown`, counts and content hash.
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
