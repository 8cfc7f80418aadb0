"""Rows of pretrain.py, against TRM's public loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from dataset.format import widened
from tasks.gpu_benchmark.case import PLAIN, Bench, Case
from tasks.gpu_benchmark.timing import Work
from tasks.recursive_reasoning.step_benchmark.literal import Literal
from tasks.recursive_reasoning.step_benchmark.literal_training import Training
from tasks.recursive_reasoning.step_benchmark.measure import random_puzzles, write_random_puzzles


class PuzzleCase(Case):
    """A recursive model."""

    script: ClassVar[str] = "pretrain.py"
    compile: ClassVar[str] = "block"

    def write(self, folder: Path) -> None:
        """Write puzzles of random tokens, each with its own identifier."""
        counts = {"train": 4 * self.rows, "test": self.rows}
        splits = {name: random_puzzles(n, 1, 1, self.tokens, self.vocab_size) for name, n in counts.items()}
        write_random_puzzles(folder / "puzzles", splits, self.vocab_size)

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """The data, the batch size, and 16,000 steps."""
        return (
            f"data_paths=[{folder}/puzzles]",
            f"global_batch_size={self.rows}",
            "epochs=4000",
            "eval_interval=null",
        )

    def public(self, bench: Bench, *, compiled: bool) -> Work:
        """TRM's loop: batches come from pinned memory, which a separate process fills; metrics are read every step."""
        trainer, device = bench.trainer(*PLAIN), bench.device
        task: Any = trainer.task
        model = task.model
        with torch.device(device):
            literal = Literal(model.config, model.shape, self.rows, model.inner.dtype)
        literal.load_state_dict(model.state_dict())
        training = Training(literal, self.rows, trainer.config, compiled=compiled)
        arrays = widened(task._offered(1, 0, self.rows))
        host = {name: torch.from_numpy(values) for name, values in arrays.items()}
        if device.type == "cuda":
            host = {name: tensor.pin_memory() for name, tensor in host.items()}

        def steps(count: int) -> None:
            for _ in range(count):
                training.step({name: tensor.to(device) for name, tensor in host.items()})

        return steps
