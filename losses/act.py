"""Loss of one ACT step: token cross-entropy, and binary cross-entropies of q_halt (is the answer right?) and
q_continue.

Every row counts at every step (deep supervision). Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.config import ACTLossConfig
from losses.stablemax import IGNORE, softmax_cross_entropy, stablemax_cross_entropy
from models.recursive_reasoning.act import ACTOutput

__all__ = ["ACTLossConfig", "ACTLossHead", "LossResult"]

Metrics = dict[str, tuple[Tensor, Tensor]]

_TOKEN_LOSSES = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}
_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class LossResult:
    """`total` is the scalar sum over rows; divide it by the global number of rows (`weight`: rows of this batch)."""

    total: Tensor
    weight: float
    metrics: Metrics  # name -> (sum, count), detached scalars on the device
    preds: Tensor  # [B, T] int64


class ACTLossHead(nn.Module):
    """`head(output)` -> LossResult. Labels come from the rows' own examples (`output.carry.data`), not the batch."""

    Config: ClassVar = ACTLossConfig

    def __init__(self, config: ACTLossConfig) -> None:
        super().__init__()
        self.token_loss = _TOKEN_LOSSES[config.loss_type]
        self.dtype = _PRECISIONS[config.precision]
        self.smoothing, self.q_weight, self.kl_weight = config.label_smoothing, config.q_weight, config.kl_weight

    def forward(self, output: ACTOutput) -> LossResult:
        """Loss and metrics of one ACT step. Raises ValueError if the output has no logits."""
        logits, labels = output.logits, output.carry.data["labels"]
        if logits is None:
            raise ValueError("the loss needs logits; this ACT step was computed without them")
        scored = labels != IGNORE
        num_scored = scored.sum(-1)  # [B]
        divisor = num_scored.clamp(min=1)
        with torch.no_grad():
            preds = logits.argmax(-1)
            num_correct = (scored & (preds == labels)).sum(-1)
            solved = num_correct == num_scored  # true for rows without labels, whose q target is then 1

        token_losses = self.token_loss(logits, labels, dtype=self.dtype, smoothing=self.smoothing)
        lm = (token_losses / divisor.unsqueeze(-1)).sum()
        terms = {"lm_loss": lm, "q_halt_loss": _bce(output.q_halt_logits, solved)}
        if output.target_q_continue is not None:
            terms["q_continue_loss"] = _bce(output.q_continue_logits, output.target_q_continue)
        total = lm + self.q_weight * sum(value for name, value in terms.items() if name != "lm_loss")

        if (kl := output.aux.get("kl")) is not None:  # [B], summed over rows like the other terms
            terms["kl"] = kl.sum()
            total = total + self.kl_weight * terms["kl"]

        # Most important first: a console line shows only some of them.
        rows = torch.full((), labels.shape[0], device=labels.device)
        metrics = {"loss": (total.detach(), rows), "lm_loss": (lm.detach(), rows)}
        metrics |= self._row_metrics(output, num_scored, num_correct / divisor, solved)
        metrics |= {name: (value.detach(), rows) for name, value in terms.items() if name != "lm_loss"}
        return LossResult(total, float(labels.shape[0]), metrics, preds)

    @torch.no_grad()
    def _row_metrics(self, output: ACTOutput, num_scored: Tensor, accuracy: Tensor, solved: Tensor) -> Metrics:
        """(sum, count) over rows with labels: those that halted at this step, and (`_live`) all of them."""
        live = num_scored > 0
        done = live & output.carry.halted
        q_halt = output.q_halt_logits
        q_correct = ((q_halt >= 0) == solved) & ~q_halt.isnan()
        values = {
            "accuracy": accuracy,
            "exact_accuracy": solved,
            "steps": output.carry.steps,
            "q_halt_accuracy": q_correct,
        }
        metrics = {name: (_masked_sum(value, done), done.sum()) for name, value in values.items()}
        for name in ("accuracy", "exact_accuracy", "steps"):
            metrics[f"{name}_live"] = (_masked_sum(values[name], live), live.sum())
        return metrics


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="sum")


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum()
