"""Multi-head self-attention without bias. HRM and TRM attend to all positions, including padding; demonstration
encoders mask theirs (`keys`)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.linear import CastedLinear
from models.layers.product import in_float32, matmul
from models.layers.rotary import apply_rotary

AttentionKind = Literal["auto", "sdpa", "math", "flash"]
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)


def load_flash() -> Any:
    """Import `flash_attn_func` of the flash_attn package. Raises ImportError with the install command."""
    try:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("attention=flash needs the flash_attn package (CUDA): pip install -e .[flash]") from error
    return flash_attn_func


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's fused attention of query [B, h, T, d] over key and value [B, h, S, d] -> [B, h, T, d], in the dtype that
    is fastest on the processor."""
    if in_float32(query):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
        return mixed.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, **options)


class Attention(nn.Module):
    """[B, S, D] -> [B, S, D]. `qkv_proj` [3·h·d, D] stacks all q heads, all k heads, all v heads; `o_proj` is [D, h·d].
    `head_dim` is d.

    kind: "auto" and "sdpa" use torch's fused kernels, "math" an explicit softmax, "flash" the flash_attn package.
    Raises ValueError for an unknown kind and ImportError if flash_attn is required but not installed.
    """

    def __init__(self, size: int, num_heads: int, *, head_dim: int, kind: str = "auto") -> None:
        super().__init__()
        if kind not in ATTENTION_KINDS:
            raise ValueError(f"attention={kind}: choose one of {', '.join(ATTENTION_KINDS)}")
        self.num_heads, self.head_dim, self.kind = num_heads, head_dim, kind
        self._flash = load_flash() if kind == "flash" else None
        self.qkv_proj = CastedLinear(size, 3 * num_heads * head_dim)
        self.o_proj = CastedLinear(num_heads * head_dim, size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, keys: Tensor | None = None) -> Tensor:
        """`keys` [B, S] bool: positions that may be attended to, at least one per row; None: all."""
        rows, length, _ = x.shape
        qkv = self.qkv_proj(x).view(rows, length, 3 * self.num_heads, self.head_dim)
        if rope is not None:  # q and k are adjacent in the fused projection: one rotation for both
            qk, value = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
            query, key = apply_rotary(qk, *rope).chunk(2, dim=2)  # [B, S, h, d]
        else:
            query, key, value = qkv.chunk(3, dim=2)
        flash = self._flash if keys is None else None  # flash_attn has no key mask
        mixed = flash(query, key, value) if flash is not None else self._mix(query, key, value, keys)
        out: Tensor = self.o_proj(mixed.reshape(rows, length, -1))
        return out

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
        """Attention over q, k, v [B, S, h, d] each -> [B, S, h, d]."""
        q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # [B, h, S, d]
        mask = None if keys is None else keys[:, None, None, :]
        if self.kind != "math":
            return fused_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        scores = matmul(q, k.transpose(-1, -2)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(v.dtype)
        return matmul(weights, v).transpose(1, 2)
