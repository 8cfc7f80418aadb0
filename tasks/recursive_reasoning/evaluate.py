"""Evaluate a run of pretrain.py: the metrics of its own evaluation, and the accuracy after every ACT step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset.sampler import EvalBudget, EvalSampler
from engine.distributed import is_main
from engine.errors import UsageError
from engine.io import print_rank0, progress
from evaluators.intervals import wilson
from reports.output import write_beside, write_json_result
from tasks.loading import run_options
from tasks.recursive_reasoning.loading import PuzzleRun, load_puzzle_run
from tasks.recursive_reasoning.rollouts import FLAGS, print_table, rollouts_of, write_picture
from tasks.recursive_reasoning.task import evaluation_files


class _WithProgress:
    """A sampler with a progress bar."""

    def __init__(self, sampler: EvalSampler) -> None:
        self.sampler, self.splits = sampler, sampler.splits

    def __iter__(self) -> Iterator[Any]:
        return progress(self.sampler, total=len(self.sampler), label="evaluating")


def evaluate_run(args: argparse.Namespace) -> None:
    """Load a run, evaluate it, print and write the result, for the arguments of scripts/evaluate.py. Raises:
    UsageError."""
    target = None if args.json is None else args.json.absolute()
    run = load_puzzle_run(args.checkpoint, **run_options(args))
    opened, model = run.opened, run.task.model
    max_examples = opened.config.final_eval_max_examples if args.max_examples is None else args.max_examples
    max_examples = None if max_examples == "all" else max_examples
    budget = EvalBudget(
        args.max_groups or opened.config.final_eval_max_groups,
        args.max_augmentations or opened.config.final_eval_max_augmentations,
    )
    model.eval_halting = args.halting or model.eval_halting
    rollouts = rollouts_of(args, opened.config.eval_seed, run.steps, run.splits)
    if rollouts is not None:
        rollouts.attach(model, None)
        run.task.evaluators = [*run.task.evaluators, rollouts]
    began = time.perf_counter()
    metrics = evaluate(run, max_examples=max_examples, batch_size=args.batch_size, budget=budget)
    seconds = time.perf_counter() - began
    figures = [] if rollouts is None else rollouts.figures()
    if not is_main():
        return
    settings = {
        "run": str(opened.run_dir),
        "step": opened.checkpoint.step,
        "weights": opened.weights,
        "split": args.split,
        "steps": run.steps,
        "halting": model.eval_halting,
        "max_examples": max_examples,
        "max_groups": budget.groups,
        "max_augmentations": budget.puzzles,
        "eval_seed": opened.config.eval_seed,
        "data": run.data,
        "device": str(opened.runtime.device),
    }
    print_evaluation(settings, metrics, seconds)
    if isinstance(args.max_examples, int) and args.max_examples > (metrics["examples"] or 0):
        print_rank0(f"note: --max-examples {args.max_examples} is more than there are: all were taken")
    target = target or result_file(run, args, max_examples)
    content = {"settings": settings, "seconds": round(seconds, 3), "results": metrics}
    if rollouts is not None:
        settings["rollouts"] = asdict(rollouts.config)
        content["rollouts"] = [asdict(figure) for figure in figures]
        print_table(rollouts, figures)
    write_json_result(target, content)
    if rollouts is not None:
        write_picture(target.with_suffix(".png"), rollouts, figures, run.name)
    for name, text in evaluation_files(run.task.evaluators).items():
        write_beside(target.with_name(f"{target.stem}_{name}"), text)


def evaluate(
    run: PuzzleRun, *, max_examples: int | None, batch_size: int | None, budget: EvalBudget | None = None
) -> dict[str, float | None]:
    """The metrics of the task's own evaluation and of `steps@PerStepAccuracy`, without the prefix `eval/`.

    Raises: UsageError if the split has no examples.
    """
    from evaluators.steps import PerStepAccuracy, PerStepAccuracyConfig

    task, config = run.task, run.opened.config
    rows = batch_size or config.eval_batch_size or config.global_batch_size
    sampler = EvalSampler(run.splits, rows, max_examples=max_examples, seed=config.eval_seed, budget=budget)
    if sampler.num_examples == 0:
        raise UsageError(f"{run.data[0]['path']} has no examples in this split")
    task.final_sampler, task.validation_sampler = _WithProgress(sampler), None
    task.evaluators = [*task.evaluators, PerStepAccuracy(PerStepAccuracyConfig())]
    return {name.removeprefix("eval/"): value for name, value in task.evaluate(final=True).items()}


def result_file(run: PuzzleRun, args: argparse.Namespace, max_examples: int | None) -> Path:
    """`evaluation_step_N.json`; its name lists every setting that differs from the run's final evaluation."""
    opened = run.opened
    differences = []
    if args.split != "test":
        differences.append(args.split)
    if args.data:
        differences.append("data-" + "-".join(entry["content_hash"][:8] for entry in run.data))
    if run.steps != opened.config.arch.get("halt_max_steps", run.steps):
        differences.append(f"steps-{run.steps}")
    if args.halting not in (None, opened.config.arch.get("eval_halting", "fixed")):
        differences.append(args.halting)
    if max_examples != opened.config.final_eval_max_examples:
        differences.append(f"examples-{max_examples or 'all'}")
    differences += [f"{name}-{n}" for name, n in (("tasks", args.max_groups), ("aug", args.max_augmentations)) if n]
    if args.rollouts:
        differences += [f"rollouts-{args.rollouts}", *(str(given) for name in FLAGS if (given := getattr(args, name)))]
    if args.weights == "raw" and opened.checkpoint.has_ema:
        differences.append("raw")
    run_dir: Path = opened.run_dir
    return run_dir / ("_".join([f"evaluation_step_{opened.checkpoint.step}", *differences]) + ".json")


def print_evaluation(settings: dict[str, Any], metrics: dict[str, float | None], seconds: float) -> None:
    """Print the table over ACT steps and the facts that its numbers depend on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    examples = int(metrics["examples"] or 0)
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "exact", "95 % interval", "tokens", "q_halt right", "would halt"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in range(1, settings["steps"] + 1):
        step = f"step_{number:02d}"
        exact = metrics[f"exact_accuracy/{step}"] or 0.0
        low, high = wilson(round(exact * examples), examples)
        others = (metrics[f"{name}/{step}"] for name in ("accuracy", "q_halt_accuracy", "would_halt"))
        table.add_row(
            str(number),
            _percent(exact),
            f"{_percent(low)} .. {_percent(high)}",
            *map(_percent, others),
            style="bold" if number == settings["steps"] else None,
        )
    console.print(table)
    print_rank0(f"checkpoint  {settings['run']} step {settings['step']}, {settings['weights']} weights")
    for entry in settings["data"]:
        print_rank0(f"data        {entry['path']} ({settings['split']}), content hash {entry['content_hash'][:12]}")
    print_rank0(f"examples    {examples} in {seconds:.1f} s ({examples / max(seconds, 1e-9):.0f} per second)")
    names = ("exact_accuracy", "exact_accuracy_low", "exact_accuracy_high", "accuracy", "q_halt_accuracy")
    exact_share, lowest, highest, token, q_halt = (_percent(metrics[name]) for name in names)
    print_rank0(f"result      exact {exact_share} ({lowest} .. {highest}), tokens {token}, halting head right {q_halt}")
    if settings["halting"] == "latched" and metrics["steps"] is not None:
        print_rank0(f"halting     latched, {metrics['steps']:.2f} of {settings['steps']} steps on average")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
