"""Hyper-parameters of the adapters of a frozen base. C width of the base, L its blocks, r rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from engine.fields import Inert, Range, check_fields
from models.dtypes import ForwardDtype
from models.feedback.config import BaseConfig, TextShape, check_heads

Target = Literal["q", "k", "v", "o", "fc", "proj"]
TARGETS: tuple[str, ...] = get_args(Target)
Mode = Literal["distinct", "recurrent"]
Conditioning = Literal["hidden", "logits", "loss_gradient", "tokens"]
Readout = Literal["gated", "raw"]
LoraApply = Literal["auto", "lowrank", "dense"]
ScaleRule = Literal["sqrt", "rank", "none"]
_RAW = Inert("arch.readout=raw", "arch.readout=raw has no scale, norm, gate or static part")
_ONE = Inert("arch.n_passes=1", "arch.n_passes=1: there is one pass with deltas")


@dataclass(frozen=True)
class AdapterShape:
    """The base config and the data shape that an adapter is built for."""

    base: BaseConfig
    text: TextShape


@dataclass(kw_only=True)
class TargetsConfig:
    """The linear layers of each block that are changed."""

    targets: list[Target] = field(default_factory=lambda: ["q", "k", "v", "o"])
    """Linear layers of each block that get deltas: q, k, v, o of the attention; fc, proj of the feed-forward."""

    def __post_init__(self) -> None:
        check_fields(self, "arch")
        if not self.targets or len(set(self.targets)) < len(self.targets) or set(self.targets) - set(TARGETS):
            raise ValueError(f"arch.targets={self.targets}: expected some of {', '.join(TARGETS)}, each once")


@dataclass(kw_only=True)
class StaticLoraConfig(TargetsConfig):
    """Low-rank deltas s·BᵀA that are the same for every sample, of rank r, with s by `scale_rule`:

    sqrt: s = alpha / √r (rsLoRA, arXiv 2312.03732); rank: alpha / r (LoRA, arXiv 2106.09685); none: alpha (with alpha 1
    the published feedback code).

    Raises ValueError for values that cannot be built; the text names the override to change.
    """

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(("lora_apply",))

    lora_rank: Annotated[int, Range(1)] = 8
    """Rank r of each delta."""
    alpha: Annotated[float, Range(above=0)] = 1.0
    """Numerator of the scale of the deltas."""
    scale_rule: ScaleRule = "sqrt"
    """Scale of the deltas: alpha / sqrt(r), which keeps their size at any rank (rsLoRA); rank: alpha / r (LoRA); none:
    alpha."""
    lora_apply: LoraApply = "auto"
    """y = Wx + s·Bᵀ(Ax), or y = (W + s·BᵀA)x; auto: the faster one for the batch, and lowrank below float32."""

    @property
    def scale(self) -> float:
        """s of a delta s·BᵀA."""
        return self.alpha / {"sqrt": math.sqrt(self.lora_rank), "rank": self.lora_rank, "none": 1}[self.scale_rule]

    def flops(self, base: BaseConfig, rows: int, length: int) -> float:
        """FLOPs of x Aᵀ and (x Aᵀ) B in all blocks."""
        sides = sum(sum(base.sides(target)) for target in self.targets)
        return 2.0 * rows * length * self.lora_rank * sides * base.n_layer


@dataclass(kw_only=True)
class FineTuneConfig(TargetsConfig):
    """Full fine-tuning of the targets, stored as differences to the frozen base."""

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset()


@dataclass(kw_only=True)
class HyperConfig(StaticLoraConfig):
    """A hypernetwork that reads the frozen base's activations on a sample and outputs low-rank deltas for it.

    Raises ValueError for values that cannot be built; the text names the override to change.
    """

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(
        (
            *("lora_apply", "dropout", "forward_dtype", "init_std", "delta_l2"),
            *("n_passes", "loss_weights", "detach_between"),
        )
    )

    mode: Mode = "distinct"
    """One block of the hypernetwork for each block of the base, or one recurrent block for all, with an embedding of
    the base's block."""
    feedback_reverse: bool = False
    """The first block of the hypernetwork computes the deltas of the last block of the base, and so on."""
    conditioning: Conditioning = "hidden"
    """Input of the hypernetwork: a learned mix of the base's hidden states; its predictions; the gradient of its loss
    on visible tokens, half of which are masked again; or only the tokens, which is not feedback."""
    n_passes: Annotated[int, Range(1, 64)] = 1
    """Passes k with deltas, each computed from the base's previous pass."""
    loss_weights: Annotated[Literal["last", "uniform", "linear"], _ONE] = "last"
    """Weights of the passes 1 to k in the loss: only the last, equal, or proportional to the pass number."""
    detach_between: Annotated[bool, _ONE] = True
    """Stop gradients between passes."""
    accumulate: Annotated[bool, _ONE] = False
    """Add the delta of a pass to the previous one; false: replace it."""

    readout: Readout = "gated"
    """gated: normalised factors with gates that start at 0, plus a static part; raw: the plain rows, which may
    diverge."""
    alpha: Annotated[float, Range(above=0), _RAW] = 1.0
    """Numerator of the scale of the deltas."""
    scale_rule: Annotated[ScaleRule, _RAW] = "sqrt"
    """Scale of the deltas: alpha / sqrt(r), which keeps their size at any rank (rsLoRA); rank: alpha / r (LoRA); none:
    alpha."""
    delta_l2: Annotated[float, Range(0)] = 1e-3
    """Penalty on the mean square of the input-dependent factors."""
    delta_norm_cap: Annotated[float | None, Range(above=0), _RAW] = None
    """Maximum Frobenius norm of a delta, which bounds its spectral norm, as a multiple of the spectral norm of the
    matrix it changes; null: no limit."""

    share_base_embedding: Annotated[
        bool, Inert("arch.conditioning=hidden", "arch.conditioning=hidden: no token table is read")
    ] = True
    """Embed tokens with the base's own frozen embedding; false: with a trained one."""
    hyper_dim: Annotated[int | None, Range(1)] = None
    """Width of the hypernetwork; null: as the base."""
    hyper_heads: Annotated[int | None, Range(1)] = None
    """Attention heads of the hypernetwork; null: as the base."""
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Dropout in the hypernetwork. The frozen base has none."""
    init_std: Annotated[float, Range(above=0)] = 0.02
    """Initial standard deviation of the hypernetwork's matrices; the last one of a branch has init_std /
    sqrt(2·blocks)."""
    forward_dtype: ForwardDtype = "auto"
    """Compute dtype; auto: the run's choice for the device. Weights and factors are float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_passes > 1 and self.conditioning == "tokens":
            raise ValueError(
                f"arch.n_passes={self.n_passes} needs something that changes from pass to pass: "
                "choose arch.conditioning=hidden, logits or loss_gradient"
            )
        if self.readout == "raw" and set(self.targets) & {"fc", "proj"}:
            raise ValueError("arch.readout=raw writes rows of one width: leave fc and proj out of arch.targets")

    def width(self, base: BaseConfig) -> tuple[int, int]:
        """(width, heads) of the hypernetwork. Raises: ValueError if the heads do not divide the width."""
        size, heads = self.hyper_dim or base.n_embd, self.hyper_heads or base.n_head
        check_heads(heads, size, "arch.hyper_heads", "arch.hyper_dim")
        if self.readout == "raw" and size != base.n_embd:
            raise ValueError(f"arch.readout=raw needs arch.hyper_dim={base.n_embd}, the width of the base")
        return size, heads
