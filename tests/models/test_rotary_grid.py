"""Rotary positions by row and column: written-out matrices, relative positions, and the refusals of the model."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.layers import RotaryTables, apply_rotary, grid_positions, line_positions
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.models import naive

THETA, D, SIDE = 50.0, 8, 3


def tables(prefix, dtype=torch.float64):
    return RotaryTables(D, grid_positions(SIDE, prefix), theta=THETA, dtype=dtype)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", [0, 2])
def test_each_position_is_turned_by_its_matrix(prefix):
    x = draw(2, prefix + SIDE**2, 3, D)
    want = naive.rotate_grid(x, THETA, prefix)
    torch.testing.assert_close(apply_rotary(x, *tables(prefix)()), want, rtol=0, atol=1e-13)
    assert (want[:, -1] - x[:, -1]).abs().max() > 0.1


def test_positions_on_the_grid_and_before_it():
    assert grid_positions(2, 3).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [3, 4], [4, 3], [4, 4]]
    assert line_positions(3).tolist() == [[0], [1], [2]]


def test_scores_depend_on_differences_of_row_and_column_only():
    """One q and one k put on every pair of cells: equal differences, equal scores; the prefix shifts nothing."""
    q, k = draw(2, D)
    by_difference: dict[tuple[int, int], list[float]] = {}
    for prefix in (0, 2):
        cells = prefix + SIDE**2
        turned = [apply_rotary(v.expand(1, cells, 1, D), *tables(prefix)())[0, prefix:, 0] for v in (q, k)]
        scores = turned[0] @ turned[1].T
        for a in range(SIDE**2):
            for b in range(SIDE**2):
                key = (a // SIDE - b // SIDE, a % SIDE - b % SIDE)
                by_difference.setdefault(key, []).append(scores[a, b].item())
    assert len(by_difference) == (2 * SIDE - 1) ** 2
    for values in by_difference.values():
        assert values == pytest.approx([values[0]] * len(values), abs=1e-12)
    means = sorted(values[0] for values in by_difference.values())
    assert min(b - a for a, b in itertools.pairwise(means)) > 1e-4  # and different ones, different scores


def test_half_of_a_head_turns_by_row_and_half_by_column():
    x = draw(1, SIDE**2, 1, D)
    turned = apply_rotary(x, *tables(0)())[0, :, 0]
    by_row, by_column = [0, 1, 4, 5], [2, 3, 6, 7]
    assert torch.equal(turned[:SIDE, by_row], x[0, :SIDE, 0, by_row])  # row 0
    assert torch.equal(turned[::SIDE, by_column], x[0, ::SIDE, 0, by_column])  # column 0
    assert not torch.allclose(turned[SIDE:, by_row], x[0, SIDE:, 0, by_row])


def test_a_grid_that_is_not_square_is_refused():
    config = TRMConfig(hidden_size=16, num_heads=2, puzzle_emb_ndim=16, pos_encodings="rope_2d", L_layers=1)
    with pytest.raises(ValueError, match=r"arch\.pos_encodings=rope_2d needs a square grid, the data have 12 "):
        TRM(config, PuzzleShape(12, 4, 1))
    TRM(config, PuzzleShape(16, 4, 1))
