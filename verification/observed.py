"""Observes a tiny instance of each config (verification/probes), once for all commands that share it."""

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
"""Fewer instances are observed in this process; at most so many worker processes are started."""
NO_TINY = Path("data")
"""Placeholder for the folder of the tiny data in the key of a cached verdict."""


def observed(subject: Subject, *, start: bool = True) -> list[Finding]:
    """Findings on the guide's requirements on behaviour (MOD, SCR12x to SCR14x); SKIP if the command has no model.

    `start=False` only returns what is in the cache, which may be nothing, and does not import torch.
    """
    key, reason = _key(subject)
    if not key:
        return [finding(code, "SKIP", reason) for code in OBSERVED]
    rows = recall(key, (lambda: _observe(subject)) if start else None, keep_if=_was_built)
    findings = [Finding(**row) for row in rows or ()]
    findings = [one for one in findings if one.code not in ALSO_OBSERVED or one.level == "FAIL"]
    if subject.misdeclared:
        findings = [one for one in findings if one.code != "SCR112"]  # the rule of that code reports it, with its place
    if failed := ", ".join(dict.fromkeys(one.code for one in findings if one.level == "FAIL")):
        findings.append(finding("SUM600", "FAIL", f"what is observed is not what is declared ({failed})"))
    return findings


def _key(subject: Subject) -> tuple[list[Any], str]:
    """(cache key of the verdict on a subject's behaviour, or [] and the reason why there is none)."""
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
    """Observe all subjects that are not in the cache, with a process per core; `observed` then finds them there."""
    keys = ((subject, _key(subject)[0]) for subject in subjects)
    fresh = {repr(key): subject for subject, key in keys if key and recall(key, None) is None}
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

    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    for subject in subjects:
        observed(subject)


def _observe(subject: Subject, **how: Any) -> list[dict[str, Any]]:
    from verification.probes.session import observe

    assert subject.trace.script is not None
    assert subject.resolved is not None
    return [asdict(one) for one in observe(subject.resolved, script=subject.trace.script.module, **how)]  # type: ignore[arg-type]


def _was_built(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether an instance was built: the reason why one was not may lie outside our code."""
    return any(row["code"] in ("SCR120", "DYN703") and row["level"] != "SKIP" for row in rows)


def observed_deeply(subject: Subject) -> list[Finding]:
    """Findings of the deeper probes (DYN7xx) of a config, and of a run's tensors compared with the model's."""
    config, spec = subject.resolved, subject.family
    if config is None:
        return []
    overrides, arch = subject.trace.overrides, config.get("arch")
    settings = shrunk(spec, config, NO_TINY, narrow=False) if spec else config
    shared = [code for code in DEEP if code != "DYN716"]
    rows = recall(
        ["deep", subject.script_stem, settings, arch], lambda: _observe(subject, codes=shared), keep_if=_was_built
    )
    if all(row["code"] != "DYN700" or row["level"] == "PASS" for row in rows):
        rows = [*rows, *_observe(subject, codes=["DYN716"], overrides=overrides)]
    findings = [Finding(**row) for row in rows]
    if subject.checkpoint is not None and subject.trace.script and subject.trace.script.module:
        findings.append(tensors(subject.checkpoint, config, subject.trace.script.module))
    return findings
