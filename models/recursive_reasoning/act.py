"""Adaptive computation time (ACT): each optimizer step takes one reasoning step per row and carries the state over.

A row that has halted starts the next example of the batch; all others keep their example and latents. Rows are selected
with `torch.where`, so a training step never synchronises with the device.
Shapes: B rows, T tokens, S = prefix + T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.recursive_reasoning.late_states import burn_in
from models.recursive_reasoning.recursion import Depth, where_rows
from models.recursive_reasoning.variation import Vary, random_start, rollout_keys, step_noise

EXPLORATION = "exploration"
KEYS = "keys"
Latents = dict[str, Tensor]
Aux = dict[str, Tensor]
"""Extra tensors [B, ...] that a variant passes to its own loss. Not carried to the next step."""


@dataclass(frozen=True)
class PuzzleShape:
    """Data sizes that a model depends on: tokens per example, vocabulary, and puzzle identifiers (including the blank
    one)."""

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int
    pad_id: int = 0


@dataclass
class ACTCarry:
    """State of B running episodes between steps. `latents` [B,S,D] (plus any other state of a variant, [B,...]) are
    detached; `data` is the example that each row is working on."""

    latents: dict[str, Tensor]
    steps: Tensor  # [B] int32, ACT steps taken on the current example
    halted: Tensor  # [B] bool, the row starts a new example at the next step
    data: dict[str, Tensor]  # inputs [B,T], labels [B,T] (-100 ignored), puzzle_identifiers [B]: int32

    def tensors(self) -> list[Tensor]:
        """Its tensors, in a fixed order."""
        return [self.steps, self.halted, *self.latents.values(), *self.data.values()]

    def map(self, function: Callable[[Tensor], Tensor]) -> ACTCarry:
        """Apply `function` to each tensor, in the order of `tensors`."""
        steps, halted = function(self.steps), function(self.halted)
        latents = {name: function(rows) for name, rows in self.latents.items()}
        return ACTCarry(latents, steps, halted, {name: function(rows) for name, rows in self.data.items()})

    def rows(self, index: slice) -> ACTCarry:
        """Select rows."""
        return self.map(lambda tensor: tensor[index])


@dataclass
class ACTOutput:
    """Output of one ACT step. q values are [B], at least float32; `target_q_continue` [B] is set only in training with
    a continue head."""

    carry: ACTCarry
    logits: Tensor | None  # [B,T,V] compute dtype; None if they were not computed
    q_halt_logits: Tensor
    q_continue_logits: Tensor
    target_q_continue: Tensor | None = None
    aux: Aux = field(default_factory=dict)
    """Of this step; in evaluation, of the episode so far."""


class ACTModel(nn.Module):
    """ACT wrapper around an inner model (`RecursiveInner`); state-dict keys are `inner.*`.

    Training, `forward(batch, carry)`: one ACT step (`_forward_train_original`). Evaluation, `forward(batch)`: a whole
    episode of `halt_max_steps` from a fresh carry (`_forward_eval`). `think` yields each step of an episode.

    With `eval_halting="latched"` a row that halts in evaluation (as in training, but without exploration) keeps its
    latents, and so its answer and q values, to the end of the episode. Unlike in the public transformer baseline it is
    never restarted. Once all rows have halted, computation stops.
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
        """Extra ACT steps, without gradient, that fresh rows take before this training step."""

    def forward(self, batch: dict[str, Tensor], carry: ACTCarry | None = None) -> ACTOutput:
        """One ACT step in training, a whole episode in evaluation (which ignores `carry`).

        batch: inputs, labels [B,T] int32, puzzle_identifiers [B] int32, and optionally in training:
        exploration [B,2], uniform in [0,1): column 0 decides whether a row explores, column 1 its minimum number of
        steps; drawn from torch's global generator if absent.
        keys [B] int64, the random keys of fresh rows (see `needs_keys`); derived from the inputs if absent.
        """
        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)

    # Training: one ACT step

    def _forward_train_original(self, batch: dict[str, Tensor], carry: ACTCarry | None) -> ACTOutput:
        latents, steps, data = self._reset_halted(batch, carry)
        with self.inner.casts():
            x = self.inner.embed(data)
            if self.late_steps:
                latents = burn_in(self.inner, latents, x, steps == 0, self.late_steps)
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
        result: tuple[Latents, Aux] = (
            self.inner.recur(latents, x)
            if self.inner.chains == 1
            else self.inner.recur_winner(latents, x, data["labels"])
        )
        return result

    def _reset_halted(
        self, batch: dict[str, Tensor], carry: ACTCarry | None
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """(latents, steps, data) in which halted rows (without a carry: all rows) start on the incoming examples."""
        incoming = {name: value for name, value in batch.items() if name not in (EXPLORATION, KEYS)}
        rows = incoming["inputs"].shape[0]
        start = self.inner.initial(rows)
        if self.needs_keys:
            start = self.inner.seeded(start, incoming["inputs"], batch.get(KEYS))
        if carry is None:
            return start, torch.zeros(rows, dtype=torch.int32, device=incoming["inputs"].device), incoming
        halted = carry.halted
        latents = {name: where_rows(halted, start[name], carry.latents[name]) for name in start}
        data = {name: where_rows(halted, value, carry.data[name]) for name, value in incoming.items()}
        return latents, carry.steps.masked_fill(halted, 0), data

    def _halting(self, steps: Tensor, q_halt: Tensor, q_continue: Tensor, exploration: Tensor | None) -> Tensor:
        """Which rows halt after this step, [B] bool: those that want to, unless exploring, and those at the limit."""
        last = steps >= self.halt_max_steps
        if self.halt_max_steps == 1:
            return last
        wants_halt = self._wants_halt(q_halt, q_continue)
        if exploration is None:
            if self.halt_exploration_prob == 0.0:
                return last | wants_halt
            exploration = torch.rand(steps.shape[0], 2, device=steps.device)
        explores = exploration[:, 0] < self.halt_exploration_prob
        # uniform over 2..halt_max_steps
        min_steps = 2 + (exploration[:, 1] * (self.halt_max_steps - 1)).to(steps.dtype)
        min_steps = min_steps.clamp(max=self.halt_max_steps).masked_fill(~explores, 0)
        return (last | wants_halt) & (steps >= min_steps)

    def _wants_halt(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Which rows halt by their q values alone, [B] bool."""
        return q_halt > 0 if self.no_ACT_continue else q_halt > q_continue

    def _continue_target(self, latents: dict[str, Tensor], x: Tensor, steps: Tensor) -> Tensor | None:
        """Q-learning target of q_continue, [B]: sigmoid of the larger q value after the next step (at the last step,
        of the halt value)."""
        if self.no_ACT_continue or self.halt_max_steps == 1:
            return None
        next_halt, next_continue = self.inner.q_values(self.inner.recur(latents, x)[0])
        last = steps >= self.halt_max_steps
        return torch.sigmoid(torch.where(last, next_halt, torch.maximum(next_halt, next_continue)))

    # Evaluation: whole episodes

    @torch.no_grad()
    def _forward_eval(self, batch: dict[str, Tensor]) -> ACTOutput:
        with self.inner.casts():
            carry, x = self._start_episode(batch)
            for _ in range(self.halt_max_steps):
                carry = self._eval_step(carry, x, self.halt_max_steps)
            return self._eval_output(carry)

    def think(
        self, batch: dict[str, Tensor], steps: int | None = None, vary: Vary | None = None
    ) -> Iterator[ACTOutput]:
        """Yield the output of every ACT step of an episode; `steps` may exceed `halt_max_steps`.

        Latched rows repeat their answer, so the number of outputs never depends on q values. `vary` perturbs the
        latents before each step (variation.py).
        """
        max_steps = self.halt_max_steps if steps is None else steps
        with torch.no_grad():
            carry, x = self._start_episode(batch)
        for number in range(max_steps):
            with torch.no_grad(), self.inner.casts():  # exited before the yield, which would leak no_grad
                if vary is not None:
                    carry = self._perturb(carry, vary, number)
                carry = self._eval_step(carry, x, max_steps)
                output = self._eval_output(carry)
            yield output

    rollout_keys = staticmethod(rollout_keys)

    def variation(self, kind: str, keys: Tensor, plain: Tensor, sigma: float) -> Vary | None:
        """The `vary` argument of `think` for rollouts that differ by `init` or `noise`; None for `symmetry`, which
        changes the data instead.

        `keys` [B] int64 (see `rollout_keys`) seed each row; rows marked `plain` [B] are left unchanged.
        """
        if kind == "init":
            return random_start(keys, plain)
        return step_noise(keys, plain, sigma) if kind == "noise" else None

    def _perturb(self, carry: ACTCarry, vary: Vary, number: int) -> ACTCarry:
        """Apply `vary` to the latents of rows that have not halted; other state of a variant is kept."""
        perturbed = {}
        for index, name in enumerate(self.inner.latent_names):
            latent = carry.latents[name]
            perturbed[name] = where_rows(carry.halted, latent, vary(number, index, latent))
        return replace(carry, latents={**carry.latents, **perturbed})

    @torch.no_grad()
    def initial_carry(self, batch: dict[str, Tensor]) -> ACTCarry:
        """A fresh carry for the examples of `batch`; all later carries have its shapes and dtypes."""
        return self._start_episode(batch)[0]

    def _start_episode(self, batch: dict[str, Tensor]) -> tuple[ACTCarry, Tensor]:
        """(a fresh carry with no row halted, the embedded input x [B,S,D])."""
        latents, steps, data = self._reset_halted(batch, None)
        return ACTCarry(latents, steps, torch.zeros_like(steps, dtype=torch.bool), data), self.inner.embed(data)

    def _eval_step(self, carry: ACTCarry, x: Tensor, max_steps: int) -> ACTCarry:
        """One step of an episode of `max_steps`. Halted rows do not change; only latched rows halt before the end."""
        latched, halted = self.eval_halting == "latched", carry.halted
        if latched and halted.all():
            return carry
        (latents, _), steps = self.inner.recur(carry.latents, x), carry.steps + ~halted
        if latched:
            latents = {name: where_rows(halted, carry.latents[name], latent) for name, latent in latents.items()}
            halted = halted | self._wants_halt(*self.inner.q_values(latents))
        return ACTCarry(latents, steps, halted | (steps >= max_steps), carry.data)

    def _eval_output(self, carry: ACTCarry) -> ACTOutput:
        q_halt, q_continue = self.inner.q_values(carry.latents)
        return ACTOutput(
            carry, self.inner.logits(carry.latents), q_halt, q_continue, aux=self.inner.episode_aux(carry.latents)
        )

    # Facts about the model

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group name. The sparse puzzle table is not a parameter: see `puzzle_emb`."""
        return {"trunk": list(self.parameters())}

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Hidden matrices by parameter name, for Muon-like optimizers: the rows of each stacked matrix, else ()."""
        return {f"inner.{name}": rows for name, rows in self.inner.matrices().items()}

    def set_progress(self, share: float) -> None:
        """Called with the share of the run done so far, 0 to 1; for models with a training schedule."""

    @property
    def noise_width(self) -> int:
        """Standard normal numbers per fresh training example, given as `noise` [B, noise_width] in the batch."""
        return 0

    @property
    def late_states(self) -> tuple[float, list[int]]:
        """(probability that a training step has late states, numbers of extra ACT steps to draw from)."""
        return 0.0, []

    @property
    def needs_keys(self) -> bool:
        """Whether fresh training examples need a random key, given as `keys` [B] in the batch."""
        return bool(self.inner.needs_keys)

    @property
    def puzzle_emb(self) -> Any:
        """The sparse puzzle table (`SparseEmbedding`), or None."""
        return self.inner.puzzle_emb

    def blocks(self) -> list[nn.Module]:
        """Compile units: the blocks of all stacks."""
        blocks: list[nn.Module] = self.inner.blocks()
        return blocks

    def num_parameters(self) -> int:
        """Trained parameters. The puzzle table and initial latents are buffers and do not count."""
        return sum(p.numel() for p in self.parameters())

    @property
    def block_calls(self) -> int:
        """Block calls per row in one ACT step of evaluation."""
        per_chain = sum(len(self.inner.get_submodule(update.stack).layers) for update in self.inner.plan)
        return int(self.inner.chains) * per_chain

    @property
    def depth(self) -> Depth:
        """Depth of evaluation, and of training unless a stage sets another."""
        return self.inner.plan, self.inner.window

    @property
    def stages(self) -> list[tuple[float, Depth]]:
        """(share of the run at which it starts, depth) of each stage of training."""
        return [(0.0, self.depth)]

    def flops(self, batch_rows: int) -> dict[str, float]:
        """FLOPs for `batch_rows` rows at full depth: `train`, one step with its backward pass; `eval`, one whole
        episode. See `stage_flops` for a schedule.

        Counts blocks only (embedding and heads are below 1 %): the forward pass of all updates, twice the window for
        its backward pass, and the second pass for the continue target. With several chains all run forward, and the
        winner's window once more. An episode counts halt_max_steps, which latched halting may cut short; extra steps of
        late states are not counted. TRM-attention on Sudoku, 768 rows: 36.6e12.
        """
        step, _ = self.inner.flops(*self.depth)
        return {
            "train": self._train_flops(batch_rows, self.depth),
            "eval": float(batch_rows * self.halt_max_steps * self.inner.chains * step),
        }

    def stage_flops(self, batch_rows: int) -> list[tuple[float, float]]:
        """(share of the run at which it starts, FLOPs of one training step) of each stage of training."""
        return [(start, self._train_flops(batch_rows, depth)) for start, depth in self.stages]

    def _train_flops(self, batch_rows: int, depth: Depth) -> float:
        step, window = self.inner.flops(*depth)
        chains = self.inner.chains
        passes = chains if self.no_ACT_continue or self.halt_max_steps == 1 else 2
        return float(batch_rows * (passes * step + (2 if chains == 1 else 3) * window))
