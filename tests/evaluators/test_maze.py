"""maze@ShortestPath: three kinds of right answers, padding, ranks, and data that are not mazes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.maze.paths import FREE, GOAL, PATH, START
from engine.io import UsageError
from evaluators.intervals import wilson
from evaluators.maze import ShortestPath
from tests.conftest import fork_ranks


def corner(*path: tuple[int, int]) -> np.ndarray:
    """An open 3x3 maze from one corner to the opposite one, with these cells drawn."""
    grid = np.full((3, 3), FREE, dtype=np.int32)
    grid[0, 0], grid[2, 2] = START, GOAL
    for cell in path:
        grid[cell] = PATH
    return grid.reshape(-1)


REFERENCE = corner((0, 1), (0, 2), (1, 2))
OTHER = corner((1, 0), (2, 0), (2, 1))
DETOUR = corner((1, 0), (1, 1), (0, 1))
ANSWERS = [REFERENCE, OTHER, OTHER, DETOUR, corner(), REFERENCE]
EXPECTED = {"reference_path": 2 / 6, "valid_path": 3 / 6 + 1 / 6, "shortest_path": 4 / 6, "mazes": 6.0}


def batch(rows: int) -> dict[str, torch.Tensor]:
    """`rows` mazes, and one row of padding."""
    inputs = np.stack([corner()] * rows + [np.zeros(9, dtype=np.int32)])
    labels = np.stack([REFERENCE] * rows + [np.full(9, -100, dtype=np.int32)])
    return {"inputs": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def counted(answers: list[np.ndarray]) -> ShortestPath:
    evaluator = ShortestPath()
    evaluator.begin()
    preds = torch.from_numpy(np.stack([*answers, REFERENCE]))
    evaluator.update(batch(len(answers)), [], preds, len(answers) + 1)
    return evaluator


def test_shares_of_the_three_kinds():
    result = counted(ANSWERS).result()
    assert {name: result[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert (result["shortest_path_low"], result["shortest_path_high"]) == pytest.approx(wilson(4, 6))
    empty = ShortestPath()
    empty.begin()
    assert empty.result()["shortest_path"] is None


def _rank(target: str) -> None:
    from engine.distributed import rank, shutdown

    torch.save(counted(ANSWERS[:2] if rank() == 0 else ANSWERS[2:]).result(), f"{target}.{rank()}")
    shutdown()


def test_two_ranks_count_as_one(tmp_path):
    runs = fork_ranks(_rank, str(tmp_path / "result"))
    assert [run.code for run in runs] == [0, 0], runs[0].output + runs[1].output
    for rank in range(2):
        result = torch.load(tmp_path / f"result.{rank}", weights_only=True)
        assert {name: result[name] for name in EXPECTED} == pytest.approx(EXPECTED)


@pytest.mark.parametrize(("vocab_size", "seq_len"), [(6, 8), (12, 9), (6, 16)])
def test_other_data_are_refused(vocab_size, seq_len):
    split = SimpleNamespace(root="data/other", metadata=SimpleNamespace(vocab_size=vocab_size, seq_len=seq_len))
    split.inputs = np.arange(2 * seq_len).reshape(2, seq_len) % 6  # 4x4 Sudokus have the shape of mazes
    with pytest.raises(UsageError, match="holds no mazes"):
        ShortestPath().begin([split])
