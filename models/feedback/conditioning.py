"""Input of a hypernetwork at each position, computed from a frozen base and projected to its own width.

hidden: Σ_l softmax(w)_l · rms(state_l) over the L + 1 states of the residual stream (as in the Feedback Transformer,
arXiv 2002.09402). logits: the expected embedding under the base's prediction, and its entropy. loss_gradient: the
gradient of a loss on *visible* tokens with respect to those states. tokens: only the tokens.

Nothing here depends on masked tokens, on padding, or on other rows.
Shapes: B rows, T positions, C width of the base, D of the hypernetwork, V rows of the token table.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.feedback.adapter_config import AdapterShape, HyperConfig
from models.feedback.base import BaseLM
from models.feedback.batch import BaseOutput, Batch
from models.layers import CastedEmbedding, CastedLinear, rms_norm

_EPS = 1e-5
STATES = ("hidden", "loss_gradient")
"""Kinds of conditioning that mix the states of all blocks."""


class Reader(nn.Module):
    """`reader(base, batch, previous, delta)` -> [B, T, D], by the config's `conditioning`."""

    def __init__(self, config: HyperConfig, shape: AdapterShape, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.dtype = config.conditioning, dtype
        width = shape.base.n_embd
        self.mix = nn.Parameter(torch.zeros(shape.base.n_layer + 1)) if self.kind in STATES else None
        self.features = None
        if self.kind != "tokens":
            self.features = CastedLinear(width + (self.kind == "logits"), size, init_std=1 / math.sqrt(width))
        self.words: nn.Module | None = None
        self.tokens: CastedLinear | None = None
        if self.kind != "hidden":
            if config.share_base_embedding:
                self.tokens = CastedLinear(width, size, init_std=1 / math.sqrt(width))
            else:
                rows = shape.text.rows(shape.base.vocab_multiple)
                self.words = CastedEmbedding(rows, size, init_std=config.init_std, cast_to=dtype)

    def forward(self, base: BaseLM, batch: Batch, previous: BaseOutput | None, delta: Any) -> Tensor:
        """`previous` is the last pass (None if it is not read), and `delta` the delta it was run with (None: the plain
        base)."""
        x: Tensor | None = None
        if self.words is not None:
            x = self.words(batch.inputs)
        elif self.tokens is not None:
            x = self.tokens(rms_norm(base.wte(batch.inputs).to(self.dtype), _EPS))
        if self.features is not None and previous is not None:
            read = self.features(self._features(base, batch, previous, delta).to(self.dtype))
            x = read if x is None else x + read
        assert x is not None
        return x

    def _features(self, base: BaseLM, batch: Batch, previous: BaseOutput, delta: Any) -> Tensor:
        if self.kind == "logits":
            return expectation(base, previous)
        assert self.mix is not None
        if self.kind == "hidden":
            states = [rms_norm(state, _EPS) for state in previous.states]
        else:
            states = visible_gradient(base, batch, delta)
        shares = self.mix.softmax(0).to(states[0].dtype)
        return torch.stack([share * state for share, state in zip(shares, states, strict=True)]).sum(0)


def expectation(base: BaseLM, previous: BaseOutput) -> Tensor:
    """[B, T, C + 1]: normed expected embedding under the base's prediction, and its entropy divided by ln V."""
    logits = previous.logits()
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(~base.allowed, 0.0)).sum(-1, keepdim=True) / math.log(max(base.shape.words, 2))  # type: ignore[operator]
    table = base.wte.embedding_weight.to(p.dtype)
    return torch.cat((rms_norm(p @ table, _EPS), entropy), -1)


def visible_gradient(base: BaseLM, batch: Batch, delta: Any) -> list[Tensor]:
    """Gradient of the base's loss on visible tokens with respect to its L + 1 states, each [B, T, C].

    Scaled to mean square 1 over the readable positions of a row.

    Masked diffusion: every second visible token is also masked, and then scored. Autoregressive: every token of the
    context but the first is scored. The tokens to predict are not used.
    """
    shape, readable = base.shape, batch.readable
    if base.config.causal:
        inputs, after = batch.inputs, batch.inputs.roll(-1, 1)
        scored = readable & readable.roll(-1, 1)
        scored[:, -1] = False
        labels = after
    else:
        visible = readable & (batch.inputs != shape.mask_id)
        scored = visible & (visible.cumsum(1) % 2 == 0)
        inputs, labels = batch.inputs.masked_fill(scored, shape.mask_id), batch.inputs
    with torch.enable_grad():
        start = base.embed(inputs).detach().requires_grad_()
        output = base.run(start, batch.real, None if delta is None else delta.detach(), keep_states=True)
        logits = base.head(output.hidden[scored])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(wide, labels[scored], reduction="sum")
        grads = torch.autograd.grad(loss, output.states, allow_unused=True, materialize_grads=True)
    kept = readable.unsqueeze(-1)
    counts = readable.sum(-1).clamp(min=1)[:, None, None] * start.shape[-1]
    states = []
    for grad in grads:
        g = torch.where(kept, grad.to(wide.dtype), 0.0)
        size = (g.square().sum((1, 2), keepdim=True) / counts).sqrt()
        states.append(g / size.clamp(min=torch.finfo(g.dtype).tiny))
    return states
