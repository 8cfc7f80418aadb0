"""What a run of train_animal.py leaves beside its metrics: the adapter in peft's format, samples, evaluation pages."""

from __future__ import annotations

import json

from engine.task import Evaluation
from tasks.animal.args import AnimalConfig
from tasks.animal.task import AnimalTask


class AnimalReport:
    """`report(evaluation)` -> file name -> content, after every evaluation."""

    def __init__(self, config: AnimalConfig, task: AnimalTask) -> None:
        self.config, self.task = config, task

    def __call__(self, evaluation: Evaluation) -> dict[str, str | bytes]:
        return {**self.task.model.files(), "samples.json": self._samples(evaluation.step)}

    def _samples(self, step: int) -> str:
        rows = self.task.tables()["samples"]
        return json.dumps({"step": step, "samples": rows}, indent=1, ensure_ascii=False) + "\n"
