"""The training loop of all entry scripts.

A step: micro-batches -> loss -> backward -> one reduction -> optimizers -> averaged weights. After each step
`_finish_step` logs, evaluates, saves and stops as due. A resume is bit-exact after any step: the state holds weights,
optimizers, averages, the task's own state, the open metric window and the step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from engine.building import out_of_memory
from engine.checkpoint.manifest import Checkpoint
from engine.config import RunConfig
from engine.distributed import Polls, any_rank, key_global_draws, lost_rank
from engine.errors import Interrupted, RunFailure
from engine.io import print_rank0
from engine.loop.evaluations import EMA, Evaluations, averages
from engine.loop.metrics import GroupStats, LogLine, MetricWindow, SkippedSteps, learning_rates
from engine.loop.sharding import make_reducer
from engine.loop.step_graph import StepGraph, make_step_graph
from engine.optim import build_optimizers, load_optimizers
from engine.signals import StopSignal
from engine.task import Runtime, TrainingPlan

Saver = Callable[["Trainer", str], None]
"""The second argument is the reason: "step", "last" or "signal", which may follow a "step" save of the same step."""
Writer = Callable[[int, dict[str, Any]], None]


class Trainer:
    """Trains `plan.task` to the last step; `save(trainer, why)` checkpoints, `write(step, values)` logs metrics."""

    def __init__(
        self,
        plan: TrainingPlan,
        config: RunConfig,
        runtime: Runtime,
        *,
        save: Saver,
        write: Writer,
        stop: StopSignal,
        hooks: Sequence[Any] = (),
    ) -> None:
        self.plan, self.config, self.runtime, self.task = plan, config, runtime, plan.task
        self._save, self._write, self._stop, self.hooks = save, write, stop, list(hooks)
        self.module = plan.task.module
        self.step = 0
        self.last_step = plan.last_step(config.max_steps)
        self.skipped = SkippedSteps(runtime.device)
        self.window = MetricWindow(runtime.device)
        self.evaluations = Evaluations(plan, config)
        self.stopped_early = False
        self._skipped_in_a_row = 0
        self.seconds = self.logged_seconds = self.cpu_seconds = 0.0
        """Time in training steps, including those of earlier processes of the run."""
        self._logged_step = 0
        dtype = torch.float32 if runtime.device.type == "mps" else torch.float64
        self._last_norm = torch.zeros((), dtype=dtype, device=runtime.device)  # in place: a captured step writes to it
        self.step_ms: float | None = None
        self._line: LogLine | None = None
        self._defer_lines = runtime.device.type == "cuda"
        self._polls = Polls()
        self.graph: StepGraph | None = None

        groups = self.task.param_groups()
        trained = {id(param) for group in groups for param in group.dense.values()}
        for param in self.module.parameters():
            param.requires_grad_(id(param) in trained)
        self.reducer = make_reducer(self.task, groups, config)
        groups = self.reducer.groups
        self.groups = {group.name: group for group in groups}
        self.stats = GroupStats(groups, config.stats_interval, self.reducer.global_norm)
        self.optimizers = build_optimizers(groups)
        share = config.ema_share
        rate = config.ema_rate if share is None else math.exp(-1.0 / (share * max(1, plan.total_steps)))
        self.ema = EMA(self.reducer.trained_params(), rate) if config.ema else None

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float | None]:
        """Train from the current step to the last one; return the results of the last evaluation.

        Raises:
            Interrupted: stopped by a signal, with a checkpoint written.
            RunFailure: out of memory, too many non-finite steps, or (RankLost) another rank has died.
        """
        self.graph = self.graph or make_step_graph(self)
        for hook in self.hooks:
            hook.start(self)
        self._stop.training = True
        try:
            self._finish_step(resumed=True)
            while self.step < self.last_step:
                start, cpu_start = time.perf_counter(), time.process_time()
                self.step += 1
                self._train_step()
                self._skipped_in_a_row = self.skipped.in_a_row(exact=False)  # on a GPU: waits for the previous step
                self.seconds += time.perf_counter() - start
                self.cpu_seconds += time.process_time() - cpu_start
                self._finish_step(resumed=False)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            failure = out_of_memory(error, self.plan, self.runtime, self.step) or lost_rank(error)
            if failure is None:
                raise
            raise failure from error  # DDP reduces in backward, so a lost rank shows here
        for hook in self.hooks:
            hook.end(self)
        return self.evaluations.results

    def _train_step(self) -> None:
        micro_batches = list(self.task.micro_batches(self.step))
        # dropout, masks: other draws on each rank
        key_global_draws(self.config.seed, f"forward/{self.runtime.rank}", self.step)
        factor, measured = self.plan.schedule(self.step), self.stats.due(self.step)
        if measured or self.graph is None or not self.graph.step(self.step, micro_batches, factor):
            self.update(micro_batches, factor, measured=measured)
        self.skipped.send()
        for hook in self.hooks:
            hook.after_step(self)

    def update(self, micro_batches: Sequence[Any], factor: float | Tensor, *, measured: bool) -> None:
        """The device work of one step, at `factor` times the peak learning rates. While a CUDA graph is captured
        (step_graph.py) `factor` is a tensor, and nothing here may depend on host state of this particular step."""
        task, config = self.task, self.config
        self.reducer.start()
        loss_sum = weight_sum = torch.zeros((), dtype=torch.float32, device=self.runtime.device)
        for index, micro_batch in enumerate(micro_batches):
            with self.reducer.accumulating(last=index == len(micro_batches) - 1):
                loss, weight, metrics = self.reducer.loss(micro_batch)
                loss.backward()
            loss_sum = loss_sum + loss.detach()
            weight_sum = weight_sum + weight
            self.window.add(metrics)
        norm, ok = self.reducer.finish(loss_sum, weight_sum, clip=config.grad_clip)
        self.reducer.leave_out(getattr(task, "left_out", tuple)())

        if not isinstance(factor, Tensor):
            key_global_draws(config.seed, "update", self.step)  # optimizers with random draws agree on all ranks
        if measured:
            self.stats.before(norm, config.grad_clip)
        for optimizer in self.optimizers.values():
            optimizer.step(factor, ok)
        if measured:
            self.stats.after()
        self.skipped.add(ok)
        self.window.close(ok)
        if self.ema is not None:
            self.ema.update(ok)
        self._last_norm.copy_(norm)
        task.after_step()

    def _finish_step(self, *, resumed: bool) -> None:
        """Log, evaluate, save and stop as due after a step; after a resume, only what was left undone."""
        step, plan, last = self.step, self.plan, self.step >= self.last_step
        self._write_line()
        if step == 0 and not self.evaluation_due():
            return

        budget, poll = self.config.max_seconds, self._polls.due(step, self.seconds)
        if budget is not None and not last and poll and any_rank(self.seconds >= budget):
            print_rank0(
                f"step {step}: max_seconds={budget:g} is up ({self.seconds:.2f} s of training): "
                "resume=true and a larger max_seconds, or null, continue"
            )
            last, self.last_step = True, step

        # Log means over the window: log_interval changes how often lines are written, not what they average.
        in_a_row = self.skipped.in_a_row(exact=True) if last else self._skipped_in_a_row
        give_up = not resumed and in_a_row > self.config.max_skipped_steps
        if not resumed and (step % self.config.log_interval == 0 or last or give_up):
            self._log()
        if give_up:
            self._write_line()
            raise RunFailure(
                f"step {step}: {in_a_row} steps in a row had a loss or gradient that was not "
                f"finite, more than max_skipped_steps={self.config.max_skipped_steps}; lower the learning rate, or set "
                "grad_clip"
            )

        # Evaluate with the averaged weights. An evaluation cut short by a signal is repeated by the next process.
        before, evaluations = (self.evaluations.step, self.evaluations.final_step), self.evaluations
        if evaluations.due(step, last=last):
            self._evaluate(final=False)

        # Early stopping makes this the last step, with its log line, final evaluation and checkpoint.
        if evaluations.early_stop.due and not last:
            last = self.stopped_early = True
            self.last_step = step
            if not resumed and step % self.config.log_interval:
                self._log()
        if last and evaluations.final_due(step):
            self._evaluate(final=True)
        fresh = before != (evaluations.step, evaluations.final_step)

        # Save: every n steps, with every evaluation, and always at the end.
        interval = self.config.checkpoint_interval
        saves = (interval and step % interval == 0) or (fresh and plan.checkpoint_every_eval) or last
        saves = saves and (step > 0 or last)  # before the first step there is nothing to lose
        if saves and (fresh or not resumed):
            self._write_line()
            self._save(self, "last" if last else "step")

        # Stop on a signal: all ranks agree on the step.
        if not last and poll and self._stop.agreed():
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        self._write_line()
        self._save(self, "signal")
        return Interrupted(f"stopped by a signal after step {self.step}: the same command resumes from there")

    def _evaluate(self, *, final: bool) -> None:
        self._write_line()
        with ExitStack() as weights:
            for swap in [*averages(self.ema, self.optimizers), self.reducer.unsharded()]:
                weights.enter_context(swap)
            try:
                results = self.task.evaluate(final=final)
            except Interrupted:
                weights.close()
                raise self._interrupted() from None
            self.evaluations.record(self.step, results, final=final)
            self._write(self.step, {**results, **getattr(self.task, "tables", dict)()})
            for hook in self.hooks:
                hook.after_eval(self, results)

    def _log(self) -> None:
        values: dict[str, Any] = {"train/skipped_steps": self.skipped.total()}
        values |= {f"train/{name}": value for name, value in self.window.flush().items()}
        values |= learning_rates(self.groups, self.plan.schedule(self.step))
        values["train/grad_norm"] = self._last_norm
        values |= {f"train/{name}": value for name, value in self.stats.flush().items()}
        seconds = (self.seconds - self.logged_seconds) / max(self.step - self._logged_step, 1)
        values["time/step_ms"] = self.step_ms = 1000 * seconds
        for unit, count in {"examples": self.plan.batch_rows, **self.plan.step_counts}.items():
            values[f"time/{unit}_per_s"] = count / seconds if seconds else None
        values["time/eta_s"], values["time/cpu_s"] = seconds * (self.last_step - self.step), self.cpu_seconds
        self.logged_seconds, self._logged_step = self.seconds, self.step
        self._line = LogLine(self.step, values)
        if not self._defer_lines:
            self._write_line()

    def _write_line(self) -> None:
        """Write the pending log line, if any: from a GPU its values arrive while the next step runs."""
        line, self._line = self._line, None
        if line is not None:
            self._write(line.step, line.values())

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All state but the weights, for an exact resume with `load`. A collective."""
        return {
            "trainer": {
                "step": self.step,
                "skipped": self.skipped.counts,
                "window": self.window.state_dict(),
                "stats": self.stats.state_dict(),
                **self.evaluations.state_dict(),
            },
            "optimizers": self.reducer.gather({name: each.state_dict() for name, each in self.optimizers.items()}),
            "task": self.task.state_dict(),
        }

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Resume from `checkpoint`; `state` is its state tree, sliced to this rank's rows."""
        self.reducer.load(checkpoint.model)
        if self.ema is not None:
            saved = checkpoint.ema if checkpoint.config.get("ema") else None  # without ema: an optimizer's own average
            self.ema.restart(self.reducer.shard(saved or {}))
            if saved is None:
                print_rank0(
                    f"ema=true: this run kept no average yet; it starts from the weights of step {checkpoint.step}"
                )
        load_optimizers(self.optimizers, self.reducer.shard(state["optimizers"]))
        self.task.load_state_dict(state["task"])
        own, device = state["trainer"], self.runtime.device
        self.step = self._logged_step = own["step"]
        spent = {**own, **checkpoint.extra.get("spent", {})}  # older checkpoints: seconds only, if any, in the state
        self.seconds = self.logged_seconds = spent.get("seconds", 0.0)
        self.cpu_seconds = spent.get("cpu_seconds", 0.0)
        self.skipped.load(own["skipped"])
        self.window.load_state_dict(own["window"])
        self.evaluations.load_state_dict(own, task=state["task"])
        self.stats.load_state_dict({name: value.to(device) for name, value in own.get("stats", {}).items()})

    def evaluation_due(self) -> bool:
        """Whether an evaluation follows the current step."""
        return self.step in self.plan.eval_steps or (self.step >= self.last_step and self.plan.final_eval)
