"""What a tiny instance of each config shows (verification/probes), once for all commands that share it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import engine.registry
from engine.errors import UsageError
from verification.codes import ALSO_OBSERVED, CODES, OBSERVED
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config
from verification.spec import shrunk, specification
from verification.stored import tensors
from verification.subject import Subject
from verification.verdicts import Verdict, key_of, load, save

KEPT: dict[str, Verdict] = {}
"""Script, shrunk config -> what this process's code shows; on disk the same for other processes."""


def observed(subject: Subject, *, start: bool = True) -> list[Finding]:
    """What the guide asks of behaviour (MOD, SCR12x to SCR14x); SKIP where the command leads to no model.

    `start` False only looks up what has been observed before, and imports no torch: nothing where that is nothing.
    """
    script, spec = subject.trace.script, None
    try:
        config = need_config(subject)
        reason = next(iter(subject.problems.values()), "") or subject.model.problem or subject.loss.problem
        spec = specification(script.module) if script and script.module else None
    except (NotApplicable, UsageError) as error:
        config, reason = {}, str(error)
    if script is None or script.module is None or spec is None or reason:
        return [finding(code, "SKIP", reason or "the script's family has no verify.py") for code in OBSERVED]
    settings = shrunk(spec, config, Path("data"), narrow=True)
    # of the code that this process has loaded, wherever the tree lies that has the same
    root, name = engine.registry.ROOT, json.dumps([script.path.stem, settings], sort_keys=True, default=str)
    if name not in KEPT:
        key = key_of(script.path.stem, settings, root)
        kept = load(key)
        if kept is None and not start:
            return []
        if kept is None:
            from verification.probes.session import observe_codes

            kept = observe_codes(config, script=script.module, root=root)
            save(key, kept)
        KEPT[name] = kept
    return [with_fix(one) for one in KEPT[name].findings if one.code not in ALSO_OBSERVED or one.level == "FAIL"]


def with_fix(one: Finding) -> Finding:
    """A finding with the table's fix, where something is amiss and it has none of its own."""
    return replace(one, fix=CODES[one.code].fix) if one.level in ("FAIL", "WARN") and not one.fix else one


def observed_deeply(subject: Subject) -> list[Finding]:
    """The further probes (DYN7xx) of a config, and the tensors of a run against the model's."""
    from verification.probes import probe

    config, root, entry = subject.resolved, engine.registry.ROOT, subject.script_stem
    if config is None:
        return []
    findings = probe(config, entry=entry, root=root, overrides=subject.trace.overrides)
    if subject.checkpoint is not None:
        findings = [*findings, tensors(subject.checkpoint, config, entry=entry, root=root)]
    return findings
