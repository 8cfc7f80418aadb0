"""Hyper-parameters of the recursive models: shared keys, and the published defaults of each model. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from engine.fields import Inert, Range, check_fields
from models.dtypes import ForwardDtype

PositionEncoding = Literal["rope", "rope_2d", "learned", "none"]
LatentInit = Literal["learned", "random"]
EvalHalting = Literal["fixed", "latched"]
# larger values are surely typos, and would build or run for hours
_MOST = 1000
_MOST_HEADS = 65536
_MOST_PASSES = 10000
_ROTATED_TOGETHER = {"rope": 2, "rope_2d": 4}  # channels: one pair by position, or one pair each by row and column


_NO_ATTENTION = Inert("arch.mlp_t=true", "arch.mlp_t=true: there is no attention")
_NO_ROTATION = Inert("arch.pos_encodings!=rope and arch.pos_encodings!=rope_2d", "there are no rotary positions")
_NO_EMBEDDING = Inert(
    "arch.puzzle_emb_ndim=0 and arch.puzzle_emb_len!=0", "arch.puzzle_emb_ndim=0: there is no puzzle embedding"
)
_EMBEDDED = Inert("arch.puzzle_emb_ndim!=0", "the positions of the puzzle embedding take their place")
_NO_RECURSION = Inert("", "the transformer baseline has one stack, sized by arch.H_layers, and calls it once")
_NO_LATE_STATES = Inert("arch.late_states=0", "arch.late_states=0: no step is one of these")
_FIXED_PASSES = Inert(
    "arch.fixed_refinement_steps!=null", "arch.fixed_refinement_steps sets the length of every episode"
)


@dataclass(kw_only=True)
class RecursiveConfig:
    """Keys shared by all recursive models. Raises ValueError for invalid values; the message names the override."""

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(
        (
            "H_cycles",
            "L_cycles",
            "cycles_schedule",
            "latent_init",
            "damping",
            "update_noise",
            "late_states",
            "late_steps",
            "chains",
            "halt_max_steps",
            "halt_exploration_prob",
            "no_ACT_continue",
            "eval_halting",
            "rope_theta",
            "rms_norm_eps",
            "gate_norm",
            "forward_dtype",
        )
    )
    """Keys that do not change the weights: another value works with the same checkpoint."""

    H_cycles: Annotated[int, Range(1, _MOST)] = 3
    """Outer cycles per ACT step; each ends with one update of z_H."""
    L_cycles: Annotated[int, Range(1, _MOST)] = 6
    """Updates of z_L within an outer cycle."""
    cycles_schedule: list[list[float]] | None = None
    """Depth curriculum of training: stages [share of the run at which it starts, L_cycles, H_cycles], the first at 0.
    Evaluations, and training without a curriculum, use L_cycles and H_cycles. E.g. [[0,2,1],[0.3,4,2],[0.6,6,3]]."""
    latent_init: LatentInit = "learned"
    """Initial latents of a new example: a fixed vector that is stored in the checkpoint, the same at all positions; or
    TruncN(0, 1), drawn for each example, position and channel (in evaluation from a seed of the example)."""
    damping: Annotated[float, Range(0, below=1)] = 0.0
    """Share of a latent that each update keeps: z <- damping z + (1 - damping) f(z)."""
    update_noise: Annotated[float, Range(0)] = 0.0
    """Standard deviation of the normal noise added to each update of a latent (in evaluation from a seed of the
    example)."""
    late_states: Annotated[float, Range(0, 1)] = 0.0
    """Probability of a training step in which rows with a new example first take some extra ACT steps without gradient,
    which are not counted: the model is then also trained on states deeper than halt_max_steps."""
    late_steps: Annotated[list[int], Range(1, _MOST_PASSES), _NO_LATE_STATES] = field(
        default_factory=lambda: [8, 16, 32]
    )
    """Numbers of extra ACT steps to draw from for each such step."""
    chains: Annotated[int, Range(1, _MOST)] = 1
    """Winner-take-all over this many chains: in every ACT step each starts from its own low latents, TruncN(0, 1), and
    the row's z_H. The row continues with the chain of lowest cross-entropy, and only that is trained; in evaluation it
    continues with the one of largest q_halt."""
    H_layers: Annotated[int, Range(0, _MOST)] = 0
    """Blocks of the stack that updates z_H (0: the L stack serves both)."""
    L_layers: Annotated[int, Range(1, _MOST)] = 2
    """Blocks of the stack that updates z_L."""
    hidden_size: Annotated[int, Range(1)] = 512
    """Width D."""
    num_heads: Annotated[int, Range(1, _MOST_HEADS), _NO_ATTENTION] = 8
    """Attention heads; must divide hidden_size unless head_dim is given."""
    head_dim: Annotated[int, Range(0), _NO_ATTENTION] = 0
    """Channels of a head; 0: hidden_size / num_heads."""
    expansion: Annotated[float, Range(0.01, 1000)] = 4.0
    """Feed-forward expansion; the inner width of SwiGLU is 2/3 of it, rounded up to a multiple of inner_multiple."""
    inner_multiple: Annotated[int, Range(1, _MOST_HEADS)] = 256
    """Inner widths are multiples of this: at 256 a SwiGLU over 16 positions is 256 wide, at 64 it is 64."""
    gate_norm: bool = False
    """Feed-forward layers compute down(sigmoid(gate) * rms(gate * up)) instead of down(silu(gate) * up)."""
    mlp_t: bool = False
    """Replace attention by a SwiGLU over positions (its weights then depend on the data set's sequence length)."""
    pos_encodings: PositionEncoding = "rope"
    """Position encodings: rotary over the flattened sequence, rotary by row and column of a square grid, a learned
    embedding added to the input, or none."""
    rope_theta: Annotated[float, Range(above=0), _NO_ATTENTION, _NO_ROTATION] = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: Annotated[float, Range(above=0)] = 1e-5
    """Added to the mean square before the root."""
    puzzle_emb_ndim: Annotated[int, Range(0)] = 512
    """Width of the learned puzzle embedding; 0: no puzzle embedding and no prefix."""
    puzzle_emb_len: Annotated[int, Range(0), _NO_EMBEDDING] = 0
    """Prefix positions P that hold the puzzle embedding; 0: as few as possible."""
    registers: Annotated[int, Range(0, _MOST), _EMBEDDED] = 0
    """Learned prefix positions if there is no puzzle embedding; the halting head reads the first."""
    halt_max_steps: Annotated[int, Range(1, _MOST_PASSES), _FIXED_PASSES] = 16
    """ACT steps after which a row always halts; evaluation takes this many (see eval_halting)."""
    halt_exploration_prob: Annotated[
        float, Range(0, 1), Inert("arch.halt_max_steps=1", "arch.halt_max_steps=1: every row halts"), _FIXED_PASSES
    ] = 0.1
    """Probability per row and step of requiring a random minimum number of steps (2..halt_max_steps)."""
    no_ACT_continue: bool = True
    """Halt if q_halt > 0 (one forward pass); false: halt if q_halt > q_continue, with a second forward pass for its
    target."""
    eval_halting: Annotated[EvalHalting, _FIXED_PASSES] = "fixed"
    """Halting in evaluation: fixed takes halt_max_steps steps for every row; latched keeps the answer of the step at
    which a row halts as in training."""
    forward_dtype: ForwardDtype = "auto"
    """Compute dtype; auto: the run's choice for the device. float64 also stores parameters in float64."""

    def __post_init__(self) -> None:
        check_fields(self, "arch")
        self._check_heads()
        self._check_stages()
        _check(
            self.chains == 1 or self.no_ACT_continue,
            f"arch.chains={self.chains}: what a further step is worth is not computed for several chains, expected "
            "arch.no_ACT_continue=true",
        )
        _check(bool(self.late_steps), "arch.late_steps is empty: expected one number of ACT steps or more")
        room = self.prefix_len * self.hidden_size
        _check(
            room >= self.puzzle_emb_ndim,
            f"arch.puzzle_emb_len={self.puzzle_emb_len} holds {room} numbers but arch.puzzle_emb_ndim="
            f"{self.puzzle_emb_ndim}: expected at least {self._fewest_positions()} positions (0 = automatic)",
        )

    def _check_stages(self) -> None:
        starts = []
        for stage in self.cycles_schedule or ():
            _check(
                len(stage) == 3 and all(1 <= number <= _MOST and number == int(number) for number in stage[1:]),
                f"arch.cycles_schedule has {stage}: expected [share of the run, L_cycles, H_cycles] with whole cycles "
                f"from 1 to {_MOST}",
            )
            starts.append(stage[0])
        _check(
            not starts or (starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < 1),
            f"arch.cycles_schedule begins its stages at {starts}: expected ascending shares from 0 to below 1",
        )

    def _check_heads(self) -> None:
        size, heads = self.hidden_size, self.num_heads
        if self.mlp_t:
            return
        multiple = _ROTATED_TOGETHER.get(self.pos_encodings, 1)
        if self.head_dim:
            _check(
                self.head_dim % multiple == 0,
                f"arch.head_dim={self.head_dim} with arch.pos_encodings={self.pos_encodings}: "
                f"expected a multiple of {multiple}",
            )
            return
        divisors = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
        _check(
            size % heads == 0,
            f"arch.num_heads={heads} does not divide arch.hidden_size={size}: choose one of {_listed(divisors)}",
        )
        fitting = [n for n in divisors if (size // n) % multiple == 0]
        _check(
            (size // heads) % multiple == 0,
            f"arch.num_heads={heads} gives heads of width {size // heads}, which arch.pos_encodings="
            f"{self.pos_encodings} cannot rotate ({multiple} channels at a time): choose "
            + (f"one of {_listed(fitting)}" if fitting else f"an arch.hidden_size that {multiple} divides"),
        )

    @property
    def random_start(self) -> bool:
        """Whether initial latents are random."""
        return self.latent_init == "random"

    def _fewest_positions(self) -> int:
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def head_width(self) -> int:
        """d, the channels of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def prefix_len(self) -> int:
        """P: `registers` if there is no puzzle embedding, else `puzzle_emb_len`, or if that is 0 the fewest positions
        that hold the embedding."""
        length = self.puzzle_emb_len or self._fewest_positions()
        return length if self.puzzle_emb_ndim else self.registers


@dataclass(kw_only=True)
class TRMConfig(RecursiveConfig):
    """The published TRM: 2 layers, 3 x 6 cycles, a puzzle embedding in 16 prefix positions."""

    H_layers: Annotated[int, Inert("", "TRM has one stack, sized by arch.L_layers")] = 0
    """Always 0: TRM has one stack, sized by L_layers."""
    puzzle_emb_len: int = 16
    """Prefix positions P that hold the puzzle embedding; 0: as few as possible."""

    def __post_init__(self) -> None:
        if self.H_layers:
            raise ValueError(
                f"arch.H_layers={self.H_layers}: TRM has one stack; set arch.L_layers and leave H_layers at 0"
            )
        super().__post_init__()


@dataclass(kw_only=True)
class HRMConfig(RecursiveConfig):
    """The published HRM: two stacks of 4 layers, 2 x 2 cycles, as few prefix positions as hold the puzzle embedding."""

    H_cycles: int = 2
    """Outer cycles per ACT step; each ends with one update of z_H."""
    L_cycles: int = 2
    """Updates of z_L within an outer cycle."""
    H_layers: int = 4
    """Blocks of the stack that updates z_H."""
    L_layers: int = 4
    """Blocks of the stack that updates z_L."""
    no_ACT_continue: bool = False
    """False: halt on q_halt > q_continue, with a second pass for its target. True: halt on q_halt > 0
    alone."""

    def __post_init__(self) -> None:
        if self.H_layers < 1:
            raise ValueError(f"arch.H_layers={self.H_layers}: HRM has its own stack for z_H, expected at least 1")
        super().__post_init__()


@dataclass(kw_only=True)
class TransformerBaselineConfig(RecursiveConfig):
    """One stack, called once per step. H_cycles, L_cycles and L_layers, which recipes set for any model, have no
    effect."""

    H_cycles: Annotated[int, Range(1, _MOST), _NO_RECURSION] = 3
    """Not used: there is one stack, called once."""
    L_cycles: Annotated[int, Range(1, _MOST), _NO_RECURSION] = 6
    """Not used: there is one stack, called once."""
    cycles_schedule: Annotated[list[list[float]] | None, _NO_RECURSION] = None
    """Not used: there is one stack, called once."""
    chains: Annotated[int, Range(1, 1, hint=_NO_RECURSION.why), _NO_RECURSION] = 1
    """Always 1: there is no low latent."""
    L_layers: Annotated[int, Range(1, _MOST), _NO_RECURSION] = 2
    """Not used: the stack is sized by H_layers."""
    H_layers: int = 8
    """Blocks of the one stack."""
    no_ACT_continue: bool = False
    """False: halt on q_halt > q_continue, with a second pass for its target. True: halt on q_halt > 0
    alone."""

    def __post_init__(self) -> None:
        if self.H_layers < 1:
            raise ValueError(f"arch.H_layers={self.H_layers}: the baseline's one stack has at least 1 block")
        super().__post_init__()


@dataclass(kw_only=True)
class TRMHier6Config(TRMConfig):
    """TRM's keys, and the number of low latents."""

    L_latents: Annotated[int, Range(1, _MOST)] = 6
    """Number of low latents z_L1, z_L2, ... (trm_hier6 only); update i of a cycle is that of z_Li."""

    def __post_init__(self) -> None:
        if self.L_latents < self.L_cycles:
            raise ValueError(
                f"arch.L_cycles={self.L_cycles}: update i of a cycle is that of latent z_Li and "
                f"arch.L_latents={self.L_latents}: choose arch.L_cycles <= {self.L_latents}, or more latents"
            )
        super().__post_init__()


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise ValueError(message)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
