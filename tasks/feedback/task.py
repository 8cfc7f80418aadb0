"""The Task of the feedback scripts: predict masked tokens, with a base or with an adapter of a frozen base.

Shapes: B rows of the global batch, b rows of a micro-batch, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.text.documents import DocumentBatches, EvalDocuments
from engine.device import staged
from engine.distributed import all_reduce_sum, local_rows
from engine.schema import with_defaults
from engine.task import Interrupted, Metrics, ParamGroup, Runtime
from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.base import BaseLM
from models.feedback.batch import Batch
from models.feedback.config import TextShape
from tasks.feedback.base import FrozenBase
from tasks.feedback.health import health_of
from tasks.feedback.measure import Pairs, controls, finish, measure
from tasks.feedback.noise import LEVELS, evaluation_noise, hide, next_tokens, training_noise
from tasks.sums import add_metrics, mean_of, sum_dtype

TRACKED = ("loss", "base_loss")
"""Training losses whose means between evaluations are in the history."""


class FeedbackTask:
    """Trains `model` (with `base`: an adapter of it) on `batches`; evaluates under fixed masks.

    Args:
        test: data of the last evaluation (`eval/...`), and of every evaluation without `validation`.
        validation: data of every evaluation (`val/...`).
        indomain: a base trained on this data, to compare the adapted base with (`gap_closed`).
        context: for an autoregressive base, the share of a text that an adapter reads and that is not scored.
        eps: least share of masked tokens.
        stratified: as in `training_noise`.
        levels: times t of the evaluation's masks, in turn; unused for an autoregressive base.
        repeats: number of evaluations of each piece, with different mask rates.
        score_answers: computes further metrics of the last evaluation, on generated answers.
    """

    def __init__(
        self,
        model: Any,
        loss_head: MaskedDiffusionLoss,
        *,
        runtime: Runtime,
        shape: TextShape,
        batches: DocumentBatches,
        test: EvalDocuments,
        validation: EvalDocuments | None = None,
        groups: list[ParamGroup],
        base: FrozenBase | None = None,
        indomain: BaseLM | None = None,
        context: float | None = None,
        eps: float,
        stratified: bool = True,
        eval_seed: int,
        levels: Sequence[float] = LEVELS,
        repeats: int = 1,
        score_answers: Callable[[], dict[str, float | None]] | None = None,
    ) -> None:
        self.module: nn.Module = model
        self.loss_head, self.score_answers = loss_head, score_answers
        self.model, self.base, self.runtime, self.shape = model, base, runtime, shape
        self.batches, self.test, self.validation, self._groups = batches, test, validation, groups
        self.held_out, self.selects = (test, "eval") if validation is None else (validation, "val")
        self.indomain = indomain
        self.context, self.eps, self.eval_seed, self.repeats = context, eps, eval_seed, repeats
        self.stratified, self.levels = stratified, levels
        self.micro_rows = runtime.micro_rows(batches.batch_size, "batch_size")
        self.block_size = batches.documents.block_size
        self._step = 0
        self._sums = torch.zeros(len(TRACKED), 2, dtype=sum_dtype(runtime.device), device=runtime.device)
        """This process's training losses since the last evaluation: [sum, weight] for each of TRACKED."""
        self.history: list[dict[str, float]] = []
        """One entry for each evaluation: step, train/..., eval/...; the source of metrics.csv and log.txt."""
        self.layer_table = ""
        """CSV of the deltas by block, from the last evaluation with controls."""

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's rows of batch `step`, split into `accumulation` pieces."""
        self._step = step
        low, high = local_rows(self.batches.batch_size)
        tokens = torch.from_numpy(self.batches.rows(step - 1, low, high))
        if self.context is not None:
            batch = next_tokens(tokens, self.shape, self.context)
        else:
            noise = training_noise(
                self.runtime.seed,
                step,
                rows=self.batches.batch_size,
                block_size=self.block_size,
                eps=self.eps,
                stratified=self.stratified,
            )
            batch = hide(tokens, self.shape, noise.rows(low, high))
        self.module.train()
        for piece in range(self.runtime.accumulation):
            rows = batch.rows(slice(piece * self.micro_rows, (piece + 1) * self.micro_rows))
            yield Batch(**staged(vars(rows), self.runtime.device))

    def loss(self, micro_batch: Batch) -> tuple[Tensor, Tensor, Metrics]:
        """(Σ CE / p over masked tokens, number of real tokens, metrics)."""
        _, result = self._run(micro_batch)
        for row, name in enumerate(TRACKED):
            if name in result.metrics:
                pair = torch.stack([part.detach().to(self._sums.dtype) for part in result.metrics[name]])
                self._sums[row] += torch.where(pair.isfinite().all(), pair, 0.0)
        return result.total, result.weight, result.metrics

    def _run(self, batch: Batch) -> tuple[Any, Any]:
        inputs = (batch.inputs, batch.real) if self.base is None else (self.base.model, batch)
        output = self.model(*inputs)
        return output, self.loss_head(output, batch)

    def after_step(self) -> None:
        """Nothing to do: there is no carry."""

    def param_groups(self) -> list[ParamGroup]:
        """The optimizer groups; a frozen base is in none of them."""
        return self._groups

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """`val/loss` (`eval/loss` without validation documents) and the other metrics of `measure_batch`; the final
        evaluation always has `eval/...`, and for an adapter the controls. Each rank evaluates its rows of a batch; sums
        and counts are reduced.

        Raises: Interrupted: the run was asked to stop.
        """
        self.module.eval()
        results = self._evaluate("val", self.validation, controls=False) if self.validation is not None else {}
        if final or self.validation is None:
            results |= self._evaluate("eval", self.test, controls=final and self.base is not None)
        if final:
            base = () if self.base is None else (self.base.model,)
            flops = self.model.forward_flops(*base, 1, self.block_size)
            results |= {"eval/flops": flops / self.block_size, "eval/parameters": float(self.model.num_parameters())}
            if self.base is not None:
                plain = self.base.model.forward_flops(1, self.block_size)
                results |= {"eval/flops_ratio": flops / plain, "eval/nfe": float(self.model.base_passes)}
        if final and self.score_answers is not None:
            results |= {f"eval/{name}": value for name, value in self.score_answers().items()}
        self._record(results)
        return results

    def _evaluate(self, prefix: str, held_out: EvalDocuments, *, controls: bool) -> dict[str, float | None]:
        sums: dict[str, Tensor] = {}
        for repeat in range(self.repeats):
            for index in range(len(held_out)):
                if self.runtime.stop_requested():
                    raise Interrupted("stopped during evaluation")
                metrics = self.measure_batch(held_out, index, repeat)
                if controls:
                    metrics |= self.measure_controls(held_out, index, repeat)
                add_metrics(sums, metrics)
        means: dict[str, float | None] = {}
        counts: dict[str, float] = {}
        for name, pair in sums.items():
            reduced = all_reduce_sum(pair)
            means[name], counts[name] = mean_of(reduced), float(reduced[1])
        means |= finish(means, counts)
        means.pop("delta_nll_sq", None)  # only `finish` needs it
        loss, base_loss = means.get("loss"), means.get("base_loss")
        if loss is not None and base_loss is not None:
            means |= {"delta_loss": loss - base_loss, "rel_change": (loss - base_loss) / abs(base_loss)}
        return {f"{prefix}/{name}": value for name, value in means.items()}

    def measure_batch(self, held_out: EvalDocuments, index: int, repeat: int) -> Pairs:
        """(sum, count) of each metric over this rank's rows of evaluation batch `index`; zeros if it has none."""
        batch = self._mask(*held_out.batch(index, self.runtime.rank, self.runtime.world_size), repeat)
        output, result = self._run(batch)
        pairs = {**result.metrics, **measure(output, batch, self.loss_head)}
        if self.indomain is not None:
            rows = self.loss_head.rows(self.indomain(batch.inputs, batch.real), batch)
            pairs["indomain_loss"] = rows.sum(), batch.count.sum()
        return pairs

    def measure_controls(self, held_out: EvalDocuments, index: int, repeat: int) -> Pairs:
        """(sum, count) of each control over this rank's rows of evaluation batch `index`. Deltas are computed for the
        whole batch, so that a row gets the same foreign one with any number of ranks."""
        assert self.base is not None
        scored = len(held_out.pieces(index))
        numbers, tokens, others = held_out.batch_with_others(index)
        batch = self._mask(numbers, tokens, repeat)
        output = self.model(self.base.model, batch)
        pairs = controls(
            output,
            batch,
            self.loss_head,
            base=self.base.model,
            adapter=self.model,
            others=torch.from_numpy(others).to(batch.rate.device),
            rows=slice(self.runtime.rank, scored, self.runtime.world_size),
        )
        if index == len(held_out) // 2 and repeat == 0:  # singular values are costly: one batch, of medium length
            one = torch.ones((), device=batch.rate.device)
            health, self.layer_table = health_of(output.deltas[-1], self.model, self.base.model)
            pairs |= {f"delta_{name}": (one * value, one) for name, value in health.items()}
        return pairs

    def _mask(self, numbers: np.ndarray, rows: np.ndarray, repeat: int) -> Batch:
        """The evaluation batch of rows [b, T] with these `numbers` in their split, masked."""
        tokens = torch.from_numpy(rows)
        if self.context is not None:
            batch = next_tokens(tokens, self.shape, self.context)
        else:
            noise = evaluation_noise(
                self.eval_seed,
                numbers.tolist(),
                block_size=self.block_size,
                eps=self.eps,
                levels=self.levels,
                repeat=repeat,
            )
            batch = hide(tokens, self.shape, noise)
        return batch.to(self.runtime.device)

    def _record(self, results: dict[str, float | None]) -> None:
        """Add an evaluation, with the training losses since the previous one, to the history; merge it into an entry of
        the same step."""
        entry = {"step": float(self._step)}
        for known in self.history:
            entry |= known if known["step"] == self._step else {}
        for name, (total, count) in zip(TRACKED, all_reduce_sum(self._sums.clone()).tolist(), strict=True):
            if count:
                entry[f"train/{name}"] = total / count
        entry |= {name: value for name, value in results.items() if value is not None and math.isfinite(value)}
        self.history = [known for known in self.history if known["step"] < self._step] + [entry]
        self._sums.zero_()

    @property
    def _arch(self) -> dict[str, Any]:
        """Keys that change the meaning of the weights, although not their shapes (feedback_reverse, loops, alpha)."""
        return self._keys_of(asdict(self.model.config))

    def _keys_of(self, config: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in config.items() if name not in self.model.config.NOT_SHAPE}

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The data position (the step), the base, and the history of the run's files. A collective operation."""
        return {
            "step": self._step,
            "history": [dict(entry) for entry in self.history],
            "sums": all_reduce_sum(self._sums.clone()),
            "arch": self._arch,
            **({"base": self.base.reference()} if self.base is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load `state_dict`. Raises: UsageError if the run was trained on another base; ValueError if the weights fit
        but belong to another architecture."""
        stored = with_defaults(type(self.model.config), state["arch"])  # it may predate some keys
        if self._keys_of(stored) != self._arch:
            raise ValueError("weights of another architecture")
        if self.base is not None:
            self.base = self.base.trained_on(state["base"])
        self._step = int(state["step"])
        self.history = [dict(entry) for entry in state["history"]]
        self._sums.copy_(state["sums"] if self.runtime.rank == 0 else torch.zeros_like(self._sums))


def param_groups(model: Any, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[ParamGroup]:
    """AdamW for all parameters; only matrices have weight decay, not token tables, gates or learned tokens."""
    return [
        ParamGroup(
            name=kind,
            optimizer="adamw",
            lr=lr,
            params=members,
            options={"betas": list(betas), "weight_decay": weight_decay if kind == "matrix" else 0.0},
        )
        for kind, members in model.param_groups().items()
    ]
