"""Measures a run without running it: builds it as a launch does, takes a few steps, writes nothing.

Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.state_tree import RowSharded
from engine.device import make_runtime
from engine.loop.compiling import compile_task
from engine.loop.speed import captured, compiled, enough, peak_memory, warm_up
from engine.loop.trainer import Trainer
from engine.signals import StopSignal
from engine.task import TrainingPlan
from reports.cost.operations import Stage, stages, steps_within, training_flops


class _EnoughSteps(Exception):
    """Raised in a hook to end the measurement; the trainer does not catch it."""


@dataclass(kw_only=True)
class Measurement:
    """Measurements of a run that was built and took a few steps."""

    device: str
    compiled: str
    """off, block or full: the mode of `compile` that was measured."""
    captured: bool
    """Whether a step runs as one CUDA graph."""
    parameters: dict[str, int]
    """Number of trained parameters by group."""
    optimizers: dict[str, str]
    frozen: int
    """Number of parameters that no group trains."""
    memory: dict[str, int]
    """weights, gradients, moments, average: exact; activations: measured; process: peak of the process."""
    checkpoint: int
    """Bytes of one checkpoint's tensors."""
    saves: list[Sequence[int]]
    """The steps at which the run will save, by reason: interval, evaluations, end."""
    total_steps: int
    planned_steps: int
    """total_steps, or max_steps if that is less."""
    budget_steps: int | None
    """Steps within max_seconds; None without it."""
    last_step: int
    """The step at which the run ends, whatever limits it."""
    evaluations: int
    batch_key: str
    batch_rows: int
    eval_examples: int | None
    """Examples of all evaluations together; None if the task does not count them."""
    step_seconds: float
    """Seconds per step of the first stage."""
    timed_steps: int
    warm_up_seconds: float
    """Additional seconds of the first steps for compiling and capturing; 0 without either."""
    stages: list[Stage]
    """The stages of the training steps."""
    flops_evaluations: float | None

    @property
    def examples_per_second(self) -> float:
        return self.batch_rows / self.step_seconds

    @property
    def training_seconds(self) -> float:
        return self.warm_up_seconds + sum(steps * each for steps, each in timed_stages(self.stages, self.step_seconds))

    @property
    def training_flops(self) -> float | None:
        """FLOPs of all training steps; None if the model does not count them."""
        return training_flops(self.stages)

    @property
    def evaluation_seconds(self) -> float | None:
        """Estimated from FLOPs at the speed of the training steps; None if the model does not count them."""
        first = self.stages[0].flops
        if self.flops_evaluations is None or not first:
            return None
        return self.step_seconds * self.flops_evaluations / first


class _Clock:
    """A trainer hook that times steps and stops after `steps` of them, or after a few of them and `seconds`."""

    def __init__(self, device: torch.device, steps: int, seconds: float) -> None:
        self.device, self.steps, self.seconds = device, steps, seconds
        self.times: list[float] = []
        self.last = 0.0
        self.warm_up = 0

    def start(self, trainer: Trainer) -> None:
        self.warm_up = warm_up(trainer)
        self.last = time.perf_counter()

    def after_step(self, trainer: Trainer) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now
        timed = self.times[self.warm_up :]
        done = enough(len(timed), sum(timed), steps=self.steps, limit=self.seconds)
        if done or trainer.step >= trainer.last_step:
            raise _EnoughSteps

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.last = time.perf_counter()

    def end(self, trainer: Trainer) -> None:
        """Never called: the last step ends the measurement."""

    @property
    def timed(self) -> list[float]:
        """Times of the steps after the warm-up, or of the warm-up if there are no others."""
        return self.times[self.warm_up :] or self.times


def measure(config: Any, build: Callable[..., TrainingPlan], *, steps: int, seconds: float) -> Measurement:
    """Build the run of `config` by its family's `build` and time a few training steps.

    Raises: what building or a step raises (UsageError, RunFailure if memory runs out).
    """
    runtime = make_runtime(config)
    plan = build(config, runtime)
    compile_task(plan.task, config, runtime.device, steps=plan.last_step(config.max_steps))
    clock = _Clock(runtime.device, steps, seconds)
    unlimited = replace(config, max_seconds=None)  # else the timed steps might use it up
    trainer = Trainer(
        plan, unlimited, runtime, save=lambda *_: None, write=lambda *_: None, stop=StopSignal(), hooks=[clock]
    )
    # An evaluation within the first steps would be timed as a step, and take long.
    eval_steps, plan.eval_steps = plan.eval_steps, frozenset()
    before = _reset_peak(runtime.device)
    with contextlib.suppress(_EnoughSteps):
        trainer.fit()
    peak = peak_memory(runtime.device)
    state = {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
    memory = _memory(trainer, state)
    late = memory["gradients"] + memory["moments"]  # on a CPU, pages not yet touched when `before` was taken
    known = sum(memory.values()) if runtime.device.type == "cuda" else before + late
    task_state = trainer.state_dict()["task"]
    mode, graph, planned = compiled(trainer), captured(trainer), trainer.last_step

    def parts(last: int) -> list[Stage]:
        return stages(trainer.module, plan.batch_rows, steps=last, horizon=plan.total_steps)

    step_seconds = _first_stage_seconds(clock, parts(planned))
    prepares = graph or mode != "off"
    extra = max(0.0, sum(clock.times) - len(clock.times) * step_seconds) if prepares else 0.0
    within = None
    if config.max_seconds is not None:
        within = steps_within(config.max_seconds - extra, timed_stages(parts(planned), step_seconds))
    last = min(planned, within or planned)
    evaluations, final = _before(eval_steps, last), int(plan.final_eval or last in eval_steps)
    examples = _eval_examples(plan.task, evaluations, final)
    flops: Any = getattr(trainer.module, "flops", None)
    return Measurement(
        device=str(runtime.device),
        compiled=mode,
        captured=graph,
        parameters={g.name: g.size for g in plan.task.param_groups()},
        optimizers={g.name: g.optimizer for g in plan.task.param_groups()},
        frozen=sum(p.numel() for p in trainer.module.parameters() if not p.requires_grad),
        memory={**memory, "activations": max(0, peak - known), "process": peak},
        checkpoint=memory["weights"] + memory["moments"] + memory["average"] + _bytes(task_state),
        saves=_saves(plan, config, last, evaluations),
        total_steps=plan.total_steps,
        planned_steps=planned,
        budget_steps=within,
        last_step=last,
        evaluations=len(evaluations) + final,
        batch_key=plan.batch_key,
        batch_rows=plan.batch_rows,
        eval_examples=examples,
        step_seconds=step_seconds,
        timed_steps=len(clock.timed),
        warm_up_seconds=extra,
        stages=parts(last),
        flops_evaluations=flops(examples)["eval"] if flops and examples is not None else None,
    )


def _first_stage_seconds(clock: _Clock, parts: Sequence[Stage]) -> float:
    """The median of the timed steps; those of a later stage, in a short run, are scaled to the first one's FLOPs."""
    costs = itertools.chain.from_iterable(itertools.repeat(part.flops or 1.0, part.steps) for part in parts)
    first = parts[0].flops or 1.0
    each = list(itertools.islice(costs, len(clock.times) - len(clock.timed), len(clock.times)))
    return statistics.median(took * first / cost for took, cost in zip(clock.timed, each, strict=True))


def timed_stages(parts: Sequence[Stage], step_seconds: float) -> list[tuple[int, float]]:
    """(steps, seconds of each) of each stage by its FLOPs, if a step of the first one takes `step_seconds`."""
    first = parts[0].flops or 1.0
    return [(part.steps, step_seconds * (part.flops or first) / first) for part in parts]


def _before(steps: Collection[int], last: int) -> Sequence[int]:
    """The elements of `steps` below `last`, ascending; a range stays a range."""
    if isinstance(steps, range):
        return range(steps.start, min(steps.stop, last), steps.step)
    return sorted(step for step in steps if step < last)


def _saves(plan: TrainingPlan, config: Any, last: int, evaluations: Sequence[int]) -> list[Sequence[int]]:
    interval = config.checkpoint_interval
    periodic = range(interval, last, interval) if interval else ()
    return [periodic, evaluations if plan.checkpoint_every_eval else (), (last,)]


def checkpoints_kept(saves: Sequence[Sequence[int]], keep_last: int, keep_every: int | None) -> int:
    """Most checkpoints that are left of `saves` at the end: the newest, the multiples, and the best one.

    `saves` are ascending sequences, which may share steps.
    """
    falling = (step for step, _ in itertools.groupby(heapq.merge(*map(reversed, saves), reverse=True)))
    newest = list(itertools.islice(falling, keep_last))
    multiples = range(0, newest[-1], keep_every) if keep_every else ()
    stay = sum(any(step in steps for steps in saves) for step in multiples)
    best_is_another = any(not keep_every or step % keep_every for step in falling)
    return len(newest) + stay + best_is_another


def _eval_examples(task: Any, evaluations: Sequence[int], final: int) -> int | None:
    if (counted := getattr(task, "evaluated_rows", None)) is not None:
        return int(counted(evaluations, final=bool(final)))
    during = len(evaluations)
    usual, last, held_back = (getattr(task, f"{name}_sampler", None) for name in ("eval", "final", "validation"))
    if usual is None or last is None:
        return None
    # The set that selects checkpoints during training; held-back groups are evaluated at the end, too.
    selecting: int = (held_back or usual).num_examples
    at_end: int = last.num_examples + (selecting if held_back else 0)
    return during * selecting + final * at_end


def _memory(trainer: Trainer, optimizers: Mapping[str, Any]) -> dict[str, int]:
    trained = [p for p in trainer.module.parameters() if p.requires_grad]
    return {
        "weights": _bytes(trainer.module.state_dict()),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
        "moments": _bytes(optimizers),
        "average": _bytes(trainer.ema.state_dict()) if trainer.ema is not None else 0,
    }


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, RowSharded):
        tree = tree.tensor
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for inner in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(inner)


def _bytes(tree: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(tree))


# --- memory of the machine --------------------------------------------------------------------------------------------


def _reset_peak(device: torch.device) -> int:
    """Reset the peak memory; returns the memory in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak then includes building the data
        return peak_memory(device)
    return peak_memory(device)
