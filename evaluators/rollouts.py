"""Test-time scaling: run several rollouts of each puzzle and select one without its label.

N puzzles of a batch, R rollouts, D ACT steps, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from dataset.maze.paths import judge
from dataset.symmetries import Draw, Symmetries, symmetries_of
from engine.distributed import all_reduce_sum, keyed_numpy
from engine.fields import Range, check_fields
from engine.io import UsageError
from evaluators.intervals import wilson
from evaluators.maze import grids, holds_mazes
from evaluators.selection import RULES, RolloutOutputs
from evaluators.steps import IGNORE

Kind = Literal["init", "noise", "symmetry"]
ORACLE = "oracle"
"""Share of puzzles that any rollout solves: an upper bound for every selection rule."""


@dataclass(kw_only=True)
class RolloutsConfig:
    """Settings of `rollouts@Rollouts`."""

    rollouts: Annotated[int, Range(low=2)] = 8
    """Number of rollouts per puzzle; the first is unperturbed."""
    vary: Kind = "init"
    """How the other rollouts differ. init: latents start from TruncN(0, 1); noise: z += sigma * eps before every ACT
    step; symmetry: a random symmetry of the data set, undone in the answer."""
    select: Literal["residual", "q", "first", "vote", "vote_cells"] = "q"
    """Selection rule. residual: smallest change of the logits over the last 3 steps; q: largest q_halt; first: the
    first with q_halt above 0; vote: the most frequent answer; vote_cells: the most frequent token in each cell."""
    sigma: Annotated[float, Range(above=0)] = 0.3
    """Standard deviation of the noise."""
    steps: Annotated[int | None, Range(low=2)] = None
    """ACT steps per rollout; null: arch.halt_max_steps."""
    seed: Annotated[int, Range(low=0)] = 0
    """Seed of initial latents, noise and symmetries."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Figure:
    """Result of one rule with a given number of rollouts and steps."""

    rule: str
    rollouts: int
    steps: int
    block_calls: float
    """Mean per puzzle."""
    exact: float
    low: float
    high: float
    shortest_path: float | None = None
    """For mazes: share answered with any shortest path, the reference or another."""


class Rollouts:
    """Exact accuracy of every rule for 1, 2, 4, … rollouts and a quarter, half and all of the steps.

    Metrics use all rollouts and steps: `rollouts/exact_accuracy` (of the rule `select`) with its 95 % interval,
    `rollouts/plain` (the unperturbed model), `rollouts/oracle`, `rollouts/block_calls` per puzzle, and for mazes
    `rollouts/shortest_path` (any shortest path). `figures` has the rest. Rules see only answers, q values and
    residuals; labels are removed from the batch before it is given to the model.
    """

    Config: ClassVar[type] = RolloutsConfig
    needs_steps: ClassVar[bool] = False

    def __init__(self, config: RolloutsConfig) -> None:
        self.config = config
        self.begin()

    def attach(self, model: Any, loss_head: Any) -> None:
        """Set the model. Raises: UsageError if it takes fewer than 2 ACT steps."""
        self.model = model
        if self.steps < 2:
            raise UsageError("rollouts need 2 ACT steps or more (arch.halt_max_steps=1, or --steps 1)")

    @property
    def steps(self) -> int:
        """ACT steps per rollout."""
        return self.config.steps or int(self.model.halt_max_steps)

    def begin(self, splits: Sequence[Any] = ()) -> None:
        """Reset the counts. Raises: UsageError for vary=symmetry if a data set declares no symmetries."""
        self.draw: Draw | None = None
        if self.config.vary == "symmetry":
            for split in splits:
                self.draw = symmetries_of(split.root, split.metadata)
                if self.draw is None:
                    raise UsageError(
                        f"vary=symmetry: {split.root} declares no symmetries (Sudoku and maze sets do): "
                        "choose init or noise"
                    )
        self.mazes = bool(splits) and all(holds_mazes(split) for split in splits)
        self.examples = torch.zeros((), dtype=torch.float64)
        self.sums: dict[tuple[str, int, int], Tensor] = {}
        """(rule, rollouts, steps) -> [steps needed, exact, any shortest path]"""

    def update(self, batch: Mapping[str, Tensor], steps: Sequence[Any], preds: Tensor, valid_rows: int) -> None:
        """Run and count rollouts of the first `valid_rows` rows, in chunks no larger than the batch."""
        together = max(1, batch["inputs"].shape[0] // self.config.rollouts)
        for low in range(0, valid_rows, together):
            part = {name: value[low : min(low + together, valid_rows)] for name, value in batch.items()}
            labels = part.pop("labels")
            self._count(self.roll(part), part["inputs"], labels)

    @torch.no_grad()
    def roll(self, puzzles: Mapping[str, Tensor]) -> RolloutOutputs:
        """Run all rollouts of a batch of puzzles (inputs [N, T], ...) without labels."""
        count, width = self.config.rollouts, len(puzzles["inputs"])
        rows = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in puzzles.items()}
        seed = int(keyed_numpy(self.config.seed, f"rollouts/{self.config.vary}", 0).integers(1 << 62))
        keys = self.model.rollout_keys(puzzles["inputs"], count, seed)
        symmetry = self._symmetry(keys.tolist(), width)
        if symmetry is not None:
            transformed = symmetry.apply(rows["inputs"].cpu().numpy())
            rows["inputs"] = torch.from_numpy(transformed).to(rows["inputs"])
        rows["labels"] = torch.full_like(rows["inputs"], IGNORE)
        plain = torch.arange(count * width, device=keys.device) < width
        vary = self.model.variation(self.config.vary, keys, plain, self.config.sigma)
        halting, self.model.eval_halting = self.model.eval_halting, "fixed"
        answers, q, residuals, previous = [], [], [], None
        try:
            for output in self.model.think(rows, self.steps, vary):
                logits = output.logits
                answer = logits.argmax(dim=-1)
                if symmetry is not None:
                    answer = torch.from_numpy(symmetry.undo(answer.cpu().numpy())).to(answer)
                answers.append(answer.view(count, width, -1))
                q.append(output.q_halt_logits.view(count, width))
                residual = q[-1].new_full((count * width,), math.inf)
                if previous is not None:
                    residual = torch.linalg.vector_norm((logits - previous).float(), dim=-1).mean(dim=-1)
                residuals.append(residual.view(count, width))
                previous = logits
        finally:
            self.model.eval_halting = halting
        return RolloutOutputs(torch.stack(answers, dim=1), torch.stack(q, dim=1), torch.stack(residuals, dim=1))

    def _symmetry(self, keys: Sequence[int], plain: int) -> Symmetries | None:
        """Random symmetries of all rows, the identity for the first `plain`."""
        if self.draw is None:
            return None
        drawn = [self.draw(1, np.random.default_rng(key % (1 << 64))) for key in keys]
        cells, tokens = (
            np.concatenate(parts) for parts in zip(*((one.cells, one.tokens) for one in drawn), strict=True)
        )
        cells[:plain], tokens[:plain] = np.arange(cells.shape[1]), np.arange(tokens.shape[1])
        return Symmetries(cells, tokens)

    def _grid(self) -> Iterator[tuple[int, int]]:
        """All (rollouts, steps) of `figures`."""
        count, steps = self.config.rollouts, self.steps
        breadths = sorted({1 << power for power in range(count.bit_length()) if 1 << power <= count} | {count})
        for depth in sorted({max(1, steps // 4), max(1, steps // 2), steps}):
            yield from ((breadth, depth) for breadth in breadths)

    def _count(self, outputs: RolloutOutputs, inputs: Tensor, labels: Tensor) -> None:
        scored = labels != IGNORE
        real = scored.any(dim=-1)
        self.examples += real.sum().cpu()

        def score(answers: Tensor) -> Tensor:
            """Whether answers [N, T] are exact, and whether they are a shortest path: bool [2, N]."""
            exact = ((answers == labels) | ~scored).all(dim=-1)
            return torch.stack([exact, self._is_shortest(inputs, answers)]) & real

        depths = {depth for _, depth in self._grid()}
        ends = {depth: torch.stack([score(answers) for answers in outputs.answers[:, depth - 1]]) for depth in depths}
        for breadth, depth in self._grid():
            cut = outputs.cut(breadth, depth)
            counted = {rule: (score(answers), used) for rule, (answers, used) in _chosen(cut).items()}
            counted[ORACLE] = (ends[depth][:breadth].any(dim=0), torch.full_like(real, depth, dtype=torch.int64))
            for rule, (scores, used) in counted.items():
                sums = torch.stack([(used * real).sum(), *scores.sum(dim=1)]).double().cpu()
                name = (rule, breadth, depth)
                self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def _is_shortest(self, inputs: Tensor, answers: Tensor) -> Tensor:
        """Whether answers [N, T] are shortest paths of their mazes: bool [N], False for other puzzles."""
        if not self.mazes:
            return torch.zeros(len(answers), dtype=torch.bool, device=answers.device)
        return torch.from_numpy(judge(grids(inputs), grids(answers)).shortest).to(answers.device)

    def figures(self) -> list[Figure]:
        """Results of all rules at all numbers of rollouts and steps, over all ranks; the same list on each."""
        examples = float(all_reduce_sum(self.examples.clone()))
        if not examples:
            return []
        empty = torch.zeros(3, dtype=torch.float64)
        out = []
        for breadth, depth in self._grid():
            for rule in (*RULES, ORACLE):
                used, exact, shortest = all_reduce_sum(self.sums.get((rule, breadth, depth), empty).clone()).tolist()
                calls = breadth * used / examples * self.model.block_calls
                low, high = wilson(exact, examples)
                shortest_path = shortest / examples if self.mazes else None
                out.append(Figure(rule, breadth, depth, calls, exact / examples, low, high, shortest_path))
        return out

    def result(self) -> dict[str, float | None]:
        """The metrics; None if there were no examples."""
        end = {(f.rule, f.rollouts): f for f in self.figures() if f.steps == self.steps}
        if not end:
            return {"rollouts/exact_accuracy": None}
        chosen, oracle = end[self.config.select, self.config.rollouts], end[ORACLE, self.config.rollouts]
        mazes = {"rollouts/shortest_path": chosen.shortest_path} if self.mazes else {}
        return mazes | {
            "rollouts/exact_accuracy": chosen.exact,
            "rollouts/exact_accuracy_low": chosen.low,
            "rollouts/exact_accuracy_high": chosen.high,
            "rollouts/plain": end[ORACLE, 1].exact,
            "rollouts/oracle": oracle.exact,
            "rollouts/block_calls": chosen.block_calls,
        }


def _chosen(outputs: RolloutOutputs) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: rule(outputs) for name, rule in RULES.items()}
