"""The loss of masked diffusion: by hand, uniform logits, padding, nothing hidden, one row at a time."""

from __future__ import annotations

import math

import pytest
import torch

from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.batch import BaseOutput, Batch, FeedbackOutput
from models.feedback.config import TextShape
from tasks.feedback.noise import hide, next_tokens, training_noise

SHAPE = TextShape(words=5, mask_id=5, pad_id=6)
HEAD = MaskedDiffusionLoss()


def output_of(logits):
    """An output whose hidden numbers are the logits themselves."""
    return BaseOutput(logits, lambda hidden: hidden)


def batch_of(labels, rate, count):
    labels = torch.tensor(labels)
    real = torch.ones_like(labels, dtype=torch.bool)
    return Batch(labels, labels, real, real, torch.tensor(rate), torch.tensor(count))


def test_by_hand():
    """Row 0: p = 1/2, two of four hidden; row 1: p = 1/4, one of three. CE = ln(1 + e^-2) where the logits are 2 and 0."""
    batch = batch_of([[1, 1, -100, -100], [-100, 0, -100, -100]], [0.5, 0.25], [4.0, 3.0])
    logits = torch.zeros(2, 4, 2)
    logits[0, 0, 1] = logits[1, 1, 0] = 2.0
    result = HEAD(output_of(logits), batch)
    small = math.log(1 + math.exp(-2))
    assert result.total.item() == pytest.approx((small + math.log(2)) / 0.5 + small / 0.25, rel=1e-6)
    assert result.weight.item() == 7.0
    with torch.no_grad():
        accuracy = HEAD(output_of(logits), batch).metrics["masked_accuracy"]
    assert [part.item() for part in accuracy] == [2, 3]  # a tie of 0 and 0 counts for word 0


def test_uniform_logits_score_the_logarithm_of_the_vocabulary():
    """In expectation over masks, by three standard errors; exactly, where every token is scored once."""
    tokens = torch.randint(5, (64, 20), generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(64, 20, 7)
    logits[..., 5:] = -math.inf
    means = []
    for step in range(200):
        batch = hide(tokens, SHAPE, training_noise(0, step, rows=64, block_size=20, eps=1e-3))
        result = HEAD(output_of(logits), batch)
        means.append((result.total / result.weight).item())
    means = torch.tensor(means)
    assert abs(means.mean() - math.log(5)) < 3 * means.std() / math.sqrt(len(means))
    result = HEAD(output_of(logits), next_tokens(tokens, SHAPE))
    assert (result.total / result.weight).item() == pytest.approx(math.log(5), rel=1e-6)


def test_padding_has_no_part():
    tokens = torch.tensor([[1, 2, 3, 6, 6], [4, 0, 6, 6, 6]])
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    for batch in (hide(tokens, SHAPE, training_noise(0, 1, rows=2, block_size=5, eps=1.0)), next_tokens(tokens, SHAPE)):
        assert not (batch.labels != -100)[~batch.real].any()
        result = HEAD(output_of(logits), batch)
        other = logits.clone()
        other[~batch.real] = 9.0
        assert torch.equal(HEAD(output_of(other), batch).total, result.total)
    assert hide(tokens, SHAPE, training_noise(0, 1, rows=2, block_size=5, eps=1.0)).count.tolist() == [3.0, 2.0]


def test_nothing_hidden():
    batch = batch_of([[-100, -100]], [0.5], [2.0])
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    result = HEAD(output_of(logits), batch)
    assert result.total.item() == 0.0
    result.total.backward()
    assert logits.grad.eq(0).all()
    with torch.no_grad():
        assert [part.item() for part in HEAD(output_of(logits), batch).metrics["masked_accuracy"]] == [0, 0]


def test_rows_add_up_to_the_batch():
    tokens = torch.randint(5, (6, 8), generator=torch.Generator().manual_seed(2))
    logits = torch.randn(6, 8, 7, generator=torch.Generator().manual_seed(3))
    batch = hide(tokens, SHAPE, training_noise(0, 1, rows=6, block_size=8, eps=1e-3))
    whole = HEAD(output_of(logits), batch)
    rows = [HEAD(output_of(logits[i : i + 1]), batch.rows(slice(i, i + 1))) for i in range(6)]
    assert whole.total.item() == pytest.approx(sum(row.total.item() for row in rows), rel=1e-6)
    assert whole.weight.item() == sum(row.weight.item() for row in rows)
    torch.testing.assert_close(HEAD.rows(output_of(logits), batch), torch.stack([row.total for row in rows]))


def test_shares_of_passes_and_penalty():
    batch = batch_of([[1, 0]], [1.0], [2.0])
    passes = tuple(output_of(torch.full((1, 2, 3), 0.0).index_fill(-1, torch.tensor([0]), float(n))) for n in range(4))
    sums = [HEAD.rows(each, batch).sum().item() for each in passes]
    output = FeedbackOutput(passes, (None,) * 3, (0.25, 0.0, 0.75), penalty=torch.tensor(0.5))
    result = HEAD(output, batch)
    assert result.total.item() == pytest.approx(0.25 * sums[1] + 0.75 * sums[3] + 0.5 * 2, rel=1e-6)
    assert result.metrics["loss"][0].item() == pytest.approx(sums[3])
    assert result.metrics["base_loss"][0].item() == pytest.approx(sums[0])
