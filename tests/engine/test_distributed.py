"""Keyed random numbers and the row layout, without a process group."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import distributed


def test_keyed_numbers_depend_on_every_key_and_on_nothing_else() -> None:
    def draw(*key) -> list[float]:
        return distributed.keyed_numpy(*key).random(4).tolist()

    assert draw(1, "halting", 5) == draw(1, "halting", 5)
    keys = [(1, "halting", 5), (2, "halting", 5), (1, "noise", 5), (1, "halting", 6)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = torch.rand(3, generator=distributed.keyed_generator(1, "x", 2))
    assert torch.equal(first, torch.rand(3, generator=distributed.keyed_generator(1, "x", 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_keyed_numbers_are_uniform() -> None:
    values = np.array([distributed.keyed_numpy(0, "x", step).random() for step in range(2000)])
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.08


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_cut_the_batch_into_contiguous_rows(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    rows = []
    for number in range(ranks):
        monkeypatch.setenv("RANK", str(number))
        rows += range(*distributed.local_rows(8))
    assert rows == list(range(8))


def test_collectives_are_the_identity_alone() -> None:
    tensor = torch.arange(3.0)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_gather_rows(tensor) is tensor
    assert distributed.broadcast_object("x") == "x"
