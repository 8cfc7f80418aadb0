"""The behaviour of a tiny instance of each config (verification/probes), once for all commands that share it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from verification.codes import ALSO_OBSERVED, DEEP, OBSERVED
from verification.finding import Finding
from verification.recall import recall
from verification.rule import NotApplicable, finding, need_config
from verification.rules.stored import tensors
from verification.spec import depths, shrunk
from verification.subject import Subject

FEW, MOST = 4, 8
"""Below so many instances this process observes them itself; so many others are started at most."""
NO_TINY = Path("data")
"""Stands for the folder of the tiny data in what a verdict is kept by."""


def observed(subject: Subject, *, start: bool = True) -> list[Finding]:
    """What the guide asks of behaviour (MOD, SCR12x to SCR14x); SKIP where the command leads to no model.

    `start` False only returns what has been observed before, which may be nothing, and imports no torch.
    """
    question, reason = _question(subject)
    if not question:
        return [finding(code, "SKIP", reason) for code in OBSERVED]
    rows = recall(question, (lambda: _observe(subject)) if start else None, lasts=_was_built)
    findings = [Finding(**row) for row in rows or ()]
    findings = [one for one in findings if one.code not in ALSO_OBSERVED or one.level == "FAIL"]
    if subject.misdeclared:
        findings = [one for one in findings if one.code != "SCR112"]  # the rule of that code reports it, with its place
    if failed := ", ".join(dict.fromkeys(one.code for one in findings if one.level == "FAIL")):
        findings.append(finding("SUM600", "FAIL", f"what is observed is not what is declared ({failed})"))
    return findings


def _question(subject: Subject) -> tuple[list[Any], str]:
    """(the key under which the verdict on a subject's behaviour is stored, why there is none)."""
    try:
        config, spec = need_config(subject), subject.family
    except (NotApplicable, UsageError) as error:
        return [], str(error)
    links = (subject.model.problem, subject.model.uncallable, subject.loss.problem)
    reason = next((text for text in (*subject.problems.values(), *links) if text), "")
    if spec is None or reason:
        return [], reason or "the script's family has no verify.py"
    settings = shrunk(spec, config, NO_TINY, narrow=True)
    return ["observed", subject.script_stem, settings, depths(subject.arch)], ""


def observe_ahead(subjects: Iterable[Subject]) -> None:
    """Observe what nobody has yet, a process for each core; verdicts are kept on disk, where `observed` finds them."""
    asked = ((subject, _question(subject)[0]) for subject in subjects)
    fresh = {repr(question): subject for subject, question in asked if question and recall(question, None) is None}
    if sys.platform != "linux" or len(fresh) < FEW:
        return
    count = min(len(os.sched_getaffinity(0)), len(fresh), MOST)
    shares = [list(fresh.values())[number::count] for number in range(count)] if count > 1 else []
    workers = [multiprocessing.get_context("fork").Process(target=_work, args=(share,)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(subjects: list[Subject]) -> None:
    import torch

    torch.set_num_threads(1)  # the threads of the parent are not there any more
    for subject in subjects:
        observed(subject)


def _observe(subject: Subject, **how: Any) -> list[dict[str, Any]]:
    from verification.probes.session import observe

    assert subject.trace.script is not None
    assert subject.resolved is not None
    return [asdict(one) for one in observe(subject.resolved, script=subject.trace.script.module, **how)]  # type: ignore[arg-type]


def _was_built(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether there was an instance: why there was none may lie outside of our code."""
    return any(row["code"] in ("SCR120", "DYN703") and row["level"] != "SKIP" for row in rows)


def observed_deeply(subject: Subject) -> list[Finding]:
    """The further probes (DYN7xx) of a config, and the tensors of a run against the model's."""
    config, spec = subject.resolved, subject.family
    if config is None:
        return []
    overrides, arch = subject.trace.overrides, config.get("arch")
    settings = shrunk(spec, config, NO_TINY, narrow=False) if spec else config
    shared = [code for code in DEEP if code != "DYN716"]
    rows = recall(
        ["deep", subject.script_stem, settings, arch], lambda: _observe(subject, codes=shared), lasts=_was_built
    )
    if all(row["code"] != "DYN700" or row["level"] == "PASS" for row in rows):
        rows = [*rows, *_observe(subject, codes=["DYN716"], overrides=overrides)]
    findings = [Finding(**row) for row in rows]
    if subject.checkpoint is not None and subject.trace.script and subject.trace.script.module:
        findings.append(tensors(subject.checkpoint, config, subject.trace.script.module))
    return findings
