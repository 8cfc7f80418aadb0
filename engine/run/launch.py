"""From a checked config to a finished run: decide about the run, choose the device, build the task, run a `Session`.

`run` is what an entry script's `launch` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from engine.config import RunConfig
from engine.device import check_attention, choose_device, make_runtime, print_device
from engine.distributed import is_main, on_main, shutdown, under_torchrun
from engine.io import print_rank0
from engine.loop.compiling import compile_task
from engine.loop.evaluations import check_early_stop
from engine.loop.step_graph import check_step_graph
from engine.run.decision import RunDecision, accumulation, decide_run
from engine.run.directory import open_run, record_refusal
from engine.run.environment import report_run_dir
from engine.run.request import request_of
from engine.run.session import Compare, Session, final_status
from engine.run.stored import from_source
from engine.signals import StopSignal
from engine.task import Runtime, TrainingPlan

Build = Callable[[Any, Runtime], TrainingPlan]
Check = Callable[[Any], Mapping[str, Any] | None]


def run(
    config: RunConfig, build: Build, *, entry: str, check: Check | None = None, compare: Compare | None = None
) -> dict[str, float | None]:
    """Train as `config` says in its run directory, from its checkpoint if there is one.

    `check(config)` validates what only the script's own classes know (architecture, loss, evaluators, the path from
    command to model), so that a mistake there is refused before a run directory is made or data are read. The signature
    that it returns is kept as path_signature.json; at a resume `compare(stored, new)` returns two lists: what makes the
    two different experiments, and other changes to warn of.

    Returns the last evaluation. Raises UsageError, RunFailure or Interrupted, once status.json has recorded it.
    """
    with StopSignal() as stop, ExitStack() as cleanup:
        cleanup.callback(shutdown)
        device = choose_device(config.device).device
        check_attention(config.attention, device)
        check_step_graph(config.step_graph, device)
        # Nothing on disk is changed (a finished run set aside, e.g.) before data and model are known to be usable.
        decision = on_main(lambda: decide_run(config, entry))
        if decision.source is not None:
            config = from_source(config, decision.source)
        if decision.results is not None:
            print_rank0(f"{decision.path}: {decision.reason}")
            on_main(lambda: report_run_dir(decision.path))
            return dict(decision.results)
        request = request_of(config, entry)
        try:
            signature = check(config) if check is not None else None
            micro_batches = on_main(lambda: accumulation(config, decision))
            runtime = replace(make_runtime(config, stop=stop, silent=True), accumulation=micro_batches)
            try:
                plan = build(config, runtime)
            finally:  # printed after `build`, whose warning of stand-in data should be the first line
                print_device(config)
            check_early_stop(config, plan)
            if decision.checkpoint is None and plan.start is not None:
                plan.start()
            steps = plan.last_step(config.max_steps) - decision.step
            spent = 0.0 if config.max_seconds is None else on_main(lambda: decision.spent)
            compile_task(plan.task, config, runtime.device, steps=steps, spent=spent)
            session = Session(config, entry, plan, runtime, stop)
            if decision.branch is not None:
                session.load(decision.branch, branches=True)
        except BaseException as error:
            state, fields = final_status(error)
            if is_main() and under_torchrun():
                record_refusal(request, state=state, **fields)
                report_run_dir(request.path)
            raise

        def open_directory() -> RunDecision:
            session.directory = directory = open_run(request, decision)  # from here on an error is recorded there
            cleanup.callback(directory.close)
            report_run_dir(directory.path)
            return directory.decision

        try:
            session.enter(on_main(open_directory))
            if compare is not None and signature is not None:
                on_main(lambda: session.compare_paths(signature, compare))
            results = session.train(runtime)
            session.finished(results)
        except BaseException as error:
            session.record_error(error)
            raise
        return results
