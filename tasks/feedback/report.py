"""The files that a run writes after each evaluation: metrics.csv, log.txt, samples, its vocabulary.

metrics.csv and log.txt are rewritten from the task's history, which is in the checkpoint, so that resuming never
duplicates a row.
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
"""The metrics of each split in log.txt; metrics.jsonl has all."""
BASE_COLUMNS = ("type", "epoch", "loss", "lr", "step")
ADAPTER_COLUMNS = ("type", "epoch", "loss", "loss_lora", "rel_change", "lr", "step")
"""The published columns, and the step. `loss` is the base's loss, `loss_lora` the loss with deltas."""


class FeedbackReport:
    """Callable: evaluation -> {file name: text}, for files of the run directory.

    Args:
        epoch: steps per epoch.
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
        """Test documents: context, true end, the base's end and the adapted base's; the first line has the sampling
        settings."""
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
        """The text of metrics.csv: for each evaluation a row `train` (means since the previous one), a row `val`, and a
        row `test` if it covers the test split too."""
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
        """The text of log.txt: data, model and base, then a line for each evaluation."""
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
