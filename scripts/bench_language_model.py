"""Time train.py's CPU recipe beside a literal nanoGPT-style loop: batches, training steps, whole runs.

    python scripts/bench_language_model.py --data data/shakespeare_char                  # loading and steps: a minute
    python scripts/bench_language_model.py --data data/shakespeare_char --whole 2000     # whole runs too: ten minutes

Both sides are measured in turns (A B A B ...) because machines drift; what is printed is the median of the ratios of
neighbouring measurements, with the lowest and the highest. The baseline is scripts/_nanogpt.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.cli.console import begin, execute  # noqa: E402

if __name__ == "__main__":
    begin()

from dataset.arguments import OneLineParser, positive  # noqa: E402
from scripts._opening import run_command  # noqa: E402

RECIPE = ("--config-name=cfg_train_cpu", "device=cpu", "seed=1337", "learning_rate=1e-3")  # the loop's own rate


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="bench_language_model.py", description=description, epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="a data set of characters (65 of them or fewer)")
    parser.add_argument("--threads", type=positive, default=2, help="of torch, for both; default: 2")
    parser.add_argument("--pairs", type=positive, default=7, help="measurements of each; default: 7")
    parser.add_argument("--whole", type=positive, metavar="N", help="also whole runs of N iterations, three of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--baseline-run", type=positive, metavar="N", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def timed(work: Callable[[int], Any], times: int) -> float:
    """Seconds for one call of work(i), over `times` calls."""
    began = time.perf_counter()
    for number in range(times):
        work(number)
    return (time.perf_counter() - began) / times


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Milliseconds of both and the ratio theirs / ours (above 1: ours is faster)."""
    rows = [(ours(), theirs()) for _ in range(pairs + 1)][1:]  # the first pair warms up
    ratios = sorted(b / a for a, b in rows)
    return {
        "ours_ms": 1000 * median(a for a, _ in rows), "baseline_ms": 1000 * median(b for _, b in rows),
        "ratio": median(ratios), "lowest": ratios[0], "highest": ratios[-1], "pairs": pairs,
    }  # fmt: skip


def loading(folder: Path, pairs: int, rows: int, length: int) -> dict[str, Any]:
    """One batch of rows x length tokens, ready as int64 tensors."""
    import torch

    from dataset.text.batches import TrainBatches
    from dataset.text.stream import TokenStream
    from scripts._nanogpt import Sizes, batch

    sizes = Sizes(rows=rows, length=length)
    batches = TrainBatches([TokenStream(folder, "train")], seed=1, batch_size=rows, block_size=length)

    def ours(number: int) -> Any:
        return [torch.from_numpy(values) for values in batches.rows(number, 0, rows).values()]

    return in_turns(lambda: timed(ours, 500), lambda: timed(lambda _: batch(folder, "train", sizes), 500), pairs)


def stepping(folder: Path, pairs: int) -> dict[str, Any]:
    """One training step, batch included: the trainer's own method beside the baseline's."""
    from hydra import compose, initialize_config_dir

    import train
    from engine.config import load_synced_config
    from engine.loop.trainer import Trainer
    from engine.run.launch import make_runtime
    from engine.signals import StopSignal
    from scripts._nanogpt import NanoGPT, Sizes, batch, optimizer_of, step

    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        composed = compose("cfg_train_cpu", overrides=["device=cpu", f"dataset={folder}", "eval_iters=1"])
    config = load_synced_config(composed, schema=train.SCHEMA, entry="train")
    runtime = make_runtime(config)
    plan = train.build(config, runtime)
    trainer = Trainer(plan, config, runtime, save=lambda *_: None, write=lambda *_: None, stop=StopSignal())
    sizes = Sizes()
    model = NanoGPT(sizes)
    optimizer = optimizer_of(model)

    def ours(_: int) -> None:
        trainer.step += 1
        trainer._train_step()

    def theirs(_: int) -> None:
        step(model, optimizer, *batch(folder, "train", sizes))

    return in_turns(lambda: timed(ours, 40), lambda: timed(theirs, 40), pairs)


def whole(folder: Path, iterations: int, threads: int) -> dict[str, Any]:
    """Three whole runs of each, process start to end, evaluation settings as documented (250 / 200)."""

    def run(command: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as scratch:
        ours = [
            str(ROOT / "train.py"), *RECIPE, f"dataset={folder}", f"threads={threads}", f"max_iters={iterations}",
            f"lr_decay_iters={iterations}", f"out_dir={scratch}/run", "resume=false",
        ]  # fmt: skip
        theirs = [__file__, "--data", str(folder), "--threads", str(threads), "--baseline-run", str(iterations)]
        return in_turns(lambda: run(ours), lambda: run(theirs), 3)


def report(args: argparse.Namespace) -> None:
    """Measure and print."""
    import torch

    folder = args.data.resolve()
    torch.set_num_threads(args.threads)
    if args.baseline_run:
        from scripts._nanogpt import train

        train(folder, args.baseline_run, eval_interval=250, eval_iters=200, log_interval=10, seed=1337)
        return
    figures: dict[str, Any] = {}

    def show(name: str, row: dict[str, Any]) -> None:
        figures[name] = row
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}, {row['pairs']}"
        print(
            f"{name:<14}{row['ours_ms']:>12.3f}{row['baseline_ms']:>14.3f}{row['ratio']:>8.2f}   {spread}", flush=True
        )

    print(f"{'':<14}{'ours ms':>12}{'baseline ms':>14}{'ratio':>8}   lowest to highest, pairs")
    for rows, length in ((12, 64), (64, 256)):
        show(f"batch {rows}x{length}", loading(folder, args.pairs, rows, length))
    show("step", stepping(folder, args.pairs))
    if args.whole:
        show("whole run", whole(folder, args.whole, args.threads))
    if args.json:
        values = {"threads": args.threads, "torch": torch.__version__, **figures}
        args.json.write_text(json.dumps(values, indent=1) + "\n")


def main() -> int:
    args = parse()
    return run_command(lambda: report(args))


if __name__ == "__main__":
    execute(main)
