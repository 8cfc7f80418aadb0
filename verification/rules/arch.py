"""Step 4: the arch config and the classes that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.cli.files import defaults_lines, key_lines
from verification.finding import Finding
from verification.reads import unread_arch
from verification.rule import NotApplicable, finding, need_config, need_model, rule
from verification.rules.job import backup_suffix
from verification.subject import Subject

FORM = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*@[A-Z]\w*")
CLASS_SUFFIX = re.compile(r"_(original|old|backup|bak|copy)\d*$|(?<=[a-z0-9A-Z])(Original|Old|Backup|Bak|Copy)\d*$")


@rule("ARC310")
def name_form(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    model, place = subject.model, subject.arch_place()
    if not model.text and not subject.arch:
        raise NotApplicable("the config has no arch block")
    family = subject.requires.get("FAMILY", "")
    if not FORM.fullmatch(model.text):
        text = f"arch.name={model.text!r} is not of the form package.module@Class"
        yield finding("ARC310", "FAIL", text, *place)
    elif family and family not in model.module.split("."):
        text = f"arch.name={model.text} lies outside the package {family}, the script's family"
        yield finding("ARC310", "WARN", text, *place)


@rule("ARC311", "ARC312")
def module_and_class(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    model = subject.model
    if not model.module:
        raise NotApplicable("arch.name is not of the form module@Class")
    file = model.module_file
    if model.problem and not file:
        yield finding("ARC311", "FAIL", model.problem, *subject.arch_place())
        raise NotApplicable(model.problem)
    if model.problem:
        yield finding("ARC312", "FAIL", model.problem, file)
    elif not model.exported:
        text = f"{file} has {model.cls_name}, but does not export it in __all__"
        yield finding("ARC312", "FAIL", text, file)


@rule("MOD410")
def is_a_model(subject: Subject) -> Iterator[Finding]:
    model = need_model(subject)
    if model.uncallable:
        yield finding("MOD410", "FAIL", model.uncallable, *model.place)


@rule("ARC313")
def no_backup(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    for link in (subject.model, subject.loss, *subject.evaluators):
        names = dict.fromkeys([link.module, link.cls_name, *link.names])
        for name in [name for name in names if backup_suffix(name) or CLASS_SUFFIX.search(name)]:
            text = f"{link.key}={link.text}: {name} is named as a backup copy"
            yield finding("ARC313", "FAIL", text, *subject.arch_place(link.key))


@rule("ARC314")
def loss(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    if not subject.arch:
        raise NotApplicable("the config has no arch block")
    block, link, key = subject.arch.get("loss"), subject.loss, "arch.loss"
    text = link.misfit
    if not isinstance(block, dict) or not block.get("name"):
        text = "arch.loss.name is missing"
    elif link.problem:
        key, text = "arch.loss.name", f"arch.loss.name={link.text}: {link.problem}"
    if text:
        yield finding("ARC314", "FAIL", text, *subject.arch_place(key))


@rule("ARC320", "ARC321")
def halting_keys(subject: Subject) -> Iterator[Finding]:
    need_model(subject)
    mode, file = subject.declares("ACT_MODE"), subject.arch_file
    text = subject.text(file)
    if mode not in ("dynamic", "fixed"):
        raise NotApplicable(f"the model declares ACT_MODE={mode}")
    if text is None:
        raise NotApplicable("the arch file is not known")
    lines: dict[str, tuple[str, int]] = {}
    for name, content in arch_files(subject):
        lines |= {key.removeprefix("arch."): (name, line) for key, line in key_lines(content).items()}
    other, own = (
        ("num_act_steps", "halt_max_steps") if mode == "dynamic" else ("halt_exploration_prob", "num_act_steps")
    )
    problems = [f"{other} belongs to another mode than {mode}"] if other in lines else []
    problems += [f"{own} is missing, the model is {mode}"] if own not in lines else []
    for words in problems:
        yield finding("ARC320", "FAIL", f"{file}: {words}", file)
    key = "halt_exploration_prob"
    if mode != "dynamic":
        yield finding("ARC321", "SKIP", f"the model is {mode}")
    elif not (key in lines and key in subject.arch):
        how = "does not set" if key not in lines else "sets, and the command deletes"
        yield finding("ARC321", "FAIL", f"{file} {how} {key}", *lines.get(key, (file, 0)))


def arch_files(subject: Subject) -> list[tuple[str, str]]:
    """(name, text) of the chosen arch file and of the files on which it is built."""
    files = [one for one in subject.trace.files if one.package == "arch" or one.path.parent.name == "arch"]
    return [(subject.trace.relative(one.path), one.text) for one in files]


@rule("ARC330")
def keys(subject: Subject) -> Iterator[Finding]:
    model = need_model(subject)
    block = {key: value for key, value in subject.arch.items() if key not in ("name", "loss")}
    mine = subject.given
    if problem := model.misfit:
        if any(f"'{key}'" in problem or f"{key}=" in problem or problem.startswith(f"{key}:") for key in mine):
            yield finding("JOB030", "FAIL", problem, *subject.place)
        else:
            yield finding("ARC330", "FAIL", problem, *subject.arch_place())
    if not model.config:
        raise NotApplicable(f"{model.cls_name} has no Config")
    for file, content in arch_files(subject):
        for _, option, line in defaults_lines(content):
            name = option.partition("@")[0].rpartition("/")[2]  # the dataclass whose defaults the file starts from
            schema = option.startswith("/defaults/") and option.endswith("@_here_")
            if schema and name not in model.config_bases and "arch.name" not in mine:
                text = f"{file} has the defaults of {name}, but {model.cls_name} is configured by {model.config}"
                fix = "correct the name, or the first entry of its defaults"
                yield finding("ARC330", "FAIL", text, file, line, fix)
    place = model.config_place
    for name in unread_arch(subject):
        text = f"arch.{name} is a field of {model.cls_name}'s config that nothing reads"
        yield finding("ARC330", "FAIL", text, *place)
    unset = [name for name in model.fields if name not in block]
    if unset:
        fix = f"set it in {subject.arch_file} so that the file gives the whole architecture"
        text = f"defaults of {model.config} in force: {', '.join(unset)}"
        yield finding("ARC330", "INFO", text, *place, fix)
