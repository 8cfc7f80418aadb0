"""Data: mode and names always; contents where asked for (--data) and there. Runs: stored against today."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import read_object
from engine.run.files import read_json, read_yaml
from verification.chain import Chain
from verification.checks.registry import NotApplicable, check, declared, need_resolved, need_script, say
from verification.data import DataPath
from verification.finding import Finding


@check("DAT510")
def data_mode(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    wanted = need_script(chain).requires.get("DATA_MODE") or declared(chain, "DATA_MODE")
    if not chain.data:
        raise NotApplicable("the config has no data_paths")
    unknown = []
    for entry in chain.data:
        if entry.problem:
            yield say("DAT510", "FAIL", entry.problem, entry.path, fix=f"point {entry.key} to {wanted} data")
        elif entry.mode is None:
            unknown.append(entry.path)
        elif entry.mode != wanted:
            yield say(
                "DAT510",
                "FAIL",
                f"{entry.path} is {entry.mode} data ({entry.origin}), the script trains in {wanted} mode",
                *chain.key_line(entry.key),
                f"point {entry.key} to {wanted} data",
            )
        else:
            yield say("DAT510", "PASS", f"{entry.path}: {entry.mode} ({entry.state})", entry.origin)
    if unknown:
        raise NotApplicable(f"not there and not in the catalogue: {', '.join(unknown)}")


@check("DAT511")
def data_name(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    wanted = need_script(chain).requires.get("DATA_MODE") or declared(chain, "DATA_MODE")
    if not chain.data or wanted is None:
        raise NotApplicable("the config has no data_paths, or no data mode is known")
    wrong = [
        e
        for e in chain.data
        if ("encoder" in Path(e.path).name.lower()) != (wanted == "encoder")
        and "encoder" in e.path.lower() + str(wanted)
    ]
    for entry in wrong:
        yield say("DAT511", "WARN", f"the name {entry.path} does not fit {wanted} mode", *chain.key_line(entry.key))
    if not wrong:
        yield say("DAT511", "PASS", f"names agree with {wanted} mode", chain.config_file)


def _there(chain: Chain) -> list[DataPath]:
    need_resolved(chain)
    if not chain.with_data:
        raise NotApplicable("contents are read with --data only")
    found = [e for e in chain.data if e.state == "there" and not e.problem and e.mode != "tokens"]
    if not found:
        raise NotApplicable("no data set of puzzles is there")
    return found


def _rows(root: Path, split: str, kind: str) -> Iterator[Any]:
    """The rows of all sets of a split. Raises: NotApplicable for damaged data, which DAT523 reports."""
    from dataset.format import load_splits

    try:
        parts = load_splits([root], split)
    except UsageError as error:
        raise NotApplicable(str(error)) from None
    for part in parts:
        yield from getattr(part, kind)


def _shared(chain: Chain, kind: str) -> int:
    """Rows of the test splits that are also rows of the training splits."""
    found = _there(chain)
    root = chain.repo.root
    train = [entry for entry in found if entry.key == "data_paths"]
    test = [entry for entry in found if entry.key == "data_paths_test"] or train
    known = {row.tobytes() for entry in train for row in _rows(root / entry.path, "train", kind)}
    return sum(row.tobytes() in known for entry in test for row in _rows(root / entry.path, "test", kind))


@check("DAT520")
def disjoint_examples(chain: Chain) -> Iterator[Finding]:
    count = _shared(chain, "inputs")
    text = f"{count} test example(s) are also training examples"
    yield say("DAT520", "FAIL" if count else "PASS", text, _there(chain)[0].path)


@check("DAT521")
def disjoint_solutions(chain: Chain) -> Iterator[Finding]:
    count = _shared(chain, "labels")
    text = f"{count} test example(s) have the answer of a training example"
    yield say("DAT521", "WARN" if count else "PASS", text, _there(chain)[0].path)


@check("DAT522", "DAT530")
def encoder_data(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    raise NotApplicable(
        f"a check of data with demonstrations or pretrained parts; this is {declared(chain, 'DATA_MODE')} mode"
    )
    yield


@check("DAT523")
def contents(chain: Chain) -> Iterator[Finding]:
    import numpy as np

    from dataset.format import load_splits

    for entry in _there(chain):
        for split in ("train", "test"):
            file = chain.repo.root / entry.path / split / "dataset.json"
            try:
                parts = load_splits([chain.repo.root / entry.path], split)
            except UsageError as error:
                yield say("DAT523", "FAIL", str(error), str(file))
                continue
            size = parts[0].metadata.vocab_size
            arrays = [rows for part in parts for rows in (part.inputs, part.labels)]
            top = max(int(np.max(rows, initial=0)) for rows in arrays)
            if top >= size:
                yield say("DAT523", "FAIL", f"{entry.path}/{split}: token {top} with vocab_size={size}", str(file))
                continue
            rows = sum(part.num_examples for part in parts)
            yield say("DAT523", "PASS", f"{entry.path}/{split}: {rows} rows agree with dataset.json", entry.path)


# --- a finished run ---------------------------------------------------------------------------------------------------


def _run(chain: Chain) -> Path:
    if chain.checkpoint is None:
        raise NotApplicable("no run is examined (--checkpoint RUN)")
    return chain.checkpoint


@check("CKP610")
def stored_config(chain: Chain) -> Iterator[Finding]:
    from engine.config import NOT_IDENTITY, dotted_keys

    run = _run(chain)
    file = run / "config.resolved.yaml"
    if not file.is_file():
        yield say("CKP610", "FAIL", f"{run} has no config.resolved.yaml", str(run))
        return
    need_resolved(chain)
    if chain.today is None:
        raise NotApplicable(chain.no_today)
    stored: Any = read_yaml(file)
    if not stored:
        yield say("CKP610", "FAIL", f"{file} is damaged", str(file))
        return
    flat = [{k: _at(c, k) for k in dotted_keys(c) if not isinstance(_at(c, k), dict)} for c in (stored, chain.today)]
    keys = [
        k for k in {**flat[0], **flat[1]} if k.split(".")[0] not in NOT_IDENTITY and flat[0].get(k) != flat[1].get(k)
    ]
    for key in keys:
        yield say(
            "CKP610", "FAIL", f"{key}: {flat[0].get(key)} in the run, {flat[1].get(key)} composed today", str(file)
        )
    if not keys:
        yield say("CKP610", "PASS", "the run's config is what its command composes to today", str(file))


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@check("CKP611")
def stored_signature(chain: Chain) -> Iterator[Finding]:
    from verification.signature import compare_signatures, make_signature

    run = _run(chain)
    file = run / "path_signature.json"
    if not file.is_file():
        yield say("CKP611", "WARN", f"{run} has no path_signature.json", str(run))
        return
    need_resolved(chain)
    today = {key: value for key, value in make_signature(chain).items() if key != "world_size"}  # of this process
    try:
        stored = read_object(file)
    except UsageError as error:
        yield say("CKP611", "FAIL", str(error), str(file))
        return
    fails, warns = compare_signatures(stored, today)
    for text in fails:
        yield say("CKP611", "FAIL", text, str(file))
    for text in warns:
        yield say("CKP611", "WARN", text, str(file))
    if not fails and not warns:
        yield say("CKP611", "PASS", "the path signature is that of today", str(file))


@check("CKP612")
def stored_tensors(chain: Chain) -> Iterator[Finding]:
    _run(chain)
    raise NotApplicable("tensors are compared with --dynamic, and strictly by all that opens a checkpoint")
    yield


@check("CKP613")
def stored_step(chain: Chain) -> Iterator[Finding]:
    run = _run(chain)
    status = run / "status.json"
    step = read_json(status).get("step")
    if type(step) is not int:
        raise NotApplicable(f"{status} names no step")
    if chain.steps is None:
        raise NotApplicable("the length of the run is not known")
    level = "PASS" if step <= chain.steps else "FAIL"
    yield say("CKP613", level, f"step {step} of {chain.steps}", str(status))
