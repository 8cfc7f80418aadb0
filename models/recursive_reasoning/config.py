"""Hyper-parameters that every recursive model shares; `trm.py` and `hrm.py` set their own defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # --help reads these keys without loading torch
    import torch

PositionEncoding = Literal["rope", "rope_2d", "learned", "none"]
EvalHalting = Literal["fixed", "latched"]
ForwardDtype = Literal["auto", "bfloat16", "float16", "float32", "float64"]
# beyond lies a slip of the pen that would build or evaluate for hours
MOST = {
    "H_layers": 1000,
    "L_layers": 1000,
    "H_cycles": 1000,
    "L_cycles": 1000,
    "num_heads": 65536,
    "halt_max_steps": 10000,
}
_ROTATED_TOGETHER = {"rope": 2, "rope_2d": 4}  # channels: a pair by position, or a pair by row and one by column


@dataclass(kw_only=True)
class RecursiveConfig:
    """Raises ValueError for values that cannot be built; the text names the override to change."""

    NOT_SHAPE: ClassVar[frozenset[str]] = frozenset(
        ("H_cycles", "L_cycles", "halt_max_steps", "halt_exploration_prob", "no_ACT_continue", "eval_halting",
         "rope_theta", "rms_norm_eps", "forward_dtype")
    )  # fmt: skip
    """Keys of what is computed with the weights: another value needs no other weights."""

    H_cycles: int = 3
    """Outer cycles per ACT step; each ends with one update of z_H."""
    L_cycles: int = 6
    """Updates of z_L within an outer cycle."""
    H_layers: int = 0
    """Blocks of the stack that updates z_H (0: the L stack serves both)."""
    L_layers: int = 2
    """Blocks of the stack that updates z_L."""
    hidden_size: int = 512
    """Width D."""
    num_heads: int = 8
    """Attention heads; must divide hidden_size unless head_dim is given."""
    head_dim: int = 0
    """Channels of a head; 0: hidden_size / num_heads."""
    expansion: float = 4.0
    """Feed-forward expansion; the SwiGLU inner width is 2/3 of it, rounded up to a multiple of 256."""
    mlp_t: bool = False
    """Replace attention by a SwiGLU along the sequence (its weights then depend on the data set's sequence
    length)."""
    pos_encodings: PositionEncoding = "rope"
    """Positions: rotary over the flattened sequence, rotary by row and column of a square grid, a learned table
    added to the input, or none."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square before the root."""
    puzzle_emb_ndim: int = 512
    """Width of the learned vector per puzzle; 0: no puzzle embedding and no prefix."""
    puzzle_emb_len: int = 0
    """Prefix positions P that the puzzle vector is laid out over; 0: as few as hold it."""
    halt_max_steps: int = 16
    """ACT steps after which a row always halts; evaluation takes this many (see eval_halting)."""
    halt_exploration_prob: float = 0.1
    """Probability per row and step of demanding a random minimum number of steps (2..halt_max_steps)."""
    no_ACT_continue: bool = True
    """Halt on q_halt > 0 alone (one pass). False: halt on q_halt > q_continue, with a second pass for its
    target."""
    eval_halting: EvalHalting = "fixed"
    """Evaluation: fixed takes halt_max_steps steps for every row; latched keeps a row's answer of the step at which it
    halts by the rule of training."""
    forward_dtype: ForwardDtype = "auto"
    """Compute dtype; auto is the run's choice for the device. float64 stores parameters in float64 too."""

    def __post_init__(self) -> None:
        for name in ("H_cycles", "L_cycles", "L_layers", "hidden_size", "num_heads", "halt_max_steps"):
            _check(getattr(self, name) >= 1, f"arch.{name}={getattr(self, name)}: expected at least 1")
        for name in ("H_layers", "head_dim", "puzzle_emb_ndim", "puzzle_emb_len"):
            _check(getattr(self, name) >= 0, f"arch.{name}={getattr(self, name)}: expected 0 or more")
        for name, most in MOST.items():
            _check(getattr(self, name) <= most, f"arch.{name}={getattr(self, name)}: expected at most {most}")
        _check(0.01 <= self.expansion <= 1000, f"arch.expansion={self.expansion}: expected a number from 0.01 to 1000")
        for name in ("rms_norm_eps", "rope_theta"):
            _check(getattr(self, name) > 0, f"arch.{name}={getattr(self, name)}: expected a positive number")
        _check(
            0.0 <= self.halt_exploration_prob <= 1.0,
            f"arch.halt_exploration_prob={self.halt_exploration_prob}: expected a number in [0, 1]",
        )
        self._check_heads()
        room = self.prefix_len * self.hidden_size
        _check(
            room >= self.puzzle_emb_ndim,
            f"arch.puzzle_emb_len={self.puzzle_emb_len} holds {room} numbers but arch.puzzle_emb_ndim="
            f"{self.puzzle_emb_ndim}: expected at least {self._fewest_positions()} positions (0 = automatic)",
        )
        for name, choices in (
            ("pos_encodings", PositionEncoding), ("eval_halting", EvalHalting), ("forward_dtype", ForwardDtype),
        ):  # fmt: skip
            known = choices.__args__  # type: ignore[attr-defined]
            _check(
                getattr(self, name) in known,
                f"arch.{name}={getattr(self, name)}: choose one of {', '.join(known)}",
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

    def _fewest_positions(self) -> int:
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def head_width(self) -> int:
        """d: channels of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def prefix_len(self) -> int:
        """P: no prefix without puzzle embedding, else `puzzle_emb_len`, else the fewest positions that hold
        the vector."""
        wanted = self.puzzle_emb_len or self._fewest_positions()
        return wanted if self.puzzle_emb_ndim else 0

    def compute_dtype(self, auto: torch.dtype) -> torch.dtype:
        """The dtype of activations; `auto` is used for forward_dtype=auto."""
        import torch

        return auto if self.forward_dtype == "auto" else getattr(torch, self.forward_dtype)


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise ValueError(message)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
