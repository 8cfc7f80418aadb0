"""Step 2: the entry script's declarations (its behaviour is observed). Step 6: all parts form one mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from verification.finding import Finding
from verification.link import mode_of_name
from verification.rule import NotApplicable, finding, need_config, need_model, need_script, rule
from verification.subject import Subject


@rule("SCR110")
def decorator(subject: Subject) -> Iterator[Finding]:
    script = subject.trace.script
    if script is None:
        raise NotApplicable(subject.problems.get("script", "no script"))
    file = subject.script_file
    if not script.mains:
        if "/" in file:
            raise NotApplicable(f"{file} takes no Hydra config")
        yield finding("SCR110", "FAIL", f"{file} has no @hydra.main", file, 1)
        return
    first, line, text = script.mains[0], script.mains[0].line, ""
    if len(script.mains) > 1:
        line, text = script.mains[1].line, f"{file} has {len(script.mains)} @hydra.main"
    elif not script.config_dir.is_dir():
        text = f"config_path={first.config_path!r} is not a folder"
    elif not (script.config_dir / f"{first.config_name}.yaml").is_file():
        text = f"the decorator's config_name={first.config_name!r} does not exist in {first.config_path}/"
    if text:
        yield finding("SCR110", "FAIL", text, file, line)


@rule("SCR111")
def config_is_the_scripts(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    script, file, name = subject.trace.script, subject.script_file, subject.trace.config_name
    assert script is not None
    text = subject.text(subject.trace.relative(script.config_dir / f"{script.config_name}.yaml")) or ""
    match = re.search(r"^script:\s*(\S+)", text, re.MULTILINE)
    if match and match[1].removesuffix(".py") not in (subject.script_stem, "null"):
        message = f"@hydra.main names {script.config_name}, which is for {match[1]}"
        yield finding("SCR111", "FAIL", message, file, script.mains[0].line)
    belongs = need_config(subject).get("script")
    place, line = subject.trace.key_line("script")
    base = [one.path.stem for one in subject.trace.files if not one.package]
    if belongs and str(belongs).removesuffix(".py") != subject.script_stem:
        message = f"config {name} is for {belongs}, the command runs {file}"
        yield finding("SCR111", "FAIL", message, place or subject.config_file, line)
    elif not belongs and name != script.config_name and script.config_name in base:
        yield finding("SCR111", "INFO", f"config {name} is derived from {script.config_name}", subject.config_file)
    elif not belongs and name != script.config_name:
        message = f"config {name} neither declares `script: {file}` nor derives from {script.config_name}"
        fix = f"put base/{subject.script_stem} into its defaults list"
        yield finding("SCR111", "FAIL", message, subject.config_file, 0, fix)


@rule("SCR112")
def model_is_the_scripts(subject: Subject) -> Iterator[Finding]:
    need_script(subject)
    file = subject.script_file
    if not {"FAMILY", "DATA_MODE"} <= set(subject.requires):
        fix = "state both in the family's `requires`, which the registry compares with the class"
        yield finding("SCR112", "FAIL", f"{file} states no FAMILY and DATA_MODE", file, 0, fix)
        return
    model, other = need_model(subject), subject.misdeclared
    if other:
        declared = " and ".join(f"{key}={model.declared.get(key)!r}" for key in other)
        required = " and ".join(map(repr, other.values()))
        yield finding(
            "SCR112", "FAIL", f"{model.cls_name} declares {declared}, {file} works with {required}", *model.place
        )


# --- step 6 ----------------------------------------------------------------------------------------------------------


@rule("SUM600")
def summary(subject: Subject) -> Iterator[Finding]:
    model, family = need_model(subject), subject.family
    act, data, forward = subject.declares("ACT_MODE"), subject.declares("DATA_MODE"), model.train_forward
    names = " + ".join(Path(entry.path).name for entry in subject.data)
    text = (
        f"{model.cls_name} is trained by {subject.task or 'its family'}{f' on {names}' if names else ''}, {data} mode"
    )
    modes = {one.mode for one in subject.data if one.mode}
    good = data == subject.requires.get("DATA_MODE") and modes <= {data, family.reads if family else ""}
    if family and family.act:
        if not forward:
            raise NotApplicable(f"{model.cls_name}.forward names no _forward_train_* method")
        policy = model.encoder_policy
        text = f"{model.cls_name} uses {forward}() with {act} halting, {data} mode, "
        text += "no encoder" if policy == "none" else f"encoder: {policy}"
        good &= mode_of_name(forward) in (act, "") and (act, policy) != ("dynamic", "cache_first_step")
    yield finding("SUM600", "PASS" if good else "FAIL", text, *model.place)
