"""dataset.json and card.json, checked when they are read, and the array files of a data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.io import Unreadable, UsageError, check_regular, read_json, read_object, reason_of

INDICES = ("puzzle_identifiers", "puzzle_indices", "group_indices")
ARRAYS = {
    "arrays": ("inputs", "labels", *INDICES),
    "compact": ("cells", "shapes", "augmentations", "offsets", *INDICES),
}
"""The array files of a set, by its storage."""
NUM_DEMOS = "num_demos"
"""An additional file with `data_mode: encoder`: how many of each puzzle's first examples are demonstrations; [P]."""
SPLITS = ("train", "test")
NPY = np.lib.format.MAGIC_PREFIX
IGNORE = -100
"""Label of a position that is not scored."""
# Keys in which data sets that are trained on together must agree.
SHARED = ("seq_len", "vocab_size", "pad_id", "ignore_label_id", "blank_identifier_id", "data_mode")


@dataclass(frozen=True, kw_only=True)
class PuzzleMetadata:
    """The content of dataset.json."""

    pad_id: int
    """Token of padding rows."""
    ignore_label_id: int | None
    """Label token that is not scored; None scores all."""
    blank_identifier_id: int
    """Puzzle identifier of padding rows."""
    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    """Rows of the embedding table, the blank one included."""
    total_groups: int
    mean_puzzle_examples: float
    total_puzzles: int
    """Counted in the arrays if the file lacks it (HRM's builders)."""
    sets: tuple[str, ...] = ("all",)
    data_mode: str = "embedding"
    """What tells a model its task: `embedding` = a learned vector per puzzle identifier, `encoder` = demonstrations."""
    storage: str = "arrays"
    """How examples are stored: a key of ARRAYS."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """The array files of each set."""
        return (*ARRAYS[self.storage], *((NUM_DEMOS,) if self.data_mode == "encoder" else ()))


def need(condition: bool, path: Path, text: str) -> None:
    """Raise UsageError with `path` and `text` unless the condition holds."""
    if not condition:
        raise UsageError(f"{path}: {text}")


def read_json_file(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: {path.parent} is not a complete puzzle data set") from None
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None


def read_card(path: Path) -> dict[str, Any]:
    """Read a card.json and check the types of the fields that decisions depend on. Raises: UsageError."""
    card = read_object(path)
    kinds = {"name": str, "content_hash": str, "stand_in": bool}
    for key, kind in kinds.items():
        need(isinstance(card.get(key, kind()), kind), path, f"{key} must be {kind.__name__}, got {card.get(key)!r}")
    return card


def refuse_split(root: Path) -> None:
    """Raise UsageError if `root` is a split of a data set: its parent is meant."""
    if (root / "dataset.json").exists() and not (root / "train").exists():
        raise UsageError(f"{root} is one split of a data set: name the set, {root.parent}")


def read_metadata(root: str | Path, split: str) -> PuzzleMetadata:
    """Read and check the dataset.json of a split. Unknown keys are ignored, `total_puzzles` may be missing.

    Raises: UsageError naming the file and the key.
    """
    refuse_split(Path(root))
    path = Path(root) / split / "dataset.json"
    raw = read_json_file(path)
    need(isinstance(raw, dict), path, "expected a JSON object")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(PuzzleMetadata):
        if field.name in raw:
            values[field.name] = raw[field.name]
        elif field.name == "total_puzzles":
            values[field.name] = _count_puzzles(path.parent, raw.get("sets", ["all"]))
        elif field.default is dataclasses.MISSING:
            raise UsageError(f"{path}: the key {field.name} is missing")
    for name, least in (
        ("pad_id", 0),
        ("blank_identifier_id", 0),
        ("vocab_size", 1),
        ("seq_len", 1),
        ("num_puzzle_identifiers", 1),
        ("total_groups", 0),
        ("total_puzzles", 0),
    ):
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        need(whole and value >= least, path, f"{name} must be a whole number >= {least}, got {value!r}")
    ignore, mean, sets = (
        values["ignore_label_id"],
        values["mean_puzzle_examples"],
        values.get("sets", ["all"]),
    )
    size = values["vocab_size"]
    need(
        ignore is None or (type(ignore) is int and (ignore == IGNORE or 0 <= ignore < size)),
        path,
        f"ignore_label_id must be null, {IGNORE} or a token (0 to {size - 1}), got {ignore!r}",
    )
    need(isinstance(mean, int | float) and mean >= 0, path, f"mean_puzzle_examples must be >= 0, got {mean!r}")
    named = isinstance(sets, list) and len(sets) > 0 and all(isinstance(name, str) and name for name in sets)
    need(named, path, f"sets must be a list of names, got {sets!r}")
    need(len(set(sets)) == len(sets), path, f"sets names one twice: {sets!r}")
    need(not any("/" in name for name in sets), path, f"sets must be names of files here, no paths, got {sets!r}")
    storage = values.get("storage", "arrays")
    need(storage in ARRAYS, path, f"storage must be {' or '.join(ARRAYS)}, got {storage!r}")
    need(
        values["pad_id"] < values["vocab_size"],
        path,
        f"pad_id lies outside the vocabulary of {values['vocab_size']}",
    )
    blank_fits = values["blank_identifier_id"] < values["num_puzzle_identifiers"]
    need(blank_fits, path, "blank_identifier_id is not below num_puzzle_identifiers")
    return PuzzleMetadata(**{**values, "sets": tuple(sets)})


def _count_puzzles(folder: Path, sets: Any) -> int:
    names = sets if isinstance(sets, list) else ["all"]
    return sum(len(load_array(folder / f"{name}__puzzle_identifiers.npy", 1, mapped=False)) for name in names)


class _Plain:
    """A file that numpy does not recognise as one, so that it calls `write`, whose errors have a reason."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.write = stream.write


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an .npy file. Raises: OSError with its reason (such as a full disk), which `numpy.save(path)` omits."""
    with open(path, "wb") as stream:
        np.save(_Plain(stream), values)  # type: ignore[call-overload]


def load_array(path: Path, ndim: int, *, mapped: bool) -> np.ndarray:
    try:
        check_regular(path)
        with open(path, "rb") as stream:
            magic = stream.read(len(NPY))
        if magic and not magic.startswith((NPY, b"PK")):  # numpy's own message would advise unpickling it
            raise ValueError("it does not begin as one")
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapping refuses a file shorter than its header says
        array = array if mapped or not isinstance(array, np.ndarray) else np.array(array)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: {path.parent} is not a complete puzzle data set") from None
    except Exception as error:  # a damaged header raises nearly anything (tokenize, struct, zip)
        raise UsageError(f"{path} is not a readable .npy file: {error}") from None
    need(isinstance(array, np.ndarray), path, "expected one array, found an archive of several")
    need(array.ndim == ndim, path, f"expected {ndim} dimension(s), found shape {array.shape}")
    need(np.issubdtype(array.dtype, np.integer), path, f"expected integers, found {array.dtype}")
    return array
