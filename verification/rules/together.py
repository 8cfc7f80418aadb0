"""Step 6: script, model and data form one mode."""

from __future__ import annotations

from collections.abc import Iterator

from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, need_model, rule
from verification.subject import Subject

MODES = {"online": "fixed", "fixed": "fixed", "original": "dynamic", "dynamic": "dynamic"}
"""Word of a `_forward_train_<mode>` method -> the ACT mode that it stands for, by the guide's names."""


def train_forward(cls: type | None) -> str:
    """The `_forward_train_*` method that the class's forward names, else the one that the class has, else ""."""
    code = getattr(getattr(cls, "forward", None), "__code__", None)
    names = [name for name in code.co_names if name.startswith("_forward_train")] if code else []
    owned = [name for name in dir(cls) if name.startswith("_forward_train")]  # for a forward that is wrapped
    return names[0] if names else owned[0] if len(owned) == 1 else ""


def mode_of_name(name: str) -> str:
    """fixed or dynamic by the guide's names, "" for another one."""
    words = name.removeprefix("_forward_train").strip("_").split("_")
    return next((MODES[word] for word in words if word in MODES), "")


def encoder_policy(cls: type | None) -> str | None:
    """reencode, cache_first_step or none, as the class declares it: an embedding layer is no encoder."""
    return getattr(cls, "ENCODER_POLICY", "none") if hasattr(cls, "forward") else None


@rule("SUM600")
def summary(subject: Subject) -> Iterator[Finding]:
    need_config(subject)
    if subject.family is None or not subject.family.act:
        raise NotApplicable("a sum of models with ACT steps")
    cls = need_model(subject)
    act, data, forward = subject.declares("ACT_MODE"), subject.declares("DATA_MODE"), train_forward(cls)
    if not forward:
        raise NotApplicable(f"{cls.__name__}.forward names no _forward_train_* method")
    policy = encoder_policy(cls)
    modes = {entry.mode for entry in subject.data if entry.mode}
    text = f"{cls.__name__} uses {forward}() with {act} halting, {data} mode, "
    text += "no encoder" if policy == "none" else f"encoder: {policy}"
    stale = act == "dynamic" and policy == "cache_first_step"
    good = (
        mode_of_name(forward) in (act, "")
        and data == subject.requires.get("DATA_MODE")
        and modes <= {data}
        and not stale
    )
    yield finding("SUM600", "PASS" if good else "FAIL", text, *subject.place(cls))
