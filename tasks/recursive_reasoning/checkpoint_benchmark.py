"""Time what saving a model with a large puzzle table costs a run: for scripts/bench_checkpoint.py.

It trains with `pretrain.py`'s loop on random puzzles whose identifiers are spread over the whole table. Blocking and
background saves alternate in one process, because machines drift.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.writing import SplitArrays
from engine.config import HEADER, ConfigSource
from engine.device import make_runtime
from engine.io import print_rank0
from engine.optim.builtin import SparseSignSGD
from engine.run.directory import open_run
from engine.run.request import request_of
from engine.run.session import Session
from engine.schema import structure, with_defaults
from engine.signals import StopSignal
from models.sparse_embedding import SparseEmbedding
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.build import build
from tasks.recursive_reasoning.step_benchmark.measure import VOCAB, write_random_puzzles

ROWS, LENGTH, QUIET = 8, 16, 4
"""Batch rows, tokens of a puzzle, vocabulary size, steps without a save between two saves."""
MODES = {"waited for": False, "beside": True}


@dataclass
class Saved:
    """Timings of one checkpoint, in seconds."""

    hold_s: float
    """How long it blocked the loop."""
    write_s: float = 0.0
    """From the first byte written to the last pointer."""
    steps_s: list[float] = field(default_factory=list)
    """Steps that ran meanwhile."""

    def cost_s(self, quiet_s: float) -> float:
        """Training time lost: the loop blocked, and steps slower than without a save."""
        return self.hold_s + sum(step - quiet_s for step in self.steps_s)


class Timed(Session):
    """A session that saves on the benchmark's schedule, not the config's, and times each save."""

    saved: dict[str, list[Saved]]
    quiet: list[float]
    rounds: int

    def begin(self, rounds: int) -> None:
        """Reset the timings, for `rounds` saves of each mode."""
        self.saved, self.quiet, self.rounds = {mode: [] for mode in MODES}, [], rounds
        self.last, self.since, self.current = 0.0, 0, Saved(0.0)

    def after_step(self, trainer: Any) -> None:
        """Time the step, and save if it is due; end the run after the last save."""
        now = time.perf_counter()
        writing = self.writer._outcome is not None and not self.writer._outcome.done()
        if writing:
            self.current.steps_s.append(now - self.last)
        elif self.since > 1:  # the first steps are slower, and so is the one in which the writer finished
            self.quiet.append(now - self.last)
        self.since = 0 if writing else self.since + 1
        done = sum(map(len, self.saved.values()))
        if self.since > QUIET and done < self.rounds * len(MODES):
            mode = [*MODES][done % len(MODES)]
            self.config.checkpoint_background = MODES[mode]
            self.current = Saved(0.0)
            self.saved[mode].append(self.current)
            began = time.perf_counter()
            super().save(trainer, "step")
            self.current.hold_s = time.perf_counter() - began
            self.since = 0
        elif self.since > QUIET:
            trainer.last_step = trainer.step
        self.last = time.perf_counter()

    def _write(self, step: int, why: str, parts: dict[str, Any]) -> None:
        began, current = time.perf_counter(), self.current
        super()._write(step, why, parts)
        current.write_s = time.perf_counter() - began

    def save(self, trainer: Any, why: str) -> None:
        """Skip the checkpoint at the end of the run."""


def measure(identifiers: int, width: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Train in `folder` with `rounds` saves of each mode; returns the timings in seconds."""
    session, directory = _session(identifiers, width, rounds, folder)
    runtime = make_runtime(session.config)
    try:
        session.train(runtime)
        session.writer.wait()
    finally:
        session.sinks.close()
        directory.close()
    quiet = statistics.median(session.quiet)
    latest = session.store.latest()
    size = sum(file.stat().st_size for file in latest.iterdir()) if latest else 0
    return {
        "identifiers": identifiers,
        "width": width,
        "bytes": size,
        "quiet_step_s": spread(session.quiet),
        "modes": {
            mode: {
                "hold_s": spread([one.hold_s for one in saved]),
                "write_s": spread([one.write_s for one in saved]),
                "steps_meanwhile": [len(one.steps_s) for one in saved],
                "step_s": spread([step for one in saved for step in one.steps_s]),
                "cost_s": spread([one.cost_s(quiet) for one in saved]),
            }
            for mode, saved in session.saved.items()
        },
        "hold_ratio": spread(_ratios(session.saved, lambda one: one.hold_s)),
        "cost_ratio": spread(_ratios(session.saved, lambda one: one.cost_s(quiet))),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _ratios(saved: dict[str, list[Saved]], of: Callable[[Saved], float]) -> list[float]:
    """Blocking over background, for consecutive saves."""
    return [of(slow) / max(of(fast), 1e-9) for slow, fast in zip(*saved.values(), strict=True)]


def spread(values: Sequence[float]) -> list[float] | None:
    """(median, lowest, highest); None without values."""
    return [statistics.median(values), min(values), max(values)] if values else None


def _session(identifiers: int, width: int, rounds: int, folder: Path) -> tuple[Timed, Any]:
    data = folder / "puzzles"
    write_random_puzzles(data, dict.fromkeys(("train", "test"), _puzzles(identifiers)))
    arch = {
        "name": "recursive_reasoning.trm@TRM",
        "loss": {"name": "losses@ACTLossHead"},
        **{"hidden_size": width, "num_heads": max(width // 64, 1), "H_cycles": 1, "L_cycles": 1, "L_layers": 2},
        **{"puzzle_emb_ndim": width, "puzzle_emb_len": 1},
    }
    settings = {
        **{"script": "pretrain.py", "device": "cpu", "arch": arch, "data_paths": [str(data)], "ema": True},
        **{"global_batch_size": ROWS, "epochs": 100, "final_eval": False, "keep_last": 1, "log_interval": 1000},
        **{"project_name": "bench", "run_name": "checkpoint", "run_dir": str(folder / "run")},
    }
    resolved = with_defaults(PretrainConfig, settings)
    config = structure(PretrainConfig, resolved)
    text = HEADER + json.dumps({"config_name": "cfg_pretrain", "choices": {}}) + "\n"
    vars(config)["_source"] = ConfigSource(text, resolved)
    stop = StopSignal()
    runtime = make_runtime(config)
    session = Timed(config, "pretrain", build(config, runtime), runtime, stop)
    session.begin(rounds)
    directory = open_run(request_of(config, "pretrain"))
    session.directory = directory
    session.enter(directory.decision)
    return session, directory


def _puzzles(identifiers: int) -> SplitArrays:
    """Puzzles of one example each, for up to 4,096 identifiers spread over the whole table."""
    count = min(identifiers - 1, 4096)
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(1, VOCAB, (2, count, LENGTH)).astype(np.uint8)
    return SplitArrays(
        inputs,
        labels,
        np.linspace(1, identifiers - 1, count).astype(np.int32),
        np.arange(count + 1),
        np.arange(count + 1),
    )


def time_table_update(identifiers: int, width: int, *, rows: int = 768, times: int = 30) -> dict[str, Any]:
    """Time a SparseSignSGD update of `rows` random identifiers, in this table and in one of 1,000 rows; and one pass
    over the whole table, which is the least that a dense optimizer costs."""
    table, small = SparseEmbedding(identifiers, width), SparseEmbedding(1000, width)
    table.weights.fill_(0.5)  # untouched memory would be faster
    seconds: dict[str, list[float]] = {"table": [], "small": [], "dense": []}
    generator = torch.Generator().manual_seed(0)
    for _ in range(times):
        for name, one in (("table", table), ("small", small)):
            ids = torch.randint(len(one.weights), (rows,), generator=generator, dtype=torch.int32)
            optimizer = SparseSignSGD(one)
            one.train()
            one(ids).sum().backward()
            began = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - began)
    for _ in range(3):
        began = time.perf_counter()
        table.weights.mul_(1 - 1e-3)
        seconds["dense"].append(time.perf_counter() - began)
    return {
        "rows": rows,
        "state_bytes": sum(v.nbytes for v in SparseSignSGD(table).state_dict().values()),
        **{name: spread(values) for name, values in seconds.items()},
    }


def show(figures: dict[str, Any], update: dict[str, Any]) -> None:
    """Print the tables of docs/results/arc-checkpoints.md."""
    size, peak = figures["bytes"] / 1e9, figures["peak_rss_bytes"] / 1e9
    table, quiet = f"{figures['identifiers']:,} identifiers x {figures['width']}", _seconds(figures["quiet_step_s"])
    print_rank0(f"{table}: checkpoint {size:.2f} GB, peak memory {peak:.1f} GB, step without a save {quiet} s")
    print_rank0("\n| save | loop stands still (s) | written in (s) | steps meanwhile | their time (s) | cost (s) |")
    print_rank0("|---|---|---|---|---|---|")
    for mode, each in figures["modes"].items():
        cells = [_seconds(each[name]) for name in ("hold_s", "write_s", "step_s", "cost_s")]
        meanwhile = ", ".join(map(str, each["steps_meanwhile"]))
        print_rank0(f"| {mode} | {cells[0]} | {cells[1]} | {meanwhile} | {cells[2]} | {cells[3]} |")
    still, cost = _seconds(figures["hold_ratio"]), _seconds(figures["cost_ratio"])
    print_rank0(f"\nwaited for / beside: standing still {still}, cost {cost}")
    print_rank0("\n| update of the table | ms |")
    print_rank0("|---|---|")
    for name, what in (
        ("table", f"SparseSignSGD, {update['rows']} of {figures['identifiers']:,} rows"),
        ("small", f"SparseSignSGD, {update['rows']} of 1,000 rows"),
        ("dense", "one pass over the whole table"),
    ):
        print_rank0(f"| {what} | {_seconds([1000 * value for value in update[name]])} |")
    print_rank0(f"\nstate of SparseSignSGD: {update['state_bytes']} bytes; averages hold no table")


def _seconds(values: Sequence[float] | None) -> str:
    """Format as median (lowest to highest)."""
    return "-" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"
