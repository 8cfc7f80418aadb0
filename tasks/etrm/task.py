"""One training step over demonstrations: RecursiveReasoningTask with slots that walk streams of their own.

Slot s takes example 0, 1, 2 ... of its stream whenever it has halted, so nothing that is loaded is thrown away. How
many each slot has taken is the whole position in the data; it is saved in global row order, like the carry.

Shapes: B global rows, b rows of one micro-batch on one rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.distributed import local_rows
from engine.task import Metrics, ParamGroup, RowSharded
from evaluators.adaptation.search import SearchConfig, Space, search
from models.recursive_reasoning.act import ACTCarry, ACTOutput
from models.recursive_reasoning.etrm import DEMONSTRATIONS
from tasks.etrm.args import ETRMConfig
from tasks.etrm.diagnostics import ContextUse, context_metrics
from tasks.recursive_reasoning.task import MicroBatch, RecursiveReasoningTask


class SlotPlan:
    """The length of a run and where evaluations fall: `epochs` passes, as if all slots took an example at each step."""

    def __init__(self, examples_per_epoch: int, config: ETRMConfig) -> None:
        self.examples, self.batch = examples_per_epoch, config.global_batch_size
        self.epochs, self.interval = config.epochs, config.eval_interval or config.epochs

    def step_after(self, epochs: int) -> int:
        """The step that completes so many epochs, at least 1."""
        return max(1, self.examples * epochs // self.batch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.step_after(self.epochs)

    def evaluation_steps(self, skip: int) -> Collection[int]:
        """The steps that complete an eval interval, without the first `skip` of them."""
        return frozenset(
            self.step_after(number * self.interval) for number in range(skip + 1, self.epochs // self.interval + 1)
        )


class ETRMTask(RecursiveReasoningTask):
    """The Task of pretrain_etrm.py, for models that encode demonstrations, of both ACT modes.

    Args:
        frozen: parameter group -> steps at the start in which it does not change.
        diagnostics_interval: steps between the diagnostics that cost something.
        search: of a latent, at the beginning of each training example; None does without.
    """

    sampler: Any  # dataset.fewshot.FewShotSampler
    not_captured = "the host reads the number and lengths of the demonstrations"

    def __init__(
        self,
        *args: Any,
        groups: list[ParamGroup],
        frozen: Mapping[str, int],
        diagnostics_interval: int,
        search: SearchConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, groups=groups, **options)
        self._fixed = self.model.ACT_MODE == "fixed"
        self._step = 0
        low, high = local_rows(self.global_rows)
        self._taken = torch.zeros(high - low, dtype=torch.int64)
        self._interval, self._search = diagnostics_interval, search
        self._context_use = ContextUse(self.model, self.loss_head.token_loss, high - low)
        self._frozen = dict(frozen)
        self._params = {group.name: list(group.dense.values()) for group in groups}
        for name, steps in self._frozen.items():
            for param in self._params[name] if steps else ():
                # no part in the norm that is clipped, either
                param.register_hook(lambda gradient, name=name: gradient * (self._step > self._frozen[name]))

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """As for puzzles with embeddings; `shift` is what the search has found for the rows that begin an example."""
        for piece, batch in super().micro_batches(step):
            if self._search is not None:
                batch["shift"] = self._searched(batch, self._fresh()[self._rows_of((piece, batch))], self._search)
            yield piece, batch

    def _searched(self, batch: dict[str, Tensor], fresh: Tensor, config: SearchConfig) -> Tensor:
        """From the encoder's latent to the one that the search prefers, [b, ...]: a constant, as in LPN's training. It
        serves the whole episode; rows that continue theirs have zeros here."""
        model: Any = self.model
        out = torch.zeros(len(fresh), *model.encoder.shift_shape, device=batch["inputs"].device)
        rows = fresh.nonzero()[:, 0].to(out.device)
        if len(rows):
            space, begun = Space(model), {name: values[rows] for name, values in batch.items()}
            best = search(space, begun, self.loss_head.token_loss, config).latents[max(config.budgets)]
            out[rows] = (best - space.start(begun)).to(out.dtype)
        return out

    def _offered(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
        """The next example of each slot that takes one; blank rows for the others, which do not read theirs."""
        self._step = step
        fresh = self._fresh().numpy()
        rows: dict[str, np.ndarray] = self.sampler.splits[0].padding(high - low)
        if fresh.any():
            slots = np.arange(low, high)[fresh]
            for name, values in self.sampler.take(slots, self._taken.numpy()[fresh]).items():
                rows[name][fresh] = values
        return rows

    def _fresh(self) -> Tensor:
        """[B / ranks] bool on the CPU: the slots of this rank that begin an example at the next step."""
        known = [None if carry is None else carry.halted.cpu() for carry in self._carries]
        return torch.cat([torch.ones(self.micro_rows, dtype=torch.bool) if one is None else one for one in known])

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, float, Metrics]:
        """As for puzzles with embeddings. A model whose ACT_MODE is fixed has done with its examples after it."""
        piece, cut = micro_batch[0], self._rows_of(micro_batch)
        fresh = self._fresh()[cut]
        self._before = self._carries[piece]
        total, weight, metrics = super().loss(micro_batch)
        self._taken[cut] += fresh
        share = fresh.sum().to(total.device), torch.full((), len(fresh), device=total.device)
        if self._fixed:
            self._carries[piece] = None
        return total, weight, {**metrics, "fresh": share}

    def _rows_of(self, micro_batch: MicroBatch) -> slice:
        """The place of its rows among those of this rank."""
        return slice(micro_batch[0] * self.micro_rows, (micro_batch[0] + 1) * self.micro_rows)

    def _task_metrics(self, output: ACTOutput, micro_batch: MicroBatch) -> Metrics:
        """Diagnostics of the context (docs/etrm.md)."""
        due = self._step % self._interval == 0
        batch = micro_batch[1]
        groups = batch["group_ids"] if self._fixed else output.carry.data["group_ids"]
        context = output.aux["context"]
        return {
            **context_metrics(context, groups, output.aux.get("mu"), output.aux.get("sigma"), due=due),
            **self._context_use.metrics(batch, self._before, context, groups, due=due),
            **self._context_use.coverage(context, self._rows_of(micro_batch)),
        }

    def _offers(self, before: ACTCarry | None, now: ACTCarry) -> Metrics:
        """Nothing: a slot is offered an example when it takes one, none is dropped, and `fresh` is there always."""
        return {}

    def left_out(self) -> list[nn.Parameter]:
        """Parameters of the groups that are frozen in this step: not even their decay moves them."""
        return [param for name, until in self._frozen.items() if self._step <= until for param in self._params[name]]

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The carry, how many examples each slot has taken, and what the next step will report of this one."""
        reached = self._context_use.reached.clone()
        return {**super().state_dict(), "taken": RowSharded(self._taken.clone()), "reached": RowSharded(reached)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse, for any number of ranks and pieces. A run that stores no carry begins new examples."""
        taken = state["taken"]
        self._require_slots(len(taken))
        if bool((taken < 0).any()):
            raise ValueError("taken holds numbers below 0")
        super().load_state_dict({name: part for name, part in state.items() if name == "carry"})
        self._taken, self._context_use.reached = taken.cpu().clone(), state["reached"].float().clone()

    def _check_carry(self, saved: dict[str, Any], rows: int) -> None:
        super()._check_carry(saved, rows)
        words = self.sampler.splits[0].metadata.vocab_size
        for name in DEMONSTRATIONS[:2]:
            if not bool(((saved["data"][name] >= 0) & (saved["data"][name] < words)).all()):
                raise ValueError(f"carry.data.{name} holds numbers beyond 0 to {words - 1}")
