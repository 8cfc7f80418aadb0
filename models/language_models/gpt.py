"""A decoder-only transformer for one or several token streams (Radford et al. 2019, with many later variations).

    x = Σ_k E_k[tokens_k] (+ positions);  x = block_l(x) for each l;  logits_k = norm(x) · H_kᵀ

One stream is an ordinary language model; K streams are K aligned annotations of the same text ("multicontext"), or K
vocabularies of which a batch uses one (`stream=`). H_k is E_k unless the heads are untied.
Shapes: B rows, T tokens, K streams, D width, V_k vocabulary of stream k, L blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.dtypes import compute_dtype
from models.language_models.block import Block, Streams, TokenTables
from models.language_models.cache import KVCache
from models.language_models.config import GPTConfig, LMShape
from models.language_models.norm import NORMS, make_norm
from models.layers import CastedEmbedding, CastedLinear, LMHead, RotaryTables, line_positions, rms_norm, tied_logits

__all__ = ["GPT", "GPTConfig", "LMOutput", "LMShape"]

_DEFAULT_STD = 0.02
_KEEP, _SKIP = (1.15, 1.05), (0.20, 0.05)  # nanochat's residual scalars, first to last block


@dataclass
class LMOutput:
    """Hidden states of the trunk. Logits are computed on demand, so that a loss can compute them in chunks."""

    hidden: Tensor  # [B, T, D] after the last norm
    streams: tuple[int, ...]  # indices of the streams in the input
    head: Callable[[int, Tensor], Tensor]  # (stream, hidden [..., D]) -> logits [..., V]

    def logits(self, number: int = 0) -> Tensor:
        """Logits [B, T, V] of the `number`-th stream of the input."""
        return self.head(self.streams[number], self.hidden)


class GPT(nn.Module):
    """`GPT(config, shape)`; can be built under `torch.device("meta")`.

    `auto_dtype` is the compute dtype for forward_dtype=auto, `attention` one of auto, sdpa, math, flash.
    """

    Config: ClassVar = GPTConfig
    FAMILY: ClassVar[str] = "language_models"
    DATA_MODE: ClassVar[str] = "tokens"

    def __init__(
        self, config: GPTConfig, shape: LMShape, *, auto_dtype: torch.dtype = torch.float32, attention: str = "auto"
    ) -> None:
        super().__init__()
        self.config, self.shape, self.dtype = config, shape, compute_dtype(config.forward_dtype, auto_dtype)
        self.wte = TokenTables(shape, config.n_embd, self.dtype)
        self.wpe = None
        if config.pos_encodings == "learned":
            self.wpe = CastedEmbedding(config.block_size, config.n_embd, init_std=0.0, cast_to=self.dtype)
        self.rotary = None
        if config.pos_encodings == "rope":
            wide = torch.promote_types(self.dtype, torch.float32)
            self.rotary = RotaryTables(
                config.rotary_length, line_positions(config.block_size), theta=config.rope_theta, dtype=wide
            )
        self.h = nn.ModuleList()
        for layer in range(config.n_layer):
            self.h.append(self._block(layer, attention))
        self.ln_f = make_norm(config)
        self.lm_head = None
        if not config.wte_weight_tying:
            self.lm_head = nn.ModuleList(LMHead(config.n_embd, v, init_std=0.0) for v in shape.vocab_sizes)
        self.reset_parameters()
        if self.dtype == torch.float64:
            self.double()

    def _block(self, layer: int, attention: str) -> Block:
        """Block `layer`, sharing the weights of the first block in its group."""
        config, shared = self.config, {}
        for part, sharing in (("attn", config.share_attn), ("mlp", config.share_mlp)):
            owner = config.shared_index(sharing, layer)
            earlier = [i for i in range(layer) if config.shared_index(sharing, i) == owner]
            shared[part] = getattr(self.h[earlier[0]], part) if earlier else None
        return Block(config, self.shape, layer, kind=attention, dtype=self.dtype, **shared)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all matrices and tables as in GPT-2, or as configured, from torch's global generator."""
        config = self.config
        table_std = config.embd_init_std or config.init_std or _DEFAULT_STD
        head_std = config.head_init_std or config.init_std or _DEFAULT_STD
        for table in (*self.wte.tables, *([] if self.wpe is None else [self.wpe])):
            nn.init.normal_(table.embedding_weight, std=table_std)
        for head in self.lm_head or ():
            nn.init.normal_(head.weight, std=head_std)  # type: ignore[arg-type]
        shrink = 1.0 / math.sqrt(2 * config.n_layer)  # 2L branches add up in the residual stream
        for number, block in enumerate(self.h):
            own = dict(block.named_children())
            for part, first in (("attn", "qkv"), ("mlp", "fc")):
                if part in own:
                    self._init_weight(getattr(own[part], first).weight)
                    self._init_weight(own[part].proj.weight, 0.0 if config.zero_init_proj else shrink)  # type: ignore[union-attr,arg-type]
            if block.values is not None:
                for table in block.values.words.tables:  # type: ignore[union-attr]
                    self._init_weight(table.embedding_weight, fan_in=config.n_embd)
            if block.residual is not None:
                part_way = number / max(1, config.n_layer - 1)
                scalars = [a + (b - a) * part_way for a, b in (_KEEP, _SKIP)]
                block.residual.copy_(torch.tensor(scalars))  # type: ignore[operator]

    def _init_weight(self, weight: Tensor, factor: float = 1.0, fan_in: int | None = None) -> None:
        std = self.config.init_std
        if std is not None or factor == 0.0:
            nn.init.normal_(weight, std=factor * (std or 0.0))
        else:
            bound = factor * math.sqrt(3.0 / (fan_in or weight.shape[1]))
            nn.init.uniform_(weight, -bound, bound)

    # One pass

    def forward(self, tokens: Tensor, *, stream: int | None = None, cache: KVCache | None = None) -> LMOutput:
        """tokens int [B, T] (one stream, index `stream`), or [B, K, T] (all K streams).

        With a cache the tokens continue those in the cache, which grows by T.
        Raises ValueError for other shapes and for positions beyond block_size.
        """
        streams = self._streams(tokens, stream)
        length, start = tokens.shape[-1], 0 if cache is None else cache.length
        end = start + length
        if end > self.config.block_size:
            raise ValueError(
                f"{end} tokens do not fit arch.block_size={self.config.block_size}: crop them to the last "
                f"{self.config.block_size}, or decode with GPT.step, which does"
            )
        x = self.wte(streams)
        if self.wpe is not None:
            x = x + self.wpe.embedding_weight[start:end].to(self.dtype)
        if self.config.norm_embedding:
            x = rms_norm(x, self.config.norm_eps)
        if self.training and self.config.dropout:
            x = nn.functional.dropout(x, self.config.dropout)
        rope = None if self.rotary is None else tuple(table[start:end] for table in self.rotary())
        mask = self._mask(length, start, x.device)
        first = x
        recompute = self.config.use_gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(self.h):
            if recompute:
                x = checkpoint(block, x, first, streams, rope, mask, use_reentrant=False)
            else:
                x = block(x, first, streams, rope, mask, None if cache is None else cache.layer(layer))
        if cache is not None:
            cache.length = end
        return LMOutput(self.ln_f(x), tuple(number for number, _ in streams), self._head)

    def _streams(self, tokens: Tensor, stream: int | None) -> Streams:
        count = len(self.shape.vocab_sizes)
        if tokens.dim() == 2 and (stream is not None or count == 1):
            return ((stream or 0, tokens),)
        if tokens.dim() == 3 and tokens.shape[1] == count and stream is None:
            return tuple((number, tokens[:, number]) for number in range(count))
        shape = "[B, T] with stream=" if stream is not None else "[B, T]" if count == 1 else f"[B, {count}, T]"
        raise ValueError(f"tokens have shape {list(tokens.shape)}, expected {shape}: the model has {count} stream(s)")

    def _mask(self, length: int, start: int, device: torch.device) -> Tensor | None:
        """Attention mask [T, S] bool of `length` queries over start + length keys; None if the kernels need none."""
        if not self.h[0].attn.needs_mask(length, start):  # type: ignore[union-attr,operator]
            return None
        query = torch.arange(start, start + length, device=device).unsqueeze(1)
        key = torch.arange(start + length, device=device)
        visible = key <= query
        return visible if self.config.window_size is None else visible & (key > query - self.config.window_size)

    def _head(self, number: int, hidden: Tensor) -> Tensor:
        if self.lm_head is not None:
            logits: Tensor = self.lm_head[number](hidden)
        else:
            logits = tied_logits(hidden, self.wte.tables[number].embedding_weight)  # type: ignore[arg-type]
        cap = self.config.final_logit_softcapping
        if cap is None:
            return logits
        return cap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap)

    # Decoding

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for `rows` rows on the model's device."""
        config = self.config
        return KVCache(
            layers=config.n_layer,
            rows=rows,
            heads=config.kv_heads,
            size=config.block_size,
            head_dim=config.head_dim,
            dtype=self.dtype,
            device=self.wte.tables[0].embedding_weight.device,  # type: ignore[arg-type]
        )

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: KVCache, *, stream: int | None = None) -> tuple[Tensor, ...]:
        """Append tokens [B, T] or [B, K, T] to the cache: logits [B, V_k] of the next token, per stream.

        If the context would exceed block_size, the cache is rebuilt from its last half (or from all of `tokens`, if
        they are more, cut to block_size), so a token still costs about one position on average.
        """
        size = self.config.block_size
        context = tokens if cache.tokens is None else torch.cat((cache.tokens, tokens), dim=-1)
        if context.shape[-1] > size:
            cache.length = 0
            tokens = context = context[..., -min(size, max(size // 2, tokens.shape[-1])) :]
        cache.tokens = context
        output = self(tokens, stream=stream, cache=cache)
        return tuple(output.head(number, output.hidden[:, -1]) for number in output.streams)

    # Facts about the model

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by name, each once, in five groups (empty ones left out).

        matrix: hidden matrices (for Muon; weight decay) · embedding: token, position and value tables · head: untied
        heads · vector: norm gains and all biases · scalar: gates and learned factors.
        """
        groups: dict[str, dict[str, nn.Parameter]] = {
            n: {} for n in ("matrix", "embedding", "head", "vector", "scalar")
        }
        heads = set(self.lm_head or ())
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if module in heads:
                    group = "head"
                elif isinstance(module, CastedEmbedding):
                    group = "embedding"
                elif isinstance(module, CastedLinear):
                    group = "matrix" if parameter.dim() == 2 else "vector"
                else:
                    group = "vector" if isinstance(module, NORMS) else "scalar"
                groups[group][f"{prefix}.{name}"] = parameter
        return {name: members for name, members in groups.items() if members}

    def parameters_of_others(self, stream: int) -> list[nn.Parameter]:
        """Tables and heads of all other streams, which get no gradient from a batch of `stream`."""
        lists = [module.tables for module in self.modules() if isinstance(module, TokenTables)]
        lists += [self.lm_head] if self.lm_head is not None else []
        return [
            p for tables in lists for number, table in enumerate(tables) if number != stream for p in table.parameters()
        ]

    def fused_rows(self) -> dict[str, tuple[int, ...]]:
        """Rows of each matrix in the stacked parameters (q, k, v; SwiGLU's gate and up), by parameter name."""
        config = self.config
        rows: dict[str, tuple[int, ...]] = {}
        kv = config.kv_heads * config.head_dim
        for prefix, module in self.h.named_children():
            own = dict(module.named_children())
            if "attn" in own:
                rows[f"h.{prefix}.attn.qkv.weight"] = (config.n_embd, kv, kv)
            if "mlp" in own and config.mlp_variant == "swiglu":
                rows[f"h.{prefix}.mlp.fc.weight"] = (config.inner_size, config.inner_size)
        return rows

    def blocks(self) -> list[nn.Module]:
        """Compile units."""
        return list(self.h)

    def num_parameters(self) -> int:
        """Number of trained parameters; tied ones count once."""
        return sum(p.numel() for p in self.parameters())

    def flops(self, rows: int) -> dict[str, float]:
        """FLOPs for `rows` rows of block_size tokens: per token 6N + 12·L·D·min(window, T) for `train`, a third of it
        for `eval`, as in PaLM (arXiv 2204.02311). N counts shared matrices once per use."""
        config, length = self.config, self.config.block_size
        used = 0
        for block in self.h:
            for part in (block.attn, block.mlp):
                used += sum(p.numel() for p in part.parameters() if p.dim() == 2)  # type: ignore[union-attr,misc]
        used += config.n_embd * sum(self.shape.vocab_sizes)
        reach = min(config.window_size or length, length)
        token = 6 * used + 12 * config.n_layer * config.n_embd * reach
        return {"train": float(rows * length * token), "eval": rows * length * token / 3}
