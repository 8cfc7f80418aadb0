"""What is hidden: stratified times, exact counts, and independence of ranks, padding and run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.feedback.config import TextShape
from tasks.feedback.noise import evaluation_noise, hide, next_tokens, training_noise

SHAPE = TextShape(words=9, mask_id=9, pad_id=10)


def tokens(rows, length=12, seed=0):
    ids = torch.randint(9, (rows, length), generator=torch.Generator().manual_seed(seed))
    for row in range(rows):
        ids[row, length - row % 5 :] = SHAPE.pad_id
    return ids


def test_one_time_in_each_stratum():
    for step in range(20):
        rate = training_noise(0, step, rows=16, block_size=4, eps=0.0).rate
        assert sorted((rate * 16).floor().int().tolist()) == list(range(16))


def test_stratified_times_halve_the_spread():
    """Losses that grow with t, 64 rows: the deviation of a batch's mean is at least halved against independent times."""
    generator = torch.Generator().manual_seed(0)
    stratified = torch.stack([training_noise(0, s, rows=64, block_size=1, eps=1e-3).rate.mean() for s in range(300)])
    independent = torch.rand(300, 64, generator=generator).mean(-1)
    assert stratified.std() * 2 < independent.std()
    noises = [training_noise(0, s, rows=64, block_size=1, eps=1e-3, stratified=False) for s in range(300)]
    alone = torch.stack([noise.rate for noise in noises])
    assert alone.mean().item() == pytest.approx(0.5, abs=0.01)
    assert alone.mean(-1).std() == pytest.approx(independent.std().item(), rel=0.15)


def test_the_share_of_hidden_tokens_is_the_rate():
    ids = torch.zeros(2000, 50, dtype=torch.long)
    noise = training_noise(1, 3, rows=2000, block_size=50, eps=1e-3)
    hidden = (hide(ids, SHAPE, noise).inputs == SHAPE.mask_id).float().mean(-1)
    assert abs((hidden - noise.rate).mean()) < 0.005
    assert (hidden - noise.rate).abs().max() < 0.35


@pytest.mark.parametrize("exact", [False, True])
def test_rows_do_not_know_their_batch(exact):
    """The same rows hidden in the same places on any number of ranks and with any padding."""
    ids = tokens(8)
    if exact:
        whole = evaluation_noise(5, range(100, 108), block_size=20, eps=1e-3)
        parts = [evaluation_noise(5, [100 + low, 101 + low], block_size=20, eps=1e-3) for low in range(0, 8, 2)]
    else:
        whole = training_noise(5, 7, rows=8, block_size=20, eps=1e-3)
        parts = [whole.rows(low, low + 2) for low in range(0, 8, 2)]
    expected = hide(ids, SHAPE, whole)
    longer = hide(F.pad(ids, (0, 6), value=SHAPE.pad_id), SHAPE, whole)
    assert torch.equal(longer.inputs[:, :12], expected.inputs)
    assert torch.equal(longer.rate, expected.rate)
    for number, part in enumerate(parts):
        rows = slice(2 * number, 2 * number + 2)
        piece = hide(ids[rows], SHAPE, part)
        assert torch.equal(piece.inputs, expected.inputs[rows])
        assert torch.equal(piece.rate, expected.rate[rows])


def test_evaluation_counts_are_exact():
    ids = tokens(32, length=16)
    noise = evaluation_noise(0, range(32), block_size=16, eps=0.0)
    batch = hide(ids, SHAPE, noise)
    lengths = batch.real.sum(-1)
    hidden = (batch.labels != -100).sum(-1)
    levels = torch.arange(32) % 16 + 1
    assert torch.equal(hidden, -(-(levels * lengths) // 16))
    torch.testing.assert_close(batch.rate, hidden / lengths)
    few = hide(ids, SHAPE, evaluation_noise(0, range(32), block_size=16, eps=0.0, levels=[0.25, 1.0], repeat=1))
    expected = torch.where(torch.arange(32) % 2 == 0, lengths, -(-lengths // 4))  # row 0 has the second time of two
    assert torch.equal((few.labels != -100).sum(-1), expected)
    moved = evaluation_noise(0, range(32), block_size=16, eps=0.0, repeat=1)
    assert not torch.equal(moved.places, noise.places)
    assert moved.rate[0] == noise.rate[1]


def test_what_is_scored_and_attended():
    batch = hide(tokens(6), SHAPE, training_noise(0, 1, rows=6, block_size=12, eps=1e-3))
    scored = batch.labels != -100
    assert torch.equal(batch.inputs == SHAPE.mask_id, scored)
    assert not scored[~batch.real].any()
    assert torch.equal(batch.labels[scored], tokens(6)[scored])
    assert batch.count.tolist() == batch.real.sum(-1).tolist()


def test_an_empty_row_and_no_rows():
    batch = hide(torch.full((1, 4), SHAPE.pad_id), SHAPE, evaluation_noise(0, [0], block_size=4, eps=1e-3))
    assert batch.count.tolist() == [0.0]
    assert batch.rate.isfinite().all()
    assert evaluation_noise(0, [], block_size=4, eps=1e-3).places.shape == (0, 4)


def test_next_tokens_by_hand():
    batch = next_tokens(torch.tensor([[1, 2, 3, 4, 5, 10], [7, 8, 10, 10, 10, 10]]), SHAPE, 0.5)
    assert batch.readable.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 4, 5, -100, -100], [8, -100, -100, -100, -100, -100]]
    assert batch.count.tolist() == [2.0, 1.0]
    assert next_tokens(torch.tensor([[1, 2, 3]]), SHAPE).labels.tolist() == [[2, 3, -100]]
