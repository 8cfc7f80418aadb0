"""Faults of HRM with a manager: weights that reach no loss, goals that are never used, keys that do nothing."""

from __future__ import annotations

from tests.verification.mutations import Fault, commands, swap

LOSS = "losses/feudal.py"
HEAD = "models/recursive_reasoning/subgoal.py"
DEFAULT = "python pretrain.py device=cpu"

# name | codes (those that follow) | what | command | intent
COMMANDS = commands(f"""
feudal-weight-without-head | WARN ARC340 JOB031 | a weight for the intrinsic loss of a model whose manager was removed | {DEFAULT} ~arch.subgoal_head loss.feudal_loss_weight=0.05
feudal-weight-of-plain-hrm | WARN JOB031 | a weight for the intrinsic loss of an architecture that has none | {DEFAULT} arch=hrm loss.feudal_loss_weight=0.05
feudal-two-weights | WARN JOB031 | both keys of the weight, with different values | {DEFAULT} loss.feudal_loss_weight=0.05 arch.loss.feudal_loss_weight=0.02
feudal-one-goal | WARN ARC340 | a period as long as the episode: one goal, where several were meant | {DEFAULT} arch.subgoal_head.manager_period=8 arch.halt_max_steps=8
feudal-no-goal | WARN ARC340 | goals are scheduled for after the episode | {DEFAULT} arch.subgoal_head.schedule=[8,12] arch.halt_max_steps=8
feudal-gate-key-without-gate | WARN JOB031 | a temperature for gates that are switched off | {DEFAULT} arch.subgoal_head.gating=false arch.subgoal_head.temperature=2
feudal-unknown-control | JOB030 | a goal source that training does not have | {DEFAULT} arch.subgoal_head.goal_source=shuffle
feudal-intent-period | JOB034 | the intent says period 2, the command leaves 4 | {DEFAULT} | period=2
feudal-intent-manager | JOB034 | the baseline without a manager, started without removing it | {DEFAULT} | manager=none
""")

FAULTS = (
    *COMMANDS,
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
