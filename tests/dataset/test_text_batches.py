"""Windows of text by step, against loops over the raw numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset.text.batches import AHEAD, EvalBatches, TrainBatches, shuffled
from dataset.text.mixture import PLAN, Mixture
from dataset.text.stream import TokenStream
from engine.io import UsageError


def written(root: Path, tokens: np.ndarray, vocab_size: int = 60_000, split: str = "train") -> TokenStream:
    root.mkdir(exist_ok=True)
    kind = "uint16" if vocab_size <= 65536 else "uint32"
    tokens.astype(kind).tofile(root / f"{split}.bin")
    (root / "meta.json").write_text(json.dumps({"vocab_size": vocab_size, "dtype": kind, "tokenizer": "char"}))
    return TokenStream(root, split)


def counting(root: Path, count: int, **options) -> TokenStream:
    return written(root, np.arange(count), **options)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_the_shuffle_is_a_bijection_that_the_keys_choose(count: int) -> None:
    orders = []
    for seed in (0, 1):
        keys = np.random.default_rng(seed).integers(0, 1 << 63, 6, dtype=np.uint64)
        order = shuffled(np.arange(count), count, keys)
        assert sorted(order.tolist()) == list(range(count))
        assert np.array_equal(shuffled(np.arange(count)[::-1], count, keys), order[::-1])
        orders.append(order.tolist())
    if count > 16:
        assert orders[0] != orders[1]
        assert abs(np.corrcoef(np.arange(count), orders[0])[0, 1]) < 0.5


def test_random_windows_reach_both_ends_and_are_uniform(tmp_path: Path) -> None:
    stream = counting(tmp_path / "a", 12)
    batches = TrainBatches([stream], seed=3, batch_size=64, block_size=4)
    starts = np.concatenate([batches.rows(step, 0, 64)["tokens"][:, 0] for step in range(100)])
    counts = np.bincount(starts, minlength=8)
    assert len(counts) == 8  # offsets 0 to 12 - 4 - 1: the last target is the last token
    assert (np.abs(counts - 800) < 4 * np.sqrt(800 * 7 / 8)).all()


@pytest.mark.parametrize("method", ["random", "without_replacement", "sequential"])
def test_targets_are_the_next_tokens_and_ranks_hold_slices(tmp_path: Path, method: str) -> None:
    stream = counting(tmp_path / "a", 1003)
    whole = TrainBatches([stream], seed=3, batch_size=8, block_size=16, method=method)
    other = TrainBatches([stream], seed=3, batch_size=8, block_size=16, method=method)
    for step in (PLAN + 3, 0, 70, 5):  # any order, any instance
        rows = whole.rows(step, 0, 8)
        assert rows["tokens"].shape == rows["targets"].shape == (8, 16)
        assert rows["tokens"].dtype == rows["targets"].dtype == np.int64
        assert np.array_equal(rows["targets"], rows["tokens"] + 1)
        assert np.array_equal(np.diff(rows["tokens"], axis=1), np.ones((8, 15)))
        assert np.array_equal(rows["tokens"][:, 0], whole.offsets(step))
        parts = [other.rows(step, low, low + 2) for low in (0, 2, 4, 6)]
        for key in ("tokens", "targets"):
            assert np.array_equal(np.concatenate([part[key] for part in parts]), rows[key])


def test_without_replacement_takes_every_window_once_per_epoch(tmp_path: Path) -> None:
    stream = counting(tmp_path / "a", 10 * 16 + 5)  # 10 windows of 16, 4 tokens over
    batches = TrainBatches([stream], seed=3, batch_size=4, block_size=16, method="without_replacement")
    starts = np.concatenate([batches.offsets(step) for step in range(AHEAD * 2)])
    epochs = starts[: len(starts) // 10 * 10].reshape(-1, 10)
    phases = epochs.min(axis=1)
    assert set(phases) == set(range(5))
    for epoch, phase in zip(epochs, phases, strict=True):
        assert sorted(epoch - phase) == list(range(0, 160, 16))
    assert len({tuple(epoch - phase) for epoch, phase in zip(epochs, phases, strict=True)}) == len(epochs)


def test_sequential_goes_round_the_file(tmp_path: Path) -> None:
    batches = TrainBatches([counting(tmp_path / "a", 50)], seed=0, batch_size=2, block_size=16, method="sequential")
    assert [batches.offsets(step).tolist() for step in range(3)] == [[0, 16], [32, 0], [16, 32]]


@pytest.mark.parametrize("method", ["sequential", "without_replacement"])
def test_a_batch_of_another_size_goes_on_where_the_rows_ended(tmp_path: Path, method: str) -> None:
    def batches(size: int) -> TrainBatches:
        return TrainBatches([counting(tmp_path / "a", 1001)], seed=0, batch_size=size, block_size=10, method=method)

    large, small, alone = batches(8), batches(2), batches(1)
    small.resume_from(5, large.rows_drawn(5))
    assert small.rows_drawn(7) == [("a", 5 * 8 + 2 * 2)]
    assert small.progress(7) == [(440, 0.44)]
    rows = np.concatenate([small.offsets(step) for step in (5, 6, 7 * AHEAD)])
    assert rows.tolist() == [
        alone.offsets(row)[0] for row in (40, 41, 42, 43, *(40 + 2 * (7 * AHEAD - 5) + k for k in (0, 1)))
    ]
    again = batches(8)
    again.resume_from(9, small.rows_drawn(9))
    assert again.rows_drawn(9) == small.rows_drawn(9)
    assert again.offsets(9)[0] == alone.offsets(48)[0]


@pytest.mark.parametrize("method", ["sequential", "without_replacement"])
def test_a_data_set_that_was_moved_is_read_from_where_it_was(tmp_path: Path, method: str) -> None:
    """A resume finds it by its content; under its new name it began anew, and the counters with it."""
    old, new = (
        TrainBatches([counting(tmp_path / name, 1001)], seed=0, batch_size=8, block_size=10, method=method)
        for name in ("before", "after")
    )
    new.resume_from(5, old.rows_drawn(5))
    assert new.progress(7) == old.progress(7)
    assert new.offsets(6).tolist() == old.offsets(6).tolist()


def test_a_changed_mixture_counts_on_by_name(tmp_path: Path) -> None:
    def batches(*names: str) -> TrainBatches:
        streams = [counting(tmp_path / name, 301) for name in names]
        mixture = Mixture(list(names), seed=1, max_steps=100)
        return TrainBatches(streams, seed=0, batch_size=2, block_size=10, mixture=mixture)

    before, after = batches("a", "b"), batches("b", "c")
    after.resume_from(20, before.rows_drawn(20))  # a was moved to c
    assert dict(after.rows_drawn(20)) == {"b": dict(before.rows_drawn(20))["b"], "c": dict(before.rows_drawn(20))["a"]}
    assert sum(dict(after.rows_drawn(30)).values()) == sum(dict(after.rows_drawn(20)).values()) + 10 * 2


def test_a_mixture_counts_each_data_set_by_itself(tmp_path: Path) -> None:
    streams = [counting(tmp_path / "a", 1001), counting(tmp_path / "b", 301)]
    mixture = Mixture(["a", "b"], seed=1, max_steps=100, probs=(0.5, 0.5))
    batches = TrainBatches(streams, seed=0, batch_size=2, block_size=10, method="sequential", mixture=mixture)
    given = [0, 0]
    for step in range(150):
        number = batches.dataset(step)
        blocks = (100, 30)[number]
        assert batches.progress(step) == [(given[0] * 20, given[0] * 20 / 1000), (given[1] * 20, given[1] * 20 / 300)]
        want = [(given[number] * 2 + row) % blocks * 10 for row in (0, 1)]
        assert batches.rows(step, 0, 2)["tokens"][:, 0].tolist() == want
        given[number] += 1
    assert min(given) > 40


def test_contexts_are_read_at_the_same_offsets(tmp_path: Path) -> None:
    first = counting(tmp_path / "a", 500)
    second = written(tmp_path / "b", np.arange(500) % 7, vocab_size=7)
    rows = TrainBatches([first, second], seed=0, batch_size=4, block_size=8, contexts=True).rows(3, 1, 3)
    assert rows["tokens"].shape == (2, 8, 2)
    assert np.array_equal(rows["tokens"][..., 1], rows["tokens"][..., 0] % 7)
    assert np.array_equal(rows["targets"][..., 1], (rows["tokens"][..., 0] + 1) % 7)
    alone = TrainBatches([first], seed=0, batch_size=4, block_size=8).rows(3, 1, 3)
    assert np.array_equal(rows["tokens"][..., 0], alone["tokens"])  # one stream as a context is that stream


def test_contexts_of_unequal_length(tmp_path: Path) -> None:
    streams = [counting(tmp_path / "a", 500), counting(tmp_path / "b", 300)]
    options = {"seed": 0, "batch_size": 64, "block_size": 8, "contexts": True}
    with pytest.raises(UsageError, match=r"a/train.bin 500, .*b/train.bin 300; multicontext_align=truncate"):
        TrainBatches(streams, **options)
    batches = TrainBatches(streams, **options, align="truncate")
    assert max(batches.rows(step, 0, 64)["targets"].max() for step in range(50)) == 299
    assert EvalBatches(streams, **options, align="truncate").windows == 38  # ceil(299 / 8)


@pytest.mark.parametrize("count", [17, 33, 100, 129])
def test_a_full_sweep_scores_every_token_once_like_brute_force(tmp_path: Path, count: int) -> None:
    data = np.random.default_rng(count).integers(0, 50, count)
    batches = EvalBatches([written(tmp_path / "a", data, 50, "val")], seed=0, batch_size=3, block_size=16)
    expected = []
    for low in range(0, count - 1, 16):
        x, y = data[low : low + 16], data[low + 1 : low + 17]
        expected.append((x[: len(y)].tolist(), y.tolist()))
    got = []
    for index in range(len(batches)):
        rows = batches.rows(index, 0, 3)
        assert rows["tokens"].shape == (3, 16)
        for x, y in zip(rows["tokens"], rows["targets"], strict=True):
            scored = y != -100
            assert not x[len(x[scored]) + 1 :].any()
            if scored.any():
                got.append((x[scored].tolist(), y[scored].tolist()))
    assert got == expected
    assert sum(len(y) for _, y in got) == count - 1


def test_a_capped_sweep_is_spread_evenly_and_stays_the_same(tmp_path: Path) -> None:
    stream = counting(tmp_path / "a", 10_001, split="val")
    batches = EvalBatches([stream], seed=0, batch_size=4, block_size=10, max_batches=5)
    starts = np.concatenate([batches.rows(index, 0, 4)["tokens"][:, 0] for index in range(len(batches))])
    assert len(batches) == 5
    assert starts.tolist() == [k * 500 for k in range(20)]
    generous = EvalBatches([stream], seed=0, batch_size=4, block_size=10, max_batches=10_000)
    assert len(generous) == 250


def test_random_evaluation_is_keyed(tmp_path: Path) -> None:
    stream = counting(tmp_path / "a", 1000, split="val")
    made = [EvalBatches([stream], seed=s, batch_size=4, block_size=10, mode="random", max_batches=3) for s in (0, 0, 1)]
    rows = [batches.rows(2, 0, 4)["tokens"].tolist() for batches in made]
    assert rows[0] == rows[1] != rows[2]
    assert made[0].rows(2, 1, 3)["tokens"].tolist() == rows[0][1:3]
    assert len(made[0]) == 3
    with pytest.raises(IndexError):
        made[0].rows(3, 0, 4)


def test_refusals(tmp_path: Path) -> None:
    stream = counting(tmp_path / "a", 64)
    options = {"seed": 0, "batch_size": 2}
    with pytest.raises(UsageError, match=r"a/train.bin has 64 tokens, a window of block_size=64 needs 65"):
        TrainBatches([stream], block_size=64, **options)
    TrainBatches([stream], block_size=63, **options)
    with pytest.raises(UsageError, match="did you mean 'without_replacement'"):
        TrainBatches([stream], block_size=8, method="without-replacement", **options)
    with pytest.raises(UsageError, match="eval_mode='swep'"):
        EvalBatches([stream], block_size=8, mode="swep", **options)
    with pytest.raises(UsageError, match="needs eval_iters"):
        EvalBatches([stream], block_size=8, mode="random", **options)
    bad = written(tmp_path / "b", np.array([1, 2, 3, 70, 4]), vocab_size=65)
    with pytest.raises(UsageError, match=r"b/train.bin holds token 70 at position 3, but the vocabulary has 65"):
        TrainBatches([bad], block_size=2, **options)
    with pytest.raises(UsageError, match=r"val.bin does not exist: .* holds train.bin"):
        TokenStream(tmp_path / "b", "val")
    (tmp_path / "b" / "val.bin").write_bytes(b"abc")
    with pytest.raises(UsageError, match="3 bytes, not a multiple of 2"):
        TokenStream(tmp_path / "b", "val")
