"""TRM and HRM with their loss in the published form (arXiv 2510.04871, 2506.21734): the baseline of bench.py.

Every layer call casts its weights to the compute dtype, normalisation is four plain operations, the token loss is
stablemax in float64, the head is applied to the prefix too, and all metrics are computed at every ACT step. Parameters
have our names, so it loads our weights; it shares no code with models/ or losses/.

Shapes: B rows, T tokens, P prefix positions, S = P + T, D width, V vocabulary size, h heads of width d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
IGNORED = -100


@dataclass
class Carry:
    """latents by name [B, S, D], steps [B] int32, halted [B] bool, data: the example of each row."""

    latents: dict[str, Tensor]
    steps: Tensor
    halted: Tensor
    data: Batch


class Linear(nn.Module):
    """A linear layer that casts its weight at each call."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Embedding(nn.Module):
    """An embedding that casts the whole table at each call."""

    def __init__(self, count: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding_weight, self.dtype = nn.Parameter(torch.empty(count, width)), dtype

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding_weight.to(self.dtype))


class PuzzleEmbedding(nn.Module):
    """Copies the rows of a batch into a leaf of the batch's size; its optimizer writes them back."""

    weights: Tensor
    local: Tensor
    ids: Tensor

    def __init__(self, count: int, width: int, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weights", torch.zeros(count, width))
        self.register_buffer("local", torch.zeros(rows, width, requires_grad=True), persistent=False)
        self.register_buffer("ids", torch.zeros(rows, dtype=torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if not self.training:
            return self.weights[ids.long()].to(self.dtype)
        with torch.no_grad():
            self.local.copy_(self.weights[ids.long()])
            self.ids.copy_(ids)
        return self.local.to(self.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis, in float32."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [B, S, h, d] with tables [S, d], in float32."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return ((x * cos.unsqueeze(-2)) + (rotated * sin.unsqueeze(-2))).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one matrix."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = Linear(width, 2 * inner), Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Attention(nn.Module):
    """Non-causal multi-head attention with RoPE, x [B, S, D] -> [B, S, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj, self.o_proj = Linear(width, 3 * width), Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv_proj(x).view(rows, length, 3 * self.heads, width // self.heads)
        query, key, value = qkv[:, :, : self.heads], qkv[:, :, self.heads : 2 * self.heads], qkv[:, :, 2 * self.heads :]
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, length, width)
        out: Tensor = self.o_proj(mixed)
        return out


class Block(nn.Module):
    """Post-norm block: attention, or an MLP over positions, then a SwiGLU; x [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Any, inner: int, positions: int, inner_positions: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.mlp_t = SwiGLU(positions, inner_positions) if config.mlp_t else None
        self.self_attn = None if config.mlp_t else Attention(config.hidden_size, config.num_heads)
        self.mlp = SwiGLU(config.hidden_size, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.mlp_t is not None:
            transposed = x.transpose(1, 2)
            x = rms_norm(transposed + self.mlp_t(transposed), self.eps).transpose(1, 2)
        elif self.self_attn is not None:
            x = rms_norm(x + self.self_attn(x, cos, sin), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class Stack(nn.Module):
    """Blocks applied to the sum of hidden state and injection, both [B, S, D]."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, hidden: Tensor, injection: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return hidden


class Inner(nn.Module):
    """One ACT step: HRM (two calls with gradient) with an H_level stack, else TRM (the last cycle with gradient)."""

    cos: Tensor
    sin: Tensor
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: Any, shape: Any, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        width, self.config, self.dtype, self.prefix = config.hidden_size, config, dtype, config.prefix_len
        positions = self.prefix + shape.seq_len
        self.embed_tokens = Embedding(shape.vocab_size, width, dtype)
        count, puzzle_width = shape.num_puzzle_identifiers, config.puzzle_emb_ndim
        self.puzzle_emb = PuzzleEmbedding(count, puzzle_width, rows, dtype) if puzzle_width else None
        inner, inner_positions = (
            256 * math.ceil(round(config.expansion * size * 2 / 3) / 256) for size in (width, positions)
        )

        def stack(layers: int) -> Stack:
            return Stack([Block(config, inner, positions, inner_positions) for _ in range(layers)])

        self.L_level = stack(config.L_layers)
        self.H_level = stack(config.H_layers) if config.H_layers else None
        self.lm_head, self.q_head = Linear(width, shape.vocab_size), Linear(width, 2, bias=True)
        self.register_buffer("H_init", torch.empty(width))
        self.register_buffer("L_init", torch.empty(width))
        head = width // config.num_heads
        frequencies = 1.0 / config.rope_theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def embed(self, data: Batch) -> Tensor:
        """Scaled input embedding [B, S, D], with the puzzle embedding as prefix."""
        x: Tensor = self.embed_tokens(data["inputs"])
        if self.puzzle_emb is not None:
            vector = self.puzzle_emb(data["puzzle_identifiers"])
            vector = F.pad(vector, (0, self.prefix * x.shape[-1] - vector.shape[-1]))
            x = torch.cat((vector.view(-1, self.prefix, x.shape[-1]), x), dim=1)
        return math.sqrt(x.shape[-1]) * x

    def forward(self, latents: dict[str, Tensor], data: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """(detached latents, logits [B, T, V], q_halt [B], q_continue [B])."""
        low, high = self.L_level, self.H_level or self.L_level
        x, z_H, z_L = self.embed(data), latents["z_H"], latents["z_L"]
        H_cycles, L_cycles = self.config.H_cycles, self.config.L_cycles
        window = L_cycles if self.H_level is None else 1
        with torch.no_grad():
            for h in range(H_cycles):
                last = h == H_cycles - 1
                for _ in range(L_cycles - window if last else L_cycles):
                    z_L = low(z_L, z_H + x, self.cos, self.sin)
                if not last:
                    z_H = high(z_H, z_L, self.cos, self.sin)
        for _ in range(window):
            z_L = low(z_L, z_H + x, self.cos, self.sin)
        z_H = high(z_H, z_L, self.cos, self.sin)
        logits = self.lm_head(z_H)[:, self.prefix :]
        q = self.q_head(z_H[:, 0]).to(torch.float32)
        return {"z_H": z_H.detach(), "z_L": z_L.detach()}, logits, q[..., 0], q[..., 1]


class Literal(nn.Module):
    """ACT around `Inner`, with the loss. `config` is our model's; options that the papers do not have are ignored.

    Create it under `with torch.device(...)`: after `.to(device)` the puzzle embedding's buffer would be no leaf.
    """

    def __init__(self, config: Any, shape: Any, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.config, self.positions = (
            Inner(config, shape, rows, dtype),
            config,
            config.prefix_len + shape.seq_len,
        )

    def initial_carry(self, batch: Batch) -> Carry:
        """A carry of halted rows, which all take their example from the first batch."""
        rows, device = len(batch["inputs"]), batch["inputs"].device
        empty = torch.empty(rows, self.positions, self.config.hidden_size, dtype=self.inner.dtype, device=device)
        return Carry(
            {"z_H": empty, "z_L": torch.empty_like(empty)},
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.ones(rows, dtype=torch.bool, device=device),
            {name: torch.empty_like(value) for name, value in batch.items()},
        )

    def forward(self, carry: Carry, batch: Batch) -> tuple[Carry, Tensor, dict[str, Tensor]]:
        """(carry, loss summed over rows, metrics summed over halted rows)."""
        halted, config = carry.halted, self.config
        starts = {"z_H": self.inner.H_init, "z_L": self.inner.L_init}
        latents = {
            name: torch.where(halted.view(-1, 1, 1), start.to(self.inner.dtype), carry.latents[name])
            for name, start in starts.items()
        }
        steps = torch.where(halted, 0, carry.steps)
        data = {
            name: torch.where(halted.view(-1, *[1] * (value.ndim - 1)), value, carry.data[name])
            for name, value in batch.items()
        }
        latents, logits, q_halt, q_continue = self.inner(latents, data)
        target = None
        with torch.no_grad():
            steps = steps + 1
            last = steps >= config.halt_max_steps
            halted = last
            if self.training and config.halt_max_steps > 1:
                halted = halted | (q_halt > (0 if config.no_ACT_continue else q_continue))
                explores = torch.rand_like(q_halt) < config.halt_exploration_prob
                halted = halted & (steps >= explores * torch.randint_like(steps, low=2, high=config.halt_max_steps + 1))
                if not config.no_ACT_continue:
                    *_, next_halt, next_continue = self.inner(latents, data)
                    target = torch.sigmoid(torch.where(last, next_halt, torch.maximum(next_halt, next_continue)))
        loss, metrics = self._loss(logits, data["labels"], q_halt, q_continue, target, steps, halted)
        return Carry(latents, steps, halted, data), loss, metrics

    @staticmethod
    def _loss(
        logits: Tensor,
        labels: Tensor,
        q_halt: Tensor,
        q_continue: Tensor,
        target: Tensor | None,
        steps: Tensor,
        halted: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            mask = labels != IGNORED
            counts = mask.sum(-1)
            divisor = counts.clamp_min(1).unsqueeze(-1)
            correct = mask & (torch.argmax(logits, dim=-1) == labels)
            solved = correct.sum(-1) == counts
            valid = halted & (counts > 0)
            metrics = {
                "count": valid.sum(),
                "accuracy": torch.where(valid, (correct.to(torch.float32) / divisor).sum(-1), 0.0).sum(),
                "exact_accuracy": (valid & solved).sum(),
                "q_halt_accuracy": (valid & ((q_halt >= 0) == solved)).sum(),
                "steps": torch.where(valid, steps, 0).sum(),
            }
        lm = (stablemax_cross_entropy(logits, labels, mask) / divisor).sum()
        halt = F.binary_cross_entropy_with_logits(q_halt, solved.to(q_halt.dtype), reduction="sum")
        metrics |= {"lm_loss": lm.detach(), "q_halt_loss": halt.detach()}
        total = halt
        if target is not None:
            proceed = F.binary_cross_entropy_with_logits(q_continue, target, reduction="sum")
            metrics["q_continue_loss"] = proceed.detach()
            total = total + proceed
        return lm + 0.5 * total, metrics


def stablemax_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Stablemax cross-entropy, logits [B, T, V] -> [B, T] in float64; 0 where `mask` is false."""
    wide = logits.to(torch.float64)
    s = torch.where(wide < 0, 1 / (1 - wide + 1e-30), wide + 1)
    log_p = torch.log(s / s.sum(-1, keepdim=True))
    picked = torch.gather(log_p, -1, torch.where(mask, labels, 0).to(torch.long).unsqueeze(-1)).squeeze(-1)
    return -torch.where(mask, picked, 0)
