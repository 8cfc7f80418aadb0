"""The post-norm block of HRM and TRM and the stack of blocks that the recursion calls.

    x <- rms(x + mix(x));  x <- rms(x + mlp(x))

`mix` is self-attention, or for `mlp_t` a SwiGLU along the *sequence* axis; the residual sum is then normalised along
that axis too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import Attention
from models.layers.mlp import MULTIPLE, SwiGLU
from models.layers.norm import add_rms_norm

Rope = tuple[Tensor, Tensor] | None


class ReasoningBlock(nn.Module):
    """Post-norm block, [B, S, D] -> [B, S, D]. One compile unit."""

    def __init__(
        self,
        *,
        size: int,
        num_heads: int,
        head_dim: int,
        expansion: float,
        eps: float,
        length: int,
        mlp_t: bool,
        attention: str,
        multiple: int = MULTIPLE,
        gate_norm: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.length, self.eps = size, length, eps
        self.mixed = num_heads * head_dim  # width of all heads together, D unless head_dim is given
        self.self_attn = None if mlp_t else Attention(size, num_heads, head_dim=head_dim, kind=attention)
        self.mlp_t = SwiGLU(length, expansion, multiple=multiple, gate_norm=gate_norm, aligned=True) if mlp_t else None
        self.mlp = SwiGLU(size, expansion, multiple=multiple, gate_norm=gate_norm)

    def forward(self, x: Tensor, rope: Rope = None, keys: Tensor | None = None) -> Tensor:
        """`keys` [B, S] bool: positions that may be attended to; None: all."""
        if self.mlp_t is not None:
            x = self._mix_positions(self.mlp_t, x)
        elif self.self_attn is not None:
            x = add_rms_norm(x, self.self_attn(x, rope, keys), self.eps)
        return add_rms_norm(x, self.mlp(x), self.eps)

    def _mix_positions(self, mlp_t: SwiGLU, x: Tensor) -> Tensor:
        """rms(x + mlp_t(x)), both along the sequence axis."""
        mixed = mlp_t.along_positions(x)
        if mixed is not None:
            return add_rms_norm(x, mixed, self.eps, axis=1)
        # A transposed copy [B, D, S] makes the sequence contiguous for both products and the norm.
        # On a GPU it is zero-padded to an aligned length for the products; the norm excludes the padding.
        length, x_t, pad = x.shape[1], x.transpose(1, 2), mlp_t.padding(x)
        x_t = F.pad(x_t, (0, pad)) if pad else x_t.contiguous()
        mixed = mlp_t(x_t)
        return add_rms_norm(x_t[..., :length], mixed[..., :length], self.eps).transpose(1, 2).contiguous()

    def fused_rows(self) -> dict[str, tuple[int, ...]]:
        """Rows of each matrix in the stacked parameters: gate and up of SwiGLU; q, k and v of every head."""
        rows: dict[str, tuple[int, ...]] = {
            f"{name}.gate_up_proj.weight": (mlp.inner, mlp.inner)
            for name, mlp in self.named_children()
            if isinstance(mlp, SwiGLU)
        }
        if self.self_attn is not None:
            attn = self.self_attn
            rows["self_attn.qkv_proj.weight"] = (attn.head_dim,) * (3 * attn.num_heads)
        return rows

    def flops(self) -> int:
        """Forward FLOPs per row: S(8·D·h·d + 6·D·I) + 4·S²·h·d, or 6·S·I_t·D + 6·S·D·I with mlp_t."""
        length, size = self.length, self.size
        channel = 6 * length * size * self.mlp.inner
        if self.mlp_t is not None:
            return channel + 6 * length * self.mlp_t.inner * size
        return channel + 8 * length * size * self.mixed + 4 * length**2 * self.mixed


class ReasoningStack(nn.Module):
    """A stack of blocks: `forward(hidden, injection, rope)` = blocks(hidden + injection), all [B, S, D]."""

    def __init__(self, blocks: list[ReasoningBlock]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, hidden: Tensor, injection: Tensor | None, rope: Rope = None) -> Tensor:
        if injection is not None:
            hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden, rope)
        return hidden
