"""The rules of language models: the schedule; those of texts are in verification/rules/data.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verification.data import text_data
from verification.finding import Finding, Level
from verification.rule import QUESTIONS, FamilyRules, NotApplicable, Rule, finding, inert, need_config
from verification.subject import Subject


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps: max_iters, none in a run that only evaluates."""
    config = subject.resolved or {}
    stated = config.get("max_iters")
    return 0 if config.get("eval_only") else stated if isinstance(stated, int) else None


def horizon(subject: Subject) -> Iterator[Finding]:
    """CFG256."""
    config = need_config(subject)
    if reason := inert(subject, "lr_decay_iters") or inert(subject, "max_iters"):
        raise NotApplicable(reason)
    end, last, warmup = (config.get(key) for key in ("lr_decay_iters", "max_iters", "warmup_iters"))
    if not (isinstance(end, int) and isinstance(last, int) and isinstance(warmup, int)):
        raise NotApplicable("a length is no number (JOB030)")
    place = subject.trace.key_line("lr_decay_iters")
    if end <= warmup:
        text = f"lr_decay_iters={end} lies within the warm-up of {warmup}: the rate falls to min_lr at once"
        yield finding("CFG256", "WARN", text, *place)
    elif end != last:
        how = "never reaches min_lr" if end > last else f"rests at min_lr for {last - end} iterations"
        level: Level = "INFO" if subject.kind == "launch" else "WARN"  # at a launch the script prints it
        text = f"lr_decay_iters={end}, the run has {last} iterations: the learning rate {how}"
        yield finding("CFG256", level, text, *place, f"lr_decay_iters={last}")
    else:
        yield finding("CFG256", "PASS", f"the rate reaches min_lr with the run's end, at {end}", *place)


FAMILY_RULES = FamilyRules(
    data=lambda subject: text_data(subject.resolved or {}, subject.trace.cwd, subject.local_data),
    steps=count_steps,
    rates=lambda subject: {"network": "learning_rate"},
    idle="WARN",
    rules=(Rule(("CFG256",), horizon),),
    questions=(
        ("Which training mode is intended (single, multidataset, multicontext)?", "training_mode", "training_mode"),
        ("Which data?", "data", "data"),
        ("Which weights does it begin with?", "initial_weights", "init_from"),
        QUESTIONS[-1],
    ),
    intents={
        "data": lambda subject: ",".join(Path(entry.path).name for entry in subject.data),
        "optimizer": lambda subject: subject.choices.get("optimizer"),
        "lr_scheduler": lambda subject: subject.choices.get("lr_scheduler"),
    },
)
