"""Next-token cross-entropy of one or several streams, in at least float32.

Shapes: B rows, T tokens, K streams, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from losses.config import LMLossConfig
from losses.stablemax import IGNORE
from models.language_models.gpt import LMOutput

__all__ = ["LMLossConfig", "LMLossHead", "LMLossResult"]

Metrics = dict[str, tuple[Tensor, Tensor]]


@dataclass
class LMLossResult:
    """`total` is summed over scored positions; divide it by the global sum of `weight`."""

    total: Tensor
    weight: Tensor  # scored positions of this batch, on the device
    metrics: Metrics  # name -> (sum, count), detached scalars on the device


class LMLossHead(nn.Module):
    """`head(output, labels)` -> LMLossResult. Labels int [B, T], or [B, K, T] for K streams; -100 is ignored.

    With several streams: the (weighted) mean of their losses, and metrics `loss_0`, `loss_1`, ... of each.
    """

    Config: ClassVar = LMLossConfig

    def __init__(self, config: LMLossConfig) -> None:
        super().__init__()
        self.stream_weights, self.chunk_tokens = config.stream_weights, config.chunk_tokens

    def forward(self, output: LMOutput, labels: Tensor) -> LMLossResult:
        """Loss and metrics; without gradient (in evaluation) also `accuracy`.

        Raises ValueError if labels or stream_weights do not fit the streams.
        """
        columns = self._columns(output, labels)
        scores = [self._score(output, number, column) for number, column in enumerate(columns)]
        sums = [value for value, _ in scores]
        counts = [(column != IGNORE).sum() for column in columns]
        if len(columns) == 1:
            total, weight = sums[0], counts[0]
        else:
            shares = self._shares(len(columns))
            total = torch.stack([share * value for share, value in zip(shares, sums, strict=True)]).sum()
            weight = torch.stack([share * count for share, count in zip(shares, counts, strict=True)]).sum()
        metrics = {"loss": (total.detach(), weight)}
        if len(columns) > 1:
            pairs = enumerate(zip(sums, counts, strict=True))
            metrics |= {f"loss_{number}": (value.detach(), count) for number, (value, count) in pairs}
        right = [hits for _, hits in scores if hits is not None]
        if right:
            metrics["accuracy"] = (torch.stack(right).sum(), torch.stack(counts).sum())
        return LMLossResult(total, weight, metrics)

    def token_losses(self, output: LMOutput, labels: Tensor) -> Tensor:
        """Loss of each position [B, T] of the first stream of the input, 0 where not scored."""
        return _cross_entropy(output.logits(0), labels, "none").view(labels.shape)

    def _columns(self, output: LMOutput, labels: Tensor) -> list[Tensor]:
        count = len(output.streams)
        if labels.dim() == 2 and count == 1:
            return [labels]
        if labels.dim() == 3 and labels.shape[1] == count:
            return list(labels.unbind(1))
        shape = "[B, T]" if count == 1 else f"[B, {count}, T]"
        raise ValueError(f"labels have shape {list(labels.shape)}, expected {shape}: the output has {count} stream(s)")

    def _shares(self, count: int) -> list[float]:
        weights = self.stream_weights or [1.0] * count
        if len(weights) != count:
            raise ValueError(f"arch.loss.stream_weights={weights}: expected {count} numbers, one per stream")
        return [weight / sum(weights) for weight in weights]

    def _score(self, output: LMOutput, number: int, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(cross-entropy summed over the positions of stream `number`, number of correct predictions or None with
        gradient)."""
        hidden, flat = output.hidden.flatten(0, 1), labels.flatten()
        size = self.chunk_tokens or max(1, len(flat))
        chunks = list(zip(hidden.split(size), flat.split(size), strict=True))

        def piece(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = output.head(output.streams[number], rows)
            hits = None if torch.is_grad_enabled() else (logits.argmax(-1) == targets).sum()
            return _cross_entropy(logits, targets, "sum"), hits

        recompute = self.chunk_tokens and torch.is_grad_enabled()
        pairs = [checkpoint(piece, *part, use_reentrant=False) if recompute else piece(*part) for part in chunks]
        right = [hits for _, hits in pairs if hits is not None]
        return torch.stack([value for value, _ in pairs]).sum(), torch.stack(right).sum() if right else None


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), labels.flatten().long(), reduction=reduction, ignore_index=IGNORE)
