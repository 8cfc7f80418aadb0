"""Data: mode and names always; contents where asked for (--data) and there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from verification.data import DataPath, TextPath
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, rule
from verification.subject import Subject


def stated_mode(subject: Subject) -> str | None:
    """The data mode of the data sets that the script works with, else the model's."""
    need_config(subject)
    reads = subject.family.reads if subject.family else ""
    return reads or subject.requires.get("DATA_MODE") or subject.declares("DATA_MODE")


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


# --- contents ---------------------------------------------------------------------------------------------------------


def there(subject: Subject, *, of_text: bool | None = False) -> list[DataPath]:
    """Data sets of puzzles (of text; of both) that are on this machine. Raises NotApplicable."""
    need_config(subject)
    if not subject.with_data:
        raise NotApplicable("contents are read with --data only")
    sets = [entry for entry in subject.data if entry.state == "there" and not entry.problem]
    sets = [entry for entry in sets if of_text in (None, entry.mode == "tokens")]
    if not sets:
        raise NotApplicable("no such data set is there")
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


@rule("DAT520", "DAT521")
def disjoint(subject: Subject) -> Iterator[Finding]:
    for code, level, kind, text in (
        ("DAT520", "FAIL", "inputs", "are also training examples"),
        ("DAT521", "WARN", "labels", "have the answer of a training example"),
    ):
        if count := shared(subject, kind):
            yield finding(code, level, f"{count} test example(s) {text}", there(subject)[0].path)


@rule("DAT523")
def contents(subject: Subject) -> Iterator[Finding]:
    for entry in there(subject, of_text=None):
        splits, read = (("train", "val"), _tokens) if entry.mode == "tokens" else (("train", "test"), _puzzles)
        for split in splits:
            place = f"{entry.path}/{split}"
            try:
                rows, top, size = read(subject.trace.cwd / entry.path, split)
            except UsageError as error:
                yield finding("DAT523", "FAIL", str(error), place)
                continue
            text = f"{place}: {rows}, numbers up to {top}, vocab_size={size}"
            yield finding("DAT523", "PASS" if top < size else "FAIL", text, place)


def _puzzles(folder: Path, split: str) -> tuple[str, int, int]:
    """(how much there is, the highest number, the size of the vocabulary). Raises: UsageError."""
    import numpy as np

    from dataset.format import load_splits

    parts = load_splits([folder], split)
    top = max(int(np.max(rows, initial=0)) for part in parts for rows in (part.inputs, part.labels))
    return f"{sum(part.num_examples for part in parts)} rows", top, parts[0].metadata.vocab_size


def _tokens(folder: Path, split: str) -> tuple[str, int, int]:
    from dataset.text.stream import TokenStream

    stream = TokenStream(folder, split)
    return f"{len(stream.tokens)} tokens", int(stream.tokens.max()), stream.meta.vocab_size


# --- texts ------------------------------------------------------------------------------------------------------------


def texts(subject: Subject, *keys: str) -> list[TextPath]:
    """The text data sets, or those that one of `keys` names. Raises NotApplicable where there are none."""
    need_config(subject)
    sets = [one for one in subject.data if isinstance(one, TextPath) and (one.key in keys or not keys)]
    if not sets:
        raise NotApplicable(f"the config names no text{' in ' if keys else ''}{' or '.join(keys)}")
    return sets


@rule("DAT540")
def pretrained_tokens(subject: Subject) -> Iterator[Finding]:
    known = [entry for entry in texts(subject) if entry.tokenizer]
    if not known or (subject.resolved or {}).get("init_from") != "gpt2":
        raise NotApplicable("no pretrained vocabulary, or the tokenizer of the data is not known")
    for entry in (entry for entry in known if entry.tokenizer != "gpt2"):
        text = f"{entry.path} has tokens of '{entry.tokenizer}', init_from=gpt2 reads GPT-2's own tokens"
        yield finding("DAT540", "FAIL", text, entry.origin)


@rule("DAT541")
def one_vocabulary(subject: Subject) -> Iterator[Finding]:
    kinds = {entry.vocabulary: entry for entry in texts(subject, "dataset_list") if entry.vocabulary}
    if len(kinds) > 1 and not (subject.resolved or {}).get("multidataset_wte"):
        names = ", ".join(f"{entry.path} ({entry.tokenizer})" for entry in kinds.values())
        text = f"{names} share one token table, their vocabularies differ"
        yield finding("DAT541", "WARN", text, *subject.place)


@rule("DAT542")
def aligned(subject: Subject) -> Iterator[Finding]:
    streams, place = texts(subject, "multicontext_datasets"), subject.place
    paths = [entry.path for entry in streams]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield finding("DAT542", "WARN", f"{path} appears twice: one stream is a copy of the other", *place)
    for split in ("train", "val"):
        sizes = {entry.path: entry.lengths[split] for entry in streams if split in entry.lengths}
        if len(set(sizes.values())) > 1:
            cut = (subject.resolved or {}).get("multicontext_align") == "truncate"
            text = f"{split} has {', '.join(f'{n} tokens in {path}' for path, n in sizes.items())}"
            fix = "multicontext_align=truncate, if they begin together" if not cut else ""
            yield finding("DAT542", "WARN" if cut else "FAIL", text, *place, fix)
    if len({entry.text for entry in streams if entry.text}) > 1:
        yield finding("DAT542", "WARN", f"{', '.join(paths)} are not annotations of one text", *place)
