"""The Task of train_animal.py: sample, split, cluster, and train the model towards more diverse samples.

A step scores new samples of the model (and, with tb, replayed ones) under model and base without gradients; the loss of
the whole batch gives a coefficient for every token; then Σ coefficient · log-probability is back-propagated, in as many
micro-batches as memory requires. Shapes: B rows of the global batch, b rows of a micro-batch, T tokens, K options.
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
from tasks.animal.sampler import Rollouts, Sampler, as_completions
from tasks.animal.samples import Sample
from tasks.animal.shares import NOT_MEASURED, frequencies, option_counts, option_figures

SHOWN = 8
"""Rows of the sample table."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass: ids int64 [b, T], coefficients [b, T], their `share` of the step, its metrics."""

    ids: Tensor
    coefficients: Tensor
    share: float
    figures: Mapping[str, float]


class AnimalTask:
    """Trains the adapters of `model`.

    Args:
        embedder: computes the vectors to cluster; fitted to the samples that fill the buffer.
        prefill: samples of the base that fill the buffer before the first step.
        replays: replayed samples per step.
        least_valid: least share of valid samples of a step that is not skipped.
        patience: most skipped steps in a row.
        rate: step -> learning rate, for the log.
        measurement: the measurements of evaluations.
        reference: path and fingerprint of the base.
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
        """Further concept -> options."""
        self.sampled = {"tokens": 0}
        """Tokens sampled in the last step."""
        self.compiled = "off"
        """What the engine compiles; a compiled pass needs rows of one shape."""
        self._step = self._skipped = 0
        self._filled = False
        self._frequencies: Frequencies | None = None
        self._epoch: list[float] = []
        self._rows: list[dict[str, Any]] = []

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Sample, score and label the batch of `step`. Raises: RunFailure if too many steps in a row were skipped."""
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
        result, others = self._batch_loss(drawn, batch.to(logp.device), logp, ref)
        figures = self._figures(drawn, fresh, result)
        self._show(drawn, labels, logp, ref)
        ids, coefficients = batch.ids, result.coefficients
        if others is not None and result.alternatives is not None:
            ids, coefficients = _concatenate(
                ids, coefficients, others.ids, result.alternatives.unsqueeze(-1) * others.mask.to(logp.device)
            )
        if not self._usable(fresh, result):
            coefficients = torch.full_like(coefficients, NOT_MEASURED)  # the trainer skips a non-finite loss
        else:
            self._epoch.append(float(result.total))
        self._update_buffer(drawn, vectors, step)
        return self._pieces(ids, coefficients, figures)

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, float, Metrics]:
        """(Σ coefficient · log-probability, whose gradient is the batch loss's; share; metrics)."""
        self.module.train()
        logp = score(self.model.language_model, self.sampler.prompt, micro_batch.ids)
        total = (micro_batch.coefficients * logp).sum()
        one, zero = torch.ones_like(total), torch.zeros_like(total)
        metrics = {
            name: (zero, zero) if math.isnan(value) else (one * value, one)
            for name, value in micro_batch.figures.items()
        }
        return total, micro_batch.share, metrics

    def _batch_loss(
        self, drawn: Rollouts, batch: Completions, logp: Tensor, ref: Tensor
    ) -> tuple[DiversityResult, Any]:
        """(loss of the batch, the alternatives of objective=kl_exact or None)."""
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
        """`fresh` and replayed completions as one batch."""
        random = keyed_numpy(self.runtime.seed, "animal/replay", step)
        drawn = self.buffer.draw(random, self.replays)
        if not drawn:
            return fresh
        length = max(fresh.ids.shape[1], *(len(entry.ids) for _, _, entry in drawn))
        rows = [[*entry.ids, *[self.sampler.pad] * (length - len(entry.ids))] for _, _, entry in drawn]
        replayed = Rollouts(torch.tensor(rows), [self.sampler.processor.split(entry.ids) for _, _, entry in drawn])
        old = as_completions(replayed, self.options, [cluster for _, cluster, _ in drawn], self._names)
        return fresh.concat(old)

    def _usable(self, fresh: Completions, result: DiversityResult) -> bool:
        """Whether enough samples are valid and the loss is finite; counts skipped steps.

        Raises: RunFailure after too many of them in a row.
        """
        valid = int(fresh.valid.sum())
        enough = valid > 0 and valid >= self.least_valid * len(fresh.ids)
        if enough and result.total.isfinite() and result.coefficients.isfinite().all():
            self._skipped = 0
            return True
        self._skipped += 1
        least = f", fewer than min_valid_fraction={self.least_valid:g}" * bool(self.least_valid)  # 0: at least one
        why = f"{valid} of {len(fresh.ids)} samples name {self._all_options()} and continue{least}"
        why = "the loss is not finite" if enough else why
        if self._skipped == self.total_steps:
            raise RunFailure(f"step {self._step}: {why}, in every step: nothing was trained; {self._advice()}")
        if self._skipped > self.patience:
            raise RunFailure(
                f"step {self._step}: {why}, in {self._skipped} steps in a row (max_skipped_steps={self.patience}); "
                + self._advice()
            )
        print_rank0(f"warning: step {self._step} is skipped: {why}")
        return False

    def _all_options(self) -> str:
        return " and ".join(" or ".join(names) for names in (self.options, *self._names))

    def _advice(self) -> str:
        if self._step <= self.patience + 1:
            return "the base hardly ever does: choose another prompt, or name other options (concept_options)"
        return "the model has left its base: lower learning_rate or raise w_kl; the newest checkpoint is from before"

    def _pieces(self, ids: Tensor, coefficients: Tensor, figures: Mapping[str, float]) -> list[MicroBatch]:
        """This rank's micro-batches, without rows whose coefficients are all zero."""
        used = (coefficients != 0).any(-1).cpu()
        ids, coefficients = ids[used], coefficients[used.to(coefficients.device)]
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
        return [MicroBatch(part, weights, 1 / (count * ranks), figures) for part, weights in parts]

    def after_step(self) -> None:
        """Nothing to do: the buffer was updated in `micro_batches`."""

    def param_groups(self) -> list[ParamGroup]:
        """The optimizer groups of the adapters; the base is in none of them."""
        return self._groups

    # --- the buffer ---------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Once, before the first step: fill the buffer with samples of the base, fit clusters and frequencies."""
        if self._filled:
            return
        drawn = self.sampler.draw(self.runtime.seed, "animal/prefill", 0, self.prefill, base=True, stoppable=True)
        if is_main():
            self.embedder.fit([block.text for block in drawn.blocks])
        self.embedder.load_state_dict(broadcast_object(self.embedder.state_dict()))  # machines round differently
        _, vectors = self._labels(drawn)
        self._update_buffer(drawn, vectors, 0)
        labels, _ = self._labels(drawn, vectors)
        if self.loss_head.config.objective == "tb":
            batch = as_completions(drawn, self.options, labels, self._names).to(self.runtime.device)
            self._frequencies = frequencies(batch, self.buffer.clusters(), [len(names) for names in self._names])
        self._filled = True
        counts = option_counts(drawn, [self.options, *self._names])
        print_rank0(f"base        {len(drawn.valid)} of {self.prefill} samples are valid ({counts})")
        bare = [option for option, clusters in zip(self.options, self.buffer.clusters(), strict=True) if not clusters]
        if bare and self.loss_head.config.objective == "tb":  # tb never refits clusters
            print_rank0(
                f"warning: {', '.join(bare)}: too few different samples for clusters, so tb does not even out what "
                f"follows, all through this run: raise num_samples={self.prefill}, or lower "
                f"min_samples_for_clustering={self.buffer.min_samples}"
            )

    def _labels(self, drawn: Rollouts, vectors: Vectors | None = None) -> tuple[list[int], Vectors]:
        """(cluster of each row, -1 for none; vectors [n, d] of valid rows, embedded by rank 0 for all)."""
        texts = [drawn.blocks[row].open_text for row in drawn.valid]
        if vectors is None:
            vectors = broadcast_object(self.embedder.encode(texts) if is_main() and texts else None)
        labels = [NONE] * len(drawn.blocks)
        for option in self.options:
            own = drawn.naming(option)
            for i, label in zip(own, self.buffer.assign(option, vectors[own]).tolist() if own else [], strict=True):
                labels[drawn.valid[i]] = label
        return labels, vectors

    def _update_buffer(self, drawn: Rollouts, vectors: Vectors, step: int) -> None:
        """Add completions to the buffer and refit clusters that are due; tb keeps those of the base's samples."""
        refits = not self._filled or self.loss_head.config.objective != "tb"
        for option in self.options:
            if own := drawn.naming(option):
                rows = [drawn.valid[i] for i in own]
                entries = [Entry(drawn.blocks[row].open_text, drawn.tokens(row), step) for row in rows]
                self.buffer.add(option, entries, vectors[own])
            if refits:
                self.buffer.update(option)
        if refits:
            self.buffer.update_pool()

    # --- metrics and evaluation ---------------------------------------------------------------------------------------

    def _figures(self, drawn: Rollouts, fresh: Completions, result: DiversityResult) -> dict[str, float]:
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
            **self.buffer.metrics(),
        }

    def _show(self, drawn: Rollouts, labels: list[int], logp: Tensor, ref: Tensor) -> None:
        shown = min(SHOWN, len(labels))
        samples = self.sampler.samples(drawn.rows(shown), logp[:shown], ref[:shown])
        self._rows = [_row(sample, label) for sample, label in zip(samples, labels, strict=False)]

    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """The epoch's mean loss; before training, at the end and when due, all metrics of the measurement."""
        self.fill()
        results: dict[str, float | None] = {}
        if final or self.measurement.due(self._step):
            results |= {f"eval/{name}": value for name, value in self.measurement.take(self._step).items()}
            self._rows = self._rows or [_row(sample, NONE) for sample in self.measurement.newest[:SHOWN]]
        if self._epoch:
            results["eval/avg_epoch_loss"] = sum(self._epoch) / len(self._epoch)
        return results

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Samples of the last batch."""
        return {"samples": self._rows}

    def evaluated_rows(self, steps: Collection[int], *, final: bool) -> int:
        """Number of samples drawn by the evaluations after `steps` and by the last one."""
        return self.measurement.rows * (sum(map(self.measurement.due, steps)) + final)

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The buffer with its clusters, the embedder, the base's samples and frequencies, and counters."""
        known = self._frequencies
        return {
            "step": self._step,
            "called_off": self._skipped,
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
        """Load `state_dict`. Raises: UsageError if the adapters belong to another base."""
        require_base(state["base"], self.reference)
        self._step, self._skipped, self._filled = state["step"], state["called_off"], state["filled"]
        self._epoch, self._rows = list(state["epoch"]), [dict(row) for row in state["rows"]]
        self._load_embedder(state["embedder"])
        self.buffer.load_state_dict(state["buffer"])
        self.buffer.load_pool_state(state.get("pool", {}))
        if "frequencies" in state:
            option, cluster, *further = (value.to(self.runtime.device) for value in state["frequencies"])
            self._frequencies = Frequencies(option=option, cluster=cluster, further=further)
        self.measurement.load_state_dict(state["measurement"])

    def _load_embedder(self, stored: Mapping[str, Any]) -> None:
        """Restore the embedder that the run started with: `auto` may choose another one by now."""
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


def _concatenate(ids: Tensor, coefficients: Tensor, more: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate two sets of rows (ids with coefficients, more with weights), zero-padded to the longer one."""
    length = max(ids.shape[1], more.shape[1])

    def pad(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, length - tensor.shape[1]))

    return torch.cat((pad(ids), pad(more))), torch.cat((pad(coefficients), pad(weights)))
