"""One process's part in a run: loading state, writing files, the trainer's callbacks, and the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import Checkpoint, load_checkpoint
from engine.checkpoint.state_tree import copied, gather_tree
from engine.checkpoint.store import Background, CheckpointStore, CheckpointWriteError
from engine.cli.console import as_typed
from engine.config import RunConfig, source_of
from engine.distributed import all_gather_rows, on_main, rank, world_size
from engine.errors import Interrupted, RunFailure, UsageError, disk_fault
from engine.io import atomic_write_bytes, atomic_write_json, print_rank0
from engine.loggers.sinks import ConsoleSink, Sinks
from engine.loggers.trackers import open_sinks
from engine.loop.evaluations import averaged_weights
from engine.loop.hooks import Hook, ProgressBar, StepProfiler, print_plan
from engine.loop.speed import StepSpeed
from engine.loop.trainer import Trainer
from engine.run.decision import RunDecision
from engine.run.directory import RunDirectory
from engine.run.environment import check_data, data_marks, describe_environment
from engine.run.files import read_json, truncate_to
from engine.run.load_run import load_state
from engine.signals import StopSignal
from engine.task import Evaluation, Runtime, TrainingPlan

SIGNATURE = "path_signature.json"
LARGE = 256 << 20
"""Model size in bytes from which checkpoints are written in the background, unless the config sets it."""
Compare = Callable[[dict[str, Any], dict[str, Any]], tuple[list[str], list[str]]]


def final_status(error: BaseException) -> tuple[str, dict[str, Any]]:
    """The state, exit code and message in status.json for an error that ends the run."""
    error = disk_fault(error) or error
    states = {UsageError: "refused", Interrupted: "interrupted", KeyboardInterrupt: "interrupted"}
    state = states.get(type(error), "failed")
    code = getattr(error, "exit_code", 3 if state == "interrupted" else 1)
    return state, {"exit_code": code, "message": as_typed(str(error).partition("\n")[0])}


class Session(Hook):
    """One process's part in a run: set up by `run`, called by the trainer as a hook and to save, then finished."""

    def __init__(self, config: RunConfig, entry: str, plan: TrainingPlan, runtime: Runtime, stop: StopSignal) -> None:
        self.config, self.entry, self.plan = config, entry, plan
        self.sinks, self.writer = Sinks(), Background()
        self.bar = ProgressBar()
        self.trainer = Trainer(
            plan,
            config,
            runtime,
            save=self.save,
            write=self.sinks.write,
            stop=stop,
            hooks=[self.bar, self, StepSpeed()],
        )
        self.checkpoint: Checkpoint | None = None
        self.directory: RunDirectory | None = None
        self.signature: Mapping[str, Any] = {}
        self.start_time, self.last_check = time.time(), time.monotonic()
        self.first_step = 0
        self.saved_step = -1
        """The step of the newest checkpoint that this process has written."""
        self.over = False

    # Set-up. A launch is refused before it enters the directory, or leaves that unchanged.

    def load(self, path: Path, *, branches: bool) -> None:
        """Load the state of the checkpoint `path`; a new run that `branches` off from it has no evaluations yet."""
        on_main(lambda: load_checkpoint(path).path)  # rank 0 verifies every byte before anything is used
        self.checkpoint = checkpoint = load_checkpoint(path, checksums=False)
        if checkpoint.entry != self.entry:
            raise UsageError(f"checkpoint {path} was written by {checkpoint.entry}.py, not by {self.entry}.py")
        if not branches:
            on_main(lambda: check_data(self.decision.path, checkpoint.extra, self.plan.cards))
        trainer = self.trainer
        load_state(trainer, checkpoint, rank=rank(), world_size=world_size())
        if branches:
            trainer.evaluations.reset()
            trainer.seconds = trainer.logged_seconds = trainer.cpu_seconds = 0.0

    def enter(self, decision: RunDecision) -> None:
        """From here on there is a run directory; on rank 0 it is open already (`directory`)."""
        self.decision = decision
        self.store = CheckpointStore(decision.path, self.entry)

    def train(self, runtime: Runtime) -> dict[str, float | None]:
        config, trainer, path = self.config, self.trainer, self.decision.checkpoint
        resumes = self.decision.resumes
        if path is not None and (resumes or self.checkpoint is None or self.checkpoint.path != path.resolve()):
            self.load(path, branches=not resumes)
        self.first_step = trainer.step
        on_main(self._prepare_files)
        print_plan(self.plan, config, runtime, self.first_step)
        if self.directory is not None:
            open_sinks(self.sinks, config, self.directory.path, entry=self.entry, step=trainer.step)
            self.sinks.add("console", lambda: ConsoleSink(trainer.last_step, self.plan.steps_per_epoch))
            if config.profile_steps is not None:
                trainer.hooks.append(StepProfiler(self.directory.path / "profile", config.profile_steps))
        return trainer.fit()

    def compare_paths(self, signature: Mapping[str, Any], compare: Compare) -> None:
        """On rank 0: compare the signature of this launch with that of the run it resumes."""
        self.signature = dict(signature)
        if self.decision.resumes and signature:
            different, notable = compare(read_json(self.decision.path / SIGNATURE), dict(signature))
            for line in notable:
                print_rank0(f"warning: since this run began, {line}")
            if different and self.config.verify == "strict":
                raise UsageError(
                    f"{self.decision.path} took another path, {different[0]}: start a new run (resume=false), "
                    "or resume it anyway with verify=warn"
                )
            for line in different:
                print_rank0(f"warning: this run took another path, {line}")

    def _prepare_files(self) -> None:
        """Called late, so that a refused resume, or one that trains nothing, leaves the stored config unchanged."""
        assert self.directory is not None
        resumes, trainer, source = self.decision.resumes, self.trainer, source_of(self.config)
        sizes = self.checkpoint.extra.get("sizes", {}) if self.checkpoint and resumes else {}
        truncate_to(self.directory.path / "metrics.jsonl", sizes.get("metrics.jsonl", 0))
        if resumes:
            self._update_links(prune=self.store.latest() == self.decision.checkpoint)
        if resumes and trainer.step >= trainer.last_step:
            return
        if self.signature:
            atomic_write_json(self.decision.path / SIGNATURE, self.signature)
        self.directory.write_config(source.yaml, source.resolved, source.overrides)
        environment = describe_environment(data_cards=self.plan.cards)
        self.directory.write_environment({**environment, "batch_rows": self.plan.batch_rows})

    def _update_links(self, *, prune: bool) -> None:
        """After a checkpoint: update the documented links, and remove checkpoints that are no longer kept."""
        named = {"best": self.store.best(), "latest": self.store.latest()}
        for name, which in self.plan.links.items():
            if (target := named.get(which, self.store.folder / which)) is not None and target.is_dir():
                self.store.link(name, target)
        if prune:
            self.store.prune(self.config.keep_last, self.config.keep_every or self.plan.keep_every)

    # Called by the trainer.

    def after_step(self, trainer: Trainer) -> None:
        """On rank 0, about once a second: check that the run directory still exists."""
        if self.directory is not None and time.monotonic() - self.last_check > 1.0:
            self.directory.require_exists()
            self.last_check = time.monotonic()

    def after_eval(self, trainer: Trainer, results: dict[str, Any]) -> None:
        """On rank 0: write the files of the plan's report. A full disk is a warning."""
        if self.directory is None or trainer.plan.report is None:
            return
        self.directory.require_exists()
        early = trainer.evaluations.early_stop
        best = (early.best, early.best_step) if early.best is not None and early.best_step is not None else None
        evaluation = Evaluation(step=trainer.step, results=results, best=best, step_ms=trainer.step_ms)
        for name, content in trainer.plan.report(evaluation).items():
            path = self.directory.path / name
            try:
                path.parent.mkdir(exist_ok=True)
                atomic_write_bytes(path, content.encode() if isinstance(content, str) else content)
            except OSError as error:
                print_rank0(f"warning: {path} could not be written ({error.strerror}); training continues")

    def save(self, trainer: Trainer, why: str) -> None:
        """Write a checkpoint (a collective). A failed periodic save is a warning; one at the end fails the run.

        While the run continues, a large one is copied and written in the background. At a signal the step may already
        have its checkpoint.
        """
        # All ranks gather the state; rank 0 writes it.
        state = gather_tree(trainer.state_dict(), all_gather_rows)
        averaged = averaged_weights(trainer.module, trainer.ema, trainer.optimizers)
        weights = trainer.reducer.gather({"model": trainer.module.state_dict(), "ema": averaged})

        def write() -> None:
            assert self.directory is not None
            self.writer.wait()
            self.directory.require_exists()
            if why == "signal" and self.saved_step == trainer.step:
                return
            metrics_file = self.decision.path / "metrics.jsonl"
            parts = {
                **weights,
                "state": state,
                "config": source_of(self.config).resolved,
                "metric": trainer.evaluations.metric(trainer.step),
                "extra": {
                    "sizes": {"metrics.jsonl": metrics_file.stat().st_size if metrics_file.exists() else 0},
                    "data": data_marks(trainer.plan.cards),
                    "batch_rows": trainer.plan.batch_rows,
                    "spent": {"seconds": trainer.seconds, "cpu_seconds": trainer.cpu_seconds},
                    **_stand_in(trainer.plan),
                },
            }
            setting = self.config.checkpoint_background
            large = sum(tensor.nbytes for tensor in weights["model"].values()) >= LARGE
            if why == "step" and (large if setting is None else setting):
                with suppress(MemoryError, RuntimeError):  # no memory for a copy: write it here and now
                    return self.writer.start(partial(self._write, trainer.step, why, copied(parts)))
            self._write(trainer.step, why, parts)

        on_main(write)

    def _write(self, step: int, why: str, parts: dict[str, Any]) -> None:
        try:
            self.store.save(step, **parts)
        except CheckpointWriteError as error:
            if why != "step":
                raise RunFailure(str(error)) from error
            print_rank0(f"warning: {error}; training continues")
            return
        self.saved_step = step
        self._update_links(prune=True)
        self._status("running", step=step)

    # The end.

    def finished(self, results: Mapping[str, float | None]) -> None:
        """Write summary.json and the status "done", and print the results."""
        if self.directory is None:
            return
        self.directory.require_exists()
        plan, early = self.plan, self.trainer.evaluations.early_stop
        primary = {
            "name": plan.primary_metric,
            "value": results.get(plan.primary_metric),
            "goal": plan.metric_mode,
        }
        before = read_json(self.decision.path / "summary.json")
        idle = self.trainer.step == self.first_step == before.get("step")  # a finished run, resumed without a step
        self.directory.write_summary(
            primary,
            step=self.trainer.step,
            best={"value": early.best, "step": early.best_step},
            stopped_early=self.trainer.stopped_early,
            **_stand_in(plan),
            **({"splits": dict(plan.splits)} if plan.splits else {}),
            results=dict(results),
            seconds=before.get("seconds") if idle else round(time.time() - self.start_time, 3),
        )
        if self.trainer.stopped_early:
            print_rank0(
                f"stopped early: {early.waited} evaluations without a better {plan.primary_metric} "
                f"(best {early.best} at step {early.best_step}); a higher early_stop_patience and resume=true continue"
            )
        self._status("done", step=self.trainer.step, exit_code=0)
        self.over = True
        self.sinks.close()  # last: one of them may wait for a server
        for name, value in results.items():
            if value is not None and name.count("/") == 1:
                print_rank0(f"{name:<28}{_shown(value)}")
        print_rank0(f"done: {self.decision.path} (step {self.trainer.step}, {time.time() - self.start_time:.1f} s)")

    def record_error(self, error: BaseException) -> None:
        """Record in status.json how `error` ended the run; the caller raises it again."""
        self.bar.end()
        if not isinstance(error, KeyboardInterrupt):
            with suppress(Exception):  # the error to report is `error`
                self.writer.wait()
        state, fields = final_status(error)
        if not self.over:
            self._status(state, **fields, step=self.trainer.step)
        self.sinks.close()

    def _status(self, state: str, **fields: Any) -> None:
        try:
            if self.directory is not None:
                self.directory.set_status(state, **fields)
        except OSError as error:  # a full disk must not hide why the run ended
            print_rank0(f"warning: status.json could not be written ({error.strerror})")


def _shown(value: float) -> str:
    """Four decimals; none for counts, two significant digits for what would be 0.0000."""
    if abs(value) >= 1e4 or (abs(value) >= 100 and value % 1 == 0):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 1e-3 or not value else f"{value:.2g}"


def _stand_in(plan: TrainingPlan) -> dict[str, bool]:
    """The mark, kept with all results, of data that stand in for those that their name promises."""
    return {"stand_in": True} if any(card.get("stand_in") for card in plan.cards) else {}
