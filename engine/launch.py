"""From a checked config to a finished run: run directory, device, task, trainer, checkpoints, status.

`run` is what an entry script's `launch` calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine import resume, rundir, sweeps
from engine.checkpoint import Checkpoint, CheckpointStore, CheckpointWriteError, gather_tree, load_checkpoint
from engine.compiling import compile_task
from engine.config import RunConfig, source_of
from engine.device import check_attention, choose_device, prepare_process
from engine.distributed import all_gather_rows, broadcast_object, is_main, rank, shutdown, under_torchrun, world_size
from engine.ema import averaged_weights
from engine.environment import data_change, data_marks, describe_environment
from engine.errors import Interrupted, RunFailure, UsageError
from engine.io import atomic_write_json, atomic_write_text, say
from engine.profiling import StepProfiler
from engine.progress import ProgressBar
from engine.rundir import RunDirectory, read_json
from engine.signals import StopSignal
from engine.sinks import Sinks
from engine.stopping import check_early_stop
from engine.task import Evaluation, Plan, Runtime
from engine.trackers import open_sinks
from engine.trainer import Hook, Trainer

C = TypeVar("C", bound=RunConfig)
R = TypeVar("R")
Build = Callable[[Any, Runtime], Plan]
Check = Callable[[Any], Mapping[str, Any] | None]
Compare = Callable[[dict[str, Any], dict[str, Any]], tuple[list[str], list[str]]]


def on_main(work: Callable[[], R]) -> R:
    """Do `work` on rank 0 and give its result, or its error, to every rank: no rank waits for one that has failed."""
    outcome: tuple[str, Any] = ("", None)
    if is_main():
        try:
            outcome = ("done", work())
        except (UsageError, RunFailure) as error:
            outcome = (type(error).__name__, str(error))
    kind, value = broadcast_object(outcome if world_size() > 1 else None) if world_size() > 1 else outcome
    if kind == "UsageError":
        raise UsageError(value)
    if kind == "RunFailure":
        raise RunFailure(value)
    return value


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass
class _Opened:
    """What rank 0 decided about the run directory, told to all ranks."""

    path: Path
    mode: str
    checkpoint: Path | None


def run(
    config: RunConfig, build: Build, *, entry: str, check: Check | None = None, compare: Compare | None = None
) -> dict[str, float | None]:
    """Train as `config` says, in its run directory, from its checkpoint where there is one.

    `check(config)` reads what only the script's own classes can judge (architecture, loss, evaluators, the path from
    command to model), so that a mistake there is refused before a run directory is made or data are read. The signature
    that it returns is kept as path_signature.json; at a resume `compare(stored, new)` says what makes the two different
    experiments, and what a reader should know.

    Returns the last evaluation. Raises UsageError, RunFailure or Interrupted after status.json says the same.
    """
    with StopSignal() as stop, ExitStack() as cleanup:
        cleanup.callback(shutdown)
        check_attention(config.attention, choose_device(config.device).device)
        # Nothing on disk is touched (a finished run set aside, say) before data and model are known to be usable.
        config = resume.from_source(config, on_main(lambda: resume.decide(config, entry)))
        if (results := on_main(lambda: resume.finished_before(config, entry))) is not None:
            return results
        try:
            signature = check(config) if check is not None else None
            runtime = make_runtime(config, stop=stop)
            plan = build(config, runtime)
            check_early_stop(config, plan)
            if plan.start is not None and on_main(lambda: resume.begins(config, entry)):
                plan.start()
            compile_task(plan.task, config, runtime.device)
        except BaseException as error:
            state, fields = _how_it_ended(error)
            if is_main() and under_torchrun():
                identity = resume.identity(config)
                rundir.note_refusal(resume.run_dir(config), identity=identity, entry=entry, state=state, **fields)
                sweeps.announce(resume.run_dir(config))
            raise
        directory: RunDirectory | None = None

        def open_directory() -> _Opened:
            nonlocal directory
            directory = resume.open_directory(config, entry)
            cleanup.callback(directory.close)
            return _Opened(directory.path, directory.mode, directory.checkpoint)

        opened = on_main(open_directory)
        session = _Session(config, entry, opened, directory, stop)
        try:
            if compare is not None and signature is not None:
                on_main(lambda: session.compare_paths(signature, compare))
            results = session.train(plan, runtime)
        except BaseException as error:
            session.ended(error)
            raise
        session.finished(results)
        return results


def _how_it_ended(error: BaseException) -> tuple[str, dict[str, Any]]:
    """status.json's state, exit code and message for an error that ends the run."""
    states = {UsageError: "refused", Interrupted: "interrupted", KeyboardInterrupt: "interrupted"}
    state = states.get(type(error), "failed")
    code = getattr(error, "exit_code", 3 if state == "interrupted" else 1)
    return state, {"exit_code": code, "message": str(error).partition("\n")[0]}


class _Session(Hook):
    """One process's part in a run: what `run` sets up, the saver and the writer that the trainer calls, the end."""

    def __init__(
        self, config: RunConfig, entry: str, opened: _Opened, directory: RunDirectory | None, stop: StopSignal
    ) -> None:
        self.config, self.entry, self.opened, self.directory, self.stop = config, entry, opened, directory, stop
        self.store = CheckpointStore(opened.path, entry)
        self.sinks = Sinks()
        self.bar = ProgressBar()
        self.trainer: Trainer | None = None
        self.began = time.time()
        self.first_step = 0
        self._plan: Plan | None = None

    # Setting up, in the order in which things can go wrong: checkpoint, device, data, model.

    def train(self, plan: Plan, runtime: Runtime) -> dict[str, float | None]:
        config = self.config
        checkpoint = self._load_checkpoint()
        self._plan = plan
        on_main(lambda: self._check_data(plan, checkpoint))
        self.trainer = trainer = Trainer(
            plan, config, runtime, save=self.save, write=self.sinks.write, stop=self.stop, hooks=[self.bar, self]
        )
        if checkpoint is not None:
            trainer.load(checkpoint, checkpoint.state(rank=rank(), world_size=world_size()))
            if self.opened.mode == "new":  # a branch off another run owns no evaluation yet
                trainer.evaluations.forget()
        self.first_step = trainer.step
        on_main(lambda: self._prepare_files(checkpoint, plan))
        self._say_what_runs(plan, runtime)
        if self.directory is not None:
            open_sinks(
                self.sinks, config, self.directory.path, entry=self.entry, step=trainer.step,
                last_step=trainer.last_step, resolved=source_of(config).resolved,
            )  # fmt: skip
            if config.profile_steps is not None:
                trainer.hooks.append(StepProfiler(self.directory.path / "profile", config.profile_steps))
        return trainer.fit()

    def compare_paths(self, signature: Mapping[str, Any], compare: Compare) -> None:
        """Rank 0: keep the signature of what runs, after holding it against that of the run that goes on."""
        file = self.opened.path / "path_signature.json"
        if self.opened.mode == "continue" and signature:
            different, notable = compare(read_json(file), dict(signature))
            for line in notable:
                say(f"warning: since this run began, {line}")
            if different and self.config.verify == "strict":
                raise UsageError(
                    f"{self.opened.path} was another path, {different[0]}: start a new run (resume=false), "
                    "or go on all the same with verify=warn"
                )
            for line in different:
                say(f"warning: this run was another path, {line}")
        if signature:
            atomic_write_json(file, dict(signature))

    def _load_checkpoint(self) -> Checkpoint | None:
        path = self.opened.checkpoint
        if path is None:
            return None
        on_main(lambda: load_checkpoint(path).path)  # rank 0 verifies every byte before anything is used
        checkpoint = load_checkpoint(path, checksums=False)
        if checkpoint.entry != self.entry:
            raise UsageError(f"checkpoint {path} was written by {checkpoint.entry}.py, not by {self.entry}.py")
        return checkpoint

    def _check_data(self, plan: Plan, checkpoint: Checkpoint | None) -> None:
        """A run goes on with the data that it began with."""
        if self.opened.mode != "continue":
            return
        extra = checkpoint.extra if checkpoint is not None else {}
        environment = read_json(self.opened.path / "environment.json")
        for card in plan.cards:
            if (change := data_change(extra, environment, card)) is not None:
                raise UsageError(
                    f"{card['path']} is not what this run began with ({change}): "
                    "put the old data back, or start a new run (resume=false)"
                )

    def _prepare_files(self, checkpoint: Checkpoint | None, plan: Plan) -> None:
        assert self.directory is not None
        source = source_of(self.config)  # only now: a resume that was refused above leaves the stored config alone
        self.directory.write_config(source.yaml, source.resolved, source.overrides)
        sizes = checkpoint.extra.get("sizes", {}) if checkpoint and self.opened.mode == "continue" else {}
        self.directory.cut_back({"metrics.jsonl": sizes.get("metrics.jsonl", 0)})
        self.directory.write_environment(describe_environment(data_cards=plan.cards))

    def _say_what_runs(self, plan: Plan, runtime: Runtime) -> None:
        config, ranks = self.config, runtime.world_size
        micro = plan.batch_rows // (ranks * config.accumulation)
        groups = ", ".join(
            f"{group.name} {group.size:,} ({group.optimizer}, lr {group.lr:g})" for group in plan.task.param_groups()
        )
        last = min(plan.total_steps, config.max_steps or plan.total_steps)
        if 0 < last <= self.first_step:
            say(f"note: the run is at step {self.first_step} already and ends at {last}: nothing is trained")
        say(f"parameters  {groups}")
        say(
            f"batch       {plan.batch_rows} = {micro} rows x accumulation {config.accumulation} x {ranks} rank(s), "
            f"reduction {config.parallel if ranks > 1 else 'none needed'}"
        )
        say(f"steps       {last}" + (f" of {plan.total_steps} (max_steps)" if last < plan.total_steps else ""))

    # Called by the trainer.

    def after_eval(self, trainer: Trainer, results: Mapping[str, float | None]) -> None:
        """Rank 0: what the plan reports beside the metrics. A full disk is a warning."""
        if self.directory is None or trainer.plan.report is None:
            return
        early = trainer.evaluations.early_stop
        best = (early.best, early.best_step) if early.best is not None and early.best_step is not None else None
        told = Evaluation(step=trainer.step, results=results, best=best, step_ms=trainer.step_ms)
        for name, text in trainer.plan.report(told).items():
            path = self.directory.path / name
            try:
                path.parent.mkdir(exist_ok=True)
                atomic_write_text(path, text)
            except OSError as error:
                say(f"warning: {path} could not be written ({error.strerror}); training goes on")

    def save(self, trainer: Trainer, why: str) -> None:
        """Write a checkpoint (a collective). A failed periodic save is a warning; one at the end fails the run."""
        # The state is gathered by all ranks; what follows is rank 0's.
        state = gather_tree(trainer.state_dict(), all_gather_rows)

        def write() -> None:
            metrics_file = self.opened.path / "metrics.jsonl"
            try:
                self.store.save(
                    trainer.step,
                    model=trainer.module.state_dict(),
                    ema=averaged_weights(trainer.module, trainer.ema, trainer.optimizers),
                    state=state,
                    config=source_of(self.config).resolved,
                    metric=trainer.evaluations.metric(trainer.step),
                    extra={
                        "sizes": {"metrics.jsonl": metrics_file.stat().st_size if metrics_file.exists() else 0},
                        "data": data_marks(trainer.plan.cards),
                        **_stand_in(trainer.plan),
                    },
                )
            except CheckpointWriteError as error:
                if why != "step":
                    raise RunFailure(str(error)) from error
                say(f"warning: {error}; training goes on")
                return
            for name, which in trainer.plan.links.items():
                if (target := self.store.best() if which == "best" else self.store.latest()) is not None:
                    self.store.link(name, target)
            self.store.prune(self.config.keep_last, self.config.keep_every)
            self._status("running", step=trainer.step)

        on_main(write)

    # The end.

    def finished(self, results: Mapping[str, float | None]) -> None:
        """status done, summary.json, and where to find things."""
        if self.directory is None or self._plan is None or self.trainer is None:
            return
        plan, early = self._plan, self.trainer.evaluations.early_stop
        primary = {
            "name": plan.primary_metric,
            "value": results.get(plan.primary_metric),
            "goal": plan.primary_direction,
        }
        before = read_json(self.opened.path / "summary.json")
        idle = self.trainer.step == self.first_step == before.get("step")  # a finished run, resumed for nothing
        self.directory.write_summary(
            primary, step=self.trainer.step, best={"value": early.best, "step": early.best_step},
            stopped_early=self.trainer.stopped_early, **_stand_in(plan), results=dict(results),
            seconds=before.get("seconds") if idle else round(time.time() - self.began, 3),
        )  # fmt: skip
        if self.trainer.stopped_early:
            say(
                f"stopped early: {early.waited} evaluations without a better {plan.primary_metric} "
                f"(best {early.best} at step {early.best_step}); a higher early_stop_patience with resume=true goes on"
            )
        self._status("done", step=self.trainer.step, exit_code=0)
        self.sinks.close()  # last: a server may keep one of them waiting
        for name, value in results.items():
            if value is not None and name.count("/") == 1:
                say(f"{name:<28}{value:.4f}")
        say(f"done: {self.opened.path} (step {self.trainer.step}, {time.time() - self.began:.1f} s)")

    def ended(self, error: BaseException) -> None:
        """Say in status.json how the run ended, then let the error go on to the command line."""
        self.bar.end()
        state, fields = _how_it_ended(error)
        self._status(state, **fields, **({"step": self.trainer.step} if self.trainer is not None else {}))
        self.sinks.close()

    def _status(self, state: str, **fields: Any) -> None:
        if self.directory is None:
            return
        try:
            self.directory.set_status(state, **fields)
        except OSError as error:  # a full disk must not hide the reason why the run ended
            say(f"warning: status.json could not be written ({error.strerror})")


def _stand_in(plan: Plan) -> dict[str, bool]:
    """Said wherever results are kept: the data are not those that their name promises."""
    return {"stand_in": True} if any(card.get("stand_in") for card in plan.cards) else {}


def make_runtime(config: RunConfig, *, stop: StopSignal | None = None) -> Runtime:
    """Device, dtype and attention kernel of `config`, said with the reason; the process is seeded."""
    choice = choose_device(config.device)
    attention = check_attention(config.attention, choice.device)
    prepare_process(seed=config.seed, threads=config.threads, deterministic=config.deterministic)
    say(
        f"device      {choice.device} ({choice.reason}); attention {attention}; {torch.get_num_threads()} CPU thread(s)"
    )
    return Runtime(
        device=choice.device, dtype=choice.dtype, attention=attention, seed=config.seed,
        accumulation=config.accumulation, rank=rank(), world_size=world_size(),
        stop_requested=stop.agreed if stop is not None else lambda: False,
    )  # fmt: skip
