"""Masked diffusion loss: cross-entropy of masked tokens, weighted by 1/p with the masking probability p of the row.

    loss = Σ_scored CE / p  over  Σ_rows count     (LLaDA, arXiv 2502.09992, eq. 3; padding is in neither sum)

It is an upper bound on the negative log-likelihood per token, in nats. With p = 1 and next tokens as labels it is the
loss of an autoregressive model. Shapes: B rows, T positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.language_model import LMLossResult
from losses.stablemax import IGNORE
from models.feedback.batch import BaseOutput, Batch, FeedbackOutput

__all__ = ["MaskedDiffusionLoss"]


class MaskedDiffusionLoss(nn.Module):
    """`head(output, batch)` -> LMLossResult: `total` summed over rows, `weight` its divisor."""

    def __init__(self, config: None = None) -> None:
        super().__init__()

    def forward(self, output: BaseOutput | FeedbackOutput, batch: Batch) -> LMLossResult:
        """Loss of a base, or the weighted loss of the passes of an adapted base.

        Metrics: `loss` of the (last) pass, `base_loss` of the plain base if the output is that of an adapted one, and
        in evaluation `masked_accuracy`.
        """
        weight = batch.count.sum()
        if isinstance(output, FeedbackOutput):
            final, trained = output.final, [*zip(output.loss_weights, output.passes[1:], strict=True)]
        else:
            final, trained = output, [(1.0, output)]
        sums = {id(each): self.rows(each, batch).sum() for share, each in trained if share or each is final}
        total = torch.stack([share * sums[id(each)] for share, each in trained if share]).sum()
        metrics = {"loss": (sums[id(final)].detach(), weight)}
        if isinstance(output, FeedbackOutput):
            with torch.no_grad():
                metrics["base_loss"] = (self.rows(output.passes[0], batch).sum(), weight)
            if output.penalty is not None:
                total = total + output.penalty * weight
        if not torch.is_grad_enabled():
            metrics["masked_accuracy"] = self.hits(final, batch)
        return LMLossResult(total, weight, metrics)

    def hits(self, output: BaseOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """(number of correct predictions, number of scored positions)."""
        scored = batch.labels != IGNORE
        right = output.head(output.hidden[scored]).argmax(-1) == batch.labels[scored]
        return right.sum(), scored.sum()

    def rows(self, output: BaseOutput, batch: Batch) -> Tensor:
        """Σ CE / p over the scored positions of each row, [B] in at least float32; to be divided by `batch.count`."""
        losses = self.positions(output, batch)
        return losses.sum(-1) / batch.rate.to(losses.dtype)

    def positions(self, output: BaseOutput, batch: Batch) -> Tensor:
        """Unweighted cross-entropy of each position [B, T], 0 where not scored; computes logits only where scored."""
        scored = batch.labels != IGNORE
        logits = output.head(output.hidden[scored])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(wide, batch.labels[scored], reduction="none")
        return losses.new_zeros(batch.labels.shape).masked_scatter(scored, losses)
