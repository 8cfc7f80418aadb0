"""Hyper-parameters of the base language models. B rows, T positions, C width, h heads, L blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from engine.fields import Inert, Range, check_fields
from models.dtypes import ForwardDtype

Objective = Literal["masked_diffusion", "autoregressive"]


@dataclass(frozen=True)
class TextShape:
    """The vocabulary of the data. Ids below `words` are text tokens; MASK and PAD are at or above."""

    words: int
    mask_id: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.words < 1 or min(self.mask_id, self.pad_id) < self.words or self.mask_id == self.pad_id:
            raise ValueError(f"{self}: expected words >= 1, and two different ids at or above it")

    def rows(self, multiple: int) -> int:
        """Rows of the embedding table: all ids, rounded up to `multiple`."""
        return -(-(max(self.mask_id, self.pad_id) + 1) // multiple) * multiple


def check_heads(heads: int, size: int, heads_key: str, size_key: str) -> None:
    """Raises: ValueError unless the heads divide the width into even parts, which rotary positions need."""
    if size % heads or size // heads % 2:
        fitting = [n for n in range(1, min(size, 64) + 1) if size % n == 0 and size // n % 2 == 0]
        why = (
            "does not divide" if size % heads else "gives heads of odd width, which rotary positions cannot turn, with"
        )
        choice = f"choose one of {', '.join(map(str, fitting))}" if fitting else f"choose an even {size_key}"
        raise ValueError(f"{heads_key}={heads} {why} {size_key}={size}: {choice}")


@dataclass(kw_only=True)
class BaseConfig:
    """A pre-norm transformer like LLaDA (arXiv 2502.09992): rotary positions, norms without parameters, no biases, tied
    output head.

    Raises ValueError for values that cannot be built; the text names the override to change.
    """

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(("dropout", "forward_dtype", "init_std"))
    """Keys that another training may change: the weights still fit."""

    n_layer: Annotated[int, Range(1, 1000)] = 8
    """Blocks L."""
    n_head: Annotated[int, Range(1, 65536)] = 8
    """Attention heads h; n_embd / h must be an even integer."""
    n_embd: Annotated[int, Range(1)] = 256
    """Width C."""
    block_size: Annotated[int, Range(1)] = 512
    """Maximum length of a text, in tokens."""
    dropout: Annotated[float, Range(0, below=1)] = 0.1
    """Dropout of embeddings, attention weights and both branches."""
    objective: Objective = "masked_diffusion"
    """Training objective: predict masked tokens with bidirectional attention, or the next token with causal
    attention."""
    rope_theta: Annotated[float, Range(above=0)] = 10000.0
    """Base of the rotary frequencies."""
    vocab_multiple: Annotated[int, Range(1)] = 128
    """Rows of the token embedding are rounded up to a multiple of this."""
    init_std: Annotated[float, Range(above=0)] = 0.02
    """Initial standard deviation of all matrices; the last one of a branch has init_std / sqrt(2·n_layer)."""
    forward_dtype: ForwardDtype = "auto"
    """Compute dtype; auto: the run's choice for the device. Weights are float32 (float64 for float64)."""

    def __post_init__(self) -> None:
        check_fields(self, "arch")
        check_heads(self.n_head, self.n_embd, "arch.n_head", "arch.n_embd")

    @property
    def head_dim(self) -> int:
        """d, channels per head."""
        return self.n_embd // self.n_head

    @property
    def causal(self) -> bool:
        """Whether attention is causal."""
        return self.objective == "autoregressive"

    def sides(self, target: str) -> tuple[int, int]:
        """(input, output) width of the linear layer `target` of a block."""
        size = self.n_embd
        return {"fc": (size, 4 * size), "proj": (4 * size, size)}.get(target, (size, size))


@dataclass(kw_only=True)
class LoopedConfig(BaseConfig):
    """A base that applies some of its blocks repeatedly: prelude, loop, coda."""

    loops: Annotated[int, Range(1, 1000)] = 2
    """Number of times that the looped blocks are applied."""
    loop_start: Annotated[int, Range(0)] = 1
    """Index of the first looped block; the blocks before it are the prelude."""
    loop_layers: Annotated[int, Range(1), Inert("arch.loops=1", "arch.loops=1: nothing is repeated")] = 2
    """Number of looped blocks; the blocks after them are the coda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loop_start + self.loop_layers > self.n_layer:
            raise ValueError(
                f"arch.loop_start={self.loop_start} and arch.loop_layers={self.loop_layers} reach beyond "
                f"arch.n_layer={self.n_layer}: lower one of them"
            )

    @property
    def applied(self) -> int:
        """Number of block applications in one forward pass."""
        return self.n_layer + (self.loops - 1) * self.loop_layers
