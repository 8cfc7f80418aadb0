"""The rules of recursive reasoning: the length of a run, what is trained, the manager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataset.held_back import validation_count
from engine.fields import value_at
from verification.data import puzzle_data
from verification.finding import Finding
from verification.rule import FamilyRules, NotApplicable, Rule, finding, need_model
from verification.subject import Subject

Config = dict[str, Any]


# --- length and rates -------------------------------------------------------------------------------------------------


def training_groups(subject: Subject) -> int | None:
    """Groups that are trained on, less those held back for validation; None where the data do not say."""
    config, data = subject.resolved or {}, [entry for entry in subject.data if entry.key == "data_paths"]
    if not data or any(entry.groups is None for entry in data):
        return None
    groups = sum(entry.groups or 0 for entry in data)
    if config.get("select_on") == "validation" and config.get("eval_interval") not in (None, config.get("epochs")):
        groups -= validation_count(groups, config.get("validation_groups")) if groups > 1 else 0
    return groups


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps as the sampler counts them (exact for puzzles of equal size)."""
    config, groups = subject.resolved or {}, training_groups(subject)
    sizes = [(entry.groups or 0, entry.mean_examples) for entry in subject.data if entry.key == "data_paths"]
    epochs, batch = config.get("epochs"), config.get("global_batch_size")
    per_iteration = config.get("eval_interval") or epochs
    counts = all(isinstance(value, int) and value > 0 for value in (epochs, batch, per_iteration))
    if groups is None or not counts or not all(mean for _, mean in sizes):
        return None
    mean = sum(number * (mean or 0) for number, mean in sizes) / max(sum(number for number, _ in sizes), 1)
    if not mean:
        return None
    groups_of_batch = -(-batch // mean)  # type: ignore[operator]
    steps = (epochs // per_iteration) * int(groups * per_iteration // groups_of_batch)  # type: ignore[operator]
    return min(steps, config.get("total_steps") or steps)


def rates(subject: Subject) -> dict[str, str]:
    """The puzzle embedding where there is one, the network where it is not frozen."""
    table = {"puzzle_emb": "puzzle_emb_lr"} if subject.arch.get("puzzle_emb_ndim", 1) else {}
    return table | ({} if (subject.resolved or {}).get("freeze_weights") else {"trunk": "lr"})


# --- the manager ------------------------------------------------------------------------------------------------------

HEAD, WEIGHT = "arch.subgoal_head.", "arch.loss.feudal_loss_weight"
Problem = tuple[str, str, str, str]
"""A key, the key of an intent that marks it as meant ("": none can), what is odd, what to do."""


def manager(subject: Subject) -> Iterator[Finding]:
    """ARC340: the manager's goals are used, weighed and scored as they are meant to be."""
    model = need_model(subject)
    own, weight = subject.arch.get("subgoal_head"), value_at(subject.resolved, WEIGHT)
    if "subgoal_head" not in model.fields and weight is None:
        raise NotApplicable("the architecture has no manager")
    problems = list(_odd(subject.arch, own, weight)) if isinstance(weight, int | float) else []
    for key, intent, text, fix in problems:  # a debug preset cuts episodes short and means nothing by it
        level = "INFO" if subject.choices.get("debug") or intent in (subject.intent or {}) else "WARN"
        yield finding("ARC340", level, text, *subject.arch_place(key), fix)
    if not problems:
        text = f"goals held for {own.get('manager_period')} passes, loss weight {weight}" if own else "no manager"
        yield finding("ARC340", "PASS", text, *subject.trace.key_line("arch.subgoal_head"))


def _odd(arch: Config, head: Config | None, weight: float) -> Iterator[Problem]:
    if not head:
        if weight > 0:
            text = f"feudal_loss_weight={weight} without arch.subgoal_head: the feudal loss will not be computed"
            yield (
                WEIGHT,
                "manager",
                text,
                "meant as plain HRM? Then nothing; else leave arch.subgoal_head in the config",
            )
        return
    if weight >= 0.2:
        text = f"feudal_loss_weight={weight}: every published sweep found harm from 0.2 on"
        yield WEIGHT, "feudal_weight", text, "meant as a cell of a sweep? Then nothing; else 0.02 to 0.05"
    if weight > 0 and head.get("inject_subgoal") is False:
        fix = "meant as the ablation of the loss alone? Then nothing; else set the weight to 0"
        text = f"inject_subgoal=false with feudal_loss_weight={weight}: the worker is scored by goals it is never given"
        yield f"{HEAD}inject_subgoal", "injection", text, fix
    dim, size = head.get("goal_dim"), arch.get("hidden_size")
    if isinstance(dim, int) and isinstance(size, int) and dim > size:
        text = f"goal_dim={dim} > hidden_size={size}: works, adds parameters, but worker states span {size} directions"
        yield f"{HEAD}goal_dim", f"{HEAD}goal_dim", text, f"meant so? Then nothing; else a goal_dim of at most {size}"
    fixed = arch.get("fixed_refinement_steps")
    name = "fixed_refinement_steps" if fixed else "halt_max_steps"
    most, period, schedule = fixed or arch.get(name), head.get("manager_period"), head.get("schedule")
    if not isinstance(most, int) or not isinstance(period, int):
        return
    if most == 1:
        text = f"{name}=1: a goal comes after the first pass and is never used, the feudal loss is always 0"
        yield f"{HEAD}manager_period", "", text, f"at least {name}=2"
    elif schedule and min(schedule) >= most:
        text = f"schedule={schedule} with {name}={most}: no goal is ever used, the feudal loss is always 0"
        yield f"{HEAD}schedule", "", text, f"a first pass below {most}"
    elif not schedule and period >= most - 1:
        text = f"manager_period={period} with {name}={most}: one goal for the whole episode"
        yield f"{HEAD}manager_period", "period", text, "meant so? Then nothing; else a shorter period or more passes"


FAMILY_RULES = FamilyRules(
    data=lambda subject: puzzle_data(subject.resolved or {}, subject.trace.cwd, subject.local_data),
    steps=count_steps,
    rates=rates,
    act=True,
    rules=(Rule(("ARC340",), manager),),
    intents={
        "manager": lambda subject: "subgoal_head" if subject.arch.get("subgoal_head") else "none",
        "goals": lambda subject: value_at(subject.arch, "subgoal_head.goal_source", "none"),
        "period": f"{HEAD}manager_period",
        "injection": f"{HEAD}inject_subgoal",
        "gating": f"{HEAD}gating",
        "feudal_weight": WEIGHT,
    },
)
