"""Step 3: the main config, as resolved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.schema import structure
from verification.chain import Chain
from verification.checks.job import override_keys
from verification.checks.reads import nested_config, unread_schema
from verification.checks.registry import NotApplicable, check, declared, need_resolved, need_script, say
from verification.finding import Finding, Level
from verification.schemas import dataclass_of
from verification.yaml_lines import defaults_lines, line_of


def defaults_chain(chain: Chain) -> Iterator[tuple[str, str, str, int]]:
    """(file, group, option, line) of the defaults lists of the primary config and of the files that it names."""
    pending, seen = [chain.config_name], set()
    while pending:
        name = pending.pop(0)
        file = chain.locate(name)
        if name in seen:
            continue
        seen.add(name)
        for group, option, line in defaults_lines(chain.repo.text(file) or ""):
            yield file, group, option, line
            if not group and option != "_self_":
                pending.append(option.lstrip("/"))


@check("CFG210")
def arch_default(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    if "config" in chain.problems:
        raise NotApplicable(chain.problems["config"])
    listed = [entry for entry in defaults_chain(chain) if entry[1].removeprefix("override ").lstrip("/") == "arch"]
    choice, place = chain.choices.get("arch"), (chain.config_file, 0)
    if chain.composed is None and listed:
        choice, place = listed[-1][2], (listed[-1][0], listed[-1][3])
        choice = next((w.partition("=")[2] for w in chain.overrides if w.lstrip("+").startswith("arch=")), choice)
    elif listed:
        place = (listed[-1][0], listed[-1][3])
    if choice is None:
        if chain.schema is not None and "arch" not in getattr(chain.schema, "__dataclass_fields__", {}):
            raise NotApplicable(f"{script.file} has no arch")
        yield say("CFG210", "FAIL", f"{chain.config_name} chooses no arch in its defaults list", *place)
    elif choice not in (known := chain.options("arch/*")):
        yield say("CFG210", "FAIL", f"there is no config/arch/{choice}.yaml (there are {', '.join(known)})", *place)
    else:
        yield say("CFG210", "PASS", f"arch: {choice}", *place)


@check("CFG211")
def self_is_last(chain: Chain) -> Iterator[Finding]:
    need_script(chain)
    if "config" in chain.problems:
        raise NotApplicable(chain.problems["config"])
    entries = defaults_lines(chain.repo.text(chain.config_file) or "")
    names = [
        "_self_" if option == "_self_" else group.removeprefix("override ").lstrip("/") for group, option, _ in entries
    ]
    if "arch" not in names:
        raise NotApplicable(f"{chain.config_file} itself lists no arch")
    if "_self_" not in names or names.index("_self_") > names.index("arch"):
        yield say("CFG211", "PASS", "the recipe's values come after the arch file's", chain.config_file)
    else:
        line = entries[names.index("_self_")][2]
        yield say(
            "CFG211", "WARN", "_self_ stands before arch: the arch file wins over the recipe", chain.config_file, line
        )


@check("CFG220")
def value_chain(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    if chain.composed is None:
        raise NotApplicable("the config was composed elsewhere")
    recipe = chain.repo.text(chain.config_file) or ""
    arch = chain.repo.text(chain.arch_file) or ""
    mine = override_keys(chain)
    for key in sorted(chain.arch):
        if isinstance(chain.arch[key], dict):
            continue
        places = [f"{chain.arch_file}:{line}"] if (line := line_of(arch, key)) else []
        places += [f"{chain.config_file}:{line}"] if (line := line_of(recipe, f"arch.{key}")) else []
        places += ["the command"] if f"arch.{key}" in mine else []
        if len(places) > 1:
            yield say("CFG220", "INFO", f"arch.{key}={chain.arch[key]}: {' -> '.join(places)}", chain.config_file)
    yield say(
        "CFG220", "PASS", f"{len(chain.arch)} arch values traced through {len(chain.files)} files", chain.config_file
    )


@check("CFG230", "CFG231")
def halting(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    mode, arch = declared(chain, "ACT_MODE"), chain.arch
    if mode is None:
        raise NotApplicable("the model declares no ACT_MODE")
    place = chain.key_line("arch.halt_exploration_prob")
    place = place if place[0] else (chain.arch_file, 0)
    problems: list[tuple[Level, str]] = []
    prob, most = arch.get("halt_exploration_prob"), arch.get("halt_max_steps")
    if mode == "dynamic":
        if not isinstance(prob, int | float) or not 0 <= prob <= 1:
            problems.append(("FAIL", f"arch.halt_exploration_prob={prob}: expected a number in [0, 1]"))
        if not isinstance(most, int) or most <= 1:
            problems.append(
                ("FAIL", f"arch.halt_max_steps={most}: a dynamic model needs more than 1 step to halt within")
            )
        if "num_act_steps" in arch:
            problems.append(("WARN", "arch.num_act_steps is a key of fixed steps, the model is dynamic"))
    else:
        count = arch.get("num_act_steps")
        if not isinstance(count, int) or count < 1:
            problems.append(("FAIL", f"arch.num_act_steps={count}: a fixed model needs at least 1"))
        if "halt_exploration_prob" in arch:
            problems.append(("WARN", "arch.halt_exploration_prob is a key of dynamic halting, the model is fixed"))
    for level, text in problems:
        yield say("CFG230", level, text, *place)
    if not problems:
        yield say("CFG230", "PASS", f"exploration {prob}, at most {most} steps", *place)
    if mode == "dynamic" and isinstance(prob, int | float):
        text = f"exploration {prob}" + (" is the reference's" if prob == 0.1 else ", the reference's is 0.1")
        yield say("CFG231", "PASS" if prob == 0.1 else "INFO", text, *place)


@check("CFG240")
def evaluators(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    entries = config.get("evaluators") or []
    if not entries:
        task = need_script(chain).task
        if task is None or isinstance(task, str) or task.method("evaluate") is None:
            yield say("CFG240", "FAIL", "no evaluators, and the task does not evaluate by itself", chain.config_file)
        else:
            yield say("CFG240", "PASS", f"none needed: {task.name}.evaluate measures the test split", task.file)
        return
    for entry, named in zip(entries, chain.evaluators, strict=True):
        if named.cls is None:
            yield say("CFG240", "FAIL", f"{named.key}: {named.problem}", *chain.key_line("evaluators"))
            continue
        problem = keys_problem(
            chain, named.cls, {k: v for k, v in entry.items() if k != "name"}, named.key.removesuffix(".name")
        )
        if problem:
            yield say("CFG240", "FAIL", problem, named.cls.file, named.cls.line)
        else:
            yield say(
                "CFG240", "PASS", f"{named.text} is {named.cls.file}:{named.cls.line}", named.cls.file, named.cls.line
            )


def keys_problem(chain: Chain, cls: Any, block: dict[str, Any], where: str) -> str:
    """Why `cls.Config` does not take the keys of `block`, "" where it does. Raises NotApplicable."""
    config = nested_config(chain.repo, cls)
    if config is None:
        return f"{where}: {cls.name} takes no keys, got {', '.join(block)}" if block else ""
    try:
        schema = dataclass_of(chain.repo, config.module.name, config.name)
    except (LookupError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise NotApplicable(f"{config.name} cannot be read by itself: {error!r}") from error
    try:
        structure(schema, block, where)
    except UsageError as error:
        return str(error)
    return ""


def warmup_key(config: dict[str, Any]) -> str:
    """What a script calls its warm-up; the first name where it has none."""
    names = ("lr_warmup_steps", "warmup_steps", "warmup_iters")
    return next((name for name in names if name in config), names[0])


def _is_default(chain: Chain, key: str, file: str) -> bool:
    """Whether neither the command nor a recipe wrote a key: it is of the script's own config or of config/base."""
    if key in override_keys(chain):
        return False
    own = chain.script.config_name if chain.script else ""
    return not file or Path(file).parent.name == "base" or Path(file).stem == own


@check("CFG250")
def length(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    key = warmup_key(config)
    warmup, limit = config.get(key), config.get("max_steps")
    if not isinstance(warmup, int):
        raise NotApplicable("the config has no warm-up")
    place = chain.key_line(key)
    if chain.steps == 0:
        raise NotApplicable("the run trains no step")
    total, planned = chain.steps, isinstance(limit, int) and chain.kind in ("job", "recipe")
    if total is None and not isinstance(limit, int):
        raise NotApplicable(
            "the data are not there and the catalogue does not say their size: the run's length is unknown"
        )
    run = min(n for n in (total, limit) if isinstance(n, int))
    said = f"{run} steps" + (
        f" (max_steps; the recipe's own end is {total})" if run == limit and total != limit else ""
    )
    if warmup and warmup >= run:
        # max_steps at a launch is a smoke test, and a default is nobody's wish; the same in a file is a plan
        cut = isinstance(limit, int) and not planned
        meant = chain.kind in ("job", "recipe") or not _is_default(chain, key, place[0])
        text = f"{key}={warmup}, the run has {said}: the learning rate never reaches its peak"
        fix = f"{key}={max(0, run // 10)}" if not cut else "meant for a smoke test? Then nothing; else raise max_steps"
        yield say("CFG250", "FAIL" if meant and not cut else "WARN", text, *place, fix)
    elif warmup * 2 > run:
        yield say(
            "CFG250", "WARN", f"{key}={warmup} is more than half of {said}", *place, f"lower {key}, or train longer"
        )
    else:
        yield say("CFG250", "PASS", f"{said}, warm-up {warmup}", *place)


@check("CFG251", family="recursive_reasoning")
def something_is_trained(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    table = bool(chain.arch.get("puzzle_emb_ndim", 1))
    groups = {"puzzle_emb": config.get("puzzle_emb_lr") if table else None}
    groups["trunk"] = None if config.get("freeze_weights") else config.get("lr")
    if any(isinstance(lr, str) for lr in groups.values()):
        raise NotApplicable("a learning rate is no number (JOB030)")
    if any(lr is not None and not isinstance(lr, int | float) for lr in groups.values()):
        raise NotApplicable("a learning rate is no number (JOB030)")
    active = [name for name, lr in groups.items() if isinstance(lr, int | float) and lr > 0]
    place = chain.key_line("freeze_weights" if config.get("freeze_weights") else "lr")
    if not active:
        text = f"no optimizer group trains anything: {', '.join(f'{n} lr={v}' for n, v in groups.items())}"
        text += " (freeze_weights=true)" if config.get("freeze_weights") else ""
        yield say("CFG251", "FAIL", text, *place)
        return
    idle = [name for name, lr in groups.items() if lr == 0]
    for name in idle:
        yield say("CFG251", "WARN", f"group {name} has learning rate 0: it stays as it was made", *place)
    if not idle:
        yield say("CFG251", "PASS", f"trained: {', '.join(active)}", *place)


@check("CFG252", "CFG253")
def encoder_only(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    mode = declared(chain, "DATA_MODE")
    raise NotApplicable(f"a check of encoder families; the model's data mode is {mode}")
    yield


@check("CFG254")
def whole_test_split(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if "final_eval_max_examples" not in config:
        raise NotApplicable("the config has no final_eval_max_examples")
    size, place = config["final_eval_max_examples"], chain.key_line("final_eval_max_examples")
    if size is None:
        yield say("CFG254", "PASS", "the last evaluation takes the whole test split", *place)
    else:
        yield say("CFG254", "INFO", f"the last evaluation takes {size} examples: metrics of a subset", *place)


@check("CFG255")
def schema_is_read(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    if chain.schema is None:
        raise NotApplicable(chain.problems.get("schema_class", "the script has no schema"))
    unread = unread_schema(chain)
    for key in unread:
        yield say(
            "CFG255",
            "FAIL",
            f"the schema declares {key}, and nothing reads it",
            (script.schema or ("",))[0].replace(".", "/") + ".py",
        )
    if not unread:
        yield say("CFG255", "PASS", "every key of the schema is read", script.file)
