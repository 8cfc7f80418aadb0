"""Hypernetwork that reads a frozen base and outputs a low-rank change of its weights for each sample.

Each of L blocks updates a trunk x over the positions, and learned *weight tokens* attend to it; their outputs become
the factors of the change of one block of the base. The trunk never attends to the weight tokens.

gated readout:  n = rms(row);  A = A₀ + W_A n_A / √C;  B = B₀ + γ · W_B n_B;  ΔW = s · Bᵀ A.  Initially B₀ = 0 and
γ = 0, so that the model starts as the base, and A₀ is random, so that B₀ and γ get gradients (Doc-to-LoRA). s follows
scale_rule, e.g. α/√r. With delta_norm_cap, B is scaled down where ‖ΔW‖_F exceeds delta_norm_cap · ‖W‖₂.
Shapes: B rows, T positions, D width, L blocks of the base, R = 2·targets·r weight tokens, C width of the base.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.dtypes import compute_dtype
from models.feedback.adapter import Adapter
from models.feedback.adapter_config import AdapterShape, HyperConfig
from models.feedback.base import BaseLM, base_flops
from models.feedback.batch import BaseOutput, Batch
from models.feedback.conditioning import STATES, Reader
from models.feedback.delta import LoraDelta
from models.feedback.layers import Attention, Block, FeedForward, Rope, key_mask, norm
from models.feedback.readout import GatedReadout, RawReadout
from models.layers import CastedLinear, RotaryTables, line_positions


class HyperBlock(nn.Module):
    """x [B, T, D] -> (x for the next block, outputs [B, R, D] of the weight tokens). One compile unit."""

    def __init__(self, size: int, heads: int, tokens: int, *, std: float, out_std: float, **options: Any) -> None:
        super().__init__()
        self.trunk = Block(size, heads, std=std, out_std=out_std, **options)
        self.tokens = nn.Parameter(torch.empty(tokens, size).normal_(std=std))
        self.norm_x, self.norm_tokens, self.norm_mlp = norm(size), norm(size), norm(size)
        self.read = Attention(size, heads, std=std, out_std=out_std, **options)
        self.mlp = FeedForward(size, std=std, out_std=out_std)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, place: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """place [D]: embedding of the target block of the base; it is subtracted again from the trunk afterwards."""
        placed = x if place is None else x + place.to(x.dtype)
        x = self.trunk(placed, rope, mask)
        tokens = self.tokens.to(x.dtype).unsqueeze(0)
        rows = tokens + self.read.read(self.norm_tokens(tokens), self.norm_x(x), rope, mask)
        rows = rows + self.mlp(self.norm_mlp(rows), {})
        return x if place is None else x - place.to(x.dtype), rows


class HyperNetwork(Adapter):
    """`HyperNetwork(config, shape)`; `auto_dtype` and `attention` as in `BaseLM`."""

    Config: ClassVar = HyperConfig

    def __init__(
        self,
        config: HyperConfig,
        shape: AdapterShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.dtype = compute_dtype(config.forward_dtype, auto_dtype)
        self.n_passes, self.loss_shares = config.n_passes, config.loss_weights
        self.detach_between, self.reads_states = config.detach_between, config.conditioning in STATES
        self.reads_base, self.reads_gradient = config.conditioning != "tokens", config.conditioning == "loss_gradient"
        size, heads = config.width(shape.base)
        blocks, targets = shape.base.n_layer, len(config.targets)
        self.reader = Reader(config, shape, size, self.dtype)
        wide = torch.promote_types(self.dtype, torch.float32)
        positions = line_positions(shape.base.block_size)
        self.rotary = RotaryTables(size // heads, positions, theta=shape.base.rope_theta, dtype=wide)
        distinct = config.mode == "distinct"
        options: dict[str, Any] = {"std": config.init_std, "out_std": config.init_std / math.sqrt(2 * blocks)}
        options |= {"dropout": config.dropout, "kind": attention}
        self.h = nn.ModuleList(
            HyperBlock(size, heads, 2 * targets * config.lora_rank, **options) for _ in range(blocks if distinct else 1)
        )
        self.places = None if distinct else nn.Parameter(torch.empty(blocks, size).normal_(std=config.init_std))
        self.readout = (RawReadout if config.readout == "raw" else GatedReadout)(config, shape, size)
        if self.dtype is torch.float64:
            self.double()

    def slot(self, number: int) -> int:
        """Index of the base's block whose change the `number`-th applied block of the hypernetwork computes."""
        return self.shape.base.n_layer - 1 - number if self.config.feedback_reverse else number

    def make_delta(
        self, base: BaseLM, batch: Batch, previous: BaseOutput | None, previous_delta: Any
    ) -> tuple[LoraDelta, Tensor | None]:
        """(delta for B rows, penalty on its input-dependent part). Raises: ValueError for a base of another shape."""
        self._check(base)
        x = self.reader(base, batch, previous, previous_delta)
        delta, size = self.readout(self.rows(x, batch.readable), base)
        if self.config.accumulate and previous_delta is not None:
            delta = self.readout.capped(previous_delta.plus(delta), base)
        return delta, self.config.delta_l2 * size if self.config.delta_l2 else None

    def rows(self, x: Tensor, readable: Tensor) -> Tensor:
        """x [B, T, D] -> outputs of the weight tokens [B, L, R, D], indexed by the base's block."""
        mask = key_mask(readable)
        cos, sin = self.rotary()
        rope = cos[: x.shape[1]], sin[: x.shape[1]]
        blocks = self.shape.base.n_layer
        rows: list[Tensor] = [x] * blocks
        for number in range(blocks):
            slot = self.slot(number)
            if self.places is None:
                x, rows[slot] = self.h[number](x, rope, mask)
            else:
                x, rows[slot] = self.h[0](x, rope, mask, self.places[slot])
        return torch.stack(rows, 1)

    def change_flops(self, rows: int, length: int) -> float:
        """FLOPs of reader, trunk, weight tokens and heads, and of x Aᵀ and (x Aᵀ) B; embeddings and norms excluded."""
        config, base = self.config, self.shape.base
        size, tokens = config.width(base)[0], 2 * len(config.targets) * config.lora_rank
        x = length * (
            24 * size**2 + 4 * length * size + 4 * size**2
        )  # the trunk, and its keys and values for the tokens
        rows_of_tokens = tokens * (8 * size**2 + 4 * (length + tokens) * size + 16 * size**2)
        heads = sum(
            2 * size * each.weight.shape[0] * config.lora_rank
            for each in self.readout.modules()
            if isinstance(each, CastedLinear)
        )
        per_row = base.n_layer * (x + rows_of_tokens + heads) + 2 * length * base.n_embd * size
        return float(rows * per_row) + config.flops(base, rows, length)

    def kept_flops(self, rows: int, length: int) -> float:
        """FLOPs of applying the change of an earlier pass again, with `accumulate`."""
        return self.config.flops(self.shape.base, rows, length) if self.config.accumulate else 0.0

    def reading_flops(self, rows: int, length: int) -> float:
        """FLOPs of the conditioning: for loss_gradient, a forward and backward pass through the blocks; for logits, the
        head and the product with the token table."""
        base = self.shape.base
        vocab = self.shape.text.rows(base.vocab_multiple)
        body = base_flops(base, vocab, rows, length, head=False)
        head = base_flops(base, vocab, rows, length) - body
        return {"loss_gradient": 2 * body, "logits": 2 * head}.get(self.config.conditioning, 0.0)

    def static_delta(self, base: BaseLM) -> LoraDelta:
        """The delta without its input-dependent part, one row; with `accumulate`, summed over all passes."""
        one = total = self.readout.static_delta(base)
        for _ in range(self.n_passes - 1 if self.config.accumulate else 0):
            total = self.readout.capped(total.plus(one), base)
        return total

    def gates(self) -> Tensor | None:
        """The gates [targets, L]; None for a raw readout."""
        return getattr(self.readout, "gates", None)

    def blocks(self) -> list[nn.Module]:
        """Compile units."""
        return list(self.h)

    def _check(self, base: BaseLM) -> None:
        ours, theirs = self.shape.base, base.config
        for key in ("n_layer", "n_embd", "block_size", "vocab_multiple"):
            if getattr(ours, key) != getattr(theirs, key):
                raise ValueError(
                    f"the hypernetwork is for a base of {key}={getattr(ours, key)}, this one has {getattr(theirs, key)}"
                )
        if self.shape.text != base.shape:
            raise ValueError(f"the hypernetwork is for {self.shape.text}, this base is for {base.shape}")
