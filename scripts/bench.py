"""Time our training step, evaluation and batches against the published form of each.

    python scripts/bench.py                                     # on one CPU core, the whole table: 15 CPU minutes
    python scripts/bench.py --only 'training: mlp_t' --pairs 5
    python scripts/bench.py --device cuda --json bench.json     # on a GPU: steps, in two to three minutes

The published form is TRM's and HRM's public code, rewritten literally: weights are cast at each call, metrics are read
at each step. Both sides alternate in one process; a ratio above 1 means that ours is faster.

On a CPU the published form runs eagerly, its optimizers loop over parameters, and CPU time is measured, since a machine
may have other work. With --device cuda it runs eagerly and under torch.compile, as published; ours runs eagerly,
compiled, and as one CUDA graph of the whole step. Times are from CUDA events; a matrix product and a copy are timed in
the same call, as the reference for percentages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import pattern, positive, script_parser
from engine.errors import UsageError


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which table; default: cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="lines whose name contains it; default: all")
    parser.add_argument("--pairs", type=positive, default=7, help="measurements of each side; default: 7")
    parser.add_argument("--threads", type=positive, help="of torch, for both sides; default: 1, with a GPU torch's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    gpu = parser.add_argument_group("with --device cuda")
    gpu.add_argument("--modes", type=pattern, default="", metavar="REGEX", help="modes that match; default: all")
    gpu.add_argument("--seconds", type=positive, default=8, help="of timing for each row, about; default: 8")
    gpu.add_argument("--warm-up", type=positive, default=240, help="seconds; modes that take longer are omitted")
    args = parser.parse_args(argv)
    gpu_options = [f for f in ("modes", "seconds", "warm_up") if getattr(args, f) != parser.get_default(f)]
    if args.device == "cpu" and gpu_options:
        parser.error(f"--{gpu_options[0].replace('_', '-')} is for --device cuda")
    return args


def main(args: argparse.Namespace) -> None:
    """Measure and print. Raises: UsageError."""
    from engine.run.environment import describe_environment
    from reports.output import write_json_result

    figures: dict[str, Any] = {"pairs": args.pairs, "threads": args.threads, "environment": describe_environment()}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        measure = on_gpu if args.device == "cuda" else on_cpu
        figures["rows"] = list(measure(args, Path(folder), figures))
    if args.json is not None:
        write_json_result(args.json, figures)


def on_cpu(args: argparse.Namespace, folder: Path, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Print the table for a CPU; yield its rows."""
    import torch

    from tasks.recursive_reasoning.step_benchmark.measure import all_rows, names

    chosen(args.only, names())
    figures["threads"] = args.threads or 1
    torch.set_num_threads(args.threads or 1)
    print("| | ours, ms | published form, ms | ratio | quartiles |\n|---|---|---|---|---|", flush=True)
    for measured in all_rows(args.only, args.pairs, folder):
        row = measured.figures()
        low, high = row["quartiles"]
        times = f"{row['ours_ms']:.4g} | {row['literal_ms']:.4g}"
        print(f"| {measured.name} | {times} | {row['ratio']:.2f} | {low:.2f} .. {high:.2f} |", flush=True)
        yield row


def on_gpu(args: argparse.Namespace, folder: Path, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Print the table for a GPU; yield its rows. Adds the device's peak rates to `figures`."""
    from engine.device import choose_device
    from tasks.gpu_benchmark.processes import Settings, measured_rows
    from tasks.gpu_benchmark.rows import CASES
    from tasks.gpu_benchmark.table import HEAD, lines_of
    from tasks.gpu_benchmark.timing import ceilings

    names = chosen(args.only, [case.name for case in CASES])
    choice = choose_device("cuda")
    figures["ceilings"] = rates = ceilings(choice.device)
    print(f"{choice.reason}; {rates['matmul_tflops']:.0f} TFLOP/s in a product, {rates['copy_tbs']:.2f} TB/s in a copy")
    print(HEAD, flush=True)
    own = {name: vars(args)[name] for name in ("pairs", "seconds", "warm_up", "modes", "threads")}
    settings = Settings(device=str(choice.device), **own)
    for row in measured_rows([case for case in CASES if case.name in names], settings, folder):
        for line in lines_of(row, rates["matmul_tflops"]):
            print(line, flush=True)
        yield row


def chosen(only: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that contain `only`. Raises: UsageError if none does."""
    if matches := [name for name in names if only in name]:
        return matches
    raise UsageError(f"--only {only!r}: no line is named so; there are\n  " + "\n  ".join(names))


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
