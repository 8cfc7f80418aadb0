"""Step 4: the arch config and what it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from engine.io import did_you_mean
from verification.chain import Chain
from verification.checks.config import keys_problem
from verification.checks.job import CLASS_SUFFIX, bad_suffix, from_override
from verification.checks.reads import config_class, fields_of, unread_arch
from verification.checks.registry import NotApplicable, check, declared, need_loss, need_model, need_resolved, say
from verification.finding import Finding
from verification.source import literal
from verification.yaml_lines import defaults_lines, line_of

FORM = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*@[A-Z]\w*")


def _place(chain: Chain, key: str = "arch.name") -> tuple[str, int]:
    place = chain.key_line(key)
    return place if place[0] else (chain.arch_file, 0)


@check("ARC310")
def name_form(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    model = chain.model
    if model is None or (not model.text and not chain.arch):
        raise NotApplicable("the config has no arch block")
    if not FORM.fullmatch(model.text):
        yield say("ARC310", "FAIL", f"arch.name={model.text!r} is not of the form package.module@Class", *_place(chain))
        return
    family = str((chain.script.requires if chain.script else {}).get("FAMILY") or "")
    package = model.module.split(".")
    if family and family not in package:
        text = f"arch.name={model.text} lies outside the package {family}, the script's family"
        yield say("ARC310", "WARN", text, *_place(chain))
    else:
        yield say("ARC310", "PASS", f"arch.name={model.text}", *_place(chain))


@check("ARC311", "ARC312")
def module_and_class(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    model = chain.model
    if model is None or not model.form:
        raise NotApplicable("arch.name has not the form module@Class")
    try:
        module = chain.repo.module(model.module)
    except SyntaxError as error:
        yield say("ARC311", "FAIL", f"{model.module}: {error.msg} (line {error.lineno})", *_place(chain))
        return
    if module is None:
        hint = did_you_mean(model.module.partition(".")[2], chain.repo.modules_in("models"))
        text = f"there is no {model.module.replace('.', '/')}.py: {hint}"
        yield say("ARC311", "FAIL", text, *_place(chain))
        return
    yield say("ARC311", "PASS", f"{module.file} exists", module.file)
    if model.cls is None:
        yield say("ARC312", "FAIL", model.problem, module.file)
        return
    exported = module.names.get("__all__")
    public = literal(exported.value, default=None) if isinstance(exported, ast.Assign) else None
    if public is not None and model.cls_name not in public:
        text = f"{module.file} has {model.cls_name}, but does not export it in __all__"
        yield say("ARC312", "FAIL", text, module.file, exported.lineno)  # type: ignore[union-attr]
    else:
        how = "defines" if model.cls.module.name == module.name else f"re-exports (from {model.cls.file})"
        yield say("ARC312", "PASS", f"{module.file} {how} {model.cls_name}", model.cls.file, model.cls.line)


@check("ARC313")
def no_backup(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    wrong = False
    named = [one for one in (chain.model, chain.loss, *chain.evaluators) if one is not None and one.form]
    for one in named:
        classes = one.cls.mro if one.cls else []
        names = [one.module, *(cls.module.name for cls in classes)]
        bad = [n for n in dict.fromkeys(names) if bad_suffix(n)]
        bad += [n for n in dict.fromkeys([one.cls_name, *(c.name for c in classes)]) if CLASS_SUFFIX.search(n)]
        for name in bad:
            wrong = True
            yield say(
                "ARC313", "FAIL", f"{one.key}={one.text}: {name} is named as a backup copy", *_place(chain, one.key)
            )
    if not wrong:
        yield say("ARC313", "PASS", "neither modules nor classes are backup copies", chain.arch_file)


@check("ARC314")
def loss(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    if not chain.arch:
        raise NotApplicable("the config has no arch block")
    block = chain.arch.get("loss")
    if not isinstance(block, dict) or chain.loss is None or not block.get("name"):
        yield say("ARC314", "FAIL", "arch.loss.name is missing", *_place(chain, "arch.loss"))
        return
    if chain.loss.cls is None:
        yield say(
            "ARC314",
            "FAIL",
            f"arch.loss.name={chain.loss.text}: {chain.loss.problem}",
            *_place(chain, "arch.loss.name"),
        )
        return
    cls = need_loss(chain)
    problem = keys_problem(chain, cls, {k: v for k, v in block.items() if k != "name"}, "arch.loss")
    kind = block.get("loss_type")
    if problem:
        yield say("ARC314", "FAIL", problem, *_place(chain, "arch.loss"))
    elif isinstance(kind, str) and not any(_function_known(chain, c.module.name, kind) for c in cls.mro):
        yield say(
            "ARC314",
            "FAIL",
            f"arch.loss.loss_type={kind} is no function of {cls.file}",
            *_place(chain, "arch.loss.loss_type"),
        )
    else:
        yield say("ARC314", "PASS", f"loss {chain.loss.text} ({kind or 'no loss_type'})", cls.file, cls.line)


def _function_known(chain: Chain, module_name: str, name: str) -> bool:
    module = chain.repo.module(module_name)
    return module is not None and (name in module.names or f'"{name}"' in module.text)


def arch_text(chain: Chain) -> str | None:
    """The arch file with those that it is built on, None where it is not known."""
    files = [chain.arch_file]
    for file in files:
        names = [option for group, option, _ in defaults_lines(chain.repo.text(file) or "") if not group]
        files += [chain.locate(f"arch/{name}") for name in names if "/" not in name and name != "_self_"][
            : 9 - len(files)
        ]
    texts = [text for file in files if (text := chain.repo.text(file)) is not None]
    return "\n".join(text for text in reversed(texts)) if texts else None


@check("ARC320", "ARC321")
def halting_keys(chain: Chain) -> Iterator[Finding]:
    need_model(chain)
    mode = declared(chain, "ACT_MODE")
    text = arch_text(chain)
    if mode not in ("dynamic", "fixed"):
        raise NotApplicable(f"the model declares ACT_MODE={mode}")
    if text is None:
        raise NotApplicable("the arch file is not known")
    other = {"dynamic": ("num_act_steps",), "fixed": ("halt_exploration_prob",)}[mode]
    own = {"dynamic": ("halt_max_steps",), "fixed": ("num_act_steps",)}[mode]
    wrong = [f"{k} belongs to another mode than {mode}" for k in other if line_of(text, k)]
    wrong += [f"{k} is missing, the model is {mode}" for k in own if not line_of(text, k)]
    for words in wrong:
        yield say("ARC320", "FAIL", f"{chain.arch_file}: {words}", chain.arch_file)
    if not wrong:
        yield say(
            "ARC320", "PASS", f"the halting keys are those of a {mode} model", chain.arch_file, line_of(text, own[0])
        )
    if mode == "dynamic":
        line = line_of(text, "halt_exploration_prob")
        good = bool(line) and "halt_exploration_prob" in chain.arch
        words = "sets" if good else "does not set" if not line else "sets, and the command deletes"
        yield say(
            "ARC321",
            "PASS" if good else "FAIL",
            f"{chain.arch_file} {words} halt_exploration_prob",
            chain.arch_file,
            line,
        )


@check("ARC330")
def keys(chain: Chain) -> Iterator[Finding]:
    cls = need_model(chain)
    block = {k: v for k, v in chain.arch.items() if k not in ("name", "loss")}
    wrong = False
    problem = keys_problem(chain, cls, block, "arch")
    if problem and not from_override(chain, problem):
        wrong = True
        yield say("ARC330", "FAIL", problem, *_place(chain))
    elif problem:
        wrong = True
        yield say("JOB030", "FAIL", problem, chain.where, chain.line)
    for name, (file, line) in unread_arch(chain).items():
        wrong = True
        yield say("ARC330", "FAIL", f"arch.{name} is a field of {cls.name}'s config that nothing reads", file, line)
    config = config_class(chain)
    if config is None:
        raise NotApplicable(f"{cls.name} has no Config")
    unset = [name for name in fields_of(config) if name not in block]
    if unset:
        yield say(
            "ARC330",
            "INFO",
            f"defaults of {config.name} in force: {', '.join(unset)}",
            config.file,
            config.line,
            f"set it in {chain.arch_file} so that the file tells the whole architecture",
        )
    if not wrong:
        yield say(
            "ARC330", "PASS", f"{len(block)} arch keys are fields of {config.name}, and read", config.file, config.line
        )


Problem = tuple[str, str, str, str]
"""A key, the key of an intent that says it is meant ("": it cannot be), what is odd, what to do."""


@check("ARC340", family="recursive_reasoning")
def manager(chain: Chain) -> Iterator[Finding]:
    need_model(chain)
    loss, head = chain.arch.get("loss") or {}, chain.arch.get("subgoal_head")
    weight = loss.get("feudal_loss_weight")
    if "subgoal_head" not in fields_of_config(chain) and weight is None:
        raise NotApplicable("the architecture has no manager")
    problems = list(_manager_problems(chain, head, weight)) if isinstance(weight, int | float) else []
    meant = chain.intent or {}
    for key, intent, text, fix in problems:  # a debug preset cuts episodes short and means nothing by it
        level = "INFO" if chain.choices.get("debug") or intent in meant else "WARN"
        yield say("ARC340", level, text, *_place(chain, key), fix)
    if not problems:
        what = "no manager" if not head else f"goals held for {head.get('manager_period')} passes, loss weight {weight}"
        yield say("ARC340", "PASS", what, *_place(chain, "arch.subgoal_head"))


def fields_of_config(chain: Chain) -> dict[str, tuple[str, int]]:
    """Fields of the model's config, none where it has no Config."""
    config = config_class(chain)
    return fields_of(config) if config else {}


def _manager_problems(chain: Chain, head: dict[str, Any] | None, weight: float) -> Iterator[Problem]:
    """What is odd about a manager's settings."""
    key, arch = "arch.loss.feudal_loss_weight", chain.arch
    if not head:
        if weight > 0:
            text = f"feudal_loss_weight={weight} without arch.subgoal_head: the feudal loss will not be computed"
            yield key, "manager", text, "meant as plain HRM? Then nothing; else leave arch.subgoal_head in the config"
        return
    if weight >= 0.2:
        text = f"feudal_loss_weight={weight}: every published sweep found harm from 0.2 on"
        yield key, "feudal_weight", text, "meant as a cell of a sweep? Then nothing; else 0.02 to 0.05"
    if weight > 0 and head.get("inject_subgoal") is False:
        key = "arch.subgoal_head.inject_subgoal"
        fix = "meant as the ablation of the loss alone? Then nothing; else set the weight to 0"
        text = f"inject_subgoal=false with feudal_loss_weight={weight}: the worker is scored by goals it is never told"
        yield key, "injection", text, fix
    dim, size = head.get("goal_dim"), arch.get("hidden_size")
    if isinstance(dim, int) and isinstance(size, int) and dim > size:
        text = f"goal_dim={dim} > hidden_size={size}: works, adds parameters, but worker states span {size} directions"
        fix = f"meant so? Then nothing; else a goal_dim of at most {size}"
        yield "arch.subgoal_head.goal_dim", "arch.subgoal_head.goal_dim", text, fix
    yield from _period_problems(arch, head)


def _period_problems(arch: dict[str, Any], head: dict[str, Any]) -> Iterator[Problem]:
    key, fixed = "arch.subgoal_head.manager_period", arch.get("fixed_refinement_steps")
    most, period, schedule = fixed or arch.get("halt_max_steps"), head.get("manager_period"), head.get("schedule")
    if not isinstance(most, int) or not isinstance(period, int):
        return
    name = "fixed_refinement_steps" if fixed else "halt_max_steps"
    if most == 1:
        text = f"{name}=1: a goal comes after the first pass and is never used, the feudal loss is always 0"
        yield key, "", text, f"at least {name}=2"
    elif schedule and min(schedule) >= most:
        text = f"schedule={schedule} with {name}={most}: no goal is ever used, the feudal loss is always 0"
        yield "arch.subgoal_head.schedule", "", text, f"a first pass below {most}"
    elif not schedule and period >= most - 1:
        text = f"manager_period={period} with {name}={most}: one goal for the whole episode"
        yield key, "period", text, "meant so? Then nothing; else a shorter period or more passes"
