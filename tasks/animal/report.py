"""The files that a run of train_animal.py writes besides metrics: the adapter in peft's format, samples, reports."""

from __future__ import annotations

import json

from engine.io import print_rank0
from engine.task import Evaluation
from tasks.animal.args import AnimalConfig
from tasks.animal.pages import reports
from tasks.animal.task import AnimalTask


class AnimalReport:
    """Callable: evaluation -> {file name: content}; includes the report pages if the evaluation took measurements."""

    def __init__(self, config: AnimalConfig, task: AnimalTask) -> None:
        self.config, self.task = config, task

    def __call__(self, evaluation: Evaluation) -> dict[str, str | bytes]:
        step, taken = evaluation.step, self.task.measurement
        files: dict[str, str | bytes] = {**self._adapter(), "samples.json": self._samples(step)}
        if taken.step != step:
            return files
        after = taken.newest if step else None
        return files | reports(taken.figures, taken.before, after, facts=self._facts(step))

    def _adapter(self) -> dict[str, bytes]:
        """A full disk is a warning, as it is for the other files: the next checkpoint has the adapter."""
        try:
            return self.task.model.files()
        except OSError as error:
            print_rank0(
                f"warning: the adapter and its tokenizer could not be written ({error.strerror}); training continues"
            )
            return {}

    def _samples(self, step: int) -> str:
        rows = self.task.tables()["samples"]
        return json.dumps({"step": step, "samples": rows}, indent=1, ensure_ascii=False) + "\n"

    def _facts(self, step: int) -> dict[str, str]:
        return {
            "model": self.config.model_name_or_path,
            "prompt": self.config.prompt,
            "loss": self.task.loss_head.config.terms,
            "steps": str(step),
            "seed": str(self.config.seed),
        }
