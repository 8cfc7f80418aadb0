"""The Task of train.py: next-token prediction on one text, a mixture of texts, or aligned streams of one text.

Shapes: B rows of the global batch, b rows of a micro-batch, T tokens, K streams.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dataset.text.batches import TrainBatches
from dataset.text.loading import HeldOut
from engine.device import staged
from engine.distributed import all_reduce_sum, local_rows
from engine.task import Interrupted, Metrics, ParamGroup, Runtime
from losses.language_model import LMLossHead
from models.language_models.gpt import GPT, LMOutput
from tasks.optimizers import MATRICES_ONLY, optimizer_settings
from tasks.sums import add_metrics, sum_dtype

MicroBatch = tuple[Tensor, Tensor, int | None]
"""tokens and targets int64 [b, T] or [b, K, T], and the index of their vocabulary (None: the only one, or all)."""


@dataclass(kw_only=True)
class Criterion:
    """Combines the validation losses of several data sets into the one that selects the best checkpoint."""

    kind: Literal["first", "mean", "weighted"] = "first"
    weights: Sequence[float] = field(default_factory=lambda: (1.0,))

    def __call__(self, losses: Sequence[float]) -> float:
        if self.kind == "first":
            return losses[0]
        weights = self.weights if self.kind == "weighted" else [1.0] * len(losses)
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


class LanguageModelTask:
    """Trains `model` on `batches`; evaluates every entry of `held_out`.

    Args:
        per_dataset_vocabulary: whether each data set of a mixture has its own vocabulary.
    """

    compiles = "full"

    def __init__(
        self,
        model: GPT,
        loss_head: LMLossHead,
        *,
        runtime: Runtime,
        batches: TrainBatches,
        held_out: Sequence[HeldOut],
        criterion: Criterion,
        groups: list[ParamGroup],
        per_dataset_vocabulary: bool = False,
    ) -> None:
        self.module: nn.Module = model
        self.model = model  # the bare model, for evaluation and sampling
        self.loss_head, self.runtime, self.batches = loss_head, runtime, batches
        self.held_out, self.criterion, self._groups = list(held_out), criterion, groups
        self.per_dataset_vocabulary = per_dataset_vocabulary
        self.micro_rows = runtime.micro_rows(batches.batch_size, "batch_size")
        self._step = 0
        self._stream: int | None = None

    # --- training -----------------------------------------------------------------------------------------------------

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's rows of batch `step`, split into `accumulation` pieces."""
        self._step = step
        low, high = local_rows(self.batches.batch_size)
        self._stream = stream = self.batches.dataset(step - 1) if self.per_dataset_vocabulary else None
        tokens, targets = self._to_device(self.batches.rows(step - 1, low, high))
        self.module.train()
        for piece in range(self.runtime.accumulation):
            cut = slice(piece * self.micro_rows, (piece + 1) * self.micro_rows)
            yield tokens[cut], targets[cut], stream

    def loss(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor, Metrics]:
        """(cross-entropy summed over scored positions, their number, metrics)."""
        tokens, targets, stream = micro_batch
        output = self.module(tokens) if stream is None else self.module(tokens, stream=stream)
        result = self.loss_head(output, targets)
        return result.total, result.weight, result.metrics

    def after_step(self) -> None:
        """Nothing to do: there is no carry."""

    @property
    def not_captured(self) -> str:
        """Why steps cannot be captured (engine/loop/step_graph.py), or ""."""
        return "the vocabulary changes from step to step" if self.per_dataset_vocabulary else ""

    def captured_as(self, step: int) -> Hashable:
        """Key of the captured step graph: the same for all steps."""
        return True

    def carried(self) -> list[Tensor]:
        """Empty: there is no carry."""
        return []

    def carry(self, tensors: list[Tensor]) -> None:
        """Nothing to do: there is no carry."""

    def left_out(self) -> list[nn.Parameter]:
        """Token embeddings and heads of the vocabularies that the newest batch does not use."""
        return self.model.parameters_of_others(self._stream) if self._stream is not None else []

    def param_groups(self) -> list[ParamGroup]:
        """The optimizer groups."""
        return self._groups

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *, final: bool) -> dict[str, float | None]:
        """Losses of every data set and split: `eval/val_loss` (the criterion), `eval/train_loss`, bits per byte, ...

        Each rank evaluates its rows of a batch; sums and counts are reduced, so the result does not depend on ranks.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.model.eval()
        values: dict[str, float | None] = {}
        several = len({entry.name for entry in self.held_out}) > 1
        losses: dict[str, list[float]] = {"val": [], "train": []}
        for entry in self.held_out:
            means = self._means(entry)
            losses[entry.split].append(means["loss"])
            if several:
                values |= {f"eval/{entry.name}/{entry.split}_{name}": value for name, value in means.items()}
            elif entry.split == "val":
                if "bits_per_byte" in means:
                    values["eval/bits_per_byte"] = means.pop("bits_per_byte")
                values |= {f"eval/val_{name}": value for name, value in means.items()}
        head: dict[str, float | None] = {"eval/val_loss": self.criterion(losses["val"])}
        if losses["train"]:
            head["eval/train_loss"] = self.criterion(losses["train"])
        head["eval/perplexity"] = math.exp(min(head["eval/val_loss"] or 0.0, 700.0))
        results = {**head, **{name: value for name, value in values.items() if name not in head}}
        return results | self._data_progress()

    def _data_progress(self) -> dict[str, float]:
        """Tokens and epochs of each data set that have been trained on so far."""
        progress = self.batches.progress(self._step)
        several = len(progress) > 1
        return {
            f"data/{windows.streams[0].name}/{what}" if several else f"data/{what}": float(value)
            for windows, pair in zip(self.batches.datasets, progress, strict=True)
            for what, value in zip(("tokens", "epochs"), pair, strict=True)
        }

    def _means(self, entry: HeldOut) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        for index in range(len(entry.batches)):
            if self.runtime.stop_requested():
                raise Interrupted("stopped during evaluation")
            rows, ranks = entry.batches.batch_size, self.runtime.world_size
            low, high = self.runtime.rank * rows // ranks, (self.runtime.rank + 1) * rows // ranks
            if low == high:
                continue
            tokens, targets = self._to_device(entry.batches.rows(index, low, high))
            output = self.model(tokens) if entry.stream is None else self.model(tokens, stream=entry.stream)
            pairs = dict(self.loss_head(output, targets).metrics)
            if entry.eot is not None:
                pairs["ends"] = (self._loss_of_token(entry.eot, output, targets), pairs["loss"][1])
            add_metrics(sums, pairs)
        if not sums:  # more ranks than rows: this rank only joins the reduction
            names = [*self._metric_names, *(["ends"] if entry.eot is not None else [])]
            device = self.runtime.device
            sums = {name: torch.zeros(2, dtype=sum_dtype(device), device=device) for name in names}
        means = {}
        for name, pair in sums.items():
            total, count = all_reduce_sum(pair).tolist()
            means[name] = total / max(count, 1.0)
        ends = means.pop("ends", 0.0)
        if entry.bytes_per_token:
            means["bits_per_byte"] = (means["loss"] - ends) / math.log(2) / entry.bytes_per_token
        return means

    def _loss_of_token(self, token: int, output: LMOutput, targets: Tensor) -> Tensor:
        """Loss in nats, summed over the positions whose target is `token`."""
        mask = targets == token
        selected = replace(output, hidden=output.hidden[mask].unsqueeze(0))
        return self.loss_head.token_losses(selected, targets[mask].unsqueeze(0)).sum()

    @property
    def _metric_names(self) -> list[str]:
        streams = len(self.model.shape.vocab_sizes)
        several = streams > 1 and not self.per_dataset_vocabulary
        return ["loss", *(f"loss_{k}" for k in range(streams) if several), "accuracy"]

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The data position: the step, and the rows drawn before it."""
        return {"step": self._step, "rows": self.batches.rows_drawn(self._step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load `state_dict`."""
        self._step = int(state.get("step", 0))
        if "rows" in state:
            self.batches.resume_from(self._step, state["rows"])

    def _to_device(self, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        pair = staged({name: arrays[name] for name in ("tokens", "targets")}, self.runtime.device).values()
        # aligned streams come as [b, T, K]; the model expects [b, K, T]
        tokens, targets = (t.movedim(-1, 1) if t.dim() == 3 else t for t in pair)
        return tokens, targets


def param_groups(model: GPT, *, lr: float, optimizer: Mapping[str, Any]) -> list[ParamGroup]:
    """Optimizer groups: matrices, embeddings and head with weight decay; vectors and scalars without.

    An optimizer for hidden matrices only (Muon) leaves embeddings, head and vectors to its `rest`, and treats q, k, v
    and the halves of SwiGLU as separate matrices, although the model stacks them.

    Raises:
        UsageError: unknown keys, or a matrix optimizer without `rest`.
    """
    choice, *rest = optimizer_settings(optimizer)
    groups = []
    for kind, members in model.param_groups().items():
        own = choice if not rest or kind == "matrix" else rest[0]
        groups.append(
            ParamGroup(
                name=kind,
                optimizer=own.name,
                lr=lr if own.lr is None else own.lr,
                params=members,
                options=_without_decay(own.options) if kind in ("vector", "scalar") else own.options,
                fused_rows=model.fused_rows() if own.name in MATRICES_ONLY else {},
            )
        )
    return groups


def _without_decay(options: dict[str, Any]) -> dict[str, Any]:
    inner = {"inner_options": _without_decay(dict(options["inner_options"]))} if "inner_options" in options else {}
    return {**options, **({"weight_decay": 0.0} if "weight_decay" in options else {}), **inner}
