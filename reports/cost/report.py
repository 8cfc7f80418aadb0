"""Reports the cost of a run as numbers and as text: parameters, memory, time, FLOPs, disk; and batch sizes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import OutOfMemory, UsageError
from engine.io import print_rank0
from engine.loop.speed import duration, peak_text, size, step_text
from reports.cost.batch_size import Trial, best, find_batch_size, limit_memory, measure_apart, read_size, usual_limit
from reports.cost.measure import Measurement, checkpoints_kept, measure, timed_stages
from reports.output import check_own, write_json_result

MARK = b'{\n  "config": "'
"""How a result begins: no other file is replaced by one."""


def estimate(config: Any, build: Callable[..., Any], args: argparse.Namespace, child: Sequence[str], name: str) -> None:
    """Measure, print and write as the arguments of scripts/estimate.py say; with --find-batch-size, also run trials.

    Args:
        build: (config, runtime) -> TrainingPlan, of the run's family.
        child: the command that estimates the same run in its own process, used for each batch size.
        name: the recipe's name.
    """
    from engine.device import choose_device

    if args.json is not None:
        check_own(args.json, MARK, "result of estimate.py", example="estimate.json", flag="--json")
    limit, numbers = None, dict[str, Any](config=name)
    if choose_device(config.device).device.type == "cpu" and (args.memory_limit or args.find_batch_size):
        limit = read_size(args.memory_limit) if args.memory_limit else usual_limit()
        limit_memory(limit)
    try:
        measured = measure(config, build, steps=args.probe_steps, seconds=args.probe_seconds)
    except MemoryError:  # while data and model are made, before there is a batch
        if limit is None:
            raise
        raise UsageError(f"a memory limit of {size(limit)} is too little to build this run") from None
    except OutOfMemory as error:
        if not args.find_batch_size:
            raise
        key, rows = error.batch_key, error.batch_rows
        print_rank0(f"{error}; looking for a batch that fits")
    else:
        key, rows = measured.batch_key, measured.batch_rows
        numbers = as_numbers(measured, config, name)
        print_estimate(numbers, config.keep_last, config.keep_every)
    if args.find_batch_size:
        command = [*child, *(["--memory-limit", str(limit)] if limit else [])]
        trials = find_batch_size(
            rows,
            config.accumulation,
            lambda rows: measure_apart(command, key, rows, limit_s=60 + 10 * args.probe_seconds),
        )
        numbers["trials"] = [vars(trial) for trial in trials]
        print_trials(trials, key)
    if args.json is not None:
        write_json_result(args.json, numbers)


def as_numbers(measured: Measurement, config: Any, name: str) -> dict[str, Any]:
    """The estimate as numbers: bytes, seconds, FLOPs."""
    evaluation, flops = measured.evaluation_seconds, measured.training_flops
    parts = measured.stages
    stored = checkpoints_kept(measured.saves, config.keep_last, config.keep_every)
    return {
        "config": name,
        "device": measured.device,
        "compile": measured.compiled,
        "step_graph": "on" if measured.captured else "off",
        "parameters": measured.parameters,
        "optimizers": measured.optimizers,
        "frozen": measured.frozen,
        "total_parameters": sum(measured.parameters.values()) + measured.frozen,
        "memory": measured.memory,
        "batch_key": measured.batch_key,
        "batch_rows": measured.batch_rows,
        "steps": measured.last_step,
        "total_steps": measured.total_steps,
        "planned_steps": measured.planned_steps,
        "max_seconds": config.max_seconds,
        "budget_steps": measured.budget_steps,
        "step_seconds": measured.step_seconds,
        "warm_up_seconds": measured.warm_up_seconds,
        "timed_steps": measured.timed_steps,
        "examples_per_s": measured.examples_per_second,
        "training_seconds": measured.training_seconds,
        "evaluations": measured.evaluations,
        "evaluation_examples": measured.eval_examples,
        "evaluation_seconds": evaluation,
        "seconds": measured.training_seconds + (evaluation or 0.0),
        "stages": [
            {"steps": stage.steps, "flops_per_step": stage.flops, "step_seconds": seconds}
            for stage, (_, seconds) in zip(parts, timed_stages(parts, measured.step_seconds), strict=True)
        ],
        "flops_per_step": measured.stages[0].flops,
        "flops_per_step_mean": None if flops is None else flops / max(1, measured.last_step),
        "flops": None if flops is None else flops + (measured.flops_evaluations or 0.0),
        "checkpoint_bytes": measured.checkpoint,
        "checkpoints_kept": stored,
        "disk_bytes": measured.checkpoint * stored,
    }


def print_estimate(numbers: dict[str, Any], keep_last: int, keep_every: int | None) -> None:
    """Print an estimate, a line for each kind of cost."""
    lines = {
        "config": f"{numbers['config']} on {numbers['device']}, {numbers['batch_key']}={numbers['batch_rows']}",
        "parameters": _parameters(numbers),
        "memory": _exact_memory(numbers["memory"]),
        "": _measured_memory(numbers["memory"], numbers["device"]),
        "steps": _steps(numbers),
        "speed": _speed(numbers),
        "time": _time(numbers),
    }
    several = len(numbers["stages"]) > 1
    if numbers["flops"]:
        mean = " on average" if several else ""
        step, whole = _flops(numbers["flops_per_step_mean"]), _flops(numbers["flops"])
        lines["operations"] = f"{step} a step{mean}, {whole} in all"
    if several:
        lines["stages"] = _stages(numbers["stages"])
    rule = f"keep_last={keep_last}" + (f", keep_every={keep_every}" if keep_every else "")
    lines["disk"] = (
        f"{size(numbers['disk_bytes'])} = {numbers['checkpoints_kept']} checkpoints ({rule}, best) of "
        f"{size(numbers['checkpoint_bytes'])}; one more while it is written"
    )
    for name, text in lines.items():
        print_rank0(f"{name:<12}{text}")


def _parameters(numbers: dict[str, Any]) -> str:
    counts = numbers["parameters"].items()
    groups = ", ".join(f"{name} {count:,} ({numbers['optimizers'][name]})" for name, count in counts)
    frozen = f", {numbers['frozen']:,} not trained" if numbers["frozen"] else ""
    return f"{numbers['total_parameters']:,} = {groups}{frozen}"


def _exact_memory(memory: dict[str, int]) -> str:
    exact = sum(memory[part] for part in ("weights", "gradients", "moments", "average"))
    return (
        f"{size(exact)} = weights {size(memory['weights'])} + gradients {size(memory['gradients'])} "
        f"+ optimizer {size(memory['moments'])} + average {size(memory['average'])}"
    )


def _measured_memory(memory: dict[str, int], device: str) -> str:
    return f"activations about {size(memory['activations'])}; {peak_text(memory['process'], device.partition(':')[0])}"


def _steps(numbers: dict[str, Any]) -> str:
    """The number of steps, and whether max_seconds or the steps end the run."""
    total, planned, within = (numbers[key] for key in ("total_steps", "planned_steps", "budget_steps"))
    shortened = f"{planned:,} of {total:,} (max_steps)" if planned < total else f"{planned:,}"
    if within is None:
        return shortened
    budget = f"max_seconds={numbers['max_seconds']:g}"
    if within < planned:
        return f"about {within:,}, then {budget} is up; {shortened} without it"
    return f"{shortened}, before {budget} is up (about {within:,})"


def _speed(numbers: dict[str, Any]) -> str:
    step, flops = numbers["step_seconds"], numbers["flops_per_step"]
    rate = f", {_flops(flops / step)}/s" if flops else ""
    timed = step_text(step, numbers["timed_steps"], numbers["compile"], captured=numbers["step_graph"] == "on")
    return f"{timed}, {numbers['examples_per_s']:,.0f} examples/s{rate}"


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    each = [f"{s['steps']:,} x {_flops(s['flops_per_step'])} ({duration(s['step_seconds'])})" for s in stages]
    return f"{', then '.join(each)}; the first is timed, the others by operations"


def _time(numbers: dict[str, Any]) -> str:
    evaluation = numbers["evaluation_seconds"]
    source = "not known" if evaluation is None else f"about {duration(evaluation)}, by operations"
    training = f"{duration(numbers['seconds'])} = training {duration(numbers['training_seconds'])}"
    if numbers["warm_up_seconds"]:
        training += f" ({duration(numbers['warm_up_seconds'])} of it to compile and capture)"
    return f"{training} + {numbers['evaluations']} evaluation(s) ({source})"


def _flops(count: float) -> str:
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e6:.2f} MFLOP"


def print_trials(trials: list[Trial], key: str) -> None:
    """Print the table of batch sizes and the recommended one. Raises: UsageError if none works."""
    print_rank0(f"\n{key:<20}{'examples/s':>12}{'peak memory':>14}")
    for trial in trials:
        if trial.reason:
            print_rank0(f"{trial.rows:<20}{trial.reason:>26}")
        else:
            print_rank0(f"{trial.rows:<20}{trial.examples_per_s or 0:>12,.0f}{size(trial.memory or 0):>14}")
    chosen = best(trials)
    if chosen is None:
        raise UsageError(f"no {key} works: {trials[0].reason} even with {trials[0].rows} rows")
    print_rank0(
        f"best: {key}={chosen.rows} (the smallest within 3 % of the fastest; another batch is another experiment)"
    )
