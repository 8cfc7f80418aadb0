"""Evaluate a checkpoint: accuracy after every ACT step, with 95 % intervals; of train.py: losses and bits per byte.

    python scripts/evaluate.py checkpoints/demo/sudoku_4x4
    python scripts/evaluate.py checkpoints/demo/sudoku_4x4/checkpoints/step_500 --steps 64      # think longer
    python scripts/evaluate.py checkpoints/demo/sudoku_4x4 --halting latched                    # stop when it says so
    torchrun --nproc-per-node=4 scripts/evaluate.py checkpoints/demo/sudoku_4x4 --batch-size 3072
    python scripts/evaluate.py out/shakespeare/ckpt.pt                               # the best, not the latest
    python scripts/evaluate.py out/shakespeare --data more                           # a data set of the same tokenizer

Without further arguments it repeats the evaluation at the end of the run: same examples and weights, same numbers.
Options on ACT steps, examples and splits are for runs of pretrain.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin()

from dataset.arguments import OneLineParser, positive
from dataset.sampler import EvalSampler
from engine.distributed import is_main
from engine.errors import UsageError
from engine.io import print_rank0, progress
from evaluators.intervals import wilson
from scripts._opening import (
    Subject,
    add_common_arguments,
    open_subject,
    run_command,
    write_result,
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="evaluate.py", description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--max-examples", metavar="N|all",
        help="a fixed random subset of N; default: what the run's last evaluation took",
    )  # fmt: skip
    parser.add_argument(
        "--halting", choices=("fixed", "latched"),
        help="latched: a row keeps the answer of the step at which it halts; default: arch.eval_halting",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, metavar="N", help="examples at once; default: what the run took")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the figures go; default: evaluation_step_N.json in the run"
    )
    args = parser.parse_args(argv)
    if args.max_examples not in (None, "all"):
        try:
            args.max_examples = positive(args.max_examples)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --max-examples: {error}, or all")
    return args


class _Watched:
    """A sampler with a progress bar."""

    def __init__(self, sampler: EvalSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return progress(self.sampler, total=len(self.sampler), label="evaluating")


def evaluate(subject: Subject, *, max_examples: int | None, batch_size: int | None) -> dict[str, float | None]:
    """The metrics of the task's own evaluation plus those of `steps@PerStepAccuracy`, without their `eval/`."""
    from evaluators.steps import PerStepAccuracy, PerStepAccuracyConfig

    task, config = subject.task, subject.opened.config
    rows = batch_size or config.eval_batch_size or config.global_batch_size
    sampler = EvalSampler(subject.splits, rows, max_examples=max_examples, seed=config.eval_seed)
    if sampler.num_examples == 0:
        raise UsageError(f"{subject.data[0]['path']} has no examples in this split")
    task.final_sampler, task.validation_sampler = _Watched(sampler), None
    task.evaluators = [*task.evaluators, PerStepAccuracy(PerStepAccuracyConfig())]
    return {name.removeprefix("eval/"): value for name, value in task.evaluate(final=True).items()}


def report(settings: dict[str, Any], values: dict[str, float | None], seconds: float) -> None:
    """Print the table and the facts that the numbers depend on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    examples = int(values["examples"] or 0)
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "exact", "95 % interval", "tokens", "q_halt right", "would halt"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in range(1, settings["steps"] + 1):
        step = f"step_{number:02d}"
        exact = values[f"exact_accuracy/{step}"] or 0.0
        low, high = wilson(round(exact * examples), examples)
        others = (values[f"{name}/{step}"] for name in ("accuracy", "q_halt_accuracy", "would_halt"))
        table.add_row(
            str(number), _percent(exact), f"{_percent(low)} .. {_percent(high)}", *map(_percent, others),
            style="bold" if number == settings["steps"] else None,
        )  # fmt: skip
    console.print(table)
    print_rank0(f"checkpoint  {settings['run']} step {settings['step']}, {settings['weights']} weights")
    for entry in settings["data"]:
        print_rank0(f"data        {entry['path']} ({settings['split']}), content hash {entry['content_hash'][:12]}")
    print_rank0(f"examples    {examples} in {seconds:.1f} s ({examples / max(seconds, 1e-9):.0f} per second)")
    names = ("exact_accuracy", "exact_accuracy_low", "exact_accuracy_high", "accuracy", "q_halt_accuracy")
    exact_share, lowest, highest, token, q_halt = (_percent(values[name]) for name in names)
    print_rank0(f"result      exact {exact_share} ({lowest} .. {highest}), tokens {token}, halting head right {q_halt}")
    if settings["halting"] == "latched" and values["steps"] is not None:
        print_rank0(f"halting     latched, {values['steps']:.2f} of {settings['steps']} steps on average")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def result_file(subject: Subject, args: argparse.Namespace, max_examples: int | None) -> Path:
    """`evaluation_step_N.json`, with every setting in the name that is not that of the run's last evaluation."""
    opened = subject.opened
    differences = []
    if args.split != "test":
        differences.append(args.split)
    if args.data:
        differences.append("data-" + "-".join(entry["content_hash"][:8] for entry in subject.data))
    if subject.steps != opened.config.arch.get("halt_max_steps", subject.steps):
        differences.append(f"steps-{subject.steps}")
    if args.halting not in (None, opened.config.arch.get("eval_halting", "fixed")):
        differences.append(args.halting)
    if max_examples != opened.config.final_eval_max_examples:
        differences.append(f"examples-{max_examples or 'all'}")
    if args.weights == "raw" and opened.checkpoint.has_ema:
        differences.append("raw")
    return opened.run_dir / ("_".join([f"evaluation_step_{opened.checkpoint.step}", *differences]) + ".json")


def main(args: argparse.Namespace) -> None:
    """Open, evaluate, print, write."""
    from engine.run.load_run import find_checkpoint

    if find_checkpoint(args.checkpoint).entry == "train":
        from scripts._evaluate_text import evaluate_text

        return evaluate_text(args)
    target = None if args.json is None else args.json.absolute()
    subject = open_subject(args)
    opened = subject.opened
    max_examples = opened.config.final_eval_max_examples if args.max_examples is None else args.max_examples
    max_examples = None if max_examples == "all" else max_examples
    model = subject.task.model
    model.eval_halting = args.halting or model.eval_halting
    began = time.perf_counter()
    values = evaluate(subject, max_examples=max_examples, batch_size=args.batch_size)
    seconds = time.perf_counter() - began
    settings = {
        "run": str(opened.run_dir), "step": opened.checkpoint.step, "weights": opened.weights, "split": args.split,
        "steps": subject.steps, "halting": model.eval_halting, "max_examples": max_examples,
        "eval_seed": opened.config.eval_seed, "data": subject.data, "device": str(opened.runtime.device),
    }  # fmt: skip
    if not is_main():
        return
    report(settings, values, seconds)
    target = target or result_file(subject, args, max_examples)
    write_result(target, {"settings": settings, "seconds": round(seconds, 3), "results": values})


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
