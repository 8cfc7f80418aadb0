"""The Task of train_animal.py: sample, split, cluster, and move the model so that its next samples are more diverse.

A step: fresh samples of the model (and, with tb, replayed ones) are scored once under model and base without a
gradient; the loss of the whole batch gives a coefficient for every token; what is back-propagated, in as many parts as
memory asks for, is Σ coefficient · log-probability. B rows of the global batch, T tokens, K options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import broadcast_object, is_main, keyed_numpy
from engine.errors import RunFailure
from engine.io import print_rank0
from engine.task import Metrics, ParamGroup, Runtime
from losses.diversity import Alternatives, DiversityLoss, DiversityResult, Frequencies
from models.animal.adapter import LoraLM
from models.animal.completions import NONE, Completions
from models.animal.language_model import score
from tasks.animal.alternatives import alternatives
from tasks.animal.base import require_base
from tasks.animal.buffer import Entry, ReplayBuffer
from tasks.animal.clusters import Vectors
from tasks.animal.embedder import Embedder, make_embedder
from tasks.animal.measure import Measurement
from tasks.animal.sampler import Drawn, Sampler, as_completions
from tasks.animal.samples import Sample
from tasks.animal.shares import NOT_MEASURED, counted, frequencies, option_figures

SHOWN = 8
"""Rows of the table of samples."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model at once: ids int64 [b, T], coefficients [b, T]; `share` of the step they are."""

    ids: Tensor
    coefficients: Tensor
    share: float
    figures: Mapping[str, float]


class AnimalTask:
    """Trains the adapters of `model`.

    Args:
        embedder: what is clustered are its vectors; fitted on the samples that fill the buffer.
        prefill: samples of the base that fill the buffer before the first step.
        replays: samples of the buffer that take part in each step.
        rate: step -> learning rate, for the log.
        measurement: what evaluations measure.
    """

    def __init__(
        self,
        model: LoraLM,
        loss_head: DiversityLoss,
        *,
        runtime: Runtime,
        sampler: Sampler,
        buffer: ReplayBuffer,
        embedder: Embedder,
        measurement: Measurement,
        groups: list[ParamGroup],
        batch_size: int,
        prefill: int,
        replays: int,
        least_valid: float,
        patience: int,
        total_steps: int,
        steps_per_epoch: int,
        rate: Callable[[int], float],
        reference: Mapping[str, str],
    ) -> None:
        self.module: nn.Module = model
        self.model, self.loss_head, self.runtime, self.sampler = model, loss_head, runtime, sampler
        self.buffer, self.measurement, self._groups = buffer, measurement, groups
        self.embedder, self.rate, self.reference = embedder, rate, dict(reference)
        self.batch_size, self.prefill, self.replays = batch_size, prefill, replays
        self.least_valid, self.patience = least_valid, patience
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.micro_rows = runtime.micro_rows(batch_size, "batch_size")
        self.options = list(buffer.banks)
        self.further = {concept.name: list(concept.options) for concept in sampler.processor.further}
        """Further concept -> its options."""
        self.sampled = {"tokens": 0}
        """By the newest step."""
        self.compiled = "off"
        """What the engine compiles: a compiled pass takes rows of one shape alone."""
        self._step = self._called_off = 0
        self._filled = False
        self._frequencies: Frequencies | None = None
        self._epoch: list[float] = []
        self._rows: list[dict[str, Any]] = []

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Sample, score and label the batch of `step`. Raises: RunFailure: too many steps in a row were called off."""
        self._step = step
        self._epoch = self._epoch if (step - 1) % self.steps_per_epoch else []
        self.fill()
        drawn = self.sampler.draw(self.runtime.seed, "animal/train", step, self.batch_size)
        self.sampled["tokens"] = sum(block.length for block in drawn.blocks)
        labels, vectors = self._labels(drawn)
        fresh = as_completions(drawn, self.options, labels, self._names)
        batch = self._with_replays(fresh, step)
        logp = self.sampler.scores(batch.ids, batch.mask)
        ref = self.sampler.scores(batch.ids, batch.mask, base=True)
        result, others = self._judged(drawn, batch.to(logp.device), logp, ref)
        figures = self._figures(drawn, fresh, result)
        self._show(drawn, labels, logp, ref)
        ids, coefficients = batch.ids, result.coefficients
        if others is not None and result.alternatives is not None:
            ids, coefficients = _stacked(
                ids, coefficients, others.ids, result.alternatives.unsqueeze(-1) * others.mask.to(logp.device)
            )
        if not self._usable(fresh, result):
            coefficients = torch.full_like(coefficients, NOT_MEASURED)  # the trainer calls such a step off
        else:
            self._epoch.append(float(result.total))
        self._keep(drawn, vectors, step)
        return self._pieces(ids, coefficients, figures)

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, float, Metrics]:
        """(Σ coefficient · log-probability, whose gradient is that of the whole batch's loss; the share; metrics)."""
        self.module.train()
        logp = score(self.model.language_model, self.sampler.prompt, micro_batch.ids)
        total = (micro_batch.coefficients * logp).sum()
        one, zero = torch.ones_like(total), torch.zeros_like(total)
        metrics = {
            name: (zero, zero) if math.isnan(value) else (one * value, one)
            for name, value in micro_batch.figures.items()
        }
        return total, micro_batch.share, metrics

    def _judged(self, drawn: Drawn, batch: Completions, logp: Tensor, ref: Tensor) -> tuple[DiversityResult, Any]:
        clusters = torch.tensor(self.buffer.clusters(), device=logp.device)
        others = None
        options = None
        if self.loss_head.config.objective == "kl_exact":
            others = alternatives(self.sampler.processor, drawn, self.sampler.pad)
            values = self.sampler.scores(others.ids, others.mask) if len(others.ids) else logp.new_zeros(0, 1)
            numbers = others.option.to(logp.device), others.concept.to(logp.device)
            options = Alternatives(logp=values.sum(-1), option=numbers[0], concept=numbers[1])
        sizes = [len(names) for names in self._names]
        result = self.loss_head(
            logp, ref, batch, clusters, alternatives=options, frequencies=self._frequencies, further=sizes
        )
        return result, others

    @property
    def _names(self) -> list[list[str]]:
        """The options of each further concept."""
        return list(self.further.values())

    def _with_replays(self, fresh: Completions, step: int) -> Completions:
        """`fresh` and the replayed completions, as rows of one batch."""
        random = keyed_numpy(self.runtime.seed, "animal/replay", step)
        drawn = self.buffer.draw(random, self.replays)
        if not drawn:
            return fresh
        length = max(fresh.ids.shape[1], *(len(entry.ids) for _, _, entry in drawn))
        rows = [[*entry.ids, *[self.sampler.pad] * (length - len(entry.ids))] for _, _, entry in drawn]
        replayed = Drawn(torch.tensor(rows), [self.sampler.processor.split(entry.ids) for _, _, entry in drawn])
        old = as_completions(replayed, self.options, [cluster for _, cluster, _ in drawn], self._names)
        return fresh.joined(old)

    def _usable(self, fresh: Completions, result: DiversityResult) -> bool:
        """Whether enough samples are valid and the loss is finite; counts those that are not."""
        valid = int(fresh.valid.sum())
        enough = valid > 0 and valid >= self.least_valid * len(fresh.ids)
        if enough and result.total.isfinite() and result.coefficients.isfinite().all():
            self._called_off = 0
            return True
        self._called_off += 1
        least = f", fewer than min_valid_fraction={self.least_valid:g}" * bool(self.least_valid)  # of 0: one at least
        why = f"{valid} of {len(fresh.ids)} samples name {self._named()} and continue{least}"
        why = "the loss is not finite" if enough else why
        if self._called_off == self.total_steps:
            raise RunFailure(f"step {self._step}: {why}, in every step: nothing was trained; {self._advice()}")
        if self._called_off > self.patience:
            raise RunFailure(
                f"step {self._step}: {why}, in {self._called_off} steps in a row (max_skipped_steps={self.patience}); "
                + self._advice()
            )
        print_rank0(f"warning: step {self._step} is skipped: {why}")
        return False

    def _named(self) -> str:
        return " and ".join(" or ".join(names) for names in (self.options, *self._names))

    def _advice(self) -> str:
        if self._step <= self.patience + 1:
            return "the base hardly ever does: choose another prompt, or name other options (concept_options)"
        return "the model has left its base: lower learning_rate or raise w_kl; the newest checkpoint is from before"

    def _pieces(self, ids: Tensor, coefficients: Tensor, figures: Mapping[str, float]) -> list[MicroBatch]:
        """This rank's part of the rows; those that nothing pulls at are left out."""
        pulled = (coefficients != 0).any(-1).cpu()
        ids, coefficients = ids[pulled], coefficients[pulled.to(coefficients.device)]
        ranks, device = self.runtime.world_size, self.runtime.device
        count = max(1, -(-len(ids) // (ranks * self.micro_rows)))
        one_shape = self.compiled != "off"
        if one_shape and (short := self.sampler.max_new_tokens - ids.shape[1]) > 0:
            ids = nn.functional.pad(ids, (0, short), value=self.sampler.pad)
            coefficients = nn.functional.pad(coefficients, (0, short))
        whole = one_shape or len(ids) == 0
        missing = count * ranks * self.micro_rows - len(ids) if whole else -len(ids) % (count * ranks)
        filler = torch.full((missing, ids.shape[1]), self.sampler.pad)
        ids = torch.cat((ids, filler)).to(device)
        coefficients = torch.cat((coefficients, coefficients.new_zeros(missing, ids.shape[1]))).to(device)
        rows = len(ids) // ranks
        mine = slice(self.runtime.rank * rows, (self.runtime.rank + 1) * rows)
        parts = zip(ids[mine].chunk(count), coefficients[mine].chunk(count), strict=True)
        return [MicroBatch(some, pull, 1 / (count * ranks), figures) for some, pull in parts]

    def after_step(self) -> None:
        """What a step leaves behind is in the buffer already."""

    def param_groups(self) -> list[ParamGroup]:
        """The adapters; the base is in none."""
        return self._groups

    # --- the buffer ---------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Once, before the first step: samples of the base for the buffer, their clusters, their frequencies."""
        if self._filled:
            return
        drawn = self.sampler.draw(self.runtime.seed, "animal/prefill", 0, self.prefill, base=True, stoppable=True)
        if is_main():
            self.embedder.fit([block.text for block in drawn.blocks])
        self.embedder.load_state_dict(broadcast_object(self.embedder.state_dict()))  # machines round differently
        _, vectors = self._labels(drawn)
        for option in self.options:
            self._add(drawn, vectors, option, 0)
            self.buffer.update(option)
        self.buffer.update_pool()
        labels, _ = self._labels(drawn, vectors)
        if self.loss_head.config.objective == "tb":
            batch = as_completions(drawn, self.options, labels, self._names).to(self.runtime.device)
            self._frequencies = frequencies(batch, self.buffer.clusters(), [len(names) for names in self._names])
        self._filled = True
        valid = sum(block.valid for block in drawn.blocks)
        print_rank0(
            f"base        {valid} of {self.prefill} samples are valid ({counted(drawn, [self.options, *self._names])})"
        )
        bare = [option for option, clusters in zip(self.options, self.buffer.clusters(), strict=True) if not clusters]
        if bare and self.loss_head.config.objective == "tb":  # its clusters are fixed from here on
            print_rank0(
                f"warning: {', '.join(bare)}: too few different samples for clusters, so tb does not even out what "
                f"follows, all through this run: raise num_samples={self.prefill}, or lower "
                f"min_samples_for_clustering={self.buffer.min_samples}"
            )

    def _labels(self, drawn: Drawn, vectors: Vectors | None = None) -> tuple[list[int], Vectors]:
        """Cluster of each row, -1 for none, and the vectors [n, d] of the valid ones; rank 0 embeds for all."""
        valid = [row for row, block in enumerate(drawn.blocks) if block.valid]
        texts = [drawn.blocks[row].open_text for row in valid]
        if vectors is None:
            vectors = broadcast_object(self.embedder.encode(texts) if is_main() and texts else None)
        labels = [NONE] * len(drawn.blocks)
        for option in self.options:
            own = [i for i, row in enumerate(valid) if drawn.blocks[row].option == option]
            for i, label in zip(own, self.buffer.assign(option, vectors[own]).tolist() if own else [], strict=True):
                labels[valid[i]] = label
        return labels, vectors

    def _add(self, drawn: Drawn, vectors: Vectors, option: str, step: int) -> None:
        valid = [row for row, block in enumerate(drawn.blocks) if block.valid]
        own = [i for i, row in enumerate(valid) if drawn.blocks[row].option == option]
        entries = [Entry(drawn.blocks[valid[i]].open_text, drawn.tokens(valid[i]), step) for i in own]
        if own:
            self.buffer.add(option, entries, vectors[own])

    def _keep(self, drawn: Drawn, vectors: Vectors, step: int) -> None:
        """The batch joins the buffer; clusters that are due are fitted anew, those of tb are the base's for good."""
        for option in self.options:
            self._add(drawn, vectors, option, step)
            if self.loss_head.config.objective != "tb":
                self.buffer.update(option)
        if self.loss_head.config.objective != "tb":
            self.buffer.update_pool()

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _figures(self, drawn: Drawn, fresh: Completions, result: DiversityResult) -> dict[str, float]:
        """Metrics of the step; NaN: not measured."""
        named = option_figures(fresh, self.options, self.further)
        first = ("valid_fraction", "options_seen", "concept_entropy")
        return {
            "total_loss": float(result.total),
            "learning_rate": self.rate(self._step),
            "concept_loss": float(result.concept),
            "open_block_loss": float(result.open),
            "ref_kl": float(result.ref_kl),
            **{name: named.pop(name) for name in first},
            "epoch": float((self._step - 1) // self.steps_per_epoch + 1),
            "mean_length": sum(block.length for block in drawn.blocks) / len(drawn.blocks),
            **named,
            **self.buffer.figures(),
        }

    def _show(self, drawn: Drawn, labels: list[int], logp: Tensor, ref: Tensor) -> None:
        shown = min(SHOWN, len(labels))
        made = self.sampler.samples(drawn.rows(shown), logp[:shown], ref[:shown])
        self._rows = [_row(sample, label) for sample, label in zip(made, labels, strict=False)]

    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """The epoch's mean loss; before training, at the end, and where it is asked for, the whole measurement."""
        self.fill()
        results: dict[str, float | None] = {}
        if final or self.measurement.due(self._step):
            results |= {f"eval/{name}": value for name, value in self.measurement.take(self._step).items()}
            self._rows = self._rows or [_row(sample, NONE) for sample in self.measurement.newest[:SHOWN]]
        if self._epoch:
            results["eval/avg_epoch_loss"] = sum(self._epoch) / len(self._epoch)
        return results

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Samples of the newest batch."""
        return {"samples": self._rows}

    def evaluated_rows(self, steps: Collection[int], *, final: bool) -> int:
        """Samples of the evaluations after `steps`, those that measure, and of the last one."""
        return self.measurement.rows * (sum(map(self.measurement.due, steps)) + final)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The buffer with its clusters, what the base said of itself, and the counters."""
        known = self._frequencies
        return {
            "step": self._step,
            "called_off": self._called_off,
            "filled": self._filled,
            "epoch": list(self._epoch),
            "rows": [dict(row) for row in self._rows],
            "embedder": {"name": self.embedder.name, **self.embedder.state_dict()},
            "buffer": self.buffer.state_dict(),
            **({} if self.buffer.pool is None else {"pool": self.buffer.pool_state()}),
            **({} if known is None else {"frequencies": [known.option, known.cluster, *known.further]}),
            "measurement": self.measurement.state_dict(),
            "base": self.reference,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse. Raises: UsageError where the adapters belong to another base."""
        require_base(state["base"], self.reference)
        self._step, self._called_off, self._filled = state["step"], state["called_off"], state["filled"]
        self._epoch, self._rows = list(state["epoch"]), [dict(row) for row in state["rows"]]
        self._embed_as(state["embedder"])
        self.buffer.load_state_dict(state["buffer"])
        self.buffer.load_pool_state(state.get("pool", {}))
        if "frequencies" in state:
            option, cluster, *further = (value.to(self.runtime.device) for value in state["frequencies"])
            self._frequencies = Frequencies(option=option, cluster=cluster, further=further)
        self.measurement.load_state_dict(state["measurement"])

    def _embed_as(self, stored: Mapping[str, Any]) -> None:
        """With the embedder that the run began with: what `auto` takes may be there later, or gone."""
        if stored["name"] != self.embedder.name:
            self.embedder = make_embedder(stored["name"])
            self.measurement.figures.embedder = self.embedder
        self.embedder.load_state_dict(stored)


def _row(sample: Sample, cluster: int) -> dict[str, Any]:
    return {
        "sample": sample.text,
        "option": sample.option or "",
        "cluster": cluster,
        "open_text": sample.open_text,
        "logp": sample.logp,
        "ref_logp": sample.ref_logp,
    }


def _stacked(ids: Tensor, coefficients: Tensor, more: Tensor, pulls: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of rows as one, padded with 0 to the longer of both: no coefficient pulls at padding."""
    length = max(ids.shape[1], more.shape[1])

    def pad(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, length - tensor.shape[1]))

    return torch.cat((pad(ids), pad(more))), torch.cat((pad(coefficients), pad(pulls)))
