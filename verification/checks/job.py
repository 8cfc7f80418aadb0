"""Step 1: the job line."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.cli.keys import keys_of
from engine.io import did_you_mean, user_path
from verification.chain import Chain
from verification.checks.reads import dead_reason, unread_arch, unread_schema
from verification.checks.registry import NotApplicable, check, declared, family_of, need_resolved, need_script, say
from verification.compose import parse_overrides, plain
from verification.finding import Finding

SUFFIX = re.compile(r"[_-](original|old|backup|bak|copy|deprecated)\d*$|[_-]v\d+[_-]old$|\.(bak|old)$", re.IGNORECASE)
CLASS_SUFFIX = re.compile(r"_(original|old|backup|bak|copy)\d*$|(?<=[a-z0-9A-Z])(Original|Old|Backup|Bak|Copy)\d*$")
LAUNCHERS = ("python", "torchrun", "accelerate", "deepspeed", "srun", "mpirun")


def bad_suffix(name: str) -> str:
    """The suffix that marks a backup copy, "" for a good name (of a file or module; dots separate parts)."""
    for part in name.removesuffix(".py").removesuffix(".yaml").split("."):
        match = SUFFIX.search(part)
        if match:
            return match[0]
    return ""


@check("JOB010")
def script_exists(chain: Chain) -> Iterator[Finding]:
    command, where = chain.command, (chain.where, chain.line)
    if command.module is not None:
        if command.module.split(".")[0] in ("dataset", "engine", "launcher", "scripts", "tests", "verification"):
            there = chain.repo.module(command.module) is not None
            level = "PASS" if there else "FAIL"
            yield say("JOB010", level, f"module {command.module}" + ("" if there else " does not exist"), *where)
        return
    if command.script is None:
        if command.launcher not in ("python", "torchrun"):
            raise NotApplicable(f"{command.launcher or 'an empty command'} is no launcher of ours")
        yield say("JOB010", "FAIL", "the command names no script (*.py)", *where)
        return
    if chain.repo.text(command.script) is None:
        known = [p.name for p in chain.repo.root.glob("*.py")] + [
            f"scripts/{p.name}" for p in chain.repo.root.glob("scripts/*.py")
        ]
        hint = did_you_mean(command.script, [name for name in known if not name.endswith("_args.py")])
        yield say("JOB010", "FAIL", f"there is no script {command.script}: {hint}", *where)
        return
    if "script" in chain.problems:
        yield say("JOB010", "FAIL", f"{command.script} cannot be read: {chain.problems['script']}", command.script)
        return
    if command.launcher not in LAUNCHERS and (near := difflib.get_close_matches(command.launcher, LAUNCHERS, 1, 0.6)):
        yield say("JOB010", "FAIL", f"{command.launcher} starts nothing: did you mean {near[0]}?", *where)
        return
    yield say("JOB010", "PASS", f"{command.script} exists", command.script)


@check("JOB011")
def script_suffix(chain: Chain) -> Iterator[Finding]:
    script = chain.command.script
    if script is None:
        raise NotApplicable("no script is named")
    suffix = bad_suffix(script)
    if suffix:
        yield say("JOB011", "FAIL", f"{script} ends in {suffix}: a backup copy", chain.where, chain.line)
    else:
        yield say("JOB011", "PASS", f"{script} is no backup copy", script)


@check("JOB012")
def launcher(chain: Chain) -> Iterator[Finding]:
    command, where = chain.command, (chain.where, chain.line)
    need_script(chain)
    if {"-m", "--multirun"} & set(command.arguments) and command.launcher == "torchrun":
        yield say(
            "JOB012", "FAIL", "-m does not run under torchrun: each job is its own process", *where, "drop torchrun"
        )
        return
    nodes = command.flags.get("nnodes", "1").rpartition(":")[2]
    if nodes not in ("", "1") and not {"rdzv-endpoint", "master-addr"} & set(command.flags):
        yield say(
            "JOB012",
            "WARN",
            f"--nnodes={nodes} without --rdzv-endpoint or --master-addr: the nodes cannot meet",
            *where,
        )
    config = need_resolved(chain)
    batch, pieces, ranks = config.get("global_batch_size"), config.get("accumulation", 1), command.processes
    if not isinstance(batch, int) or not isinstance(pieces, int) or pieces < 1:
        raise NotApplicable("the config has no global_batch_size")
    if ranks is None:
        raise NotApplicable("the number of processes depends on the machine")
    if ranks < 1 or batch % (ranks * pieces):
        parts = max(1, ranks * pieces)
        fix = f"global_batch_size={max(parts, round(batch / parts) * parts)}, or another --nproc-per-node"
        text = f"global_batch_size={batch} does not divide into {ranks} process(es) x accumulation={pieces}"
        yield say("JOB012", "FAIL", text, *where, fix)
    else:
        rows = f"{batch // (ranks * pieces)} rows x accumulation {pieces} x {ranks} process(es)"
        yield say("JOB012", "PASS", f"{batch} = {rows}", *where)


@check("JOB020")
def config_exists(chain: Chain) -> Iterator[Finding]:
    need_script(chain)
    if "config" in chain.problems:
        text = f"{chain.problems['config']}: {did_you_mean(chain.config_name, chain.options('cfg_*'))}"
        yield say("JOB020", "FAIL", text, chain.where, chain.line)
    else:
        yield say("JOB020", "PASS", f"{chain.config_file} exists", chain.config_file)


@check("JOB021")
def config_current(chain: Chain) -> Iterator[Finding]:
    need_script(chain)
    retired = removed(chain)
    names = [chain.config_name, *(f"arch/{v}" for k, v in chain.choices.items() if k == "arch")]
    wrong = False
    for name in names:
        reason = retired.get(name)
        if reason is not None:
            wrong = True
            yield say(
                "JOB021", "FAIL", f"{name} was retired: {reason or 'config/REMOVED.txt'}", chain.where, chain.line
            )
        elif bad_suffix(name):
            wrong = True
            yield say(
                "JOB021", "FAIL", f"config {name} ends in {bad_suffix(name)}: a backup copy", chain.where, chain.line
            )
    if not wrong:
        yield say("JOB021", "PASS", f"{chain.config_name} is neither retired nor a backup copy", chain.config_file)


def removed(chain: Chain) -> dict[str, str]:
    """config/REMOVED.txt: name -> reason; a line is `NAME  reason`."""
    found = {}
    for line in (chain.repo.text("config/REMOVED.txt") or "").splitlines():
        words = re.split(r"[\s:|]+", line.strip(), maxsplit=1)
        if words[0] and not words[0].startswith("#"):
            found[words[0].removesuffix(".yaml").removeprefix("config/")] = words[1] if len(words) > 1 else ""
    return found


@check("JOB030")
def overrides_compose(chain: Chain) -> Iterator[Finding]:
    need_script(chain)
    if "config" in chain.problems:
        raise NotApplicable(chain.problems["config"])
    problems = [chain.problems[key] for key in ("compose", "resolve", "schema") if key in chain.problems]
    for text in problems:
        yield say("JOB030", "FAIL", text, chain.where, chain.line)
    if "schema_class" in chain.problems:
        yield say("JOB030", "WARN", f"the schema is not checked: {chain.problems['schema_class']}", chain.script.file)  # type: ignore[union-attr]
    elif not problems:
        what = f"{len(chain.overrides)} override(s)" + (f" in {len(chain.jobs)} jobs" if len(chain.jobs) > 1 else "")
        yield say("JOB030", "PASS", f"{what} compose and fit the schema", chain.where, chain.line)


def from_override(chain: Chain, text: str) -> bool:
    """Whether an error text names a key that the command sets."""
    return any(f"'{key}'" in text or f"{key}=" in text or text.startswith(f"{key}:") for key in override_keys(chain))


def override_keys(chain: Chain) -> dict[str, Any]:
    """Dotted keys that the command sets, with their values; group choices and deletions are left out."""
    if len(chain.jobs) > 1 or chain.composed is None:
        words = [w for w in chain.overrides if not w.startswith("~") and "," not in w]
    else:
        words = [w for w in chain.overrides if not w.startswith("~")]
    return {
        str(o.key_or_group): plain(o.value())
        for o in parse_overrides(words)
        if o.key_or_group not in chain.choices and not str(o.key_or_group).startswith("hydra")
    }


@check("JOB031")
def overrides_are_read(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    keys = override_keys(chain)
    if not keys:
        yield say("JOB031", "PASS", "no value is overridden", chain.where, chain.line)
        return
    schema, arch, wrong = unread_schema(chain), unread_arch(chain), False
    for key in keys:
        if key in schema or (key.startswith("arch.") and key[5:] in arch):
            wrong = True
            yield say("JOB031", "FAIL", f"{key} is overridden and nothing reads it", chain.where, chain.line)
        elif reason := dead_reason(family_of(chain), key, config):
            wrong = True
            yield say("JOB031", "WARN", f"{key} is overridden without effect: {reason}", chain.where, chain.line)
    if not wrong:
        yield say("JOB031", "PASS", f"read: {', '.join(keys)}", chain.where, chain.line)


NAME_TOKENS = {
    "explore": "arch.halt_exploration_prob", "lr": "lr learning_rate", "seed": "seed",
    "bs": "global_batch_size batch_size", "batch": "global_batch_size batch_size", "epochs": "epochs",
    "hidden": "arch.hidden_size arch.n_embd", "heads": "arch.num_heads arch.n_head", "iters": "max_iters",
    "lcycles": "arch.L_cycles", "hcycles": "arch.H_cycles", "layers": "arch.L_layers arch.n_layer", "ema": "ema_rate",
    "halt": "arch.halt_max_steps", "wd": "weight_decay",
    "period": "arch.subgoal_head.manager_period", "goaldim": "arch.subgoal_head.goal_dim",
}  # fmt: skip


@check("JOB032")
def run_name_is_true(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    key = "run_name" if config.get("run_name") or "out_dir" not in config else "out_dir"
    name = config.get(key)
    if not isinstance(name, str) or not name:
        raise NotApplicable("no run_name is given")
    name = Path(name).name
    wrong = []
    archs = chain.options("arch/*")
    chosen = str(chain.choices.get("arch"))
    for token in re.split(r"[_\-/,]+", name.lower().replace(chosen, "")):
        if token in archs and token != chosen:
            wrong.append(f"'{token}' in the name, but arch={chosen}")
        match = re.fullmatch(r"([a-z]+)=?(\d[\d.]*(?:e\d+)?)", token)
        for meant in NAME_TOKENS.get(match[1], "").split() if match else ():
            actual = lookup(config, meant)
            if match and isinstance(actual, int | float) and not same(match[2], actual):
                wrong.append(f"'{token}' in the name, but {meant}={actual}")
    for text in wrong:
        yield say("JOB032", "WARN", f"{key}={name}: {text}", chain.where, chain.line)
    if not wrong:
        yield say("JOB032", "PASS", f"{key}={name} contradicts no value", chain.where, chain.line)


@check("JOB033")
def paths_exist(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    wrong = False
    source = str(config.get("resume_from") or "latest")
    if "/" in source and not ((chain.cwd or chain.repo.root) / user_path(source)).exists():
        wrong = True
        level: Any = "FAIL" if chain.with_data else "WARN"
        yield say("JOB033", level, f"resume_from={source} does not exist (yet)", chain.where, chain.line)
    for entry in chain.data:
        if entry.state == "unknown":
            wrong = True
            level = "FAIL" if chain.with_data else "WARN"
            text = f"{entry.key}: {entry.path} does not exist and is not built on first use"
            yield say("JOB033", level, text, chain.where, chain.line)
        elif entry.state == "published" and chain.with_data:
            wrong = True
            yield say(
                "JOB033",
                "FAIL",
                f"{entry.key}: {entry.path} is to be built from public data first",
                chain.where,
                chain.line,
            )
    if not wrong:
        yield say("JOB033", "PASS", "every path exists, or has a known way to be built", chain.where, chain.line)


# --- intent -----------------------------------------------------------------------------------------------------------


def lookup(config: dict[str, Any], key: str) -> Any:
    """A dotted key of a resolved config, None where it is not."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def same(wanted: str, actual: Any) -> bool:
    """Whether the text of an intent means a resolved value."""
    if isinstance(actual, list | tuple):
        return same(wanted.strip("[]"), ",".join(str(item) for item in actual))
    if isinstance(actual, bool) or actual is None:
        return wanted.lower() == ("null" if actual is None else str(actual).lower())
    try:
        return math.isclose(float(wanted), float(actual), rel_tol=1e-9)
    except (TypeError, ValueError):
        return wanted == str(actual)


def intended(chain: Chain) -> dict[str, Any]:
    """The keys that an intent may state, with what is resolved."""
    script = chain.script
    found = {
        "mode": declared(chain, "DATA_MODE"),
        "act": declared(chain, "ACT_MODE"),
        "encoder": chain.arch.get("encoder_type", "none"),
        "exploration": chain.arch.get("halt_exploration_prob"),
        "arch": chain.choices.get("arch"),
        "model": chain.model.cls_name if chain.model else None,
        "script": script.stem if script else None,
        "config": chain.config_name,
        "data": ",".join(Path(entry.path).name for entry in chain.data if entry.key == "data_paths"),
        "steps": chain.steps,
        "ranks": chain.command.processes,
    }
    return found | {key: value(chain) for key, value in family_of(chain).intent.items()}


@check("JOB034")
def intent_is_met(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if chain.kind == "launch" and not chain.intent:
        raise NotApplicable("a launch states no intent")
    if not chain.intent:
        yield say("JOB034", "INFO", f"no `#@ intent:` line. {family_of(chain).questions}", chain.where, chain.line)
        return
    known, wrong = intended(chain), False
    for key, wanted in chain.intent.items():
        if key in ("purpose", "init", "note"):
            continue
        if (
            key not in known
            and lookup(config, key) is None
            and key not in (keys_of(chain.schema) if chain.schema else {})
        ):
            wrong = True
            hint = did_you_mean(key, [*known, "purpose", "init", *config])
            yield say("JOB034", "WARN", f"intent {key}={wanted} is not understood: {hint}", chain.where, chain.line)
            continue
        actual = known[key] if key in known else lookup(config, key)
        meant = wanted.removesuffix(".py") if key == "script" else wanted
        if not same(meant, actual):
            wrong = True
            yield say("JOB034", "FAIL", f"intended {key}={wanted}, resolved {key}={actual}", chain.where, chain.line)
    if not wrong:
        yield say(
            "JOB034",
            "PASS",
            "as intended: " + " ".join(f"{k}={v}" for k, v in chain.intent.items()),
            chain.where,
            chain.line,
        )
