"""The training loop, once for all entry scripts.

A step: micro-batches -> loss -> backward -> one reduction -> optimizers -> averaged weights. The loop around it has its
periodic duties as paragraphs: log, evaluate, save, stop. The state at the end of any step, saved and loaded, continues
bit for bit: weights, optimizers, averages, the task's own state, the open metric window and the step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint, clean_name, load_weights
from engine.config import RunConfig
from engine.distributed import broadcast_object, key_global_draws, lost_rank
from engine.ema import EMA, averages
from engine.errors import Interrupted, RunFailure
from engine.metrics import MetricWindow
from engine.optim import build_optimizers, load_optimizers
from engine.reduce import GradientReducer
from engine.signals import StopSignal
from engine.stats import GroupStats
from engine.stopping import EarlyStop
from engine.task import Plan, Runtime

Saver = Callable[["Trainer", str], None]
Writer = Callable[[int, dict[str, Any]], None]


class Hook:
    """What may be attached to a run beside the loop's own duties. Every method may be left out."""

    def start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def after_step(self, trainer: Trainer) -> None:
        """After each optimizer step."""

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """After each evaluation."""

    def end(self, trainer: Trainer) -> None:
        """When the loop ends well."""


class Trainer:
    """Trains `plan.task` to the last step; `save(trainer, why)` checkpoints, `write(step, values)` takes metrics."""

    def __init__(
        self, plan: Plan, config: RunConfig, runtime: Runtime, *, save: Saver, write: Writer, stop: StopSignal,
        hooks: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        self.plan, self.config, self.runtime, self.task = plan, config, runtime, plan.task
        self._save, self._write, self._stop, self.hooks = save, write, stop, list(hooks)
        self.module = plan.task.module
        self.step = 0
        self.last_step = min(plan.total_steps, config.max_steps or plan.total_steps)
        self.evaluated_step = -1
        self.results: dict[str, float | None] = {}
        # Steps called off so far; those in a row up to now; the most that ever were in a row. On the device: no sync.
        self.skipped = torch.zeros(3, dtype=torch.float32, device=runtime.device)
        self.window = MetricWindow(runtime.device)
        self.early_stop = EarlyStop(config, direction=plan.primary_direction)
        self.stopped_early = False
        self._train_seconds, self._timed_steps = 0.0, 0
        self.step_ms: float | None = None

        groups = self.task.param_groups()
        self.groups = {group.name: group for group in groups}
        self.stats = GroupStats(groups, config.stats_interval)
        self.optimizers = build_optimizers(groups)
        dense = {f"{g.name}.{name}": param for g in groups for name, param in g.dense.items()}
        trained = {id(param) for param in dense.values()}
        for param in self.module.parameters():
            param.requires_grad_(id(param) in trained)
        self.reducer = GradientReducer(self.task, dense, parallel=config.parallel)
        averaged = {clean_name(name): param for name, param in self.module.named_parameters() if param.requires_grad}
        self.ema = EMA(averaged, config.ema_rate) if config.ema else None

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float | None]:
        """Train from the present step to the last one; returns the last evaluation.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            RunFailure: out of memory, too many non-finite steps, or (RankLost) another rank has died.
        """
        for hook in self.hooks:
            hook.start(self)
        self._stop.training = True
        try:
            self._finish_step(resumed=True)
            while self.step < self.last_step:
                began = time.perf_counter()
                self.step += 1
                self._train_step()
                self._train_seconds += time.perf_counter() - began
                self._timed_steps += 1
                self._finish_step(resumed=False)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if (failure := self._out_of_memory(error) or lost_rank(error)) is not None:  # DDP reduces in backward
                raise failure from error
            raise
        for hook in self.hooks:
            hook.end(self)
        return self.results

    def _train_step(self) -> None:
        task, config = self.task, self.config
        micro_batches = list(task.micro_batches(self.step))
        key_global_draws(config.seed, f"forward/{self.runtime.rank}", self.step)  # dropout, other masks on each rank
        self.reducer.start()
        loss_sum, weight_sum = self._zero(), self._zero()
        for index, micro_batch in enumerate(micro_batches):
            with self.reducer.accumulating(last=index == len(micro_batches) - 1):
                loss, weight, metrics = self.reducer.loss(micro_batch)
                loss.backward()
            loss_sum = loss_sum + loss.detach()
            weight_sum = weight_sum + torch.as_tensor(weight, device=loss_sum.device)
            self.window.add(metrics)
        norm, ok = self.reducer.finish(loss_sum, weight_sum, clip=config.grad_clip)

        key_global_draws(config.seed, "update", self.step)  # optimizers that draw do the same on all ranks
        factor, measured = self.plan.schedule(self.step), self.stats.due(self.step)
        if measured:
            self.stats.before(norm, config.grad_clip)
        for optimizer in self.optimizers.values():
            optimizer.step(factor, ok)
        if measured:
            self.stats.after()
        bad = 1 - ok.to(self.skipped.dtype)
        row = (self.skipped[1] + bad) * bad
        self.skipped = torch.stack([self.skipped[0] + bad, row, torch.maximum(self.skipped[2], row)])
        if self.ema is not None:
            self.ema.update()
        self._last_norm = norm
        task.after_step()
        for hook in self.hooks:
            hook.after_step(self)

    def _finish_step(self, *, resumed: bool) -> None:
        """The duties that follow a step. After a resume only what the interrupted process had not yet done is done."""
        step, plan, last = self.step, self.plan, self.step >= self.last_step
        if step == 0 and not self.evaluation_due():
            return

        # Log: means over the window, so that log_interval changes how often, not what.
        if not resumed and (step % self.config.log_interval == 0 or last):
            self._log()

        # Evaluate with the averaged weights; a signal during it leaves the evaluation to the next process.
        stopping = self.early_stop.due and not last  # already here only after a resume
        fresh = self.evaluation_due() and self.evaluated_step != step and not stopping
        if fresh:
            self._evaluate(final=last)

        # Stop early: this is then the last step, with all that a last step has.
        if self.early_stop.due and not last:
            last, fresh = True, self._stop_early(resumed=resumed) or fresh

        # Save: every n steps, with every evaluation, and always at the end.
        interval = self.config.checkpoint_interval
        wanted = (interval and step % interval == 0) or (fresh and plan.checkpoint_every_eval) or last
        wanted = wanted and (step > 0 or last)  # nothing is lost before the first step
        if wanted and (fresh or not resumed):
            self._save(self, "last" if last else "step")

        # Stop: all ranks agree at the same step.
        if not last and self._stop.agreed():
            self._interrupt(saved=bool(wanted and not resumed))

    def _interrupt(self, *, saved: bool) -> None:
        if not saved:
            self._save(self, "signal")
        raise Interrupted(f"stopped by a signal after step {self.step}: the same command goes on from there")

    def _stop_early(self, *, resumed: bool) -> bool:
        """Make this step the last one; whether its final evaluation was made here and now."""
        self.last_step, self.stopped_early = self.step, True
        if not resumed and self.step % self.config.log_interval:
            self._log()
        if not self.plan.final_eval or (resumed and self.evaluated_step == self.step):
            return False
        self.evaluated_step = -1  # a signal from here on leaves the final evaluation to the next process
        self._evaluate(final=True)
        return True

    def _evaluate(self, *, final: bool) -> None:
        with ExitStack() as weights:
            for swap in averages(self.ema, self.optimizers):
                weights.enter_context(swap)
            try:
                self.results = self.task.evaluate(final=final)
            except Interrupted:
                weights.close()
                self._interrupt(saved=False)
            self._evaluated()

    def _evaluated(self) -> None:
        """Tell of an evaluation, while its weights are in place."""
        self.evaluated_step = self.step
        value = broadcast_object(self.results.get(self.plan.primary_metric))  # one number decides for all ranks
        self.early_stop.update(value, self.step, counts=self.step in self.plan.eval_steps and not self.early_stop.due)
        self._write(self.step, dict(self.results))
        for hook in self.hooks:
            hook.after_eval(self, self.results)

    def _log(self) -> None:
        skipped, _, in_a_row = map(int, self.skipped.tolist())
        values: dict[str, Any] = {"train/skipped_steps": skipped}
        values |= {f"train/{name}": value for name, value in self.window.flush().items()}
        factor = self.plan.schedule(self.step)
        for name, group in self.groups.items():
            values["train/lr" if group.table is None else f"train/lr_{name}"] = group.lr * factor
        values["train/grad_norm"] = float(self._last_norm)
        values |= {f"train/{name}": value for name, value in self.stats.flush().items()}
        seconds = self._train_seconds / max(self._timed_steps, 1)
        values["time/step_ms"] = self.step_ms = 1000 * seconds
        values["time/examples_per_s"] = self.plan.batch_rows / seconds if seconds else None
        values["time/eta_s"] = seconds * (self.last_step - self.step)
        self._train_seconds, self._timed_steps = 0.0, 0
        self._write(self.step, values)
        if in_a_row > self.config.max_skipped_steps:
            raise RunFailure(
                f"step {self.step}: {in_a_row} steps in a row had a loss or gradient that was not finite, more than "
                f"max_skipped_steps={self.config.max_skipped_steps}; lower lr, or set grad_clip"
            )

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but weights: what `load` needs to continue bit for bit. A collective."""
        return {
            "trainer": {
                "step": self.step, "evaluated_step": self.evaluated_step, "results": dict(self.results),
                "skipped": self.skipped, "window": self.window.state_dict(),
                "early_stop": self.early_stop.state_dict(), "stats": self.stats.state_dict(),
            },
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "task": self.task.state_dict(),
        }  # fmt: skip

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Continue from `checkpoint`; `state` is its state tree, cut to this rank's rows."""
        load_weights(self.module, checkpoint.model, strict=True)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        load_optimizers(self.optimizers, state["optimizers"])
        self.task.load_state_dict(state["task"])
        own = state["trainer"]
        self.step, self.evaluated_step = own["step"], own["evaluated_step"]
        self.results = dict(own["results"])
        self.skipped = own["skipped"].to(self.skipped)
        self.window.load_state_dict(own["window"])
        self.early_stop.load_state_dict(own.get("early_stop", {}))
        self.stats.load_state_dict(
            {name: value.to(self.skipped.device) for name, value in own.get("stats", {}).items()}
        )

    def evaluation_due(self) -> bool:
        """Whether an evaluation follows the present step."""
        return self.step in self.plan.eval_steps or (self.step >= self.last_step and self.plan.final_eval)

    def metric(self) -> float | None:
        """The primary metric of the last evaluation, if that evaluation belongs to the present step."""
        value = self.results.get(self.plan.primary_metric) if self.evaluated_step == self.step else None
        return None if value is None or math.isnan(value) else value

    # --- help ---------------------------------------------------------------------------------------------------------

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float32, device=self.runtime.device)

    def _out_of_memory(self, error: BaseException) -> RunFailure | None:
        """One line that says what to change, if `error` means that memory ran out (on the GPU or on the CPU)."""
        text = str(error).lower()
        said = any(words in text for words in ("out of memory", "can't allocate memory", "not enough memory"))
        if not said and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            return None
        accumulation = self.config.accumulation
        return RunFailure(
            f"out of memory at step {self.step}: lower {self.plan.batch_key} (now {self.plan.batch_rows}) or set "
            f"accumulation={2 * accumulation} (now {accumulation}), same batch, half the rows held at once"
        )
