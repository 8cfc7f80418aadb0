"""Data: mode and names always; contents where asked for (--data) and there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from verification.data import DataPath
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, rule
from verification.subject import Subject


def stated_mode(subject: Subject) -> str | None:
    """The data mode that the script works with, else the model's."""
    need_config(subject)
    return subject.requires.get("DATA_MODE") or subject.declares("DATA_MODE")


@rule("DAT510")
def data_mode(subject: Subject) -> Iterator[Finding]:
    stated = stated_mode(subject)
    if not subject.data:
        raise NotApplicable("the config has no data_paths")
    unknown = []
    for entry in subject.data:
        fix = f"point {entry.key} to {stated} data"
        if entry.problem:
            yield finding("DAT510", "FAIL", entry.problem, entry.path, fix=fix)
        elif entry.mode is None:
            unknown.append(entry.path)
        elif entry.mode != stated:
            text = f"{entry.path} is {entry.mode} data ({entry.origin}), the script trains in {stated} mode"
            yield finding("DAT510", "FAIL", text, *subject.trace.key_line(entry.key), fix)
        else:
            yield finding("DAT510", "PASS", f"{entry.path}: {entry.mode} ({entry.state})", entry.origin)
    if unknown:
        raise NotApplicable(f"not there and not in the catalogue: {', '.join(unknown)}")


@rule("DAT511")
def data_name(subject: Subject) -> Iterator[Finding]:
    stated = stated_mode(subject)
    if not subject.data or stated is None:
        raise NotApplicable("the config has no data_paths, or no data mode is known")
    for entry in subject.data:
        named = "encoder" in Path(entry.path).name.lower()
        if named != (stated == "encoder") and (named or entry.mode != stated):
            text = f"the name {entry.path} does not fit {stated} mode"
            yield finding("DAT511", "WARN", text, *subject.trace.key_line(entry.key))
    yield finding("DAT511", "PASS", f"names agree with {stated} mode", subject.config_file)


# --- contents ---------------------------------------------------------------------------------------------------------


def there(subject: Subject) -> list[DataPath]:
    """Puzzle data sets that are on this machine. Raises NotApplicable."""
    need_config(subject)
    if not subject.with_data:
        raise NotApplicable("contents are read with --data only")
    sets = [entry for entry in subject.data if entry.state == "there" and not entry.problem and entry.mode != "tokens"]
    if not sets:
        raise NotApplicable("no data set of puzzles is there")
    return sets


def rows_of(root: Path, split: str, kind: str) -> Iterator[Any]:
    """The rows of all sets of a split. Raises NotApplicable for damaged data, which DAT523 reports."""
    from dataset.format import load_splits

    try:
        parts = load_splits([root], split)
    except UsageError as error:
        raise NotApplicable(str(error)) from None
    for part in parts:
        yield from getattr(part, kind)


def shared(subject: Subject, kind: str) -> int:
    """Rows of the test splits that are also rows of the training splits."""
    sets, root = there(subject), subject.trace.cwd
    train = [entry for entry in sets if entry.key == "data_paths"]
    test = [entry for entry in sets if entry.key == "data_paths_test"] or train
    known = {row.tobytes() for entry in train for row in rows_of(root / entry.path, "train", kind)}
    return sum(row.tobytes() in known for entry in test for row in rows_of(root / entry.path, "test", kind))


@rule("DAT520")
def disjoint_examples(subject: Subject) -> Iterator[Finding]:
    count = shared(subject, "inputs")
    text = f"{count} test example(s) are also training examples"
    yield finding("DAT520", "FAIL" if count else "PASS", text, there(subject)[0].path)


@rule("DAT521")
def disjoint_solutions(subject: Subject) -> Iterator[Finding]:
    count = shared(subject, "labels")
    text = f"{count} test example(s) have the answer of a training example"
    yield finding("DAT521", "WARN" if count else "PASS", text, there(subject)[0].path)


@rule("DAT523")
def contents(subject: Subject) -> Iterator[Finding]:
    import numpy as np

    from dataset.format import load_splits

    for entry in there(subject):
        for split in ("train", "test"):
            folder = subject.trace.cwd / entry.path
            file = str(folder / split / "dataset.json")
            try:
                parts = load_splits([folder], split)
            except UsageError as error:
                yield finding("DAT523", "FAIL", str(error), file)
                continue
            size = parts[0].metadata.vocab_size
            top = max(int(np.max(rows, initial=0)) for part in parts for rows in (part.inputs, part.labels))
            if top >= size:
                yield finding("DAT523", "FAIL", f"{entry.path}/{split}: token {top} with vocab_size={size}", file)
                continue
            rows = sum(part.num_examples for part in parts)
            yield finding("DAT523", "PASS", f"{entry.path}/{split}: {rows} rows agree with dataset.json", entry.path)
