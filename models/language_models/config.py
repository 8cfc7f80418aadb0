"""Hyper-parameters of the GPT family. The defaults are nanoGPT's; every variation is one field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from engine.fields import Inert, Range, check_fields
from models.dtypes import ForwardDtype

PositionEncoding = Literal["learned", "rope", "none"]
SoftmaxVariant = Literal["softmax", "softmax1", "relu2max", "sigmoidmax", "consmax"]
NormVariant = Literal["layernorm", "rmsnorm", "dyt", "identity"]
NormPlacement = Literal["pre", "peri", "post"]
MLPVariant = Literal["mlp", "swiglu"]
Activation = Literal["gelu", "gelu_tanh", "squared_relu", "relu", "silu"]
Sharing = Literal["none", "repeat", "cycle", "mirror"]

SWIGLU_MULTIPLE = 8
# larger values are surely typos, and would build for hours
_MOST_LAYERS = 1000
_MOST_HEADS = 65536
_NO_NORM = Inert("arch.norm_variant=identity", "arch.norm_variant=identity: there is no norm")
_ONE_LAYER = Inert("arch.n_layer=1", "arch.n_layer=1: nothing to share with")


@dataclass(frozen=True)
class LMShape:
    """Vocabulary size of each stream of the data. One stream is an ordinary language model."""

    vocab_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.vocab_sizes or min(self.vocab_sizes) < 1:
            raise ValueError(f"vocab_sizes={self.vocab_sizes}: expected one positive size per stream")


@dataclass(kw_only=True)
class GPTConfig:
    """Keys of a GPT. Raises ValueError for invalid values; the message names the override."""

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(
        (
            "dropout",
            "forward_dtype",
            "use_gradient_checkpointing",
            "init_std",
            "embd_init_std",
            "head_init_std",
            "zero_init_proj",
        )
    )
    """Keys that another training may change: the weights still fit."""

    n_layer: Annotated[int, Range(1, _MOST_LAYERS)] = 6
    """Blocks L."""
    n_head: Annotated[int, Range(1, _MOST_HEADS)] = 6
    """Query heads h; must divide n_embd."""
    n_kv_group: Annotated[int | None, Range(1)] = None
    """Key and value heads g, each shared by n_head / g query heads (grouped-query attention); null: n_head."""
    n_embd: Annotated[int, Range(1)] = 384
    """Width D."""
    block_size: Annotated[int, Range(1)] = 256
    """Longest context, in tokens."""
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Dropout of embeddings, attention weights and both branches."""
    bias: bool = False
    """Biases in the linear layers and the norms."""

    pos_encodings: PositionEncoding = "learned"
    """Position encodings: a learned embedding added to the input, rotary, or none."""
    rope_theta: Annotated[float, Range(above=0), Inert("arch.pos_encodings!=rope", "there are no rotary positions")] = (
        10000.0
    )
    """Base of the rotary frequencies."""
    rope_length: int | None = None
    """Channels of each head that are rotated (partial rotary); null: all."""

    softmax_variant_attn: SoftmaxVariant = "softmax"
    """Function that turns attention scores into weights."""
    use_qk_norm: bool = False
    """RMS-normalise queries and keys over the head width, after the rotation."""
    use_qk_norm_scale: bool = False
    """Learn one factor per head for the scores of normalised queries and keys (starts at 1)."""
    qk_norm_gain: Annotated[float, Range(above=0)] = 1.0
    """Fixed factor on both normalised queries and keys (1.2 in nanochat: sharper attention)."""
    use_v_norm: bool = False
    """RMS-normalise values over the head width."""
    attn_logit_softcapping: Annotated[float | None, Range(above=0)] = None
    """Cap c: scores become c·tanh(score / c); null: off."""
    final_logit_softcapping: Annotated[float | None, Range(above=0)] = None
    """The same for the output logits."""
    window_size: Annotated[
        int | None,
        Range(1),
        Inert("arch.window_size>=arch.block_size", "it is no narrower than the context, arch.block_size"),
    ] = None
    """A token sees itself and the window_size - 1 tokens before it; null: all before it."""

    norm_variant: NormVariant = "layernorm"
    """Layer norm, RMS norm, dynamic tanh (arXiv 2503.10622), or none."""
    norm_gain: Annotated[bool, _NO_NORM] = True
    """Learned gain (and bias, with bias=true) in each norm."""
    norm_eps: Annotated[float, Range(above=0)] = 1e-5
    """Added to the variance or mean square before the root; dyt and identity have no root."""
    norm_placement: Annotated[NormPlacement, _NO_NORM] = "pre"
    """pre: x + f(norm(x)); peri: x + norm(f(norm(x))); post: norm(x + f(x))."""
    norm_embedding: bool = False
    """RMS-normalise the summed embeddings before the first block."""
    use_parallel_mlp: bool = False
    """Attention and MLP read the same input, and their outputs are added together."""

    mlp_variant: MLPVariant = "mlp"
    """Two layers with an activation, or SwiGLU."""
    activation_variant: Annotated[
        Activation, Inert("arch.mlp_variant=swiglu", "arch.mlp_variant=swiglu has its own activation")
    ] = "gelu"
    """Activation of mlp_variant=mlp; gelu_tanh is GPT-2's own."""
    mlp_expansion_factor: Annotated[float, Range(above=0)] = 4.0
    """Inner width over n_embd; SwiGLU takes two thirds of it, rounded up to a multiple of 8."""

    share_attn: Annotated[Sharing, _ONE_LAYER] = "none"
    """Attention weights shared by blocks: repeat (share_size neighbours), cycle (every share_size-th), mirror
    (first with last, and so on inwards, then like repeat)."""
    share_mlp: Annotated[Sharing, _ONE_LAYER] = "none"
    """The same for the MLP weights."""
    share_size: Annotated[
        int,
        Range(1),
        Inert(
            "arch.share_attn=none and arch.share_mlp=none",
            "arch.share_attn=none and arch.share_mlp=none: no block shares its weights",
        ),
        _ONE_LAYER,
    ] = 1
    """Size of the groups that share."""

    wte_weight_tying: bool = True
    """Use the token embedding as output head."""
    value_embeddings: bool = False
    """Add a gated token embedding to the values of every second block, including the last (nanochat)."""
    residual_scalars: bool = False
    """Before block l: x <- a_l·x + b_l·x0 with learned a_l, b_l and x0 the embedded input (nanochat)."""

    init_std: Annotated[float | None, Range(above=0)] = 0.02
    """Initial standard deviation of the matrices; null: uniform, with standard deviation 1/sqrt(fan in)."""
    embd_init_std: Annotated[float | None, Range(above=0)] = None
    """Initial standard deviation of the token and position embeddings; null: init_std, or 0.02."""
    head_init_std: Annotated[float | None, Range(above=0)] = None
    """Initial standard deviation of an untied head; null: init_std, or 0.02."""
    zero_init_proj: bool = False
    """Initialise the last matrix of both branches to 0; false: with init_std / sqrt(2·n_layer)."""

    use_gradient_checkpointing: bool = False
    """Store only the inputs of the blocks and repeat their forward pass in the backward pass."""
    forward_dtype: ForwardDtype = "auto"
    """Compute dtype; auto: the run's choice for the device. float64 also stores parameters in float64."""

    def __post_init__(self) -> None:
        check_fields(self, "arch")
        self._check_heads()
        self._check_pairs()

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"arch.{name}={getattr(self, name)}: {expected}")

    def _check_heads(self) -> None:
        size, heads = self.n_embd, self.n_head
        even = 2 if self.pos_encodings == "rope" else 1
        fitting = [n for n in range(1, min(size, 64) + 1) if size % n == 0 and size // n % even == 0]
        if heads not in fitting and (size % heads or size // heads % even):
            why = "does not divide" if size % heads else "gives heads of odd width, which rope cannot rotate, with"
            choice = f"choose one of {_listed(fitting)}" if fitting else "choose an even arch.n_embd"
            raise ValueError(f"arch.n_head={heads} {why} arch.n_embd={size}: {choice}")
        groups = [n for n in range(1, heads + 1) if heads % n == 0]
        self._check(
            "n_kv_group", self.kv_heads in groups, f"must divide arch.n_head={heads}: choose one of {_listed(groups)}"
        )
        length = self.rotary_length
        self._check(
            "rope_length",
            2 <= length <= max(self.head_dim, 2) and length % 2 == 0,
            f"expected an even number from 2 to the head width {self.head_dim}",
        )

    def _check_pairs(self) -> None:
        """Reject fields that have no effect in combination with others."""
        self._check("use_qk_norm_scale", self.use_qk_norm or not self.use_qk_norm_scale, "needs arch.use_qk_norm=true")
        self._check("qk_norm_gain", self.use_qk_norm or self.qk_norm_gain == 1.0, "needs arch.use_qk_norm=true")
        self._check(
            "rope_length", self.pos_encodings == "rope" or self.rope_length is None, "needs arch.pos_encodings=rope"
        )
        self._check(
            "head_init_std",
            not self.wte_weight_tying or self.head_init_std is None,
            "needs arch.wte_weight_tying=false",
        )
        for name in ("share_attn", "share_mlp"):
            sharing = getattr(self, name)
            sets = {self.shared_index(sharing, layer) for layer in range(self.n_layer)}
            self._check(
                name,
                sharing == "none" or self.n_layer == 1 or len(sets) < self.n_layer,
                f"shares nothing with arch.share_size={self.share_size} and arch.n_layer={self.n_layer}: repeat wants "
                "share_size 2 or more, cycle one below n_layer",
            )
        shared = {self.share_attn, self.share_mlp} != {"none"}
        self._check("share_size", shared or self.share_size == 1, "needs arch.share_attn or arch.share_mlp")

    @property
    def head_dim(self) -> int:
        """d, channels per head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """g, key and value heads."""
        return self.n_kv_group or self.n_head

    @property
    def rotary_length(self) -> int:
        """Channels of a head that are rotated."""
        return self.rope_length if self.rope_length is not None else max(self.head_dim, 2)

    @property
    def inner_size(self) -> int:
        """I, inner width of the MLP."""
        width = self.mlp_expansion_factor * self.n_embd
        if self.mlp_variant == "swiglu":
            return -(-round(width * 2 / 3) // SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE
        return max(1, round(width))

    def shared_index(self, sharing: Sharing, layer: int) -> int:
        """Index of the weight set that block `layer` uses, numbered in order of first use."""
        if sharing == "none":
            return layer
        if sharing == "cycle":
            return layer % self.share_size
        return (layer if sharing == "repeat" else min(layer, self.n_layer - 1 - layer)) // self.share_size

    def has_values(self, layer: int) -> bool:
        """Whether block `layer` has a value embedding."""
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
