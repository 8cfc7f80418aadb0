"""Time both forms of applying a low-rank delta over a grid of batch, length, width and rank, and the choice of `auto`.

    python scripts/bench_feedback.py --threads 1                     # the whole grid: a minute or two
    python scripts/bench_feedback.py --threads 1 --json bench.json   # the figures as a file, too

The forms are measured alternately, and the shortest time of each counts. The last lines give the largest loss of `auto`
against the better form, and the peak memory of a training step with either form.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute, run_command

if __name__ == "__main__":
    begin()

from dataset.arguments import positive, script_parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a bad one exits 2."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--threads", type=positive, default=1, help="of torch; default: 1, for which auto is fitted")
    parser.add_argument("--repeats", type=positive, default=5, help="turns of each form; default: 5")
    parser.add_argument("--rows", type=positive, nargs="+", metavar="B", help="batch sizes instead of 1 16")
    parser.add_argument("--length", type=positive, nargs="+", metavar="T", help="lengths instead of 32 128 512")
    parser.add_argument("--width", type=positive, nargs="+", metavar="C", help="widths instead of 64 256 512")
    parser.add_argument("--rank", type=positive, nargs="+", metavar="r", help="ranks instead of 1 8 64 256")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    from reports.output import write_json_result
    from tasks.feedback.benchmark import GRID, MEMORY_AT, delta_memory, timings

    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    grid = {key: getattr(args, key) or sizes for key, sizes in GRID.items()}
    rows: list[dict[str, Any]] = []
    print(f"{'B':>4}{'T':>6}{'C':>6}{'r':>6}  {'pass':<9}{'low rank ms':>12}{'dense ms':>10}  {'auto':<8}{'excess':>7}")
    for timing in timings(device, repeats=args.repeats, grid=grid):
        rows.append(timing.as_row())
        sizes = f"{timing.rows:>4}{timing.length:>6}{timing.width:>6}{timing.rank:>6}"
        kind = "training" if timing.training else "forward"
        times = f"{timing.lowrank_ms:>12.3f}{timing.dense_ms:>10.3f}"
        print(f"{sizes}  {kind:<9}{times}  {timing.auto:<8}{timing.excess:>7.1%}", flush=True)
    worst = max(row["excess"] for row in rows)
    memory = {form: delta_memory(form, device) for form in ("lowrank", "dense")}
    print(f"auto is at most {worst:.1%} slower than the better form ({len(rows)} measurements)")
    print(
        f"peak memory of a change at B, T, C, r = {', '.join(map(str, MEMORY_AT))}: low rank "
        f"{memory['lowrank'] / 1e6:.1f} MB, dense {memory['dense'] / 1e6:.1f} MB, "
        f"{memory['dense'] / memory['lowrank']:.1f} times as much"
    )
    if args.json:
        figures = {"threads": args.threads, "torch": torch.__version__, "worst_excess": worst, "peak_bytes": memory}
        write_json_result(args.json, {**figures, "timings": rows})


if __name__ == "__main__":
    arguments = parse()
    execute(lambda: run_command(lambda: main(arguments)))
