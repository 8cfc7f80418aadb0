"""No step of a recursive model between two log lines waits for the device, with Muon or without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.device import make_runtime
from engine.loop.hooks import Hook
from engine.loop.trainer import Trainer
from tasks.recursive_reasoning.family import FAMILY
from tests.train.test_learning import composed, waits
from verification.probes.instance import NoStop

RECIPE = "cfg_pretrain_sudoku_4x4"
TINY = ("+debug=tiny", "max_steps=12", "grad_clip=1.0", "stats_interval=3")
KINDS = {
    "table": ("arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=2", "arch.halt_exploration_prob=0.5", "ema=true"),
    "muon": ("+optimizer=muon", "arch.no_ACT_continue=false"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_between_two_log_lines_waits(workplace: Path, kind: str) -> None:
    config = composed(RECIPE, FAMILY, *TINY, "device=cpu", "log_interval=4", *KINDS[kind])
    waiting = waits(workplace, config, FAMILY)
    assert sorted(waiting) == [4, 8, 12], waiting


class NoWaiting(Hook):
    """From the second step to the last but one torch raises where the host waits for the GPU: log lines included."""

    def after_step(self, trainer: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.step < trainer.last_step - 1 else "default")


@pytest.fixture
def debugging() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_a_line_at_every_step_makes_none_wait(workplace: Path, debugging: None, kind: str) -> None:
    config: Any = composed(RECIPE, FAMILY, *TINY, "device=cuda", "log_interval=1", *KINDS[kind])
    lines: list[int] = []
    with contextlib.chdir(workplace):
        runtime = make_runtime(config)
        plan = FAMILY.build(config, runtime)
        trainer = Trainer(
            plan,
            config,
            runtime,
            save=lambda *_: None,
            write=lambda step, _: lines.append(step),
            stop=NoStop(),  # type: ignore[arg-type]
            hooks=[NoWaiting()],
        )
        trainer.evaluations.step, plan.final_eval = 0, False
        trainer.fit()
    assert lines == list(range(1, 13))
