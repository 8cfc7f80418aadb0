"""Evaluate an exported recursive model with only numpy and onnxruntime: neither torch nor Loopforge is needed.

    python evaluate.py data/sudoku-4x4              # in the folder of model.onnx, start.npz and export.json
    python evaluate.py data/sudoku-4x4 --steps 32   # more ACT steps

model.onnx is one ACT step: from the tokens, the puzzle embedding if there is a table, and the latents it computes the
next latents, logits, q_halt and whether the row halts. The driver calls it until the episode is over.
Shapes: N rows of the table, B rows of a batch, T tokens, V vocabulary size, S positions, D width.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn


def fail(message: str) -> NoReturn:
    """End the program with a one-line message."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


try:
    import numpy as np
    import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:
    fail("needs numpy and onnxruntime: pip install numpy onnxruntime")

IGNORE = -100


class Model:
    """The exported folder. `model(inputs [B, T] int32, identifiers [B])` -> logits [B, T, V] after the last step."""

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.start = dict(np.load(folder / "start.npz"))  # initial latents of one row by name, [S, D]
        table = folder / "puzzle_table.npy"
        self.table = np.load(table, mmap_mode="r") if table.exists() else None  # [N, E]; only rows in use are read

    def __call__(self, inputs: np.ndarray, identifiers: np.ndarray, steps: int | None = None) -> np.ndarray:
        rows = len(inputs)
        feed = {"inputs": inputs.astype(np.int32)}
        if self.table is not None:
            feed["puzzle_embedding"] = np.ascontiguousarray(self.table[identifiers])
        for name, start in self.start.items():
            feed[name] = np.repeat(start[None], rows, axis=0)
        names = [output.name for output in self.session.get_outputs()]
        halted = np.zeros(rows, dtype=bool)
        logits = np.zeros(0)
        for number in range(self.about["steps"] if steps is None else steps):
            outputs = dict(zip(names, self.session.run(names, feed), strict=True))
            new = outputs["logits"]
            logits = new if number == 0 else np.where(halted[:, None, None], logits, new)
            feed |= {name: outputs[f"next_{name}"] for name in self.start}
            if self.about["halting"] == "latched":  # a row keeps the logits of the step at which it halts
                halted |= outputs["halts"]
                if halted.all():
                    break
        return logits


def examples(folders: list[Path], split: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of up to `rows`: inputs [B, T], labels [B, T] (-100: not scored), identifiers [B].

    Several data sets must come in the order of training: their identifiers are numbered consecutively.
    """
    shift = 0
    for folder in folders:
        try:
            about = json.loads((folder / split / "dataset.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            fail(f"{folder} is not a data set of puzzles: it has no {split}/dataset.json that can be read")
        for part in about.get("sets", ["all"]):
            if about.get("storage", "arrays") != "arrays":
                fail(f"{folder} is stored in the compact form, which this program does not read")
            names = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices")
            inputs, labels, identifiers, offsets = (
                np.load(folder / split / f"{part}__{name}.npy", mmap_mode="r") for name in names
            )
            for low in range(0, len(inputs), rows):
                cut = slice(low, low + rows)
                puzzles = np.searchsorted(offsets, np.arange(len(inputs))[cut], side="right") - 1
                own = identifiers[puzzles].astype(np.int64)
                own[own != about["blank_identifier_id"]] += shift
                scored = np.asarray(labels[cut]).astype(np.int64)
                if about["ignore_label_id"] is not None:
                    scored[scored == about["ignore_label_id"]] = IGNORE
                yield np.asarray(inputs[cut]), scored, own
        shift += about["num_puzzle_identifiers"] - 1


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="data sets, in the order of training")
    parser.add_argument("--split", choices=("test", "train"), default="test")
    parser.add_argument("--steps", type=positive, help="ACT steps; default: those of the run")
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--max-examples", type=positive, help="evaluate only the first N examples; default: all")
    args = parser.parse_args()
    batches = examples(args.data, args.split, args.batch_size)
    first = next(batches, None)  # refuse unreadable data before the model is loaded
    model = Model(Path(__file__).resolve().parent)
    seen = exact = right = 0.0
    left = args.max_examples or sys.maxsize
    for inputs, labels, identifiers in chain([first] if first else [], batches):
        inputs, labels, identifiers = inputs[:left], labels[:left], identifiers[:left]
        preds = model(inputs, identifiers, args.steps).argmax(-1)
        scored = labels != IGNORE
        counts = scored.sum(1)
        hits = ((preds == labels) & scored).sum(1)
        seen += float((counts > 0).sum())  # a row without scored tokens does not count
        exact += float(((hits == counts) & (counts > 0)).sum())
        right += float((hits / np.maximum(counts, 1)).sum())
        left -= len(inputs)
        if left <= 0:
            break
    result = {"examples": int(seen), "exact_accuracy": exact / max(seen, 1), "accuracy": right / max(seen, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
