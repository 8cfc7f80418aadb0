"""Faults of HRM with a manager: weights that reach no loss, goals that are never used, keys that do nothing."""

from __future__ import annotations

from tests.verification.mutations import Fault, swap

LOSS = "losses/feudal.py"
HEAD = "models/recursive_reasoning/subgoal.py"
DEFAULT = "python pretrain.py device=cpu"

FAULTS = (
    Fault(
        name="feudal-weight-without-head",
        what="a weight for the intrinsic loss of a model whose manager was removed",
        codes=("ARC340", "JOB031"),
        level="WARN",
        job=f"{DEFAULT} ~arch.subgoal_head loss.feudal_loss_weight=0.05",
    ),
    Fault(
        name="feudal-weight-of-plain-hrm",
        what="a weight for the intrinsic loss of an architecture that has none",
        codes=("JOB031",),
        level="WARN",
        job=f"{DEFAULT} arch=hrm loss.feudal_loss_weight=0.05",
    ),
    Fault(
        name="feudal-two-weights",
        what="both keys of the weight, with different values",
        codes=("JOB031",),
        level="WARN",
        job=f"{DEFAULT} loss.feudal_loss_weight=0.05 arch.loss.feudal_loss_weight=0.02",
    ),
    Fault(
        name="feudal-one-goal",
        what="a period as long as the episode: one goal, where several were meant",
        codes=("ARC340",),
        level="WARN",
        job=f"{DEFAULT} arch.subgoal_head.manager_period=8 arch.halt_max_steps=8",
    ),
    Fault(
        name="feudal-no-goal",
        what="goals are scheduled for after the episode",
        codes=("ARC340",),
        level="WARN",
        job=f"{DEFAULT} arch.subgoal_head.schedule=[8,12] arch.halt_max_steps=8",
    ),
    Fault(
        name="feudal-gate-key-without-gate",
        what="a temperature for gates that are switched off",
        codes=("JOB031",),
        level="WARN",
        job=f"{DEFAULT} arch.subgoal_head.gating=false arch.subgoal_head.temperature=2",
    ),
    Fault(
        name="feudal-unknown-control",
        what="a goal source that training does not have",
        codes=("JOB030",),
        job=f"{DEFAULT} arch.subgoal_head.goal_source=shuffle",
    ),
    Fault(
        name="feudal-head-of-another-width",
        what="a manager of another width than the model",
        codes=("ARC330",),
        follows=("JOB030",),
        edits=(swap("config/arch/hrm_feudal.yaml", "  hidden_size: ${..hidden_size}\n", "  hidden_size: 64\n"),),
        job=DEFAULT,
    ),
    Fault(
        name="feudal-scale-not-read",
        what="the injection forgets arch.subgoal_head.goal_scale",
        codes=("ARC330",),
        edits=(swap(HEAD, "self.scale = config.goal_scale * (", "self.scale = 1.0 * ("),),
        job=DEFAULT,
    ),
    Fault(
        name="feudal-intent-period",
        what="the intent says period 2, the command leaves 4",
        codes=("JOB034",),
        job=DEFAULT,
        intent=(("period", "2"),),
    ),
    Fault(
        name="feudal-intent-manager",
        what="the baseline without a manager, started without removing it",
        codes=("JOB034",),
        job=DEFAULT,
        intent=(("manager", "none"),),
    ),
    Fault(
        name="feudal-loss-not-added",
        what="the intrinsic loss is computed, reported and never added",
        codes=("ARC340",),
        probes=True,
        edits=(swap(LOSS, "result.total + self.weight * loss", "result.total + 0 * loss"),),
        job=DEFAULT,
    ),
    Fault(
        name="feudal-weight-fixed",
        what="the intrinsic loss has weight 0.1, whatever the config says",
        codes=("ARC340",),
        probes=True,
        edits=(swap(LOSS, "result.total + self.weight * loss", "result.total + 0.1 * loss"),),
        job=DEFAULT,
    ),
    Fault(
        name="feudal-sign",
        what="the worker is moved away from its goal",
        codes=("ARC340",),
        probes=True,
        edits=(swap(LOSS, "factor * (1 - cos)", "factor * (1 + cos)"),),
        job=DEFAULT,
    ),
    Fault(
        name="feudal-goal-at-every-pass",
        what="the goal is renewed at every pass, manager_period only counts",
        codes=("ARC340",),
        probes=True,
        edits=(swap(HEAD, 'torch.where(replace[:, None], manager, state["subgoal_h"])', "manager"),),
        job=DEFAULT,
    ),
)
