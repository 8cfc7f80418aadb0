"""The Task of the feedback scripts: fill in hidden tokens, with a base or with an adapter of a frozen one.

B rows of the global batch, b rows of a micro-batch, T positions.
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
from tasks.feedback.measure import controls, finish, measure
from tasks.feedback.noise import LEVELS, evaluation_noise, hide, next_tokens, training_noise

SEEN = ("loss", "base_loss")


class FeedbackTask:
    """Trains `model` (with `base`: an adapter of it) on `batches`; evaluates under fixed masks.

    Args:
        test: what the last evaluation is of, named `eval/...`; every evaluation where there is no validation.
        validation: what every evaluation is of, named `val/...`.
        indomain: a base that was trained on these data, of which `base` is to be adapted to: `gap_closed`.
        context: of an autoregressive base: the share of a text that an adapter reads, and that is not scored.
        eps: least share of hidden tokens.
        stratified: as in `training_noise`.
        levels: times t of the evaluation's masks, in turn; not of an autoregressive base, which has none.
        repeats: how often each piece is evaluated, under masks of other shares.
        judge: further figures of the last evaluation, those of generated answers.
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
        judge: Callable[[], dict[str, float | None]] | None = None,
    ) -> None:
        self.module: nn.Module = model
        self.loss_head, self.judge = loss_head, judge
        self.model, self.base, self.runtime, self.shape = model, base, runtime, shape
        self.batches, self.test, self.validation, self._groups = batches, test, validation, groups
        self.held_out, self.selects = (test, "eval") if validation is None else (validation, "val")
        self.indomain = indomain
        self.context, self.eps, self.eval_seed, self.repeats = context, eps, eval_seed, repeats
        self.stratified, self.levels = stratified, levels
        self.micro_rows = runtime.micro_rows(batches.batch_size, "batch_size")
        self.block_size = batches.documents.block_size
        self._step = 0
        self._sums = torch.zeros(len(SEEN), 2, dtype=self._sum_dtype, device=runtime.device)
        """Training losses since the newest evaluation, of this process: [sum, weight] of each of SEEN."""
        self.history: list[dict[str, float]] = []
        """One entry for each evaluation: step, train/..., eval/...; what metrics.csv and log.txt are written from."""
        self.layer_table = ""
        """Of the changes in the newest evaluation that has the controls, block by block."""

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """This rank's rows of batch `step`, cut into `accumulation` pieces."""
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
        """Σ CE / p over the hidden tokens, the number of real ones, metrics."""
        _, result = self._run(micro_batch)
        for row, name in enumerate(SEEN):
            if name in result.metrics:
                pair = torch.stack([part.detach().to(self._sum_dtype) for part in result.metrics[name]])
                self._sums[row] += torch.where(pair.isfinite().all(), pair, 0.0)
        return result.total, result.weight, result.metrics

    def _run(self, batch: Batch) -> tuple[Any, Any]:
        inputs = (batch.inputs, batch.real) if self.base is None else (self.base.model, batch)
        output = self.model(*inputs)
        return output, self.loss_head(output, batch)

    def after_step(self) -> None:
        """Nothing is carried from one step to the next."""

    def param_groups(self) -> list[ParamGroup]:
        """As the entry script configured them; a frozen base is in none."""
        return self._groups

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """`val/loss` (without validation documents `eval/loss`) and the rest of what `measured` sums; the final
        evaluation has `eval/...` in any case, and of an adapter the controls, too. The rows of a batch are shared among
        the ranks, sums and counts are reduced.

        Raises: Interrupted: the run was asked to stop.
        """
        self.module.eval()
        results = self._evaluated("val", self.validation, controls=False) if self.validation is not None else {}
        if final or self.validation is None:
            results |= self._evaluated("eval", self.test, controls=final and self.base is not None)
        if final:
            base = () if self.base is None else (self.base.model,)
            flops = self.model.forward_flops(*base, 1, self.block_size)
            results |= {"eval/flops": flops / self.block_size, "eval/parameters": float(self.model.num_parameters())}
            if self.base is not None:
                plain = self.base.model.forward_flops(1, self.block_size)
                results |= {"eval/flops_ratio": flops / plain, "eval/nfe": float(self.model.base_passes)}
        if final and self.judge is not None:
            results |= {f"eval/{name}": value for name, value in self.judge().items()}
        self._keep(results)
        return results

    def _evaluated(self, prefix: str, held_out: EvalDocuments, *, controls: bool) -> dict[str, float | None]:
        sums: dict[str, Tensor] = {}
        for repeat in range(self.repeats):
            for index in range(len(held_out)):
                if self.runtime.stop_requested():
                    raise Interrupted("stopped during evaluation")
                figures = self.measured(held_out, index, repeat)
                if controls:
                    figures |= self.controlled(held_out, index, repeat)
                for name, pair in figures.items():
                    sums[name] = sums[name] + pair if name in sums else pair
        means: dict[str, float | None] = {}
        counts: dict[str, float] = {}
        for name, pair in sums.items():
            total, counts[name] = all_reduce_sum(pair).tolist()
            means[name] = total / counts[name] if counts[name] else None
        means |= finish(means, counts)
        means.pop("delta_nll_sq", None)  # of use to `finish` alone
        loss, base_loss = means.get("loss"), means.get("base_loss")
        if loss is not None and base_loss is not None:
            means |= {"delta_loss": loss - base_loss, "rel_change": (loss - base_loss) / abs(base_loss)}
        return {f"{prefix}/{name}": value for name, value in means.items()}

    def measured(self, held_out: EvalDocuments, index: int, repeat: int) -> dict[str, Tensor]:
        """[sum, count] of each figure over this rank's rows of evaluation batch `index`; of none with fewer rows than
        ranks: zeros."""
        batch = self._batch(held_out, index, repeat, self.runtime.rank, self.runtime.world_size)
        output, result = self._run(batch)
        pairs = {**result.metrics, **measure(output, batch, self.loss_head)}
        if self.indomain is not None:
            rows = self.loss_head.rows(self.indomain(batch.inputs, batch.real), batch)
            pairs["indomain_loss"] = rows.sum(), batch.count.sum()
        return self._stacked(pairs)

    def controlled(self, held_out: EvalDocuments, index: int, repeat: int) -> dict[str, Tensor]:
        """[sum, count] over this rank's rows of evaluation batch `index`, adapted by other deltas than their own, as
        that of another document: of the whole batch, so that any number of ranks gives a row the same one."""
        assert self.base is not None
        scored = len(held_out.pieces(index))
        numbers, tokens, others = held_out.batch_with_others(index)
        batch = self._hidden(numbers, tokens, repeat)
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
        if index == len(held_out) // 2 and repeat == 0:  # singular values: of one batch, that of middling lengths
            one = torch.ones((), device=batch.rate.device)
            health, self.layer_table = health_of(output.deltas[-1], self.model, self.base.model)
            pairs |= {f"delta_{name}": (one * value, one) for name, value in health.items()}
        return self._stacked(pairs)

    def _batch(self, held_out: EvalDocuments, index: int, repeat: int, part: int = 0, parts: int = 1) -> Batch:
        """Every `parts`-th row of evaluation batch `index`, from row `part` on, with what is hidden."""
        return self._hidden(*held_out.batch(index, part, parts), repeat)

    def _hidden(self, numbers: np.ndarray, rows: np.ndarray, repeat: int) -> Batch:
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

    def _stacked(self, pairs: Metrics) -> dict[str, Tensor]:
        return {name: torch.stack([part.detach().to(self._sum_dtype) for part in pair]) for name, pair in pairs.items()}

    def _keep(self, results: dict[str, float | None]) -> None:
        """Add an evaluation, with the training losses since the one before, to the history; a second one of a step adds
        to the first."""
        entry = {"step": float(self._step)}
        for known in self.history:
            entry |= known if known["step"] == self._step else {}
        for name, (total, count) in zip(SEEN, all_reduce_sum(self._sums.clone()).tolist(), strict=True):
            if count:
                entry[f"train/{name}"] = total / count
        entry |= {name: value for name, value in results.items() if value is not None and math.isfinite(value)}
        self.history = [known for known in self.history if known["step"] < self._step] + [entry]
        self._sums.zero_()

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.float32 if self.runtime.device.type == "mps" else torch.float64

    @property
    def _arch(self) -> dict[str, Any]:
        """Keys that change what the weights mean, which shapes do not show (feedback_reverse, loops, alpha)."""
        return self._keys_of(asdict(self.model.config))

    def _keys_of(self, config: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in config.items() if name not in self.model.config.NOT_SHAPE}

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The data position (the step), the base, and what the files of the run are written from. A collective."""
        return {
            "step": self._step,
            "history": [dict(entry) for entry in self.history],
            "sums": all_reduce_sum(self._sums.clone()),
            "arch": self._arch,
            **({"base": self.base.reference()} if self.base is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse. Raises: UsageError where the run was trained on another base; ValueError where its weights meant
        something else, although they fit."""
        stored = with_defaults(type(self.model.config), state["arch"])  # it may be older than a key
        if self._keys_of(stored) != self._arch:
            raise ValueError("weights of another architecture")
        if self.base is not None:
            self.base = self.base.trained_on(state["base"])
        self._step = int(state["step"])
        self.history = [dict(entry) for entry in state["history"]]
        self._sums.copy_(state["sums"] if self.runtime.rank == 0 else torch.zeros_like(self._sums))


def param_groups(model: Any, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> list[ParamGroup]:
    """AdamW for all; matrices alone are decayed, not token tables, gates or learned tokens."""
    return [
        ParamGroup(
            name=kind,
            optimizer="adamw",
            lr=lr,
            params=members,
            options={"betas": list(betas), "weight_decay": weight_decay if kind == "matrix" else 0.0},
        )
        for kind, members in model.param_groups().items()
        if members
    ]
