"""Step 1: the job line."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cli.keys import keys_of
from engine.cli.recipes import retired
from engine.fields import value_at
from engine.io import did_you_mean, user_path
from verification.finding import Finding
from verification.modules import module_file
from verification.reads import unread_arch, unread_schema
from verification.rule import NotApplicable, finding, inert, need_config, need_script, rule
from verification.subject import Subject, optimizer_keys

SUFFIX = re.compile(
    r"[_-](original|orig|old|backup|bak|copy|deprecated|legacy)\d*$|[_-]v\d+[_-]old$|\.(bak|old)$", re.IGNORECASE
)
BY_MACHINE = ("gpu", "cpu", "auto")
"""Values of --nproc-per-node with which torchrun counts the devices itself."""
LAUNCHERS = ("python", "torchrun", "accelerate", "deepspeed", "srun", "mpirun")
OURS = ("dataset", "engine", "launcher", "scripts", "tests", "verification")


def backup_suffix(name: str) -> str:
    """The suffix that marks a file or module (whose parts dots separate) as a backup copy; "" if there is none."""
    for part in name.removesuffix(".py").removesuffix(".yaml").split("."):
        if match := SUFFIX.search(part):
            return match[0]
    return ""


@rule("JOB010")
def script_exists(subject: Subject) -> Iterator[Finding]:
    command, place, fix, text = subject.command, subject.place, "", ""
    if command.module is not None:
        if command.module.split(".")[0] not in OURS:
            raise NotApplicable(f"module {command.module} is not one of ours")
        text = f"module {command.module} does not exist" * (module_file(subject.root, command.module) is None)
    elif command.script is None and command.launcher.endswith(":"):
        text = f"{command.launcher} is not a command; a job's name stands on the line above it"
        fix = f"#@ id: {command.launcher.rstrip(':')}"
    elif command.script is None:
        if command.launcher not in ("python", "torchrun"):
            raise NotApplicable(f"{command.launcher or 'an empty command'} is not a launcher of ours")
        text = "the command names no script (*.py)"
    elif not (subject.root / command.script).is_file():
        known = [path.name for path in subject.root.glob("*.py") if not path.name.endswith("_args.py")]
        known += [f"scripts/{path.name}" for path in subject.root.glob("scripts/*.py")]
        text = f"there is no script {command.script}: {did_you_mean(command.script, known)}"
    elif "script" in subject.problems:
        text, place = subject.problems["script"], (command.script, 0)
    elif command.launcher not in LAUNCHERS and (near := difflib.get_close_matches(command.launcher, LAUNCHERS, 1, 0.6)):
        text = f"{command.launcher} starts nothing: did you mean {near[0]}?"
    if text:
        yield finding("JOB010", "FAIL", text, *place, fix)


@rule("JOB011")
def script_suffix(subject: Subject) -> Iterator[Finding]:
    script = subject.command.script
    if script is None:
        raise NotApplicable("no script is named")
    if suffix := backup_suffix(script):
        yield finding("JOB011", "FAIL", f"{script} ends in {suffix}: a backup copy", *subject.place)


@rule("JOB012")
def launcher(subject: Subject) -> Iterator[Finding]:
    command, place = subject.command, subject.place
    need_script(subject)
    if {"-m", "--multirun"} & set(command.arguments) and command.launcher == "torchrun":
        text = "-m does not run under torchrun: each job is its own process"
        yield finding("JOB012", "FAIL", text, *place, "drop torchrun")
        return
    each = command.flags.get("nproc-per-node", "1") if command.launcher == "torchrun" else "1"
    if each not in BY_MACHINE and not (each.isdecimal() and int(each)):
        text = f"--nproc-per-node={each}: expected a number of at least 1, or {', '.join(BY_MACHINE)}"
        yield finding("JOB012", "FAIL", text, *place)
        return
    nodes = command.flags.get("nnodes", "1").rpartition(":")[2]
    if nodes not in ("", "1") and not {"rdzv-endpoint", "master-addr"} & set(command.flags):
        text = f"--nnodes={nodes} without --rdzv-endpoint or --master-addr: the nodes cannot meet"
        yield finding("JOB012", "WARN", text, *place)
    config = need_config(subject)
    batch, pieces, ranks = config.get("global_batch_size"), config.get("accumulation", 1), command.processes
    if not isinstance(batch, int) or not isinstance(pieces, int) or pieces < 1:
        raise NotApplicable("the config has no global_batch_size")
    if ranks is None:
        raise NotApplicable("the number of processes depends on the machine")
    if ranks < 1 or batch % (ranks * pieces):
        parts = max(1, ranks * pieces)
        fix = f"global_batch_size={max(parts, round(batch / parts) * parts)}, or another --nproc-per-node"
        text = f"global_batch_size={batch} does not divide into {ranks} process(es) x accumulation={pieces}"
        yield finding("JOB012", "FAIL", text, *place, fix)
    else:
        rows = f"{batch // (ranks * pieces)} rows x accumulation {pieces} x {ranks} process(es)"
        yield finding("JOB012", "PASS", f"{batch} = {rows}", *place)
    evaluated = config.get("eval_batch_size")
    if isinstance(evaluated, int) and ranks > 0 and evaluated % ranks:
        text = f"eval_batch_size={evaluated} does not divide over {ranks} processes"
        yield finding("JOB012", "FAIL", text, *place, f"eval_batch_size={-(-evaluated // ranks) * ranks}")


@rule("JOB020")
def config_exists(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    if "config" in subject.problems:
        hint = did_you_mean(subject.trace.config_name, subject.trace.options("cfg_*"))
        yield finding("JOB020", "FAIL", f"{subject.problems['config']}: {hint}", *subject.place)


@rule("JOB021")
def config_current(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    reasons = retired(subject.text("config/REMOVED.txt") or "")
    choices = [word.partition("=")[2] for word in subject.trace.overrides if word.lstrip("+").startswith("arch=")]
    arch = subject.choices.get("arch") or (choices[-1] if choices else None)
    for name in [subject.trace.config_name, *([f"arch/{arch}"] if arch else [])]:
        if name in reasons:
            text = f"{name} was retired: {reasons[name]}"
            yield finding("JOB021", "FAIL", text, *subject.place)
        elif suffix := backup_suffix(name):
            yield finding("JOB021", "FAIL", f"config {name} ends in {suffix}: a backup copy", *subject.place)


@rule("JOB030")
def overrides_compose(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    if "config" in subject.problems:
        raise NotApplicable(subject.problems["config"])
    problems = [subject.problems[key] for key in ("compose", "resolve", "schema") if key in subject.problems]
    for text in problems:
        yield finding("JOB030", "FAIL", text, *subject.place)
    if subject.schema is None:
        yield finding("JOB030", "WARN", f"{subject.script_file} states no schema", subject.script_file)


@rule("JOB031")
def overrides_are_read(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    overridden = {word.lstrip("+").partition("=")[0] for word in subject.trace.overrides}
    groups = [group for group, option in subject.choices.items() if group in overridden and option != "none"]
    place, unread = subject.place, {f"arch.{key}" for key in unread_arch(subject)} | set(unread_schema(subject))
    for key in [*subject.given, *groups]:
        if key in unread:
            yield finding("JOB031", "FAIL", f"{key} is overridden and nothing reads it", *place)
        elif reason := inert(subject, key) or not_taken(subject, key):
            yield finding("JOB031", "WARN", f"{key} is overridden without effect: {reason}", *place)


def not_taken(subject: Subject, key: str) -> str:
    """Why a key that reaches optimizers through their file has no effect: the chosen file does not use it; else ""."""
    choice = subject.choices.get("optimizer")
    texts = [*(file.text for file in subject.trace.files), *subject.trace.overrides]
    if not choice or key not in optimizer_keys(subject.root) or any(f"${{{key}}}" in text for text in texts):
        return ""
    return f"{subject.trace.locate(f'optimizer/{choice}')} does not take it"


NUMBER = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
NAMED_VALUES = {
    "lr": "lr learning_rate",
    "seed": "seed",
    "bs": "global_batch_size batch_size",
    "batch": "global_batch_size batch_size",
    "epochs": "epochs",
    "iters": "max_iters",
    "ema": "ema_rate",
    "wd": "weight_decay",
}
"""Word before a number in a run name -> keys that it may stand for; the first one in the config is used. Families have
more (`Verification.named_values`)."""


@rule("JOB032")
def run_name_is_true(subject: Subject) -> Iterator[Finding]:
    config = need_config(subject)
    key = "run_name" if config.get("run_name") or "out_dir" not in config else "out_dir"
    name = config.get(key)
    if not isinstance(name, str) or not name:
        raise NotApplicable("no run_name is given")
    name = Path(name).name
    archs, chosen = subject.trace.options("arch/*"), str(subject.choices.get("arch"))
    script = Path(subject.command.script or "").stem or chosen  # default names begin with the script's
    plain = name.lower().replace(script, "").replace(chosen, "")
    others = [token for token in re.split(r"[_\-/,]+", plain) if token in archs and token != chosen]
    contradictions = [f"'{token}' in the name, but arch={chosen}" for token in others]
    own = subject.family.named_values if subject.family else {}
    for word, keys in {**NAMED_VALUES, **own}.items():
        present = [(one, value) for one in keys.split() if isinstance(value := value_at(config, one), int | float)]
        for match in re.finditer(rf"(?<![a-z]){word}[=_-]?({NUMBER})(?![a-z0-9.])", plain):
            if present and not same(match[1], present[0][1]):
                contradictions.append(f"'{match[0]}' in the name, but {present[0][0]}={present[0][1]}")
    for text in contradictions:
        yield finding("JOB032", "WARN", f"{key}={name}: {text}", *subject.place)


@rule("JOB033")
def paths_exist(subject: Subject) -> Iterator[Finding]:
    config, place = need_config(subject), subject.place
    missing = "FAIL" if subject.with_data else "WARN"
    for key in ("resume_from", "prev_run_ckpt", "load_pretrained_decoder", "load_checkpoint"):
        source = str(config.get(key) or "")
        named = "/" in source if key == "resume_from" else bool(source)
        if named and not (subject.trace.cwd / user_path(source)).exists():
            yield finding("JOB033", missing, f"{key}={source} does not exist (yet)", *place)
    for entry in subject.data:
        if entry.state == "unknown":
            text = f"{entry.key}: {entry.path} does not exist and is not built on first use"
            yield finding("JOB033", missing, text, *place)
        elif entry.state == "published" and subject.with_data:
            text = f"{entry.key}: {entry.path} has to be built from public data first"
            yield finding("JOB033", "FAIL", text, *place)


# --- intent -----------------------------------------------------------------------------------------------------------


def same(meant: str, actual: Any) -> bool:
    """Whether the text of an intent equals a resolved value."""
    if isinstance(actual, list | tuple):
        return same(meant.strip("[]"), ",".join(str(item) for item in actual))
    if isinstance(actual, bool) or actual is None:
        return meant.lower() == ("null" if actual is None else str(actual).lower())
    try:
        return math.isclose(float(meant), float(actual), rel_tol=1e-9)
    except (TypeError, ValueError):
        return meant == str(actual)


def intended(subject: Subject) -> dict[str, Any]:
    """The keys that an intent may state, with their resolved values."""
    stated = {group: choice for group, choice in subject.choices.items() if "/" not in group} | {
        "mode": subject.declares("DATA_MODE"),
        "act": subject.declares("ACT_MODE"),
        "encoder": subject.arch.get("encoder_type", "none"),
        "cache": subject.model.encoder_policy,
        "exploration": subject.arch.get("halt_exploration_prob"),
        "arch": subject.choices.get("arch"),
        "model": subject.model.cls_name or None,
        "script": subject.script_stem,
        "config": subject.trace.config_name,
        "data": ",".join(Path(entry.path).name for entry in subject.data if entry.key != "data_paths_test"),
        "steps": subject.steps,
        "ranks": subject.command.processes,
        "family": subject.declares("FAMILY"),
    }
    more = subject.family.intents if subject.family else {}
    config = subject.resolved
    return stated | {key: value_at(config, at) if isinstance(at, str) else at(subject) for key, at in more.items()}


@rule("JOB034")
def intent_is_met(subject: Subject) -> Iterator[Finding]:
    config, place = need_config(subject), subject.place
    if subject.kind == "launch" and not subject.intent:
        raise NotApplicable("a launch states no intent")
    if not subject.intent:
        questions = " ".join(question for question, *_ in (subject.family.questions if subject.family else ()))
        yield finding("JOB034", "INFO", f"no `#@ intent:` line. {questions}", *place)
        return
    known = intended(subject)
    declared = keys_of(subject.schema) if subject.schema else {}
    for key, meant in subject.intent.items():
        if key in ("purpose", "init", "note"):
            continue
        if key not in known and value_at(config, key) is None and key not in declared:
            hint = did_you_mean(key, [*known, "purpose", "init", *config])
            yield finding("JOB034", "WARN", f"intent {key}={meant} is not understood: {hint}", *place)
            continue
        actual = known[key] if key in known else value_at(config, key)
        if key == "data" and {entry.mode for entry in subject.data} == {meant}:
            continue  # the data mode in place of the names
        if not same(meant.removesuffix(".py") if key == "script" else meant, actual):
            yield finding("JOB034", "FAIL", f"intended {key}={meant}, resolved {key}={actual}", *place)
    text = "as intended: " + " ".join(f"{key}={meant}" for key, meant in subject.intent.items())
    yield finding("JOB034", "PASS", text, *place)
