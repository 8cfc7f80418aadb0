"""Verification rules for HRM's manager: whether its goals are used, weighted and scored as intended."""

from __future__ import annotations

from collections.abc import Iterator

from engine.fields import value_at
from models.recursive_reasoning.subgoal_config import WEIGHT, unusual
from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding, need_model
from verification.spec import Term
from verification.subject import Subject


def manager(subject: Subject) -> Iterator[Finding]:
    """ARC340: the manager's goals are used, weighted and scored as intended."""
    model = need_model(subject)
    own, weight = subject.arch.get("subgoal_head"), value_at(subject.resolved, WEIGHT)
    weight = 0 if value_at(subject.arch, "loss.use_alignment_loss") is False else weight
    if "subgoal_head" not in model.fields and weight is None:
        raise NotApplicable("the architecture has no manager")
    problems = list(unusual(subject.arch, weight)) if isinstance(weight, int | float) else []
    for key, intent, text, fix in problems:  # a debug preset shortens episodes without intent
        level = "INFO" if subject.choices.get("debug") or intent in (subject.intent or {}) else "WARN"
        yield finding("ARC340", level, text, *subject.arch_place(key), fix)
    if not problems:
        text = f"goals held for {own.get('manager_period')} passes, loss weight {weight}" if own else "no manager"
        yield finding("ARC340", "PASS", text, *subject.trace.key_line("arch.subgoal_head"))


MANAGER = Rule(("ARC340",), manager)

GOALS = Term(
    needs="subgoal_head",
    weight="loss.feudal_loss_weight",
    metric="feudal_loss",
    formula="1 - cosine of the rows with a goal",
    by_hand=lambda sums: sums["feudal_active_frac"] - sums["feudal_cos"],
    held="goal",
    under={
        "halt_max_steps": 4,
        "fixed_refinement_steps": None,
        "subgoal_head.schedule": None,
        "subgoal_head.manager_period": 2,
        "subgoal_head.gating": False,
        "subgoal_head.manager_mode": "task",
        "loss.feudal_gate": "none",
        "loss.use_alignment_loss": True,
    },
)
"""The loss term of the goals: each goal is followed, and held for its period."""
