"""Intrinsic loss of HRM with a manager: how far the direction of the worker's displacement is from its goal.

    L = Σ over rows with a goal of  c · (1 − r),     r = cos(displacement, goal),  c the gate

After FeUdal Networks (Vezhnevets et al. 2017, arXiv 1703.01161, eq. 8). A small loss shows that goals are followed, not
that they help: random goals are followed just as well. With `manager_mode` fun or both, the manager also learns from
the displacements that lowered the loss of their row (eq. 7, the transition policy gradient):

    L_m = −Σ over rows whose goal ends of  A · cos(displacement, g),   A = standardised (loss at its start − loss now)

Shapes: B rows, T tokens, G goal_dim.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor

from losses.act import ACTLossHead, LossResult, Metrics
from losses.config import FeudalLossConfig
from losses.stablemax import IGNORE
from models.recursive_reasoning.act import ACTOutput, Aux
from models.recursive_reasoning.subgoal import alignment

__all__ = ["FeudalLossConfig", "FeudalLossHead"]

_SATURATED = 0.05
_MAX_ADVANTAGE = 3.0


class FeudalLossHead(ACTLossHead):
    """The ACT loss plus weight · L (plus L_m); for a model without a manager exactly the ACT loss and its metrics."""

    Config: ClassVar = FeudalLossConfig

    def __init__(self, config: FeudalLossConfig) -> None:
        super().__init__(config)
        self.weight = config.feudal_loss_weight if config.use_alignment_loss else 0.0
        self.trains, self.gate_factor = config.feudal_grad, config.feudal_gate
        self.manager_weight = config.manager_loss_weight

    def forward(self, output: ACTOutput) -> LossResult:
        """As ACTLossHead. L is that of this pass; in evaluation the mean over the passes of the episode."""
        result = super().forward(output)
        aux = output.aux
        if not aux:
            return result
        if "episode" in aux:
            loss, more = self._episode(aux["episode"], output.carry.steps)
        else:
            with nullcontext() if self.weight else torch.no_grad():
                loss, cos = self._pass(aux)
            more = _pass_metrics(aux, cos.detach(), output.carry.halted)
        if self.weight:
            result.total = result.total + self.weight * loss
        if "aim" in aux:
            manager, progress = self._manager(output)
            result.total = result.total + self.manager_weight * manager
            more |= {"manager_loss": (manager.detach(), result.metrics["loss"][1]), "subgoal_progress": progress}
        plain, rows = result.metrics, result.metrics["loss"][1]
        result.metrics = {  # in the order of a console line
            "loss": (result.total.detach(), rows),
            "lm_loss": plain["lm_loss"],
            "feudal_loss": (loss.detach(), rows),
            "accuracy": plain["accuracy"],
            "steps": plain["steps"],
        }
        result.metrics |= {name: pair for name, pair in {**plain, **more}.items() if name not in result.metrics}
        return result

    def _pass(self, aux: Aux) -> tuple[Tensor, Tensor]:
        """(L summed over rows, cosine of each row [B])."""
        displacements, goal, gate, active = (aux[name] for name in ("displacements", "goal", "gate", "active"))
        cos = alignment(
            displacements.detach() if self.trains == "manager" else displacements,
            aux["valid"],
            goal.detach() if self.trains == "worker" else goal,
        )
        factor = {"detach": gate.detach(), "none": torch.ones_like(gate), "live": gate}[self.gate_factor]
        return torch.where(active, factor * (1 - cos), torch.zeros_like(cos)).sum(), cos

    def _manager(self, output: ACTOutput) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(L_m, progress: sum and count of the decrease of the loss under goals that end here).

        A is standardised over the rows of the micro-batch whose goal ends; 0 with fewer than two. Rows that get a new
        goal store the loss of this pass in the carry.
        """
        aux, carry = output.aux, output.carry
        assert output.logits is not None  # checked by the ACT loss
        with torch.no_grad():
            labels = carry.data["labels"]
            losses = self.token_loss(output.logits, labels, dtype=self.dtype, smoothing=self.smoothing).sum(-1)
            now = losses.to(aux["aim"].dtype) / (labels != IGNORE).sum(-1).clamp(min=1)  # [B]
            before = carry.latents["subgoal_loss"]
            carry.latents["subgoal_loss"] = torch.where(aux["emitted"], now, before)
            ends = aux["active"] & (aux["emitted"] | carry.halted)
            count, decrease = ends.sum(), torch.where(ends, before - now, 0.0)
            centred = torch.where(ends, decrease - decrease.sum() / count.clamp(min=1), 0.0)
            deviation = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
            advantage = (centred / deviation.clamp(min=1e-6)).clamp(-_MAX_ADVANTAGE, _MAX_ADVANTAGE)
        displacement = aux["displacements"][:, :1].detach()  # since the goal was set
        cos = alignment(displacement, ends[:, None], aux["aim"])
        return -(advantage * cos).sum(), (decrease.sum(), count)

    def _episode(self, sums: Tensor, steps: Tensor) -> tuple[Tensor, Metrics]:
        """Loss and metrics of whole episodes from the sums of `EPISODE` [B, 5]; all passes have equal weight."""
        active, cos, own, gate, gated = sums.unbind(-1)
        loss = active - cos if self.gate_factor == "none" else gate - gated
        passes, used = steps.sum(), active.sum()
        return (loss / steps.clamp(min=1)).sum(), {
            "feudal_cos": (cos.sum(), used),
            "feudal_cos_own": (own.sum(), used),
            "feudal_active_frac": (used, passes),
            "subgoal_gate_mean": (gate.sum(), used),
        }


@torch.no_grad()
def _pass_metrics(aux: Aux, cos: Tensor, halted: Tensor) -> Metrics:
    """(sum, count) of metrics of the manager; the set of names is the same throughout a run.

    Means are over rows with a goal. Statistics across rows (std, pairwise cosine, participation ratio) are computed per
    micro-batch and averaged.
    """
    active, gate, goal = aux["active"], aux["gate"], aux["goal"]
    used, rows = active.sum(), torch.full((), active.shape[0], device=active.device)
    emitted, saturated = aux["emitted"] & ~halted, (gate < _SATURATED) | (gate > 1 - _SATURATED)
    replaced, closed = emitted & active, active & (aux["emitted"] | halted)
    mean = _sum(gate, active) / used.clamp(min=1)
    std = (_sum((gate - mean).square(), active) / (used - 1).clamp(min=1)).sqrt()
    pairs = used * (used - 1)
    return {
        "feudal_cos": (_sum(cos, active), used),
        "feudal_active_frac": (used, rows),
        "subgoal_gate_mean": (_sum(gate, active), used),
        "subgoal_gate_std": (std * used, used),
        "subgoal_gate_saturated": (_sum(saturated, active), used),
        "subgoal_emissions": (emitted.sum(), rows),
        "subgoal_dwell": (_sum(aux["dwell"], closed), closed.sum()),
        "subgoal_goal_pairwise_cos": (_pairwise(goal, active), pairs),
        "subgoal_goal_pr": (_participation(goal, active) * used, used),
        "subgoal_goal_change_cos": (_sum(aux["change"], replaced), replaced.sum()),
        "subgoal_goal_drift": (_sum(aux["drift"], active), used),
        "subgoal_inject_ratio": (_sum(aux["push"], active), used),
        "subgoal_worker_pairwise_cos": (_pairwise(aux["worker"], active), pairs),
    }


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def _pairwise(vectors: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cosines over ordered pairs of different rows: |Σ unit|² − Σ |unit|²."""
    unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12) * mask[:, None]
    pairs: Tensor = unit.sum(0).square().sum() - unit.square().sum()
    return pairs


def _participation(vectors: Tensor, mask: Tensor) -> Tensor:
    """Participation ratio (Σλ)² / Σλ² of the covariance of the rows: the effective number of directions; 1 if all rows
    are equal."""
    kept = mask[:, None].to(vectors.dtype)
    centred = (vectors - (vectors * kept).sum(0) / kept.sum().clamp(min=1)) * kept
    gram = centred @ centred.T
    spread = gram.square().sum()
    return torch.where(spread > 0, gram.trace().square() / spread.clamp(min=torch.finfo(spread.dtype).tiny), 1.0)
