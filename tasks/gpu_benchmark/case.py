"""A row of the table: a recipe with its modes, and the trainer that a launch would build for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from engine.cli.resolve import resolve
from engine.device import make_runtime
from engine.errors import UsageError
from engine.loop.compiling import compile_task
from engine.loop.step_graph import StepGraph, make_step_graph
from engine.loop.trainer import Trainer
from engine.signals import StopSignal
from tasks.gpu_benchmark.timing import Work

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {"public code, compiled": True, "public code, eager": False}
"""Mode of the public code -> whether it is compiled."""
PLAIN = ("compile=off", "step_graph=off")


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """A recipe (command-line words) with `rows` examples per step, each of `tokens` tokens below `vocab_size`."""

    script: ClassVar[str]
    compile: ClassVar[str]
    """How the script's step is compiled (engine/loop/compiling.py)."""

    name: str
    recipe: tuple[str, ...]
    rows: int
    tokens: int
    vocab_size: int
    small: bool = False
    """Whether to capture the uncompiled step too: for a large model such a graph would hold 20 GB."""

    @property
    def ours(self) -> dict[str, tuple[str, ...]]:
        """Our modes -> their overrides."""
        compiled = f"compile={self.compile}"
        return {
            f"ours, {compiled}, step_graph": (compiled, "step_graph=on"),
            f"ours, {compiled}": (compiled, "step_graph=off"),
            **({"ours, step_graph": ("compile=off", "step_graph=on")} if self.small else {}),
            "ours, eager": PLAIN,
        }

    @property
    def modes(self) -> list[str]:
        """All modes of the row, those with the longest warm-up first."""
        compiled, eager = PUBLIC
        return [compiled, *self.ours, eager]

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write random data of the row's shape to `folder`."""

    @abstractmethod
    def overrides(self, folder: Path) -> tuple[str, ...]:
        """Overrides for this data, the batch size, and a run longer than the timing."""

    @abstractmethod
    def public(self, bench: Bench, *, compiled: bool) -> Work:
        """A function that takes training steps of the public code."""


class Bench:
    """The modes of one case, on the same data, which it writes to `folder`. Each mode has its own weights."""

    def __init__(self, case: Case, device: torch.device, folder: Path) -> None:
        self.case, self.device, self.folder = case, device, folder
        self.flops: float | None = None
        """FLOPs of a training step, as the model counts them; None until one of our modes was built."""
        self.graphs: dict[str, StepGraph] = {}
        """Step graphs, by mode."""
        folder.mkdir(parents=True, exist_ok=True)
        case.write(folder)

    def work(self, mode: str) -> Work:
        """A function that takes training steps in `mode`. Raises: UsageError for a recipe that a launch refuses."""
        if mode in PUBLIC:
            return self.case.public(self, compiled=PUBLIC[mode])
        trainer = self.trainer(*self.case.ours[mode])
        flops: Any = trainer.module.flops
        self.flops = flops(trainer.plan.batch_rows)["train"]
        if trainer.graph is not None:
            self.graphs[mode] = trainer.graph
        return partial(_steps, trainer)

    def trainer(self, *overrides: str) -> Trainer:
        """The trainer as a launch builds it (engine/run/launch.py), without saving, logging and evaluation."""
        case = self.case
        words = (*case.recipe, *case.overrides(self.folder), f"device={self.device}", *overrides)
        trace = resolve(ROOT / case.script, words, root=ROOT)
        if (config := trace.config) is None or trace.script is None or trace.script.declared is None:
            raise UsageError(next(iter(trace.problems.values())))
        runtime = make_runtime(config)
        plan = trace.script.declared.build(config, runtime)
        if plan.start is not None:
            plan.start()
        plan.eval_steps = ()
        compile_task(plan.task, config, runtime.device, steps=plan.last_step(config.max_steps))
        trainer = Trainer(plan, config, runtime, save=lambda *_: None, write=lambda *_: None, stop=StopSignal())
        trainer.graph = make_step_graph(trainer)  # as `fit` does
        return trainer


def _steps(trainer: Trainer, steps: int) -> None:
    """Take steps as `Trainer.fit` does, with batches and log lines."""
    for _ in range(steps):
        trainer.step += 1
        trainer._train_step()
        trainer._finish_step(resumed=False)
