"""The path signature: what a run was made of, in a form that a resume can compare."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from verification.chain import Chain
from verification.checks.model import encoder_policy, forward_of
from verification.checks.registry import NotApplicable, declared

# A resume with another one of these is another experiment.
SAME = ("script", "arch", "model", "loss", "train_forward", "act_mode", "data_mode", "encoder_policy", "task")
# These may change; the reader should know.
TOLD = ("config", "decorator_config", "defaults", "evaluators", "source", "commit", "world_size", "total_steps", "data")


def make_signature(chain: Chain) -> dict[str, Any]:
    """The signature of a chain; links that could not be followed are null."""
    script, model = chain.script, chain.model
    try:
        train, policy = forward_of(chain).train, encoder_policy(chain)
    except NotApplicable:
        train, policy = "", None
    memo = chain.repo.memo
    if "commit" not in memo:
        memo["commit"] = commit(chain.repo.root)
    key = ("source", model.module if model else "")
    if key not in memo:
        files = chain.repo.closure(model.module, ("models",)) if model else []
        memo[key] = chain.repo.sources(*(m.file for m in files)) if files else None
    source = memo[key]
    task = script.task if script else None
    known = None if task is None or isinstance(task, str) else f"{task.module.name.removesuffix('.task')}@{task.name}"
    return {
        "script": script.file if script else None,
        "decorator_config": script.config_name if script else None,
        "config": chain.config_name,
        "defaults": chain.files,
        "arch": chain.choices.get("arch"),
        "model": model.text if model else None,
        "loss": chain.loss.text if chain.loss else None,
        "evaluators": [named.text for named in chain.evaluators],
        "task": known,
        "train_forward": train or None,
        "act_mode": declared(chain, "ACT_MODE"),
        "encoder_policy": policy,
        "data_mode": declared(chain, "DATA_MODE"),
        "data": [entry.path for entry in chain.data],
        "total_steps": chain.steps,
        "source": source,
        "commit": chain.repo.memo["commit"],
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def digest(signature: dict[str, Any]) -> str:
    """A short name for what must stay the same: jobs that share it share their dynamic probes."""
    text = repr([signature.get(key) for key in (*SAME, "source")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit(root: Path) -> str | None:
    """The commit of a work tree, with `+` where it has changes; None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def compare_signatures(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what makes it another experiment, what to know) as sentences; keys of one side do not count.

    Nor do notable ones that are not known (no git, data that are elsewhere).
    """

    def changes(keys: tuple[str, ...], unknown: tuple[None, ...]) -> list[str]:
        both = [key for key in keys if key in old and key in new]
        both = [key for key in both if old[key] != new[key] and old[key] not in unknown and new[key] not in unknown]
        return [f"{key}: {old[key]} -> {new[key]}" for key in both]

    return changes(SAME, ()), changes(TOLD, (None,))
