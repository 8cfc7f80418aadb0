"""Step 6: script, model and data form one mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verification.finding import Finding
from verification.link import Link
from verification.rule import NotApplicable, finding, need_config, need_model, rule
from verification.subject import Subject

MODES = {"online": "fixed", "fixed": "fixed", "original": "dynamic", "dynamic": "dynamic"}
"""Word of a `_forward_train_<mode>` method -> the ACT mode that it stands for, by the guide's names."""


def mode_of_name(name: str) -> str:
    """fixed or dynamic by the guide's names, "" for another one."""
    words = name.removeprefix("_forward_train").strip("_").split("_")
    return next((MODES[word] for word in words if word in MODES), "")


def encoder_policy(model: Link) -> str | None:
    """reencode, cache_first_step or none, as the class declares it: an embedding layer is no encoder."""
    return str(model.declared.get("ENCODER_POLICY", "none")) if model.callable else None


@rule("CFG252", "CFG253", "DAT522", "DAT530")
def encoders(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    mode = subject.declares("DATA_MODE")
    raise NotApplicable(f"families with demonstrations or pretrained parts judge this; the model's data mode is {mode}")
    yield


@rule("SUM600")
def summary(subject: Subject) -> Iterator[Finding]:
    model, family = need_model(subject), subject.family
    act, data, forward = subject.declares("ACT_MODE"), subject.declares("DATA_MODE"), model.train_forward
    names = " + ".join(Path(entry.path).name for entry in subject.data)
    text = f"{model.cls_name} is trained by {subject.task or 'its family'} on {names or 'its own data'}, {data} mode"
    good = data == subject.requires.get("DATA_MODE") and {one.mode for one in subject.data if one.mode} <= {data}
    if family and family.act:
        if not forward:
            raise NotApplicable(f"{model.cls_name}.forward names no _forward_train_* method")
        policy = encoder_policy(model)
        text = f"{model.cls_name} uses {forward}() with {act} halting, {data} mode, "
        text += "no encoder" if policy == "none" else f"encoder: {policy}"
        good &= mode_of_name(forward) in (act, "") and (act, policy) != ("dynamic", "cache_first_step")
    yield finding("SUM600", "PASS" if good else "FAIL", text, *model.place)
