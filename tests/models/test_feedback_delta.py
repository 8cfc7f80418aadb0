"""Deltas: both forms of applying them against a loop over rows, checked shapes, norms, and the choice between the forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.feedback.apply import choose_form, costs, dense, low_rank
from models.feedback.base import BaseLM
from models.feedback.config import BaseConfig
from models.feedback.delta import LoraDelta
from models.layers import CastedLinear
from tests.models.naive_feedback import naive_row
from tests.models.test_feedback_base import SHAPE, SMALL, padded

CONFIG = BaseConfig(**SMALL, forward_dtype="float64")
ALL = ("q", "k", "v", "o", "fc", "proj")


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return BaseLM(CONFIG, SHAPE).freeze()


def draw(targets=ALL, rows=3, blocks=3, rank=2, scale=0.7, dtype=torch.float64, form="lowrank"):
    generator = torch.Generator().manual_seed(rank)
    factors = {
        target: tuple(
            0.3 * torch.randn(rows, blocks, rank, side, generator=generator, dtype=dtype)
            for side in CONFIG.sides(target)
        )
        for target in targets
    }
    return LoraDelta(factors, scale=scale, form=form)


@torch.no_grad()
@pytest.mark.parametrize("form", ["lowrank", "dense"])
@pytest.mark.parametrize("rows", [3, 1])
def test_equals_numpy_row_by_row(base, form, rows):
    ids, real = padded()
    delta = draw(rows=rows, form=form)
    output = base(ids, real, delta)
    for row in range(3):
        own = row if rows > 1 else 0
        changes = [{t: delta.dense(block, t)[own].numpy() for t in ALL} for block in range(3)]
        expected = naive_row(base, ids[row][real[row]].numpy(), changes)
        np.testing.assert_allclose(output.hidden[row][real[row]].numpy(), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_delta_is_the_base(dtype):
    torch.manual_seed(0)
    base = BaseLM(BaseConfig(**SMALL), SHAPE, auto_dtype=dtype).freeze()
    ids, real = padded()
    plain = base(ids, real).hidden
    zero = draw(dtype=torch.float32).zeros_like()
    assert torch.equal(base(ids, real, zero).hidden, plain)
    assert torch.equal(base(ids, real, zero.mean()).hidden, plain)
    assert torch.equal(base(ids, real, LoraDelta(zero.factors, form="auto")).hidden, plain)
    merged = base(ids, real, LoraDelta(zero.factors, form="dense")).hidden
    torch.testing.assert_close(merged, plain, rtol=0, atol=1e-6 if dtype is torch.float32 else 0.02)


@pytest.mark.parametrize("form", [low_rank, dense])
@pytest.mark.parametrize("rows", [3, 1])
def test_gradients_by_finite_differences(form, rows):
    torch.manual_seed(1)
    linear = CastedLinear(4, 5).double().requires_grad_(False)
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 2, 4), (rows, 2, 4), (rows, 2, 5))]
    assert torch.autograd.gradcheck(lambda x, a, b: form(linear, x, a, b, 0.6), inputs)


@torch.no_grad()
def test_low_rank_keeps_small_changes_in_bfloat16():
    """A change of a hundredth of the matrix: below 1 % error by factors, above 10 % once it is summed in bfloat16."""
    torch.manual_seed(2)
    weight, x = 0.02 * torch.randn(256, 256), torch.randn(32, 256)
    a, b = torch.randn(4, 256), torch.randn(4, 256)
    a *= 0.01 * weight.norm() / (b.t() @ a).norm()
    change = b.t() @ a
    factors = (x.bfloat16() @ a.bfloat16().t()).float() @ b.bfloat16().float()
    assert (factors - x @ change.t()).norm() < 0.01 * (x @ change.t()).norm()
    merged = (weight + change).bfloat16().float() - weight.bfloat16().float()
    assert (merged - change).norm() > 0.1 * change.norm()
    assert choose_form("auto", 16, 512, 256, (256, 256), torch.float32, "cpu") == "dense"
    assert choose_form("auto", 16, 512, 256, (256, 256), torch.bfloat16, "cpu") == "lowrank"


@torch.no_grad()
def test_rows_are_independent(base):
    ids, real = padded()
    delta = draw()
    expected = base(ids, real, delta).hidden
    order = torch.tensor([1, 2, 0])
    moved = delta.map(lambda part: part[order])
    torch.testing.assert_close(base(ids[order], real[order], moved).hidden, expected[order], rtol=0, atol=1e-12)
    row = delta.map(lambda part: part[1:2])
    alone = base(ids[1:2], real[1:2], row).hidden
    torch.testing.assert_close(alone, expected[1:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(base(ids, real, delta.roll(1)).hidden[2], base(ids, real, row).hidden[2])


@torch.no_grad()
def test_norms_need_no_matrix(base):
    delta = draw()
    for number in range(3):
        for place, target in enumerate(ALL):
            matrix = delta.dense(number, target)
            own = torch.linalg.vector_norm(base.linear(number, target))
            expected = torch.linalg.vector_norm(matrix, dim=(1, 2)) / own
            torch.testing.assert_close(delta.norms(base)[:, number, place], expected)


@torch.no_grad()
def test_a_sum_is_that_of_the_matrices(base):
    one, other = draw(rank=2), draw(rank=3)
    both = one.plus(other)
    assert both.shape == (3, 3, 5)
    for target in ALL:
        torch.testing.assert_close(both.dense(1, target), one.dense(1, target) + other.dense(1, target))
    with pytest.raises(ValueError, match=r"scale 0\.7.* and of q \(scale 0\.7\) do not add up"):
        one.plus(draw(targets=("q",)))
    with pytest.raises(ValueError, match=r"scale 0\.5\) do not add up"):
        one.plus(draw(scale=0.5))


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (lambda: draw(blocks=2), "the delta is for 2 blocks, the base has n_layer=3"),
        (lambda: draw(rows=2), "the delta is for 2 rows, the batch has 3"),
        (
            lambda: LoraDelta({"q": (torch.zeros(3, 3, 2, 8), torch.zeros(3, 3, 2, 8))}),
            r"the delta's q maps 8 to 8 numbers, that of the base maps 16 to 16 \(n_embd=16\)",
        ),
        (
            lambda: LoraDelta({"q": (torch.zeros(3, 3, 2, 16), torch.zeros(3, 3, 4, 16))}),
            "disagree in .rows, blocks, rank",
        ),
        (lambda: LoraDelta({"w": (torch.zeros(3, 3, 2, 16),) * 2}), "expected some of q, k, v, o, fc, proj"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base, delta, message):
    ids, real = padded()
    with pytest.raises(ValueError, match=message):
        base(ids, real, delta())


def test_the_cost_model_knows_the_ends():
    """A small rank at a large width is for the factors, a rank near the width and a long text for the sum."""
    low, merged = costs(16, 128, 8, (512, 512))
    assert low < merged
    low, merged = costs(16, 512, 256, (256, 256))
    assert merged < low
