"""Faults of HRM with a manager: weights that reach no loss, goals that are never used, keys that do nothing."""

from __future__ import annotations

from tests.verification.mutations import faults

FILES = {"LOSS": "losses/feudal.py", "HEAD": "models/recursive_reasoning/subgoal.py"}

FAULTS = faults(
    r"""
feudal-weight-without-head | WARN ARC340 JOB031 | a weight for the intrinsic loss of a model whose manager was removed | python pretrain.py device=cpu ~arch.subgoal_head loss.feudal_loss_weight=0.05
feudal-weight-of-plain-hrm | WARN JOB031 | a weight for the intrinsic loss of an architecture that has none | python pretrain.py device=cpu arch=hrm loss.feudal_loss_weight=0.05
feudal-two-weights | WARN JOB031 | both keys of the weight, with different values | python pretrain.py device=cpu loss.feudal_loss_weight=0.05 arch.loss.feudal_loss_weight=0.02
feudal-one-goal | WARN ARC340 | a period as long as the episode: one goal, where several were meant | python pretrain.py device=cpu arch.subgoal_head.manager_period=8 arch.halt_max_steps=8
feudal-no-goal | WARN ARC340 | goals are scheduled for after the episode | python pretrain.py device=cpu arch.subgoal_head.schedule=[8,12] arch.halt_max_steps=8
feudal-gate-key-without-gate | WARN JOB031 | a temperature for gates that are switched off | python pretrain.py device=cpu arch.subgoal_head.gating=false arch.subgoal_head.temperature=2
feudal-unknown-control | JOB030 | a goal source that training does not have | python pretrain.py device=cpu arch.subgoal_head.goal_source=shuffle
feudal-intent-period | JOB034 | the intent says period 2, the command leaves 4 | python pretrain.py device=cpu | period=2
feudal-intent-manager | JOB034 | the baseline without a manager, started without removing it | python pretrain.py device=cpu | manager=none
feudal-head-of-another-width | ARC330 (JOB030) | a manager of another width than the model | python pretrain.py device=cpu
  config/arch/hrm_feudal.yaml
  -   hidden_size: ${..hidden_size}
  +   hidden_size: 64
feudal-scale-not-read | ARC330 | the injection forgets arch.subgoal_head.goal_scale | python pretrain.py device=cpu
  HEAD | self.scale = config.goal_scale * ( => self.scale = 1.0 * (
feudal-loss-not-added | OBSERVED ARC340 | the intrinsic loss is computed, reported and never added | python pretrain.py device=cpu
  LOSS | result.total + self.weight * loss => result.total + 0 * loss
feudal-weight-fixed | OBSERVED ARC340 | the intrinsic loss has weight 0.1, whatever the config says | python pretrain.py device=cpu
  LOSS | result.total + self.weight * loss => result.total + 0.1 * loss
feudal-sign | OBSERVED ARC340 | the worker is moved away from its goal | python pretrain.py device=cpu
  LOSS | factor * (1 - cos) => factor * (1 + cos)
feudal-goal-at-every-pass | OBSERVED ARC340 | the goal is renewed at every pass, manager_period only counts | python pretrain.py device=cpu
  HEAD | torch.where(replace[:, None], manager, state["subgoal_h"]) => manager
""",
    files=FILES,
)
