"""No step of a recursive model or of a GPT between two log lines waits for the device: with Muon or without, kernel by
kernel or as a graph (step_graph), of which a tape takes the place on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.device import make_runtime
from engine.loop.hooks import Hook
from engine.loop.step_graph import WARM_UP
from engine.loop.trainer import Trainer
from engine.registry import Family
from tasks.language_model.family import FAMILY as LANGUAGE
from tasks.recursive_reasoning.family import FAMILY as RECURSIVE
from tests.engine.test_step_graph import record
from tests.train.conftest import TINY as TINY_TEXT, texts as texts
from tests.train.test_learning import composed, waits
from verification.probes.instance import NoStop

PUZZLES = ("cfg_pretrain_sudoku_4x4", "+debug=tiny", "max_steps=12", "grad_clip=1.0", "stats_interval=3")
TEXT = ("cfg_train_cpu", *TINY_TEXT[1:], "max_iters=12", "eval_interval=99", "stats_interval=3")
KINDS: dict[str, tuple[Family, tuple[str, ...]]] = {
    "table": (
        RECURSIVE,
        (*PUZZLES, "arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=2", "arch.halt_exploration_prob=0.5", "ema=true"),
    ),
    "muon": (RECURSIVE, (*PUZZLES, "+optimizer=muon", "arch.no_ACT_continue=false")),
    "gpt": (LANGUAGE, (*TEXT, "arch.dropout=0.1", "ema=true")),
}
CAPTURED = [5, 7, 8, 10, 11]
"""After three steps of their form; every third one has its norms read and runs kernel by kernel."""


@pytest.fixture
def build(tmp_path: Path, tiny_data: Path, texts: Path) -> Callable[..., tuple[Family, Any, Path]]:
    """kind, overrides -> (family, config, a directory with its data)."""

    def of(kind: str, *argv: str) -> tuple[Family, Any, Path]:
        family, (recipe, *given) = KINDS[kind]
        (tmp_path / "data").symlink_to(tiny_data if family is RECURSIVE else texts)
        return family, composed(recipe, family, *given, *argv), tmp_path

    return of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [False, True], ids=["kernels", "graph"])
def test_no_step_between_two_log_lines_waits(build: Any, kind: str, graph: bool) -> None:
    family, config, folder = build(kind, "device=cpu", "log_interval=4")
    replays: list[None] = []

    def noted(body: Callable[[], None]) -> Callable[[], None]:
        replay = record(body)

        def again() -> None:
            replays.append(None)
            replay()

        return again

    waiting = waits(folder, config, family, noted if graph else None)
    assert sorted(waiting) == [4, 8, 12], waiting
    assert len(replays) == len(CAPTURED) * graph


class NoWaiting(Hook):
    """From the second step to the last but one torch raises where the host waits for the GPU: log lines included, but
    not where a step is captured, once."""

    def __init__(self) -> None:
        self.captured: list[int] = []

    def after_step(self, trainer: Trainer) -> None:
        graph, step = trainer.graph, trainer.step
        if graph is not None and graph._replay is not None and step % 3:
            self.captured.append(step)
        captures_next = graph is not None and graph._replay is None and graph._warm == WARM_UP
        last = step >= trainer.last_step - 1
        torch.cuda.set_sync_debug_mode("default" if last or captures_next else "error")


@pytest.fixture
def debugging() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", ["off", "on"])
def test_on_a_gpu_a_line_at_every_step_makes_none_wait(build: Any, debugging: None, kind: str, graph: str) -> None:
    family, config, folder = build(kind, "device=cuda", "log_interval=1", f"step_graph={graph}")
    lines: list[int] = []
    hook = NoWaiting()
    with contextlib.chdir(folder):
        runtime = make_runtime(config)
        plan = family.build(config, runtime)
        trainer = Trainer(
            plan,
            config,
            runtime,
            save=lambda *_: None,
            write=lambda step, _: lines.append(step),
            stop=NoStop(),  # type: ignore[arg-type]
            hooks=[hook],
        )
        trainer.evaluations.step, plan.final_eval = 0, False
        trainer.fit()
    assert lines == list(range(1, 13))
    assert hook.captured == (CAPTURED if graph == "on" else [])
