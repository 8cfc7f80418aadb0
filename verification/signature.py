"""The path signature: what a run was built from, in a form that a resume can compare."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from verification.modules import closure
from verification.recall import recall
from verification.subject import Subject

# If one of these differs, a resume is another experiment.
MUST_MATCH = ("script", "arch", "model", "loss", "train_forward", "act_mode", "data_mode", "encoder_policy", "task")
# Differences in these are reported.
MAY_DIFFER = (
    "config",
    "decorator_config",
    "defaults",
    "evaluators",
    "source",
    "commit",
    "world_size",
    "total_steps",
    "data",
)


def make_signature(subject: Subject) -> dict[str, Any]:
    """The signature of a subject; links that could not be resolved are null."""
    trace, model = subject.trace, subject.model
    first = trace.script.mains[0] if trace.script and trace.script.mains else None
    return {
        "script": subject.script_file or None,
        "decorator_config": first.config_name if first else None,
        "config": trace.config_name,
        "defaults": subject.files,
        "arch": subject.choices.get("arch"),
        "model": model.text or None,
        "loss": subject.loss.text or None,
        "evaluators": [link.text for link in subject.evaluators],
        "task": subject.task,
        "train_forward": model.train_forward or None,
        "act_mode": subject.declares("ACT_MODE"),
        "encoder_policy": model.encoder_policy,
        "encoder_type": subject.arch.get("encoder_type", "none"),
        "initial_weights": initial_weights(subject.resolved or {}),
        "data_mode": subject.declares("DATA_MODE"),
        "data": [entry.path for entry in subject.data],
        "total_steps": subject.steps,
        "source": source_of(subject.root, model.module) if model.module else None,
        "commit": commit(subject.root),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def initial_weights(config: dict[str, Any]) -> str:
    """The origin of the weights of a new run."""
    sources = {"gpt2": config.get("gpt2_type"), "prev_run": config.get("prev_run_ckpt")}
    source = sources.get(str(config.get("init_from"))) or config.get("load_checkpoint")
    fresh = str(source) if source else f"random, seed {config.get('seed')}"
    decoder = config.get("load_pretrained_decoder")
    return f"decoder of {decoder}, else {fresh}" if decoder else fresh


def source_of(root: Path, module: str) -> str | None:
    """sha256 over a model's module and the files of models/ that it imports; None if there are none."""
    hashed: str | None = recall(["source", module], lambda: _hash(closure(root, [module], ("models",)).values(), root))
    return hashed


def _hash(files: Collection[Path], root: Path) -> str | None:
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        digest.update(f"{name}\0{file.read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest() if files else None


@functools.cache
def commit(root: Path) -> str | None:
    """The commit of a work tree, with `+` if it has changes; None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def compare_signatures(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(differences that make it another experiment, other differences), as text.

    Keys that only one signature has do not count, nor do unknown values of MAY_DIFFER (no git, data that are not here).
    """

    def changes(keys: tuple[str, ...], unknown: tuple[None, ...]) -> list[str]:
        both = [key for key in keys if key in old and key in new]
        both = [key for key in both if old[key] != new[key] and old[key] not in unknown and new[key] not in unknown]
        return [f"{key}: {old[key]} -> {new[key]}" for key in both]

    return changes(MUST_MATCH, ()), changes(MAY_DIFFER, (None,))
