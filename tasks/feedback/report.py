"""What a run writes beside its metrics after each evaluation: metrics.csv, log.txt, its vocabulary.

Both files are written whole from the task's history, which is part of the checkpoint: a resumed run has no row twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataset.text.vocabulary import FILE, to_text, vocabularies_of
from engine.task import Evaluation
from tasks.feedback.answers import Answers
from tasks.feedback.args import FeedforwardConfig
from tasks.feedback.generation import predictor
from tasks.feedback.task import FeedbackTask

CSV, LOG = "metrics.csv", "log.txt"
LOGGED = ("loss", "base_loss", "rel_change", "gap_closed", "masked_accuracy", "exact_match")
"""The figures of each split that log.txt shows; metrics.jsonl has all."""
BASE_COLUMNS = ("type", "epoch", "loss", "lr", "step")
ADAPTER_COLUMNS = ("type", "epoch", "loss", "loss_lora", "rel_change", "lr", "step")
"""The published columns, and the step. `loss` is the base's, `loss_lora` that with deltas."""


class FeedbackReport:
    """`report(evaluation)` -> file name -> text, to be kept in the run directory.

    Args:
        epoch: steps of one.
        rate: step -> learning rate.
    """

    def __init__(
        self,
        config: FeedforwardConfig,
        task: FeedbackTask,
        folder: Path,
        answers: Answers | None,
        *,
        epoch: int,
        rate: Callable[[int], float],
    ) -> None:
        self.config, self.task, self.folder, self.answers = config, task, folder, answers
        self.epoch, self.rate = epoch, rate

    def __call__(self, evaluation: Evaluation) -> dict[str, str]:
        files = {FILE: to_text(vocabularies_of([self.folder])), CSV: self.table(), LOG: self.log()}
        if self.task.layer_table:
            files[f"evaluations/step_{evaluation.step}_deltas.csv"] = self.task.layer_table
        if self.answers is not None and self.config.num_samples:
            files[f"samples/step_{evaluation.step}.txt"] = self.samples(self.answers)
        return files

    def samples(self, answers: Answers) -> str:
        """Documents of the test split: what is given, the true end, the base's, and that of the adapted base; how they
        were filled in is in the first line."""
        model, base, device = self.task.model, self.task.base, self.task.runtime.device
        gaps = answers.gaps(self.config.num_samples, self.config.eval_seed)
        plain, _ = answers.fill(predictor(model if base is None else base.model), gaps, device)
        adapted = answers.fill(predictor(model, base.model), gaps, device)[0] if base is not None else plain
        lines = [f"{answers.sampling}, length given"]
        for gap, first, second in zip(gaps, plain, adapted, strict=True):
            lines += [f"--- document {gap.number}", answers.text(gap.context)]
            lines += ["--- true", answers.text(gap.rest), "--- base", first]
            lines += ["--- adapted", second] if base is not None else []
        return "\n".join(lines) + "\n"

    def table(self) -> str:
        """A row `train` (means since the evaluation before) and a row `val` for each evaluation; a row `test` for one
        that is also of the test split."""
        adapted = self.task.base is not None
        out = io.StringIO()
        writer = csv.DictWriter(out, ADAPTER_COLUMNS if adapted else BASE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for entry in self.task.history:
            for kind, prefix in {"train": "train", "val": self.task.selects, "test": "eval"}.items():
                if f"{prefix}/loss" in entry and (kind != "test" or self.task.selects != "eval"):
                    writer.writerow(self._row(kind, prefix, entry, adapted))
        return out.getvalue()

    def _row(self, kind: str, prefix: str, entry: dict[str, float], adapted: bool) -> dict[str, Any]:
        step, loss = int(entry["step"]), entry[f"{prefix}/loss"]
        row: dict[str, Any] = {"type": kind, "epoch": f"{step / self.epoch:g}", "lr": self.rate(max(step, 1))}
        row |= {"step": step, "loss": loss}
        if adapted:
            base = entry.get(f"{prefix}/base_loss", float("nan"))
            row |= {"loss": base, "loss_lora": loss, "rel_change": (loss - base) / abs(base)}
        return row

    def log(self) -> str:
        """What is trained on what, then a line for each evaluation."""
        config, task, stream = self.config, self.task, self.task.batches.documents.stream
        lines = [
            f"data set {config.active_dataset}: {self.folder}, tokenizer {stream.meta.tokenizer}, vocabulary "
            f"{stream.meta.vocab_size}, {len(task.batches.documents)} training pieces, evaluated on "
            f"{task.held_out.covers}",
            f"model {config.arch['name']}: {task.model.num_parameters():,} parameters, {self.epoch} steps an epoch",
        ]
        if task.base is not None:
            lines.append(f"base {task.base.path}, sha256 {task.base.sha256}")
        for entry in task.history:
            step = int(entry["step"])
            figures = [f"{name} {value:.4f}" for name, value in entry.items() if name.partition("/")[2] in LOGGED]
            lines.append(
                f"epoch {step / self.epoch:g} step {step} lr {self.rate(max(step, 1)):.2e}: {', '.join(figures)}"
            )
        return "\n".join(lines) + "\n"
