"""A run that moves from 4 ranks to 2 to 3, each time because one was killed, is the run of one process: the same
examples in the same order, the same losses up to the rounding of sums.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tasks.language_model.task import LanguageModelTask
from tasks.recursive_reasoning.task import RecursiveReasoningTask
from tests.conftest import run_ranks, run_script
from tests.e2e.test_ranks import ATTENTION, BASE, compare
from tests.train.conftest import TINY, place, texts

__all__ = ["place", "texts"]
STEPS, ROWS = 18, 12
KILLED_AT = {4: 8, 2: 14}
"""Ranks -> the step at whose end one of them is killed; every third step is saved."""
COMMON = ("log_interval=1", "checkpoint_interval=3", "verify=off")


def watch(monkeypatch: pytest.MonkeyPatch, task: type, tokens: Any) -> None:
    """Each process notes in drawn/ which rows it draws; one of several dies at its step."""
    draw, after, seen = task.micro_batches, task.after_step, [0]

    def micro_batches(self: Any, step: int) -> Iterator[Any]:
        seen[0] = step
        pieces = list(draw(self, step))
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for piece in pieces for row in tokens(piece)]
        folder = Path("drawn", f"{os.environ.get('WORLD_SIZE', '1')}-{step}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / os.environ.get("RANK", "0")).write_text("\n".join(rows))
        yield from pieces

    def after_step(self: Any) -> None:
        if os.environ.get("RANK") == "1" and KILLED_AT.get(int(os.environ["WORLD_SIZE"])) == seen[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        after(self)

    monkeypatch.setattr(task, "micro_batches", micro_batches)
    monkeypatch.setattr(task, "after_step", after_step)


def drawn(folder: Path, ranks: int, step: int) -> list[str] | None:
    """The rows of the whole batch in order; None where a rank was killed before it drew them."""
    parts = [folder / "drawn" / f"{ranks}-{step}" / str(rank) for rank in range(ranks)]
    return "\n".join(part.read_text() for part in parts).split("\n") if all(map(Path.is_file, parts)) else None


def move(folder: Path, script: str, argv: list[str], ours: str, theirs: str, alone: str) -> None:
    """Train on one process into `theirs`, then on 4, 2 and 3 ranks into `ours`, and compare."""
    whole = run_script(script, *argv, alone, f"run_dir={theirs}", cwd=folder)
    assert whole.code == 0, whole.output
    resumed = {4: None, 2: 6, 3: 12}
    for ranks, step in resumed.items():
        results = run_ranks(script, *argv, f"run_dir={ours}", cwd=folder, ranks=ranks)
        outputs = "".join(result.output for result in results)
        expected = [1, -signal.SIGKILL, *[1] * (ranks - 2)] if ranks in KILLED_AT else [0] * ranks
        assert [result.code for result in results] == expected, outputs
        assert ("new run" if step is None else f"resuming from step_{step}") in outputs
    compared = 0
    for ranks, step in resumed.items():
        for number in range((step or 0) + 1, KILLED_AT.get(ranks, STEPS) + 1):
            rows = drawn(folder, ranks, number)
            assert rows is not None
            assert rows == drawn(folder, 1, number), (ranks, number)
            compared += len(rows)
    assert compared == ROWS * (8 + 8 + 6)
    assert len({tuple(drawn(folder, 1, number) or ()) for number in range(1, STEPS + 1)}) == STEPS
    compare(folder / ours, folder / theirs, 1e-6)


@pytest.mark.slow
def test_pretrain_moves_from_four_ranks_to_two_to_three(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, RecursiveReasoningTask, lambda piece: _rows(piece[1]))
    sizes = (f"global_batch_size={ROWS}", f"eval_batch_size={ROWS}", f"max_steps={STEPS}", "epochs=6")
    argv = [*BASE, *ATTENTION, "arch.forward_dtype=float64", *sizes, *COMMON]
    move(workplace, "pretrain", argv, "checkpoints/p/moved", "checkpoints/p/alone", "accumulation=4")


@pytest.mark.slow
def test_train_moves_from_four_ranks_to_two_to_three(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, LanguageModelTask, lambda piece: piece[0])
    sizes = (
        "batch_size=1",
        "accumulation=3",
        f"max_iters={STEPS}",
        f"lr_decay_iters={STEPS}",
        "arch.dropout=0",
        "ema=true",
    )
    argv = [word for word in TINY if not word.startswith("out_dir=")] + [*sizes, *COMMON]
    move(place, "train", argv, "out/moved", "out/alone", f"accumulation={ROWS}")


def _rows(batch: dict[str, Tensor]) -> Tensor:
    return batch["inputs"]
