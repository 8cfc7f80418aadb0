"""Time train.py's CPU recipe against a plain nanoGPT loop (scripts/bench_language_model.py): batches, steps, runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dataset.text.batches import TrainBatches
from dataset.text.meta import read_meta
from dataset.text.stream import TokenStream
from engine.cli.resolve import resolve
from engine.device import make_runtime
from engine.errors import UsageError
from engine.loop.trainer import Trainer
from engine.signals import StopSignal
from tasks.language_model.family import FAMILY
from tasks.language_model.nanogpt_baseline import NanoGPT, Sizes, batch, optimizer_of, step

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ("--config-name=cfg_train_cpu", "device=cpu", "seed=1337", "learning_rate=1e-3")  # the baseline's rate


def check_data(folder: Path) -> None:
    """Raise UsageError for a data set whose tokens the baseline cannot read."""
    meta, most = read_meta(folder), Sizes().vocab
    if meta.vocab_size > most or meta.dtype.itemsize != 2:
        raise UsageError(
            f"--data {folder}: {meta.vocab_size} tokens as {meta.dtype}: expected {most} or fewer as uint16"
        )


def timed(work: Callable[[int], Any], times: int) -> float:
    """Mean seconds per call of work(i), over `times` calls."""
    began = time.perf_counter()
    for number in range(times):
        work(number)
    return (time.perf_counter() - began) / times


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> dict[str, Any]:
    """Alternate both sides; returns their milliseconds and the ratio theirs / ours (above 1: ours is faster)."""
    rows = [(ours(), theirs()) for _ in range(pairs + 1)][1:]  # the first pair warms up
    ratios = sorted(b / a for a, b in rows)
    return {
        "ours_ms": 1000 * median(a for a, _ in rows),
        "baseline_ms": 1000 * median(b for _, b in rows),
        "ratio": median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "pairs": pairs,
    }


def loading(folder: Path, pairs: int, rows: int, length: int) -> dict[str, Any]:
    """Time loading one batch of rows x length tokens as int64 tensors."""
    sizes = Sizes(rows=rows, length=length)
    batches = TrainBatches([TokenStream(folder, "train")], seed=1, batch_size=rows, block_size=length)

    def ours(number: int) -> Any:
        return [torch.from_numpy(values) for values in batches.rows(number, 0, rows).values()]

    return in_turns(lambda: timed(ours, 500), lambda: timed(lambda _: batch(folder, "train", sizes), 500), pairs)


def stepping(folder: Path, pairs: int) -> dict[str, Any]:
    """Time one training step, batch included: the trainer's own method against the baseline's."""
    argv = ("--config-name=cfg_train_cpu", "device=cpu", "eval_iters=1", "--dataset", str(folder))
    trace = resolve(ROOT / "train.py", argv, root=ROOT)
    if (config := trace.config) is None:
        raise UsageError(next(iter(trace.problems.values())))
    runtime = make_runtime(config)
    plan = FAMILY.build(config, runtime)
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


def whole(folder: Path, iterations: int, threads: int, baseline: list[str]) -> dict[str, Any]:
    """Time three whole runs of each, from process start to end, with the documented evaluation settings (250 / 200).

    `baseline`: the command that runs the baseline.
    """

    def run(command: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as scratch:
        ours = [
            str(ROOT / "train.py"),
            *RECIPE,
            "--dataset",
            str(folder),
            f"threads={threads}",
            f"max_iters={iterations}",
            f"lr_decay_iters={iterations}",
            f"out_dir={scratch}/run",
            "resume=false",
        ]
        return in_turns(lambda: run(ours), lambda: run(baseline), 3)
