"""A run that exists (--checkpoint): its stored config, signature and step against today's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.fields import flatten
from engine.io import read_object
from engine.run.files import read_json, read_yaml
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, rule
from verification.signature import compare_signatures, make_signature
from verification.subject import Subject


def run_of(subject: Subject) -> Path:
    """The run that is judged. Raises NotApplicable."""
    if subject.checkpoint is None:
        raise NotApplicable("no run is examined (--checkpoint RUN)")
    return subject.checkpoint


def leaves(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every leaf that is part of a run's identity."""
    counted = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    return {key: value for key, value in flatten(counted) if not isinstance(value, dict)}


@rule("CKP610", at_launch=False)
def stored_config(subject: Subject) -> Iterator[Finding]:
    run = run_of(subject)
    file = run / "config.resolved.yaml"
    if not file.is_file():
        yield finding("CKP610", "FAIL", f"{run} has no config.resolved.yaml", str(run))
        return
    need_config(subject)
    if subject.today is None:
        raise NotApplicable(subject.no_today)
    stored: Any = read_yaml(file)
    if not stored:
        yield finding("CKP610", "FAIL", f"{file} is damaged", str(file))
        return
    before, today = leaves(stored), leaves(subject.today)
    if younger := [f"{key}={value}" for key, value in today.items() if key not in before]:
        yield finding("CKP610", "WARN", f"keys that are younger than the run: {', '.join(younger)}", str(file))
    for key in [key for key in before if before[key] != today.get(key)]:
        text = f"{key}: {before[key]} in the run, {today.get(key)} composed today"
        yield finding("CKP610", "FAIL", text, str(file))
    yield finding("CKP610", "PASS", "the run's config is what its command composes to today", str(file))


@rule("CKP611", at_launch=False)
def stored_signature(subject: Subject) -> Iterator[Finding]:
    run = run_of(subject)
    file = run / "path_signature.json"
    if not file.is_file():
        yield finding("CKP611", "WARN", f"{run} has no path_signature.json", str(run))
        return
    need_config(subject)
    today = {key: value for key, value in make_signature(subject).items() if key != "world_size"}  # of this process
    try:
        fails, warns = compare_signatures(read_object(file), today)
    except UsageError as error:
        yield finding("CKP611", "FAIL", str(error), str(file))
        return
    for level, texts in (("FAIL", fails), ("WARN", warns)):
        for text in texts:
            yield finding("CKP611", level, text, str(file))
    yield finding("CKP611", "PASS", "the path signature is that of today", str(file))


@rule("CKP612", at_launch=False)
def stored_tensors(subject: Subject) -> Iterator[Finding]:
    run_of(subject)
    raise NotApplicable("tensors are compared with --dynamic, and strictly by all that opens a checkpoint")
    yield


@rule("CKP613", at_launch=False)
def stored_step(subject: Subject) -> Iterator[Finding]:
    status = run_of(subject) / "status.json"
    step = read_json(status).get("step")
    if type(step) is not int:
        raise NotApplicable(f"{status} names no step")
    if subject.steps is None:
        raise NotApplicable("the length of the run is not known")
    text = f"step {step} of {subject.steps}"
    yield finding("CKP613", "PASS" if step <= subject.steps else "FAIL", text, str(status))
