"""The baseline of scripts/bench_language_model.py: a small GPT and its training loop as tutorials write them.

A module for every linear layer, causal attention by torch's kernel, unfused AdamW (on a CPU), a slice of the memory map
for each row of a batch, gradients clipped by torch's own function, losses estimated on random batches of both splits.
Written from the recipe's description; it shares no code with models/ or dataset/.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Sizes:
    """Sizes of model and batch; the defaults are the CPU recipe."""

    vocab: int = 65
    layers: int = 4
    heads: int = 4
    width: int = 128
    length: int = 64
    rows: int = 12
    dropout: float = 0.0


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class _Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d, self.heads = sizes.width, sizes.heads
        self.ln_1, self.ln_2 = _Norm(d), _Norm(d)
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.c_fc, self.mlp_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)
        self.gelu = nn.GELU()
        self.dropout = sizes.dropout
        self.attn_dropout, self.mlp_dropout = nn.Dropout(sizes.dropout), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(width, dim=2)
        q, k, v = (t.view(rows, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(rows, length, width)
        x = x + self.attn_dropout(self.c_proj(y))
        out: Tensor = x + self.mlp_dropout(self.mlp_proj(self.gelu(self.c_fc(self.ln_2(x)))))
        return out


class NanoGPT(nn.Module):
    """tokens, targets [B, T] -> mean cross-entropy."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocab, sizes.width)
        self.wpe = nn.Embedding(sizes.length, sizes.width)
        self.drop = nn.Dropout(sizes.dropout)
        self.h = nn.ModuleList(_Block(sizes) for _ in range(sizes.layers))
        self.ln_f = _Norm(sizes.width)
        self.lm_head = nn.Linear(sizes.width, sizes.vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                narrow = name.endswith(("c_proj.weight", "mlp_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * sizes.layers) if narrow else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        positions = torch.arange(0, tokens.shape[1], dtype=torch.long, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


def batch(folder: Path, split: str, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """B random windows, a slice and a copy for each; the memory map is reopened for every batch."""
    data = np.memmap(folder / f"{split}.bin", dtype=np.uint16, mode="r")
    starts = torch.randint(len(data) - sizes.length, (sizes.rows,))
    x = torch.stack([torch.from_numpy(data[i : i + sizes.length].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + sizes.length].astype(np.int64)) for i in starts])
    return x, y


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    fused = next(model.parameters()).is_cuda  # as in nanoGPT
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=fused)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """Forward, backward, clip, update."""
    loss: Tensor = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


@torch.no_grad()
def estimate(model: nn.Module, folder: Path, sizes: Sizes, batches: int) -> dict[str, float]:
    """Mean loss of `batches` random batches of each split."""
    model.eval()
    means = {}
    for split in ("train", "val"):
        losses = torch.zeros(batches)
        for k in range(batches):
            losses[k] = model(*batch(folder, split, sizes)).item()
        means[split] = losses.mean().item()
    model.train()
    return means


def train(folder: Path, iterations: int, *, eval_interval: int, eval_iters: int, log_interval: int, seed: int) -> float:
    """Train a whole run; returns the last validation loss. Warm-up 100, cosine to a tenth, as in the recipe."""
    torch.manual_seed(seed)
    sizes, value = Sizes(), math.nan
    model = NanoGPT(sizes)
    optimizer = optimizer_of(model)
    x, y = batch(folder, "train", sizes)
    began = time.time()
    for iteration in range(iterations + 1):
        rate = 1e-3 * min(1.0, (iteration + 1) / 101)
        if iteration >= 100:
            rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * (iteration - 100) / (iterations - 100))) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        if iteration % eval_interval == 0:
            losses = estimate(model, folder, sizes, eval_iters)
            value = losses["val"]
            print(f"step {iteration}: train loss {losses['train']:.4f}, val loss {value:.4f}")
        if iteration == iterations:
            break
        loss = step(model, optimizer, x, y)
        x, y = batch(folder, "train", sizes)
        if iteration % log_interval == 0:
            print(f"iter {iteration}: loss {loss.item():.4f}, time {(time.time() - began) * 1000:.2f}ms")
    return value
