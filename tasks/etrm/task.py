"""The task of recursive models over demonstrations: a RecursiveReasoningTask whose slots each have a data stream.

Slot s takes example 0, 1, 2 ... of its stream whenever it has halted, so no loaded example is dropped. The number of
examples each slot has taken is the whole data position; it is saved in global row order, like the carry.

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
    """Length of a run and its evaluation steps: `epochs` passes, counted as if every slot took an example each step."""

    def __init__(self, examples_per_epoch: int, config: ETRMConfig) -> None:
        self.examples, self.batch = examples_per_epoch, config.global_batch_size
        self.epochs, self.interval = config.epochs, config.eval_interval or config.epochs

    def step_after(self, epochs: int) -> int:
        """The step that completes `epochs` epochs, at least 1."""
        return max(1, self.examples * epochs // self.batch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.step_after(self.epochs)

    def evaluation_steps(self, skip: int) -> Collection[int]:
        """The steps that complete an eval interval, without the first `skip`."""
        return frozenset(
            self.step_after(number * self.interval) for number in range(skip + 1, self.epochs // self.interval + 1)
        )


class ETRMTask(RecursiveReasoningTask):
    """The Task of pretrain_etrm.py, for models of both ACT modes that encode demonstrations.

    Args:
        frozen: parameter group -> number of initial steps during which it is frozen.
        diagnostics_interval: steps between the costly diagnostics.
        search: latent search at the start of each training example; None for no search.
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
                # frozen gradients must not enter the norm for clipping either
                param.register_hook(lambda gradient, name=name: gradient * (self._step > self._frozen[name]))

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """As for puzzle embeddings, plus `shift`, the result of the latent search for rows that start an example."""
        for piece, batch in super().micro_batches(step):
            if self._search is not None:
                batch["shift"] = self._search_shift(batch, self._fresh()[self._rows_of((piece, batch))], self._search)
            yield piece, batch

    def _search_shift(self, batch: dict[str, Tensor], fresh: Tensor, config: SearchConfig) -> Tensor:
        """The best latent of the search minus the encoder's, [b, ...]: a constant, as in LPN's training. It is kept for
        the whole episode; zero here for rows that continue an episode."""
        model: Any = self.model
        out = torch.zeros(len(fresh), *model.encoder.shift_shape, device=batch["inputs"].device)
        rows = fresh.nonzero()[:, 0].to(out.device)
        if len(rows):
            space, starting = Space(model), {name: values[rows] for name, values in batch.items()}
            best = search(space, starting, self.loss_head.token_loss, config).latents[max(config.budgets)]
            out[rows] = (best - space.start(starting)).to(out.dtype)
        return out

    def _offered(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
        """The next example of each slot that takes one; padding for the others, which ignore their row."""
        self._step = step
        fresh = self._fresh().numpy()
        rows: dict[str, np.ndarray] = self.sampler.splits[0].padding(high - low)
        if fresh.any():
            slots = np.arange(low, high)[fresh]
            for name, values in self.sampler.take(slots, self._taken.numpy()[fresh]).items():
                rows[name][fresh] = values
        return rows

    def _fresh(self) -> Tensor:
        """[B / ranks] bool on the CPU: which slots of this rank start an example at the next step."""
        known = [None if carry is None else carry.halted.cpu() for carry in self._carries]
        return torch.cat([torch.ones(self.micro_rows, dtype=torch.bool) if one is None else one for one in known])

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, float, Metrics]:
        """As for puzzle embeddings, plus the metric `fresh`. With ACT_MODE fixed every example is finished after it."""
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
        """The slice of the micro-batch within this rank's rows."""
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
        """Empty: an example is only offered to a slot that takes it, none is dropped, and `loss` logs `fresh`."""
        return {}

    def left_out(self) -> list[nn.Parameter]:
        """Parameters of the groups frozen in this step, which are not decayed either."""
        return [param for name, until in self._frozen.items() if self._step <= until for param in self._params[name]]

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The carry, the examples each slot has taken, and the gradient coverage that the next step will report."""
        reached = self._context_use.reached.clone()
        return {**super().state_dict(), "taken": RowSharded(self._taken.clone()), "reached": RowSharded(reached)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load `state_dict`, for any number of ranks and pieces. Without a stored carry, all slots start new examples.

        Raises: UsageError for another number of slots; ValueError for a damaged state.
        """
        taken = state["taken"]
        self._require_slots(len(taken))
        if bool((taken < 0).any()):
            raise ValueError("taken holds numbers below 0")
        super().load_state_dict({name: part for name, part in state.items() if name == "carry"})
        self._taken, self._context_use.reached = taken.cpu().clone(), state["reached"].float().clone()

    def _check_carry(self, saved: dict[str, Any], rows: int) -> None:
        super()._check_carry(saved, rows)
        vocab_size = self.sampler.splits[0].metadata.vocab_size
        for name in DEMONSTRATIONS[:2]:
            if not bool(((saved["data"][name] >= 0) & (saved["data"][name] < vocab_size)).all()):
                raise ValueError(f"carry.data.{name} holds numbers beyond 0 to {vocab_size - 1}")
