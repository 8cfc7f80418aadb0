"""The task of recursive models with a carry: one optimizer step is one ACT step for each slot of the batch.

A slot keeps its puzzle between optimizer steps and takes the new example of its row only once it has halted; the new
examples of the other slots are dropped, as in the published recipe (so epochs are nominal).

Shapes: B global rows, b rows of one micro-batch on one rank, T sequence length.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dataset.format import PuzzleSplit
from dataset.online import OnlineCopies
from dataset.sampler import EvalSampler, TrainSampler
from engine.device import staged
from engine.distributed import all_reduce_sum, keyed_generator, keyed_numpy, local_rows
from engine.io import print_rank0
from engine.task import Evaluation, Interrupted, Metrics, ParamGroup, RowSharded, Runtime, UsageError
from losses import ACTLossHead
from models.recursive_reasoning.act import ACTCarry, ACTModel, ACTOutput
from tasks.recursive_reasoning.epochs import EpochPlan
from tasks.recursive_reasoning.halting import halting_shares, offer_shares
from tasks.sums import add_metrics, mean_of

Batch = dict[str, Tensor]
MicroBatch = tuple[int, Batch]
NARROW = (torch.int8, torch.int16)
"""Token dtypes of samplers."""


class Evaluator(Protocol):
    """The interface of `evaluators/`: `update` gets every evaluation batch, `result` returns the metrics at the end.

    Optional: `files`, file name -> text, for an evaluator that writes files, valid after `result`;
    `attach(model, loss_head)`, called once before anything else, for one that runs the model itself; `test_only`, true
    for one that only applies to test splits and is skipped on held-out training groups.
    """

    needs_steps: bool

    def begin(self, splits: Sequence[PuzzleSplit]) -> None: ...

    def update(self, batch: Batch, steps: list[ACTOutput], preds: Tensor, valid_rows: int) -> None: ...

    def result(self) -> dict[str, float | None]: ...


class RecursiveReasoningTask:
    """The Task of pretrain.py, for any model behind the ACT wrapper.

    Args:
        eval_sampler: batches of evaluations during training; `final_sampler`: those of the last one (`eval/...`).
        copies: draws a random augmentation of each offered example; None offers the stored ones.
        saves_carry: whether the state dict includes the carry.
        halting_metrics: whether a step also logs the metrics of `halting.py`.
        validation_sampler: replaces `eval_sampler` if held-out training groups (`val/...`) select the checkpoint.
    """

    compiles = "block"
    not_captured = ""

    def __init__(
        self,
        model: ACTModel,
        loss_head: ACTLossHead,
        *,
        runtime: Runtime,
        sampler: TrainSampler,
        plan: EpochPlan,
        global_rows: int,
        batch_key: str,
        eval_sampler: EvalSampler,
        final_sampler: EvalSampler,
        evaluators: list[Evaluator],
        groups: list[ParamGroup],
        validation_sampler: EvalSampler | None = None,
        copies: OnlineCopies | None = None,
        saves_carry: bool = True,
        halting_metrics: bool = False,
    ) -> None:
        self.module: nn.Module = model
        self.model = model  # the bare model, for evaluation
        self.loss_head, self.runtime = loss_head, runtime
        self.sampler, self.plan, self.global_rows = sampler, plan, global_rows
        self._copies = copies
        self.batch_key, self.micro_rows = batch_key, runtime.micro_rows(global_rows, batch_key)
        self.eval_sampler, self.final_sampler, self.evaluators = eval_sampler, final_sampler, evaluators
        for evaluator in evaluators:
            if (attach := getattr(evaluator, "attach", None)) is not None:
                attach(model, loss_head)
        self.validation_sampler = validation_sampler
        self._printed = False
        self._groups = groups
        self.saves_carry, self.halting_metrics = saves_carry, halting_metrics
        self.total_steps = plan.total_steps
        """Length of the run and its schedules; the config may set fewer steps than its epochs have."""
        self._carries: list[ACTCarry | None] = [None] * runtime.accumulation

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's rows of batch `step`, split into `accumulation` pieces; piece k always goes with carry k."""
        low, high = local_rows(self.global_rows)
        host: dict[str, Any] = {**self._offered(step, low, high)}
        # Every rank draws for the global batch and keeps its rows: exploration does not depend on the number of ranks.
        generator = keyed_generator(self.runtime.seed, "exploration", step)
        host["exploration"] = torch.rand(self.global_rows, 2, generator=generator)[low:high]
        if width := self.model.noise_width:
            generator = keyed_generator(self.runtime.seed, "noise", step)
            host["noise"] = torch.randn(self.global_rows, width, generator=generator)[low:high]
        if self.model.needs_keys:
            generator = keyed_generator(self.runtime.seed, "latents", step)
            host["keys"] = torch.randint(1 << 62, (self.global_rows,), generator=generator)[low:high]
        # Tokens cross to the device in their narrow dtype, a quarter of the bytes, and become int32 there.
        sent = staged(host, self.runtime.device)
        rows = {name: tensor.int() if tensor.dtype in NARROW else tensor for name, tensor in sent.items()}
        self.module.train()
        self.model.set_progress((step - 1) / self.total_steps)
        self.model.late_steps = self._late_steps(step)
        for piece in range(self.runtime.accumulation):
            cut = slice(piece * self.micro_rows, (piece + 1) * self.micro_rows)
            yield piece, {name: tensor[cut] for name, tensor in rows.items()}

    def _late_steps(self, step: int) -> int:
        """The model's `late_steps` for step `step`: one draw for all ranks and pieces."""
        probability, choices = self.model.late_states
        if not probability:
            return 0
        drawn, which = torch.rand(2, generator=keyed_generator(self.runtime.seed, "late_states", step)).tolist()
        return choices[int(which * len(choices))] if drawn < probability else 0

    def _offered(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
        """The examples offered to slots low to high at step `step`: their rows of the global batch."""
        iteration, index = self.plan.locate(step)
        rows = self.sampler.rows(iteration, index, low, high)
        if self._copies is None:
            return rows
        return self._copies.apply(rows, self.global_rows, low, keyed_numpy(self.runtime.seed, "copies", step))

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, float, Metrics]:
        """One ACT step of a micro-batch: (loss summed over its rows, number of rows, metrics)."""
        piece, batch = micro_batch
        before = self._carries[piece]
        output: ACTOutput = self.module(batch, self._carries[piece])
        self._carries[piece] = output.carry
        result = self.loss_head(output)
        metrics = {**result.metrics, **self._task_metrics(output, micro_batch)}
        if self.halting_metrics:
            shares = halting_shares(output.carry, self.model.halt_max_steps)
            metrics |= {**shares, **self._offers(before, output.carry)}
        return result.total, result.weight, metrics

    _offers = staticmethod(offer_shares)
    """(carry before a step, carry after it) -> shares of the offered examples taken and dropped."""

    def _task_metrics(self, output: ACTOutput, micro_batch: MicroBatch) -> Metrics:
        """Metrics that the loss head does not compute."""
        return self._embedding_metrics(output.carry)

    @torch.no_grad()
    def _embedding_metrics(self, carry: ACTCarry) -> Metrics:
        """`emb_norm`, the mean norm of these slots' puzzle embeddings, and `emb_untrained`, the share of them that is
        still zero because no step has updated it. Empty without a table."""
        table = self.model.puzzle_emb
        if table is None:
            return {}
        norms = torch.linalg.vector_norm(table.weights[carry.data["puzzle_identifiers"].long()], dim=1)  # [b]
        rows = torch.full((), norms.shape[0], device=norms.device)
        return {"emb_norm": (norms.sum(), rows), "emb_untrained": ((norms == 0).sum(), rows)}

    def after_step(self) -> None:
        """Halt slots with non-finite latents, so that they restart on a new example: one bad step must not persist."""
        for carry in self._carries:
            if carry is not None:
                for latent in carry.latents.values():
                    carry.halted |= ~torch.isfinite(latent).reshape(len(latent), -1).all(dim=1)

    def captured_as(self, step: int) -> Hashable | None:
        """Key of the captured step graph: the recursion depth; None for a step with a late state."""
        return None if self.model.late_steps else tuple(self.model.inner.plan)

    def carried(self) -> list[Tensor]:
        """The tensors of all carries, in a fixed order."""
        return [tensor for carry in self._carries if carry is not None for tensor in carry.tensors()]

    def carry(self, tensors: list[Tensor]) -> None:
        """Replace the tensors of all carries, in the order of `carried`."""
        new = iter(tensors)
        self._carries = [carry and carry.map(lambda _: next(new)) for carry in self._carries]

    def param_groups(self) -> list[ParamGroup]:
        """The optimizer groups of the network and the puzzle embedding."""
        return self._groups

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @property
    def final_like_others(self) -> bool:
        """Whether the final evaluation covers the same examples as the others."""
        return self.validation_sampler is None and self.eval_sampler.num_examples == self.final_sampler.num_examples

    @property
    def covers(self) -> str:
        """Description of the examples of an evaluation during training."""
        if self.validation_sampler is not None:
            return f"{self.validation_sampler.num_examples:,} examples held back"
        return self.eval_sampler.covers

    @torch.no_grad()
    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """Metrics at the last ACT step over held-out examples, and per set if there are several.

        `eval/...` on the test split; with validation groups, `val/...` on those and the test split only at the end.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.model.eval()
        values: dict[str, float | None] = {}
        if self.validation_sampler is not None:
            general = [evaluator for evaluator in self.evaluators if not getattr(evaluator, "test_only", False)]
            values = self._evaluate(self.validation_sampler, "val", general)
            if not final:
                self._print_test_only(general)
                return values
        return values | self._evaluate(self.final_sampler if final else self.eval_sampler, "eval", self.evaluators)

    def _print_test_only(self, general: Sequence[Evaluator]) -> None:
        """Print once which evaluators are skipped because they are not in `general`."""
        others = dict.fromkeys(type(evaluator).__name__ for evaluator in self.evaluators if evaluator not in general)
        if others and not self._printed:
            print_rank0(f"note: {', '.join(others)}: of the test split alone, at the end (select_on=test: each time)")
        self._printed = True

    def _evaluate(self, sampler: EvalSampler, prefix: str, evaluators: Sequence[Evaluator]) -> dict[str, float | None]:
        sums: dict[str, dict[str, Tensor]] = {}
        for evaluator in evaluators:
            evaluator.begin(sampler.splits)
        for set_name, arrays, valid in sampler:
            if self.runtime.stop_requested():
                raise Interrupted("stopped during evaluation")
            batch = staged(arrays, self.runtime.device)
            steps = self._episode(batch, all_steps=any(evaluator.needs_steps for evaluator in evaluators))
            real, latched = _first_rows(steps[-1], valid), self.model.eval_halting != "fixed"
            result = self.loss_head(real)
            counted = self.halting_metrics and latched
            halting = halting_shares(real.carry, self.model.halt_max_steps) if counted else {}
            # Every row has halted at the last step: metrics of rows that have not say nothing.
            metrics = {
                name: pair
                for name, pair in (result.metrics | halting).items()
                if not name.endswith("_live") and (name != "steps" or latched)
            }
            add_metrics(sums.setdefault(set_name, {}), metrics)
            for evaluator in evaluators:
                evaluator.update(batch, steps, result.preds, valid)
        values = self._means(sums, prefix)
        for evaluator in evaluators:
            figures = {f"{prefix}/{name}": value for name, value in evaluator.result().items()}
            if twice := [name for name in figures if values.get(name, figures[name]) != figures[name]]:
                print_rank0(f"warning: two evaluators have a figure {twice[0]}: that of the later one is kept")
            values.update(figures)
        return values

    def report(self, evaluation: Evaluation) -> dict[str, str]:
        """Files of the evaluators, in `evaluations/`: file name -> text."""
        files = evaluation_files(self.evaluators)
        return {f"evaluations/step_{evaluation.step}_{name}": text for name, text in files.items()}

    def _episode(self, batch: Batch, *, all_steps: bool) -> list[ACTOutput]:
        """The outputs of every ACT step (latents dropped, they are large), or only of the last one."""
        if all_steps:
            return [replace(step, carry=replace(step.carry, latents={})) for step in self.model.think(batch)]
        return [self.model(batch)]

    @staticmethod
    def _means(sums: Mapping[str, Mapping[str, Tensor]], prefix: str) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        pooled: dict[str, Tensor] = {}
        for set_name, table in sums.items():
            for name, pair in table.items():
                total = all_reduce_sum(pair.clone())
                pooled[name] = pooled[name] + total if name in pooled else total
                if len(sums) > 1:
                    values[f"{prefix}/{set_name}/{name}"] = mean_of(total)
        return {**{f"{prefix}/{name}": mean_of(pair) for name, pair in pooled.items()}, **values}

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The carry of all slots, in row order. The data position follows from the step, so it is not stored."""
        carries = [carry for carry in self._carries if carry is not None]
        if not (carries and self.saves_carry):
            return {}
        return {
            "carry": {
                "steps": RowSharded(torch.cat([c.steps for c in carries])),
                "halted": RowSharded(torch.cat([c.halted for c in carries])),
                "latents": {n: RowSharded(torch.cat([c.latents[n] for c in carries])) for n in carries[0].latents},
                "data": {n: RowSharded(torch.cat([c.data[n] for c in carries])) for n in carries[0].data},
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Split the saved rows into this run's micro-batches. Raises: UsageError, ValueError if they do not fit."""
        if not state:
            return
        saved = state["carry"]
        rows = len(saved["steps"])
        self._require_slots(rows)
        self._check_carry(saved, rows)
        carry = ACTCarry(saved["latents"], saved["steps"], saved["halted"], saved["data"])
        carry = carry.map(lambda rows: rows.to(self.runtime.device))
        cuts = [slice(first, first + self.micro_rows) for first in range(0, rows, self.micro_rows)]
        self._carries = [carry.rows(cut).map(torch.clone) for cut in cuts]

    def _require_slots(self, rows: int) -> None:
        """Raise UsageError unless this rank has as many slots as the checkpoint."""
        if rows != self.micro_rows * self.runtime.accumulation:
            before = rows * self.runtime.world_size
            raise UsageError(
                f"{self.batch_key}={self.global_rows}: the checkpoint holds {before} slots, which a resume keeps "
                f"({self.batch_key}={before})"
            )

    def _check_carry(self, saved: dict[str, Any], rows: int) -> None:
        """Raise ValueError unless the saved slots have this model's shapes and dtypes, and ids within range."""
        own = self.model.initial_carry(next(iter(self.micro_batches(1)))[1])
        expected = {"steps": own.steps, "halted": own.halted}
        expected |= {f"latents.{name}": value for name, value in own.latents.items()}
        expected |= {f"data.{name}": value for name, value in own.data.items()}
        for place, value in expected.items():
            stored: Any = saved
            for part in place.split(".", 1):
                stored = stored[part]
            if not isinstance(stored, Tensor) or (stored.dtype, *stored.shape) != (value.dtype, rows, *value.shape[1:]):
                form = type(stored).__name__
                if isinstance(stored, Tensor):
                    form = f"{list(stored.shape)} of {stored.dtype}"
                raise ValueError(f"carry.{place} is {form}, expected {[rows, *value.shape[1:]]} of {value.dtype}")
        sizes = (self.sampler.splits[0].metadata.vocab_size, self.sampler.num_puzzle_identifiers)
        for name, size in zip(("inputs", "puzzle_identifiers"), sizes, strict=True):
            if name in own.data and not bool(((saved["data"][name] >= 0) & (saved["data"][name] < size)).all()):
                raise ValueError(f"carry.data.{name} holds numbers beyond 0 to {size - 1}")


def evaluation_files(evaluators: Iterable[Any]) -> dict[str, str]:
    """The files of all evaluators that write any: file name -> text."""
    return {name: text for evaluator in evaluators for name, text in getattr(evaluator, "files", {}).items()}


def _first_rows(output: ACTOutput, rows: int) -> ACTOutput:
    """Drop the padding rows of the last batch, which must not count in any mean."""
    return ACTOutput(
        carry=replace(output.carry, latents={}).rows(slice(rows)),
        logits=None if output.logits is None else output.logits[:rows],
        q_halt_logits=output.q_halt_logits[:rows],
        q_continue_logits=output.q_continue_logits[:rows],
        target_q_continue=None,
        aux={name: tensor[:rows] for name, tensor in output.aux.items()},
    )
