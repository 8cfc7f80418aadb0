"""The base language model: masked diffusion (LLaDA, arXiv 2502.09992) or, as an option, autoregressive.

    x = E[tokens];  x = block_l(x) for each l;  logits = norm(x) · Eᵀ

A forward pass may take a delta, which changes linear layers of the blocks per row (delta.py).
Shapes: B rows, T positions, C width, V rows of the token table, L blocks.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dtypes import compute_dtype
from models.feedback.batch import BaseOutput
from models.feedback.config import BaseConfig, TextShape
from models.feedback.layers import Block, Changes, Rope, key_mask, norm
from models.layers import CastedEmbedding, RotaryTables, line_positions, tied_logits


class Delta(Protocol):
    """Interface of a delta: `LoraDelta` (delta.py) or `DenseDelta` (attention_finetune.py)."""

    def check(self, config: BaseConfig, rows: int) -> None:
        """Raises: ValueError if the delta does not fit this base or this number of rows."""

    def layer(self, number: int) -> Changes:
        """The changes of block `number`."""


class BaseLM(nn.Module):
    """`BaseLM(config, shape)`; can be built under `torch.device("meta")`.

    `auto_dtype` is the compute dtype for forward_dtype=auto, `attention` one of auto, sdpa, math.
    """

    Config: ClassVar = BaseConfig
    FAMILY: ClassVar[str] = "feedback"
    DATA_MODE: ClassVar[str] = "tokens"

    def __init__(
        self, config: Any, shape: TextShape, *, auto_dtype: torch.dtype = torch.float32, attention: str = "auto"
    ) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.dtype = compute_dtype(config.forward_dtype, auto_dtype)
        size, std = config.n_embd, config.init_std
        vocab = shape.rows(config.vocab_multiple)
        self.wte = CastedEmbedding(vocab, size, init_std=std, cast_to=self.dtype)
        wide = torch.promote_types(self.dtype, torch.float32)
        self.rotary = RotaryTables(
            config.head_dim, line_positions(config.block_size), theta=config.rope_theta, dtype=wide
        )
        out_std = std / math.sqrt(2 * config.n_layer)  # 2L branches add up in the residual stream
        self.h = nn.ModuleList(
            Block(size, config.n_head, std=std, out_std=out_std, dropout=config.dropout, kind=attention)
            for _ in range(config.n_layer)
        )
        self.ln_f = norm(size)
        allowed = torch.arange(vocab) < shape.words
        self.register_buffer("allowed", allowed, persistent=False)
        self._norms: dict[str, Tensor] = {}
        if self.dtype is torch.float64:
            self.double()

    def forward(
        self, inputs: Tensor, real: Tensor | None = None, delta: Delta | None = None, keep_states: bool = False
    ) -> BaseOutput:
        """inputs int [B, T]; real bool [B, T], False for padding (None: no padding).

        Raises: ValueError for more than block_size positions, or a delta that does not fit this base.
        """
        return self.run(self.embed(inputs), real, delta, keep_states)

    def embed(self, inputs: Tensor) -> Tensor:
        """The token embeddings [B, T, C]. Raises: ValueError for more than block_size positions."""
        if inputs.shape[-1] > self.config.block_size:
            raise ValueError(f"{inputs.shape[-1]} positions do not fit arch.block_size={self.config.block_size}")
        x: Tensor = self.wte(inputs)
        return F.dropout(x, self.config.dropout) if self.training and self.config.dropout else x

    def run(self, x: Tensor, real: Tensor | None, delta: Delta | None, keep_states: bool) -> BaseOutput:
        """Run blocks, final norm and head on the embeddings x [B, T, C]."""
        if delta is not None:
            delta.check(self.config, x.shape[0])
        cos, sin = self.rotary()
        states = self.stream(x, (cos[: x.shape[1]], sin[: x.shape[1]]), key_mask(real), delta)
        return BaseOutput(self.ln_f(states[-1]), self.head, tuple(states) if keep_states else ())

    def stream(self, x: Tensor, rope: Rope, mask: Tensor | None, delta: Delta | None) -> list[Tensor]:
        """The residual stream [B, T, C] before the first block and after each block: L + 1 tensors."""
        states = [x]
        for number in range(self.config.n_layer):
            states.append(self.block(number, states[-1], rope, mask, delta))
        return states

    def block(self, number: int, x: Tensor, rope: Rope, mask: Tensor | None, delta: Delta | None) -> Tensor:
        """Apply block `number` with its changes."""
        out: Tensor = self.h[number](x, rope, mask, self.config.causal, None if delta is None else delta.layer(number))
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., C] -> logits [..., V]; -inf for MASK, PAD and unused rows of the table (MDLM's zero masking
        probabilities, arXiv 2406.07524)."""
        logits = tied_logits(hidden, self.wte.embedding_weight)
        return logits.masked_fill(~self.allowed, -math.inf)  # type: ignore[operator]

    def freeze(self) -> Self:
        """Disable gradients and dropout, to serve as the base of an adapter."""
        self.requires_grad_(False)
        self._norms.clear()
        return self.eval()

    def linear(self, number: int, target: str) -> Tensor:
        """Weight [out, in] of the linear layer `target` of block `number`."""
        block: Any = self.h[number]
        part = block.mlp if target in ("fc", "proj") else block.attn
        weight: Tensor = getattr(part, target).weight
        return weight

    def spectral_norms(self, target: str) -> Tensor:
        """Spectral norms ‖W‖₂ [L] of the linear layer `target` of each block, above 0; cached if the base is frozen."""
        norms = self._norms.get(target)
        if norms is None:
            weights = torch.stack([self.linear(number, target).detach() for number in range(self.config.n_layer)])
            tiny = torch.finfo(weights.dtype).tiny ** 0.5  # so that its square is not zero
            norms = torch.linalg.matrix_norm(weights.cpu(), 2).clamp(min=tiny).to(weights.device)
            if not self.linear(0, target).requires_grad:
                self._norms[target] = norms
        return norms

    # Facts about the model

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by group: matrix (weight decay), embedding, and scalar in subclasses that have any."""
        return group_parameters(self)

    def blocks(self) -> list[nn.Module]:
        """Compile units."""
        return list(self.h)

    def num_parameters(self) -> int:
        """Number of parameters; the tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def forward_flops(self, rows: int, length: int | None = None, *, head: bool = True) -> float:
        """FLOPs of one forward pass of `rows` rows of `length` positions (default: block_size)."""
        vocab = self.wte.embedding_weight.shape[0]
        return base_flops(self.config, vocab, rows, length or self.config.block_size, head=head)

    def flops(self, rows: int) -> dict[str, float]:
        """FLOPs for `rows` rows of block_size positions: `train`, three forward passes; `eval`, one."""
        forward = self.forward_flops(rows)
        return {"train": 3 * forward, "eval": forward}


def base_flops(config: BaseConfig, vocab: int, rows: int, length: int, *, head: bool = True) -> float:
    """FLOPs of one forward pass of a base with `vocab` rows in the token table."""
    size, applied = config.n_embd, getattr(config, "applied", config.n_layer)
    block = 24 * size**2 + 4 * length * size
    return float(rows * length * (applied * block + head * 2 * size * vocab))


def group_parameters(module: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by name in three groups (empty ones left out): matrix, of linear layers; embedding, token tables;
    scalar, all others (gates, factors, learned tokens), which should have no weight decay."""
    groups: dict[str, dict[str, nn.Parameter]] = {"matrix": {}, "embedding": {}, "scalar": {}}
    tables = {child.embedding_weight for child in module.modules() if isinstance(child, CastedEmbedding)}
    for prefix, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False):
            kind = "embedding" if parameter in tables else "matrix" if name == "weight" else "scalar"
            groups[kind][f"{prefix}.{name}" if prefix else name] = parameter
    return {name: members for name, members in groups.items() if members}
