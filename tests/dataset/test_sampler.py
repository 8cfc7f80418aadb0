"""Samplers against a literal sequential re-implementation of the published algorithm."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dataset import sampler as sampler_module
from dataset.format import load_split, load_splits
from dataset.sampler import EvalBudget, EvalSampler, TrainSampler
from dataset.writing import SplitArrays, write_dataset
from engine.io import UsageError

SEQ, VOCAB = 5, 9


def arrays(group_sizes, example_counts, first_identifier: int = 1) -> SplitArrays:
    """Groups of `group_sizes` puzzles of example_counts[p] examples; the tokens tell an example's number."""
    puzzles, examples = sum(group_sizes), sum(example_counts)
    number = np.arange(examples)
    tokens = np.stack([number // 8**k % 8 for k in range(SEQ)], axis=1) + 1
    return SplitArrays(
        inputs=tokens,
        labels=np.where(np.arange(SEQ) == 0, 0, tokens),  # the first position is not scored
        puzzle_identifiers=np.arange(puzzles) + first_identifier,
        puzzle_indices=np.cumsum([0, *example_counts]),
        group_indices=np.cumsum([0, *group_sizes]),
    )


def write(root, train: SplitArrays, test: SplitArrays | None = None, **changes):
    names = ["<blank>"] + [f"{root.name}-{n}" for n in range(len(train.puzzle_identifiers))]
    settings = {"vocab_size": VOCAB, "seq_len": SEQ, "card": {}, "identifiers": names, **changes}
    write_dataset(root, {"train": train, "test": test or train}, **settings)
    return root


def number_of(inputs: np.ndarray) -> np.ndarray:
    return ((inputs.astype(int) - 1) * 8 ** np.arange(SEQ)).sum(axis=1)


def sequential(split, seed: int, iteration: int, epochs: int, batch: int):
    """One group after the other, one scalar draw each; yields [(puzzle, examples taken)] per full batch."""
    rng = np.random.Generator(np.random.Philox(seed=seed + iteration))
    groups = len(split.group_indices) - 1
    order = np.concatenate([rng.permutation(groups) for _ in range(epochs)])
    position = 0
    while position < len(order):
        taken, filled = [], 0
        while position < len(order) and filled < batch:
            group = order[position]
            puzzle = rng.integers(split.group_indices[group], split.group_indices[group + 1])
            position += 1
            size = int(split.puzzle_indices[puzzle + 1] - split.puzzle_indices[puzzle])
            used = min(size, batch - filled)
            taken.append((int(puzzle), used))
            filled += used
        if filled < batch:
            return
        yield taken


CASES = {
    "one puzzle, one example": ([1] * 23, [1] * 23),
    "many puzzles, one example": ([4] * 17, [1] * 68),
    "groups of 1 among others": ([1, 5, 1, 1, 3, 7, 1, 2] * 3, [1] * 63),
    "several examples, equal": ([2] * 11, [3] * 22),
    "several examples, mixed": ([1, 3, 1, 2, 4] * 4, [1, 4, 2, 3, 1, 6, 2, 1, 1, 5, 3] * 4),
    "more examples than a batch": ([1, 2] * 5, [1, 30, 2] * 5),
}


@pytest.mark.parametrize("piece", [7, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_order_equals_the_sequential_algorithm(tmp_path, monkeypatch, case, piece):
    monkeypatch.setattr(sampler_module, "PIECE", piece)
    split = load_split(write(tmp_path / "set", arrays(*CASES[case])), "train")
    sampler = TrainSampler([split], seed=11, global_batch_size=8, epochs_per_iter=3)
    for iteration in (1, 2, 5):
        expected = list(sequential(split, 11, iteration, 3, 8))
        assert sampler.batches_in(iteration) == len(expected) > 0
        for index, taken in enumerate(expected):
            assert sampler.puzzle_ids(iteration, index).tolist() == [puzzle for puzzle, _ in taken]
            batch = sampler.batch(iteration, index)
            assert batch["puzzle_identifiers"].tolist() == [p + 1 for p, used in taken for _ in range(used)]
            examples, row = number_of(batch["inputs"]), 0
            for puzzle, used in taken:
                mine = examples[row : row + used]
                row += used
                assert len(set(mine)) == used, "examples of a puzzle are taken without replacement"
                assert (mine >= split.puzzle_indices[puzzle]).all()
                assert (mine < split.puzzle_indices[puzzle + 1]).all()


def test_stored_order():
    """Numbers of numpy's Philox stream, stored: a change of numpy or of the call order would show."""
    rng = np.random.Generator(np.random.Philox(0 + 1))
    order = rng.permutation(6).tolist()
    picks = [int(rng.integers(4 * g, 4 * g + 4)) for g in order]
    assert (order, picks) == (STORED_ORDER, STORED_PICKS)


def test_stored_order_is_what_the_sampler_gives(tmp_path):
    split = load_split(write(tmp_path / "set", arrays([4] * 6, [1] * 24)), "train")
    sampler = TrainSampler([split], seed=0, global_batch_size=6, epochs_per_iter=1)
    assert sampler.puzzle_ids(1, 0).tolist() == STORED_PICKS


STORED_ORDER = [0, 5, 4, 1, 3, 2]
STORED_PICKS = [1, 21, 17, 5, 13, 11]


def plan_of(split, seed: int, order: str, iteration: int) -> list[int]:
    sampler = TrainSampler([split], seed=seed, global_batch_size=4, epochs_per_iter=1, order=order)
    return [p for b in range(sampler.batches_in(iteration)) for p in sampler.puzzle_ids(iteration, b).tolist()]


def test_neighbouring_seeds_share_no_order_unless_it_is_the_published_one(tmp_path):
    split = load_split(write(tmp_path / "set", arrays([3] * 40, [1] * 120)), "train")
    for order in ("hashed", "published"):
        plans = {(s, i): tuple(plan_of(split, s, order, i)) for s in range(4) for i in range(1, 5)}
        assert len(set(plans.values())) == (16 if order == "hashed" else 7)  # seed + iteration: 1 to 7
    assert plan_of(split, 0, "hashed", 1) == HASHED_START + plan_of(split, 0, "hashed", 1)[8:]
    with pytest.raises(UsageError, match="data_order='shuffled': choose one of hashed, published"):
        plan_of(split, 0, "shuffled", 1)


HASHED_START = [17, 58, 70, 117, 27, 56, 112, 39]


def test_random_access_equals_walking(tmp_path):
    split = load_split(write(tmp_path / "set", arrays(*CASES["several examples, mixed"])), "train")

    def fresh():
        return TrainSampler([split], seed=3, global_batch_size=6, epochs_per_iter=2)

    walked = fresh()
    order = [(i, b) for i in (1, 2, 3) for b in range(walked.batches_in(i))]
    seen = {at: walked.batch(*at) for at in order}
    jumping = fresh()
    for at in reversed(order):
        for key, value in jumping.batch(*at).items():
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, seen[at][key])
    with pytest.raises(IndexError):
        walked.batch(1, walked.batches_in(1))
    with pytest.raises(IndexError):
        walked.batch(0, 0)


def test_every_example_of_a_puzzle_comes_first_sometimes(tmp_path):
    split = load_split(write(tmp_path / "set", arrays([1], [4])), "train")
    sampler = TrainSampler([split], seed=0, global_batch_size=2, epochs_per_iter=60)
    firsts = [tuple(number_of(sampler.batch(1, b)["inputs"])) for b in range(60)]
    assert {first for first, _ in firsts} == {0, 1, 2, 3}
    assert len(set(firsts)) > 8


@pytest.mark.parametrize("ranks", [2, 4])
def test_rank_slices_concatenate_to_the_global_batch(tmp_path, ranks):
    split = load_split(write(tmp_path / "set", arrays(*CASES["several examples, mixed"])), "train")
    sampler = TrainSampler([split], seed=3, global_batch_size=8, epochs_per_iter=2)
    share = 8 // ranks
    for index in range(sampler.batches_in(1)):
        parts = [sampler.rows(1, index, r * share, (r + 1) * share) for r in range(ranks)]
        for key, value in sampler.batch(1, index).items():
            np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


def test_labels_that_are_ignored_become_minus_100(tmp_path):
    root = write(tmp_path / "set", arrays([1] * 8, [1] * 8))
    batch = TrainSampler(load_splits([root], "train"), seed=0, global_batch_size=8, epochs_per_iter=1).batch(1, 0)
    assert (batch["labels"][:, 0] == -100).all()
    assert (batch["labels"][:, 1:] == batch["inputs"][:, 1:]).all()


@pytest.mark.parametrize(
    ("words", "kind"), [(128, np.int8), (129, np.int16), (1 << 15, np.int16), ((1 << 15) + 1, np.int32)]
)
@pytest.mark.parametrize("stored", [np.uint8, np.int32])
def test_rows_are_batches_in_the_narrowest_type(tmp_path, words, kind, stored):
    root = write(tmp_path / "set", arrays([1] * 8, [1] * 8), vocab_size=words)
    largest = min(words - 1, np.iinfo(stored).max)
    for file in (root / "train/all__inputs.npy", root / "train/all__labels.npy"):
        values = np.load(file).astype(stored)
        values[0] = largest
        np.save(file, values)
    split = load_split(root, "train")
    rows, batch = (read(np.array([3, 0, 5])) for read in (split.rows, split.batch))
    assert {rows[name].dtype for name in ("inputs", "labels")} == {np.dtype(kind)}
    assert {values.dtype for values in batch.values()} == {np.dtype(np.int32)}
    assert all((rows[name] == values).all() for name, values in batch.items())
    assert (batch["labels"][1] == largest).all()
    assert batch["labels"][0].tolist() == [-100, *batch["inputs"][0, 1:]]


@pytest.mark.parametrize("ignored", [0, 3, 127, -100])
def test_every_stored_ignored_label_becomes_minus_100(tmp_path, ignored):
    root = write(tmp_path / "set", arrays([1] * 8, [1] * 8), vocab_size=128)
    described = root / "train/dataset.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"ignore_label_id": ignored}))
    file = root / "train/all__labels.npy"
    values = np.load(file).astype(np.int16)
    values[:, 2] = ignored
    np.save(file, values)
    labels = load_split(root, "train").batch(np.arange(8))["labels"]
    assert (labels == np.where(values == ignored, -100, values)).all()


def test_several_data_paths(tmp_path):
    one = write(tmp_path / "one", arrays([2] * 6, [1, 2] * 6))
    two = write(tmp_path / "two", arrays([1] * 9, [2] * 9))
    splits = load_splits([one, two], "train")
    assert [s.set_name for s in splits] == ["all", "all1"]
    assert [s.identifier_offset for s in splits] == [0, 12]
    sampler = TrainSampler(splits, seed=4, global_batch_size=6, epochs_per_iter=4)
    assert sampler.num_puzzle_identifiers == 1 + 12 + 9
    assert sampler.num_groups == 15

    class Joined:
        """Both sets as one, concatenated by hand."""

        group_indices = np.concatenate([splits[0].group_indices, splits[1].group_indices[1:] + 12])
        puzzle_indices = np.concatenate([splits[0].puzzle_indices, splits[1].puzzle_indices[1:] + 18])

    seen = set()
    for index, taken in enumerate(sequential(Joined, 4, 1, 4, 6)):
        assert sampler.puzzle_ids(1, index).tolist() == [p for p, _ in taken]
        batch = sampler.batch(1, index)
        identifiers = batch["puzzle_identifiers"].tolist()
        assert identifiers == [p + 1 for p, used in taken for _ in range(used)]
        examples = number_of(batch["inputs"])
        for identifier, example in zip(identifiers, examples, strict=True):
            own = splits[0] if identifier <= 12 else splits[1]
            assert own.puzzles_of(np.array([example]))[0] == (identifier - 1) % 12
        seen |= set(identifiers)
        parts = [sampler.rows(1, index, low, low + 2) for low in (0, 2, 4)]
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)
    assert len(seen) > 12


def test_the_blank_identifier_is_shared_between_data_paths(tmp_path):
    roots = [write(tmp_path / n, arrays([1] * 4, [1] * 4, first_identifier=0)) for n in ("one", "two")]
    second = load_splits(roots, "train")[1]
    assert second.identifier_offset == 4
    assert second.batch(np.arange(4))["puzzle_identifiers"].tolist() == [0, 5, 6, 7]


def test_data_paths_that_do_not_fit_are_named(tmp_path):
    one = write(tmp_path / "one", arrays([1] * 6, [1] * 6))
    two = write(tmp_path / "two", arrays([1] * 6, [1] * 6), vocab_size=12)
    with pytest.raises(UsageError, match=r"vocab_size is 9 in .*one.*12 in .*two"):
        load_splits([one, two], "train")


def test_test_sets_take_over_the_training_offsets(tmp_path):
    one = write(tmp_path / "one", arrays([1] * 6, [1] * 6))
    two = write(tmp_path / "two", arrays([1] * 4, [1] * 4))
    stranger = write(tmp_path / "three", arrays([1] * 4, [1] * 4))
    train = load_splits([one, two], "train")
    assert [s.identifier_offset for s in load_splits([two], "test", like=train)] == [6]
    with pytest.raises(UsageError, match="not trained on"):
        load_splits([stranger], "test", like=train)


def test_a_batch_that_cannot_be_filled_is_refused(tmp_path):
    split = load_split(write(tmp_path / "set", arrays([1] * 6, [1] * 6)), "train")
    with pytest.raises(UsageError, match="global_batch_size=32"):
        TrainSampler([split], seed=0, global_batch_size=32, epochs_per_iter=5)
    assert TrainSampler([split], seed=0, global_batch_size=32, epochs_per_iter=6).batches_in(1) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_batches_cover_everything_once_and_pad(tmp_path, ranks):
    one = write(tmp_path / "one", arrays([1] * 13, [1] * 13))
    two = write(tmp_path / "two", arrays([1] * 3, [2] * 3))
    splits = load_splits([one, two], "test")
    sampler = EvalSampler(splits, 6)
    walks = [list(sampler.batches(r, ranks)) for r in range(ranks)]
    assert {len(w) for w in walks} == {len(sampler)} == {4}
    assert sampler.num_examples == 19
    seen = {"all": [], "all1": []}
    for parts in zip(*walks, strict=True):
        assert len({name for name, _, _ in parts}) == 1
        for name, batch, valid in parts:
            assert {len(v) for v in batch.values()} == {6 // ranks}
            assert (batch["inputs"][valid:] == 0).all()
            assert (batch["labels"][valid:] == -100).all()
            assert (batch["puzzle_identifiers"][valid:] == 0).all()
            assert (batch["puzzle_identifiers"][:valid] > 0).all()
            seen[name] += number_of(batch["inputs"][:valid]).tolist()
    assert seen == {"all": list(range(13)), "all1": list(range(6))}
    if ranks == 3:
        assert [valid for _, _, valid in walks[2]] == [2, 2, 0, 2]
    assert EvalSampler(splits, 52).global_batch_size == 52
    assert EvalSampler(splits, 10**9).global_batch_size == 13  # no batch is nearly all padding


def test_evaluation_subset_is_fixed_and_the_same_for_all_ranks(tmp_path):
    splits = load_splits([write(tmp_path / "one", arrays([1] * 40, [1] * 40))], "test")

    def examples(seed, ranks):
        sampler = EvalSampler(splits, 4, max_examples=10, seed=seed)
        walks = [list(sampler.batches(r, ranks)) for r in range(ranks)]
        rows = [number_of(b["inputs"][:v]) for parts in zip(*walks, strict=True) for _, b, v in parts]
        return np.concatenate(rows).tolist()

    first = examples(0, 1)
    assert len(set(first)) == 10
    assert first == sorted(first) == examples(0, 2)
    assert first != examples(1, 1)
    assert EvalSampler(splits, 4, max_examples=1000).num_examples == 40
    with pytest.raises(UsageError, match="does not divide"):
        next(EvalSampler(splits, 4).batches(0, 3))


def test_a_budget_counts_groups_over_all_sets_and_puzzles_within_each():
    split = SimpleNamespace(
        num_puzzles=6,
        num_groups=2,
        num_examples=7,
        questions=lambda: np.arange(7),
        group_indices=np.array([0, 3, 6]),
        puzzle_indices=np.array([0, 2, 3, 4, 5, 6, 7]),
    )
    budget = EvalBudget(groups=3, puzzles=2)
    within = [one.tolist() for one in budget.within([split, split])]
    assert within == [[True, True, True, False, True, True, False], [True, True, True, False, False, False, False]]
    sampler = EvalSampler([split, split], 4, budget=budget, max_examples=5)
    assert (sampler.num_examples, sampler.covers) == (5, "5 of 14 examples (seed 0)")
    assert EvalSampler([split], 4, budget=EvalBudget(groups=1)).covers == "4 of 7 examples"
