"""Time our training steps, evaluations and batches against the published form: CPU time, alternating in one process.

A shared machine drifts within seconds, so the two sides of a pair run back to back, the order alternates from pair to
pair, and the result is the ratio of the two.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dataset.format import load_split, widened
from dataset.sampler import TrainSampler
from dataset.writing import SplitArrays, write_dataset
from engine.loop.metrics import LogLine
from engine.loop.trainer import Trainer
from engine.schema import structure, with_defaults
from engine.signals import StopSignal
from engine.task import Runtime
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.build import build
from tasks.recursive_reasoning.step_benchmark.literal import Batch, Literal
from tasks.recursive_reasoning.step_benchmark.literal_training import Training, batches
from tasks.recursive_reasoning.task import RecursiveReasoningTask

VOCAB, EPISODE = 11, 2
"""Vocabulary size of the random puzzles; ACT steps of an evaluation (published: 16, eight times the time for both)."""


@dataclass(frozen=True)
class Case:
    """One shape of one model; `train` and `evaluate`: how many calls of each are timed together."""

    name: str
    arch: dict[str, Any]
    rows: int
    tokens: int
    train: int = 1
    evaluate: int = 1

    @property
    def lines(self) -> tuple[str, str]:
        """Names of its two lines in the table."""
        return f"training: {self.name}", f"evaluation: {self.name}"


def _trm(**keys: Any) -> dict[str, Any]:
    mixer = {"mlp_t": True, "pos_encodings": "none"} if keys.pop("mlp_t", False) else {}
    return {"name": "recursive_reasoning.trm@TRM", "L_layers": 2, **mixer, **keys}


_SMALL = {"hidden_size": 64, "num_heads": 4, "H_cycles": 3, "L_cycles": 4, "puzzle_emb_ndim": 64}
_TINY = {"hidden_size": 64, "num_heads": 4, "H_cycles": 2, "L_cycles": 3, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
_WIDE = {"hidden_size": 512, "num_heads": 8, "H_cycles": 2, "L_cycles": 3, "puzzle_emb_ndim": 512}
_HRM = {"name": "recursive_reasoning.hrm@HRM", "no_ACT_continue": False, "H_cycles": 2, "L_cycles": 2}
_BF16 = {"forward_dtype": "bfloat16"}

CASES = (
    Case("attention, hidden 64, 81 tokens", _trm(**_SMALL), 32, 81),
    Case("mlp_t, hidden 64, 81 tokens", _trm(mlp_t=True, **_SMALL), 32, 81),
    Case("HRM, hidden 64, 81 tokens", {**_SMALL, **_HRM, "H_layers": 2, "L_layers": 2}, 32, 81),
    Case("attention, hidden 64, 81 tokens, bf16", _trm(**_SMALL, **_BF16), 32, 81),
    Case("mlp_t, hidden 64, 81 tokens, bf16", _trm(mlp_t=True, **_SMALL, **_BF16), 32, 81),
    Case("attention, hidden 64, 16 tokens", _trm(**_TINY), 64, 16, train=5, evaluate=3),
    Case("mlp_t, hidden 64, 16 tokens", _trm(mlp_t=True, **_TINY), 64, 16, train=5, evaluate=3),
    Case("attention, hidden 512, 81 tokens", _trm(**_WIDE), 4, 81),
    Case("mlp_t, hidden 512, 81 tokens", _trm(mlp_t=True, **_WIDE), 4, 81),
    Case("attention, hidden 512, 81 tokens, bf16", _trm(**_WIDE, **_BF16), 4, 81),
    Case("mlp_t, hidden 512, 81 tokens, bf16", _trm(mlp_t=True, **_WIDE, **_BF16), 4, 81),
)


@dataclass(frozen=True)
class SamplerCase:
    """A data set of `groups` x `puzzles` x `examples`, sampled in batches of `rows` for `epochs` epochs."""

    name: str
    groups: int
    puzzles: int
    examples: int
    tokens: int
    rows: int
    epochs: int
    wide: bool = False
    """Whether ours are converted to int32 on the host too, like the published ones, and not on the device."""


SAMPLERS = (
    SamplerCase("batches, 1,000 Sudoku x 100", 1000, 100, 1, 81, 768, 10),
    SamplerCase("batches, 400 ARC tasks x 20", 400, 20, 3, 900, 768, 10),
    SamplerCase("batches, 400 ARC tasks x 20, int32", 400, 20, 3, 900, 768, 10, wide=True),
)


@dataclass
class Row:
    """The measurements of one line of the table: milliseconds per call, for each pair."""

    name: str
    ours_ms: list[float] = field(default_factory=list)
    literal_ms: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Published over ours: above 1, ours is faster."""
        return [theirs / own for own, theirs in zip(self.ours_ms, self.literal_ms, strict=True)]

    def figures(self) -> dict[str, Any]:
        """JSON-ready: medians, quartiles of the ratio, and every pair."""
        ratios = self.ratios
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return {
            "name": self.name,
            "ours_ms": statistics.median(self.ours_ms),
            "literal_ms": statistics.median(self.literal_ms),
            "ratio": middle,
            "quartiles": [low, high],
            "ratios": ratios,
        }


Work = Callable[[int], Any]
"""Runs the timed work this many times."""


def in_turns(name: str, ours: Work, literal: Work, calls: int, pairs: int) -> Row:
    """Time `calls` calls of each side, `pairs` times, after one warm-up pair."""

    def timed(work: Work) -> float:
        began = time.process_time()
        work(calls)
        return 1000 * (time.process_time() - began) / calls

    timed(ours), timed(literal)
    row = Row(name)
    for number in range(pairs):
        turn = [(ours, row.ours_ms), (literal, row.literal_ms)]
        for work, times in turn if number % 2 else reversed(turn):
            times.append(timed(work))
    return row


class Pair:
    """Our trainer and the published loop on the same random data, starting from the same weights."""

    def __init__(self, case: Case, folder: Path) -> None:
        rows = case.rows
        splits = {"train": random_puzzles(4 * rows, 1, 1, case.tokens), "test": random_puzzles(rows, 1, 1, case.tokens)}
        write_random_puzzles(folder / "puzzles", splits)
        arch = {"halt_max_steps": EPISODE, "loss": {"name": "losses@ACTLossHead"}, **case.arch}
        settings: dict[str, Any] = {
            "script": "pretrain.py",
            "device": "cpu",
            "arch": arch,
            "data_paths": [str(folder / "puzzles")],
        }
        settings |= {"global_batch_size": rows, "epochs": 1000, "ema": True, "lr_warmup_steps": 0, "lr_min_ratio": 1.0}
        config = structure(PretrainConfig, with_defaults(PretrainConfig, settings))
        cpu = torch.device("cpu")
        runtime = Runtime(
            device=cpu, dtype=torch.float32, attention="auto", seed=0, accumulation=1, rank=0, world_size=1
        )
        torch.manual_seed(runtime.seed)
        plan = build(config, runtime)
        self.task = cast(RecursiveReasoningTask, plan.task)
        self.trainer = Trainer(plan, config, runtime, save=lambda *_: None, write=lambda *_: None, stop=StopSignal())
        model: Any = self.task.model
        literal = Literal(model.config, model.shape, rows, model.inner.dtype)
        literal.load_state_dict(model.state_dict())
        self.literal = Training(literal, rows, config)
        self.test = _tensors(load_split(folder / "puzzles", "test").batch(np.arange(rows)))

    def offered(self, step: int) -> Batch:
        """The batch of our training step `step`."""
        return _tensors(widened(self.task._offered(step, 0, self.task.global_rows)))

    def ours(self, steps: int) -> dict[str, Any]:
        """Run the trainer's own training steps, batches included; returns the means of a log line."""
        for _ in range(steps):
            self.trainer.step += 1
            self.trainer._train_step()
        return LogLine(self.trainer.step, dict(self.trainer.window.flush())).values()

    def rows(self, case: Case, pairs: int, only: str) -> Iterator[Row]:
        """Measure the lines of this case whose name contains `only`."""
        batch = self.offered(1)  # prepared in advance: the public code assembles batches in a separate process

        def evaluate(calls: int) -> None:
            for _ in range(calls):
                self.task.evaluate(final=True)

        def literal_steps(calls: int) -> None:
            for _ in range(calls):
                self.literal.step(batch)

        def literal_evaluate(calls: int) -> None:
            for _ in range(calls):
                self.literal.evaluate(self.test)

        train, evaluation = case.lines
        if only in train:
            yield in_turns(train, self.ours, literal_steps, case.train, pairs)
        if only in evaluation:
            yield in_turns(evaluation, evaluate, literal_evaluate, case.evaluate, pairs)


def sampling(case: SamplerCase, folder: Path, pairs: int) -> Row:
    """Time all batches of one iteration, planning included; milliseconds per batch."""
    puzzles = random_puzzles(case.groups, case.puzzles, case.examples, case.tokens)
    write_random_puzzles(folder, dict.fromkeys(("train", "test"), puzzles))
    split = load_split(folder, "train")

    def sampler() -> TrainSampler:
        return TrainSampler([split], seed=0, global_batch_size=case.rows, epochs_per_iter=case.epochs)

    number = sampler().batches_in(1)

    def ours(_: int) -> None:
        one = sampler()
        for index in range(number):
            if case.wide:
                one.batch(1, index)
            else:
                one.rows(1, index, 0, case.rows)

    def literal(_: int) -> None:
        deque(batches(split, 0, 1, case.epochs, case.rows), maxlen=0)

    return in_turns(case.name, ours, literal, number, pairs)


def _tensors(arrays: dict[str, np.ndarray]) -> Batch:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def random_puzzles(groups: int, puzzles: int, examples: int, tokens: int, vocab_size: int = VOCAB) -> SplitArrays:
    """Puzzles of random tokens, each with its own identifier."""
    count = groups * puzzles
    inputs, labels = np.random.default_rng(0).integers(1, vocab_size, (2, count * examples, tokens)).astype(np.uint8)
    return SplitArrays(
        inputs,
        labels,
        np.arange(1, count + 1, dtype=np.int32),
        np.arange(count + 1) * examples,
        np.arange(groups + 1) * puzzles,
    )


def write_random_puzzles(folder: Path, splits: Mapping[str, SplitArrays], vocab_size: int = VOCAB) -> None:
    """Write splits as a data set."""
    last = max(int(split.puzzle_identifiers.max()) for split in splits.values())
    write_dataset(
        folder,
        splits,
        vocab_size=vocab_size,
        seq_len=splits["train"].inputs.shape[1],
        card={"name": "puzzles"},
        identifiers=[f"p{number}" for number in range(last + 1)],
    )


def names() -> list[str]:
    """The names of all lines of the table."""
    return [line for case in CASES for line in case.lines] + [case.name for case in SAMPLERS]


def all_rows(only: str, pairs: int, folder: Path) -> Iterator[Row]:
    """Measure every line whose name contains `only`, one at a time. Files go into `folder`."""
    for number, case in enumerate(CASES):
        if any(only in line for line in case.lines):
            yield from Pair(case, folder / str(number)).rows(case, pairs, only)
    for number, sampler in enumerate(SAMPLERS):
        if only in sampler.name:
            yield sampling(sampler, folder / f"sampler{number}", pairs)
