"""Step 3: the main config, as resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.cli.files import defaults_lines, key_lines
from verification.finding import Finding, Level
from verification.link import place_of
from verification.reads import unread_schema
from verification.rule import NotApplicable, finding, inert, need_config, need_script, rule
from verification.subject import Subject


def built_on(name: str, read: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    """(name, text) of a recipe and of those on which it is built; `read(name)` returns a text."""
    pending, seen = [name], set[str]()
    while pending:
        if (name := pending.pop(0)) not in seen and (text := read(name)):
            seen.add(name)
            yield name, text
            pending += [option.lstrip("/") for group, option, _ in defaults_lines(text) if not group]


def listed(subject: Subject, group: str) -> list[tuple[str, str, int]]:
    """(file, option, line) where the recipe, or one on which it is built, lists a group in its defaults."""
    locate = subject.trace.locate
    return [
        (locate(name), option, line)
        for name, text in built_on(subject.trace.config_name, lambda name: subject.text(locate(name)))
        for one, option, line in defaults_lines(text)
        if one.removeprefix("override ").lstrip("/") == group
    ]


@rule("CFG210")
def arch_default(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    if "config" in subject.problems:
        raise NotApplicable(subject.problems["config"])
    entries = listed(subject, "arch")
    choice, place = subject.choices.get("arch"), (subject.config_file, 0)
    if entries:
        place = (entries[-1][0], entries[-1][2])
        if not subject.trace.composed:
            words = [word.lstrip("+") for word in subject.trace.overrides]
            choice = next((w.partition("=")[2] for w in words if w.startswith("arch=")), entries[-1][1])
    known = subject.trace.options("arch/*")
    if choice is None:
        if subject.schema is not None and "arch" not in getattr(subject.schema, "__dataclass_fields__", {}):
            raise NotApplicable(f"{subject.script_file} has no arch")
        text = f"{subject.trace.config_name} chooses no arch in its defaults list"
        yield finding("CFG210", "FAIL", text, *place)
    elif choice not in known:
        text = f"there is no config/arch/{choice}.yaml (there are {', '.join(known)})"
        yield finding("CFG210", "FAIL", text, *place)


@rule("CFG211", at_launch=False)
def self_is_last(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    if "config" in subject.problems:
        raise NotApplicable(subject.problems["config"])
    file = subject.config_file
    entries = defaults_lines(subject.text(file) or "")
    names = [
        option if option == "_self_" else group.removeprefix("override ").lstrip("/") for group, option, _ in entries
    ]
    if "arch" not in names:
        raise NotApplicable(f"{file} itself lists no arch")
    if "_self_" in names[: names.index("arch")]:
        text = "_self_ comes before arch: the arch file overrides the recipe"
        yield finding("CFG211", "WARN", text, file, entries[names.index("_self_")][2])


@rule("CFG220")
def value_chain(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    mine = subject.given
    files = {file: key_lines(subject.text(file) or "") for file in (subject.arch_file, subject.config_file)}
    for key in sorted(key for key, value in subject.arch.items() if not isinstance(value, dict)):
        lines = (files[subject.arch_file].get(key), files[subject.config_file].get(f"arch.{key}"))
        places = [f"{file}:{line}" for file, line in zip(files, lines, strict=False) if line]
        places += ["the command"] if f"arch.{key}" in mine else []
        if len(places) > 1:
            text = f"arch.{key}={subject.arch[key]}: {' -> '.join(places)}"
            yield finding("CFG220", "INFO", text, subject.config_file)


@rule("CFG230", "CFG231")
def halting(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    mode, arch = subject.declares("ACT_MODE"), subject.arch
    if mode is None:
        raise NotApplicable("the model declares no ACT_MODE")
    place = subject.arch_place("arch.halt_exploration_prob")
    problems: list[tuple[Level, str]] = []
    prob, most, count = (arch.get(key) for key in ("halt_exploration_prob", "halt_max_steps", "num_act_steps"))
    if mode == "dynamic":
        if not isinstance(prob, int | float) or not 0 <= prob <= 1:
            problems.append(("FAIL", f"arch.halt_exploration_prob={prob}: expected a number in [0, 1]"))
        if not isinstance(most, int) or most <= 1:
            text = f"arch.halt_max_steps={most}: a dynamic model needs more than 1 step to halt within"
            problems.append(("FAIL", text))
        if "num_act_steps" in arch:
            problems.append(("WARN", "arch.num_act_steps is a key of fixed steps, the model is dynamic"))
    else:
        if not isinstance(count, int) or count < 1:
            problems.append(("FAIL", f"arch.num_act_steps={count}: a fixed model needs at least 1"))
        if "halt_exploration_prob" in arch:
            problems.append(("WARN", "arch.halt_exploration_prob is a key of dynamic halting, the model is fixed"))
    for level, text in problems:
        yield finding("CFG230", level, text, *place)
    if mode != "dynamic" or not isinstance(prob, int | float):
        yield finding("CFG231", "SKIP", f"the model is {mode}, exploration {prob}")
    elif prob != 0.1:
        yield finding("CFG231", "INFO", f"exploration {prob}, the reference's is 0.1", *place)


@rule("CFG240")
def evaluators(subject: Subject) -> Iterator[Finding]:
    config = need_config(subject)
    entries = config.get("evaluators") or []
    if not entries and not config.get("final_eval", True) and not config.get("eval_interval"):
        text = "nothing is evaluated: no evaluator, no eval_interval, final_eval=false"
        level: Level = "WARN" if subject.kind in ("job", "recipe") else "INFO"  # on the command line it is on purpose
        yield finding("CFG240", level, text, *subject.trace.key_line("final_eval"), "final_eval=true")
    for link in subject.evaluators:
        if link.problem:
            yield finding("CFG240", "FAIL", f"{link.key}: {link.problem}", *subject.trace.key_line("evaluators"))
        elif link.misfit:
            yield finding("CFG240", "FAIL", link.misfit, *link.place)


def warmup_key(config: dict[str, Any]) -> str:
    """The name of a script's warm-up key; the first known name if it has none."""
    names = ("lr_warmup_steps", "warmup_steps", "warmup_iters")
    return next((name for name in names if name in config), names[0])


def is_default(subject: Subject, key: str, file: str) -> bool:
    """Whether a key's value is a default (of the dataclass, config/base or the script's own config)."""
    own = subject.trace.script.config_name if subject.trace.script else ""
    place = Path(file)
    default = place.suffix != ".yaml" or place.parent.name == "base" or place.stem == own
    return key not in subject.given and default


@rule("CFG250")
def length(subject: Subject) -> Iterator[Finding]:
    config = need_config(subject)
    key = warmup_key(config)
    warmup, limit, share = config.get(key), config.get("max_steps"), config.get("warmup_ratio")
    if isinstance(share, float) and not inert(subject, "warmup_ratio"):
        if share > 0.5:
            text, place = f"the warm-up is {share:g} of the run", subject.trace.key_line("warmup_ratio")
            yield finding("CFG250", "WARN", text, *place, "lower warmup_ratio")
        return
    if not isinstance(warmup, int) or inert(subject, key):
        raise NotApplicable("the config has no warm-up")
    place, total = subject.trace.key_line(key), subject.steps
    if total == 0:
        raise NotApplicable("the run trains no step")
    if total is None and not isinstance(limit, int):
        raise NotApplicable("neither the data nor the catalogue give their size: the run's length is unknown")
    run = min(number for number in (total, limit) if isinstance(number, int))
    text = f"{run} steps"
    if run == limit and total != limit:
        text += f" (max_steps; the recipe's own end is {total})"
    if warmup and warmup >= run:
        # max_steps at a launch is a smoke test, and a default was not chosen; in a job or recipe both are a plan
        planned = subject.kind in ("job", "recipe")
        cut = isinstance(limit, int) and not planned
        meant = planned or not is_default(subject, key, place[0])
        text = f"{key}={warmup}, the run has {text}: the learning rate never reaches its peak"
        fix = (
            f"{key}={max(0, run // 10)}" if not cut else "if meant as a smoke test, nothing; otherwise raise max_steps"
        )
        yield finding("CFG250", "FAIL" if meant and not cut else "WARN", text, *place, fix)
    elif warmup * 2 > run:
        fix = f"lower {key}, or train longer"
        yield finding("CFG250", "WARN", f"{key}={warmup} is more than half of {text}", *place, fix)


@rule("CFG251")
def something_is_trained(subject: Subject) -> Iterator[Finding]:
    config, family = need_config(subject), subject.family
    if family is None or family.rates is None or subject.steps == 0:
        raise NotApplicable("the run trains no step, or its family names no learning rates")
    rates = {name: (key, config.get(key)) for name, key in family.rates(subject).items()}
    if any(not isinstance(rate, int | float) for _, rate in rates.values()):
        raise NotApplicable("a learning rate is not a number (JOB030)")
    active = [name for name, (_, rate) in rates.items() if rate]
    last = min((n for n in (subject.steps, config.get("max_steps")) if n), default=None)
    for name in rates:
        still = config.get(f"freeze_{name}_steps")
        if last is not None and isinstance(still, int) and still >= last:
            text = f"freeze_{name}_steps={still}, the run has {last} steps: the {name} is never trained"
            yield finding("CFG251", "INFO", text, *subject.trace.key_line(f"freeze_{name}_steps"))
    for name, (key, rate) in rates.items():
        if not rate and active:
            text = f"{key}=0: group {name} stays as it was made"
            yield finding("CFG251", "WARN", text, *subject.trace.key_line(key))
    if not active:
        level = "FAIL" if subject.kind in ("job", "recipe") else family.idle
        zero = ", ".join(dict.fromkeys(f"{key}=0" for key, _ in rates.values())) or "no group is left to train"
        text = f"{zero}: nothing is trained" + " (freeze_weights=true)" * bool(config.get("freeze_weights"))
        yield finding("CFG251", level, text, *subject.trace.key_line(next(iter(rates.values()), ["freeze_weights"])[0]))


@rule("CFG254")
def whole_test_split(subject: Subject) -> Iterator[Finding]:
    config = need_config(subject)
    if "final_eval_max_examples" not in config:
        raise NotApplicable("the config has no final_eval_max_examples")
    limits = {key: size for key, size in config.items() if key.startswith("final_eval_max_") and size is not None}
    for key, size in limits.items():
        text = f"the last evaluation takes {size} {key.rpartition('_')[2]}: metrics of a subset"
        yield finding("CFG254", "INFO", text, *subject.trace.key_line(key))


@rule("CFG255", at_launch=False)
def schema_is_read(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    if subject.schema is None:
        raise NotApplicable("the script has no schema")
    for key in unread_schema(subject):
        text = f"the schema declares {key}, and nothing reads it"
        yield finding("CFG255", "FAIL", text, *place_of(subject.schema))
