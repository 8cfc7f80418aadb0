"""Causal self-attention: torch's fused kernels for plain softmax, explicit scores for the variants.

Shapes: B rows, T queries, S keys, D width, h query heads, g key and value heads, d head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.language_models.cache import LayerCache
from models.language_models.config import GPTConfig
from models.language_models.weighting import make_weighting
from models.layers import CastedLinear, apply_rotary, fused_attention, matmul, rms_norm
from models.layers.attention import load_flash

Rope = tuple[Tensor, Tensor] | None


class CausalSelfAttention(nn.Module):
    """[B, T, D] -> [B, T, D]. `qkv` [(h + 2g)·d, D] stacks all q heads, all k heads, all v heads; `proj` is [D, h·d].

    kind: "auto" and "sdpa" use torch's fused kernels if the variant allows, "math" never, "flash" the flash_attn
    package (without a cache). Raises ValueError for flash with an unsupported softmax variant.
    """

    def __init__(self, config: GPTConfig, *, kind: str = "auto") -> None:
        super().__init__()
        size, self.head_dim = config.n_embd, config.head_dim
        self.heads, self.kv_heads, self.dropout = config.n_head, config.kv_heads, config.dropout
        self.rotary_length = config.rotary_length
        self.use_qk_norm, self.use_v_norm, self.eps = config.use_qk_norm, config.use_v_norm, config.norm_eps
        self.softcap, self.window = config.attn_logit_softcapping, config.window_size
        self.scale = config.qk_norm_gain**2 / math.sqrt(self.head_dim)
        self.qkv = CastedLinear(size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.bias, init_std=0.0)
        self.proj = CastedLinear(size, size, bias=config.bias, init_std=0.0)
        self.weighting = make_weighting(config.softmax_variant_attn, self.heads)
        self.score_gain = nn.Parameter(torch.ones(self.heads)) if config.use_qk_norm_scale else None
        plain = config.softmax_variant_attn == "softmax"
        self.fused = plain and self.softcap is None and kind != "math"
        if kind == "flash" and not plain:
            raise ValueError(
                f"attention=flash cannot compute arch.softmax_variant_attn={config.softmax_variant_attn}: "
                "use attention=auto"
            )
        self._flash = load_flash() if kind == "flash" else None

    def forward(
        self,
        x: Tensor,
        rope: Rope = None,
        mask: Tensor | None = None,
        extra: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """mask [T, S] bool, True where a key is visible; None: causal. extra [B, T, g, d] is added to the values."""
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, -1, self.head_dim)
        qk, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)  # one rotation for q and k
        if rope is not None:
            qk = _rotate(qk, rope, self.rotary_length)
        if self.use_qk_norm:
            qk = rms_norm(qk, self.eps)
        query, key = qk.split((self.heads, self.kv_heads), dim=2)
        if self.score_gain is not None:
            query = query * self.score_gain.to(x.dtype).view(-1, 1)
        if extra is not None:
            value = value + extra
        if self.use_v_norm:
            value = rms_norm(value, self.eps)
        if self._flash is not None and cache is None:
            mixed = self._flash_mix(query, key, value)
        else:
            key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, g, T, d]
            if cache is not None:
                key, value = cache.extend(key, value)
            mixed = self._mix(query.transpose(1, 2), key, value, mask).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(rows, length, -1))
        return out

    def needs_mask(self, length: int, start: int) -> bool:
        """Whether `forward` needs a mask for `length` queries after `start` cached positions."""
        return not self.fused or self.window is not None or (length > 1 and start > 0)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query [B, h, T, d], key and value [B, g, S, d] -> [B, h, T, d]."""
        dropout = self.dropout if self.training else 0.0
        if self.fused:
            return fused_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None and bool(query.shape[2] > 1),  # under torch.export the length is not an int
                scale=self.scale,
                enable_gqa=self.kv_heads != self.heads,
            )
        assert mask is not None
        shared = self.heads // self.kv_heads
        grouped = query.unflatten(1, (self.kv_heads, shared))  # [B, g, h/g, T, d]
        scores = matmul(grouped, key.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        visible = mask.sum(-1, keepdim=True).to(scores.dtype)
        weights = self.weighting(scores.masked_fill(~mask, -math.inf), visible).to(value.dtype)
        weights = F.dropout(weights, dropout, self.training).unflatten(1, (self.kv_heads, shared))
        mixed: Tensor = matmul(weights, value.unsqueeze(2)).flatten(1, 2)
        return mixed

    def _flash_mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, T, h, d], key and value [B, T, g, d] -> [B, T, h, d]."""
        assert self._flash is not None
        window = (-1 if self.window is None else self.window - 1, 0)
        dropout = self.dropout if self.training else 0.0
        options = {"softmax_scale": self.scale, "causal": True, "window_size": window, "softcap": self.softcap or 0.0}
        mixed: Tensor = self._flash(query, key, value, dropout_p=dropout, **options)
        return mixed


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor], length: int) -> Tensor:
    """Rotate the first `length` channels of each head of x [B, T, heads, d]."""
    if length == x.shape[-1]:
        return apply_rotary(x, *rope)
    return torch.cat((apply_rotary(x[..., :length], *rope), x[..., length:]), dim=-1)
