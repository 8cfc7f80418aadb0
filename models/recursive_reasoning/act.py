"""Adaptive computation time (ACT): one optimizer step is one reasoning step per row, and the state is carried
over.

A row that halted takes the fresh example offered to it; every other row keeps its own example and latents.
All decisions are `torch.where`, so no training step waits for the device. Shapes: B rows, T tokens, S = prefix + T
positions, D width, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.recursive_reasoning.late_states import rolled_on
from models.recursive_reasoning.recursion import Depth, where_rows
from models.recursive_reasoning.variation import Vary, random_start, rollout_keys, step_noise

EXPLORATION = "exploration"
KEYS = "keys"
Latents = dict[str, Tensor]
Aux = dict[str, Tensor]
"""What a variant hands to its own loss beside the answer, [B, ...] each. It is not carried to the next step."""


@dataclass(frozen=True)
class PuzzleShape:
    """What a data set fixes about a model: tokens per example, words, and puzzle identifiers (blank
    included)."""

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int
    pad_id: int = 0


@dataclass
class ACTCarry:
    """State of B open episodes between steps. `latents` [B,S,D] (and what else a variant keeps per row, [B,...]) carry
    no gradient; `data` is the example each row works on."""

    latents: dict[str, Tensor]
    steps: Tensor  # [B] int32, ACT steps taken on the present example
    halted: Tensor  # [B] bool, the row takes a fresh example at the next step
    data: dict[str, Tensor]  # inputs [B,T], labels [B,T] (-100 ignored), puzzle_identifiers [B]: int32


@dataclass
class ACTOutput:
    """One ACT step. q values [B], at least float32; `target_q_continue` [B] only in training with a continue
    head."""

    carry: ACTCarry
    logits: Tensor | None  # [B,T,V] compute dtype; None where nothing reads them
    q_halt_logits: Tensor
    q_continue_logits: Tensor
    target_q_continue: Tensor | None = None
    aux: Aux = field(default_factory=dict)
    """Of this step; in evaluation of the episode so far."""


class ACTModel(nn.Module):
    """Episodes around any inner model (`RecursiveInner`); state-dict keys are `inner.*`.

    Training, `forward(batch, carry)`: one ACT step (`_forward_train_original`). Evaluation, `forward(batch)`:
    a whole episode of `halt_max_steps` from a fresh carry (`_forward_eval`). `think` yields every step of an
    episode.

    `eval_halting="latched"`: in evaluation a row that halts (the rule of training, no exploration) keeps its latents,
    and with them its answer and its q values, to the end of the episode. It never starts again, as rows of the public
    transformer baseline do; once all rows have halted nothing more is computed.
    """

    FAMILY: ClassVar[str] = "recursive_reasoning"
    DATA_MODE: ClassVar[str] = "embedding"
    ACT_MODE: ClassVar[str] = "dynamic"

    def __init__(
        self,
        inner: Any,
        *,
        halt_max_steps: int,
        halt_exploration_prob: float,
        no_ACT_continue: bool,
        eval_halting: str,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.halt_max_steps = halt_max_steps
        self.halt_exploration_prob = halt_exploration_prob
        self.no_ACT_continue = no_ACT_continue
        self.eval_halting = eval_halting
        self.late_steps = 0
        """ACT steps that the rows which begin an example at this training step take before it, without gradient."""

    def forward(self, batch: dict[str, Tensor], carry: ACTCarry | None = None) -> ACTOutput:
        """batch: inputs, labels [B,T] int32, puzzle_identifiers [B] int32; in training optionally exploration
        [B,2].

        `exploration` holds uniform numbers of [0,1): column 0 decides whether the row explores, column 1
        picks its minimum number of steps. Absent, they come from torch's global generator. `keys` [B] int64 are those
        of the numbers that a fresh row draws (`draws_numbers`); absent, they follow from its inputs. In evaluation a
        carry is not examined.
        """
        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)

    # Training: one ACT step

    def _forward_train_original(self, batch: dict[str, Tensor], carry: ACTCarry | None) -> ACTOutput:
        latents, steps, data = self._open_rows(batch, carry)
        with self.inner.casts():
            x = self.inner.embed(data)
            if self.late_steps:
                latents = rolled_on(self.inner, latents, x, steps == 0, self.late_steps)
            latents, aux = self._recur(latents, x, data)
            logits = self.inner.logits(latents)
            q_halt, q_continue = self.inner.q_values(latents)
            latents = {name: latent.detach() for name, latent in latents.items()}
            with torch.no_grad():
                steps = steps + 1
                halted = self._halting(steps, q_halt, q_continue, batch.get(EXPLORATION))
                target = self._continue_target(latents, x, steps)
        return ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux)

    def _recur(self, latents: Latents, x: Tensor, data: dict[str, Tensor]) -> tuple[Latents, Aux]:
        moved: tuple[Latents, Aux] = (
            self.inner.recur(latents, x)
            if self.inner.chains == 1
            else self.inner.recur_winner(latents, x, data["labels"])
        )
        return moved

    def _open_rows(
        self, batch: dict[str, Tensor], carry: ACTCarry | None
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Latents, steps and data in which halted rows (all, without a carry) begin the offered example."""
        offered = {name: value for name, value in batch.items() if name not in (EXPLORATION, KEYS)}
        rows = offered["inputs"].shape[0]
        start = self.inner.initial(rows)
        if self.draws_numbers:
            start = self.inner.keyed(start, offered["inputs"], batch.get(KEYS))
        if carry is None:
            return start, torch.zeros(rows, dtype=torch.int32, device=offered["inputs"].device), offered
        halted = carry.halted
        latents = {name: where_rows(halted, start[name], carry.latents[name]) for name in start}
        data = {name: where_rows(halted, value, carry.data[name]) for name, value in offered.items()}
        return latents, carry.steps.masked_fill(halted, 0), data

    def _halting(self, steps: Tensor, q_halt: Tensor, q_continue: Tensor, exploration: Tensor | None) -> Tensor:
        """Which rows halt after this step, [B] bool."""
        last = steps >= self.halt_max_steps
        if self.halt_max_steps == 1:
            return last
        willing = self._willing(q_halt, q_continue)
        if exploration is None:
            if self.halt_exploration_prob == 0.0:
                return last | willing
            exploration = torch.rand(steps.shape[0], 2, device=steps.device)
        explores = exploration[:, 0] < self.halt_exploration_prob
        least = 2 + (exploration[:, 1] * (self.halt_max_steps - 1)).to(steps.dtype)  # uniform over 2..halt_max_steps
        least = least.clamp(max=self.halt_max_steps).masked_fill(~explores, 0)
        return (last | willing) & (steps >= least)

    def _willing(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Which rows would stop by their q values, [B] bool."""
        return q_halt > 0 if self.no_ACT_continue else q_halt > q_continue

    def _continue_target(self, latents: dict[str, Tensor], x: Tensor, steps: Tensor) -> Tensor | None:
        """Value of thinking one step further, [B]: sigmoid of the best q after the next step (the halt q at
        the last)."""
        if self.no_ACT_continue or self.halt_max_steps == 1:
            return None
        next_halt, next_continue = self.inner.q_values(self.inner.recur(latents, x)[0])
        last = steps >= self.halt_max_steps
        return torch.sigmoid(torch.where(last, next_halt, torch.maximum(next_halt, next_continue)))

    # Evaluation: whole episodes

    @torch.no_grad()
    def _forward_eval(self, batch: dict[str, Tensor]) -> ACTOutput:
        with self.inner.casts():
            carry, x = self._open_episode(batch)
            for _ in range(self.halt_max_steps):
                carry = self._eval_step(carry, x, self.halt_max_steps)
            return self._eval_output(carry)

    def think(
        self, batch: dict[str, Tensor], steps: int | None = None, vary: Vary | None = None
    ) -> Iterator[ACTOutput]:
        """Yield every ACT step of an episode with its logits; `steps` may exceed `halt_max_steps` (test-time
        depth). Latched rows repeat their answer: the number of outputs never depends on q values. `vary` changes the
        latents that a step begins with (variation.py)."""
        most = self.halt_max_steps if steps is None else steps
        with torch.no_grad():
            carry, x = self._open_episode(batch)
        for number in range(most):
            with torch.no_grad(), self.inner.casts():  # closed before each yield: the caller's grad mode is its own
                if vary is not None:
                    carry = self._varied(carry, vary, number)
                carry = self._eval_step(carry, x, most)
                output = self._eval_output(carry)
            yield output

    rollout_keys = staticmethod(rollout_keys)

    def variation(self, kind: str, keys: Tensor, plain: Tensor, sigma: float) -> Vary | None:
        """What `think` takes to let rollouts differ by `init` or `noise`; None for `symmetry`, which is the data's.

        `keys` [B] int64 (`rollout_keys`) decide the random numbers of a row; rows that are `plain` [B] have none.
        """
        if kind == "init":
            return random_start(keys, plain)
        return step_noise(keys, plain, sigma) if kind == "noise" else None

    def _varied(self, carry: ACTCarry, vary: Vary, number: int) -> ACTCarry:
        """The carry with the latents, not what else a variant keeps, changed in the rows that have not halted."""
        moved = {}
        for place, name in enumerate(self.inner.latent_names):
            latent = carry.latents[name]
            moved[name] = where_rows(carry.halted, latent, vary(number, place, latent))
        return replace(carry, latents={**carry.latents, **moved})

    @torch.no_grad()
    def begin(self, batch: dict[str, Tensor]) -> ACTCarry:
        """The carry of rows that begin the examples of `batch`: the form that every carry has."""
        return self._open_episode(batch)[0]

    def _open_episode(self, batch: dict[str, Tensor]) -> tuple[ACTCarry, Tensor]:
        """A fresh carry in which every row runs, and the embedded input x [B,S,D]."""
        latents, steps, data = self._open_rows(batch, None)
        return ACTCarry(latents, steps, torch.zeros_like(steps, dtype=torch.bool), data), self.inner.embed(data)

    def _eval_step(self, carry: ACTCarry, x: Tensor, most: int) -> ACTCarry:
        """One step of an episode of `most`; a halted row stays as it is (before the end only latching halts)."""
        latched, halted = self.eval_halting == "latched", carry.halted
        if latched and halted.all():
            return carry
        (latents, _), steps = self.inner.recur(carry.latents, x), carry.steps + ~halted
        if latched:
            latents = {name: where_rows(halted, carry.latents[name], moved) for name, moved in latents.items()}
            halted = halted | self._willing(*self.inner.q_values(latents))
        return ACTCarry(latents, steps, halted | (steps >= most), carry.data)

    def _eval_output(self, carry: ACTCarry) -> ACTOutput:
        q_halt, q_continue = self.inner.q_values(carry.latents)
        return ACTOutput(
            carry, self.inner.logits(carry.latents), q_halt, q_continue, aux=self.inner.episode_aux(carry.latents)
        )

    # Facts about the model

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group name; the sparse puzzle table is not a parameter: see `puzzle_emb`."""
        return {"trunk": list(self.parameters())}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Hidden matrices by parameter name, for optimizers of matrices, with the rows of each that one stacks."""
        return {f"inner.{name}": rows for name, rows in self.inner.matrices().items()}

    def set_progress(self, share: float) -> None:
        """Training has come to this share of the run, 0 to 1: for models that change with it."""

    @property
    def noise_width(self) -> int:
        """Normal numbers [noise_width] that each fresh example of training comes with, as `noise` in the batch."""
        return 0

    @property
    def late_states(self) -> tuple[float, list[int]]:
        """Probability that a training step has `late_steps`, and the numbers that are drawn from."""
        return 0.0, []

    @property
    def draws_numbers(self) -> bool:
        """Whether each fresh example of training comes with a key, as `keys` in the batch."""
        return bool(self.inner.draws)

    @property
    def puzzle_emb(self) -> Any:
        """The sparse table (`SparseEmbedding`), or None."""
        return self.inner.puzzle_emb

    def blocks(self) -> list[nn.Module]:
        """Compile units: the blocks of all stacks."""
        blocks: list[nn.Module] = self.inner.blocks()
        return blocks

    def num_parameters(self) -> int:
        """Trained parameters; puzzle table and latent starts are buffers and do not count."""
        return sum(p.numel() for p in self.parameters())

    @property
    def block_calls(self) -> int:
        """Calls of a block in one ACT step of one row, in evaluation."""
        once = sum(len(self.inner.get_submodule(update.stack).layers) for update in self.inner.plan)
        return int(self.inner.chains) * once

    @property
    def depth(self) -> Depth:
        """That of evaluations, and of training unless a stage sets another."""
        return self.inner.plan, self.inner.window

    @property
    def stages(self) -> list[tuple[float, Depth]]:
        """(share of the run at which it begins, depth of its steps) of each stage of training."""
        return [(0.0, self.depth)]

    def flops(self, batch_rows: int) -> dict[str, float]:
        """Operations for `batch_rows` rows: `train` one step with its backward pass, `eval` one whole
        episode, both at full depth (`stage_flops` has those of a schedule).

        Blocks only (embedding and heads are below 1 %): forward of all updates, twice the window's for its
        backward, and the second pass of the continue target. TRM-attention on Sudoku, 768 rows: 36.6e12. Of several
        chains all go forward, and the winner's window once more. An episode counts halt_max_steps, which latched
        halting may cut short; steps before a late state are not counted.
        """
        step, _ = self.inner.flops(*self.depth)
        return {
            "train": self._train_flops(batch_rows, self.depth),
            "eval": float(batch_rows * self.halt_max_steps * self.inner.chains * step),
        }

    def stage_flops(self, batch_rows: int) -> list[tuple[float, float]]:
        """(share of the run at which it begins, operations of one training step) of each stage of training."""
        return [(begins, self._train_flops(batch_rows, depth)) for begins, depth in self.stages]

    def _train_flops(self, batch_rows: int, depth: Depth) -> float:
        step, window = self.inner.flops(*depth)
        chains = self.inner.chains
        passes = chains if self.no_ACT_continue or self.halt_max_steps == 1 else 2
        return float(batch_rows * (passes * step + (2 if chains == 1 else 3) * window))
