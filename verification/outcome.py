"""What a report shows besides its findings: the links of the chain, and the resolved table."""

from __future__ import annotations

from typing import Any

from verification.rules.config import warmup_key
from verification.rules.together import encoder_policy, mode_of_name
from verification.subject import Subject


def links(subject: Subject) -> list[dict[str, Any]]:
    """The chain as rows, in the guide's order."""
    rows: list[dict[str, Any]] = []

    def link(step: str, what: str, value: Any, file: str = "", line: int = 0) -> None:
        if value not in (None, ""):
            rows.append({"step": step, "what": what, "value": str(value), "file": file, "line": line})

    trace = subject.trace
    link("1", "command", " ".join(subject.command.argv), subject.where, subject.line)
    if trace.script is None or not trace.script.mains:
        return rows
    file, first = subject.script_file, trace.script.mains[0]
    link("2", "script", file, file, first.line)
    link("2", "decorator", first.config_name, file, first.line)
    link("3", "config", trace.config_name, subject.config_file)
    link("3", "defaults", " -> ".join(subject.files))
    link("4", "arch", subject.choices.get("arch"), subject.arch_file)
    if subject.resolved is None:
        return rows
    for one in (subject.model, subject.loss, *subject.evaluators):
        step = "5" if one is subject.model else "4"
        link(step, one.key, one.text, *one.place)
    if name := subject.model.train_forward:
        link("5", "training forward", f"{name}()", *subject.model.train_place)
    for entry in subject.data:
        link("data", entry.key, f"{entry.path} ({entry.mode or 'mode unknown'}, {entry.state})", entry.origin)
    return rows


def initial_weights(config: dict[str, Any]) -> str:
    """Where the weights of a new run come from."""
    sources = {"gpt2": config.get("gpt2_type"), "prev_run": config.get("prev_run_ckpt")}
    source = sources.get(str(config.get("init_from")))
    return str(source) if source else f"random, seed {config.get('seed')}"


def facts(subject: Subject) -> dict[str, Any]:
    """The resolved table."""
    config, arch, model = subject.resolved or {}, subject.arch, subject.model
    return {
        "script": subject.script_file,
        "config": subject.trace.config_name,
        "arch": subject.choices.get("arch"),
        "model": subject.model.text or None,
        "loss": subject.loss.text or None,
        "task": subject.task,
        "train_forward": model.train_forward,
        "act_mode": subject.declares("ACT_MODE"),
        "act_mode_found": mode_of_name(model.train_forward),
        "encoder_policy": encoder_policy(model) or "",
        "encoder_type": arch.get("encoder_type", "none"),
        "data_mode": subject.declares("DATA_MODE"),
        "data": [entry.path for entry in subject.data],
        "training_mode": config.get("training_mode"),
        "exploration": arch.get("halt_exploration_prob"),
        "halt_max_steps": arch.get("halt_max_steps"),
        "batch": config.get("global_batch_size", config.get("batch_size")),
        "processes": subject.command.processes,
        "steps": subject.steps,
        "max_steps": config.get("max_steps"),
        "warmup": config.get(warmup_key(config)),
        "initial_weights": "resumed" if subject.trace.resumes else initial_weights(config),
        "run_name": config.get("run_name") or config.get("out_dir"),
        "run_dir": config.get("run_dir"),
    }
