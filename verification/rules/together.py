"""Step 6: script, model and data form one mode."""

from __future__ import annotations

from collections.abc import Iterator

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


@rule("SUM600")
def summary(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    if subject.family is None or not subject.family.act:
        raise NotApplicable("a sum of models with ACT steps")
    model = need_model(subject)
    act, data, forward = subject.declares("ACT_MODE"), subject.declares("DATA_MODE"), model.train_forward
    if not forward:
        raise NotApplicable(f"{model.cls_name}.forward names no _forward_train_* method")
    policy = encoder_policy(model)
    modes = {entry.mode for entry in subject.data if entry.mode}
    text = f"{model.cls_name} uses {forward}() with {act} halting, {data} mode, "
    text += "no encoder" if policy == "none" else f"encoder: {policy}"
    stale = act == "dynamic" and policy == "cache_first_step"
    good = (
        mode_of_name(forward) in (act, "")
        and data == subject.requires.get("DATA_MODE")
        and modes <= {data}
        and not stale
    )
    yield finding("SUM600", "PASS" if good else "FAIL", text, *model.place)
