"""Questions with demonstrations: what is shown with what, streams of slots, evaluation that asks every question once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset.arc.build import ArcBuild, build_subsets
from dataset.arc.corpus.generate import CorpusPlan, generate
from dataset.fewshot import FewShotEvalSampler, FewShotSampler, Showing, few_shot
from dataset.format import PuzzleSplit, load_splits
from dataset.held_back import choose_groups, examples_of
from dataset.sampler import EvalBudget
from engine.io import UsageError

SLOTS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Ten training tasks of 2 to 5 demonstrations and one test, five held-out ones; two augmentations of each."""
    folder = tmp_path_factory.mktemp("few") / "set"
    corpus = CorpusPlan(side=6, families="few", num_train=10, num_test=5, num_novel=0, demonstrations=(2, 5))
    plan = ArcBuild(output_dir=folder, test_sets=("evaluation",), num_aug=2, canvas=6, data_mode="encoder", workers=1)
    build_subsets(plan, lambda: generate(corpus))
    return folder


@pytest.fixture(scope="module")
def train(root) -> list[PuzzleSplit]:
    return load_splits([root], "train")


def sampler(train, **changes) -> FewShotSampler:
    policy = {name: changes.pop(name) for name in list(changes) if name in Showing.__dataclass_fields__}
    return FewShotSampler(train, seed=3, global_batch_size=SLOTS, showing=Showing(**policy), **changes)


def grid(positions: int) -> tuple[np.ndarray, np.ndarray]:
    slots, places = np.meshgrid(np.arange(SLOTS), np.arange(positions))
    return slots.ravel(), places.ravel()


def numbers_of(split: PuzzleSplit, inputs: np.ndarray, labels: np.ndarray, puzzle: int) -> int:
    """Which pair of a puzzle this is, from 0."""
    first, end = split.puzzle_indices[puzzle : puzzle + 2]
    targets = np.where(labels < 0, 0, labels)
    rows = np.arange(first, end)
    same = (split.inputs[rows] == inputs).all(1) & (split.labels[rows] == targets).all(1)
    return int(np.flatnonzero(same)[0])


def read(split: PuzzleSplit, batch: dict[str, np.ndarray]) -> list[tuple[int, int, list[int]]]:
    """(puzzle, pair that is asked, pairs that are shown) of each row."""
    out = []
    for row in range(len(batch["inputs"])):
        puzzle = int(np.flatnonzero(split.puzzle_identifiers == batch["puzzle_identifiers"][row])[0])
        mask = batch["demo_mask"][row]
        assert (batch["demo_inputs"][row][~mask] == 0).all()
        assert (batch["demo_labels"][row][~mask] == 0).all()
        shown = [
            numbers_of(split, batch["demo_inputs"][row, k], batch["demo_labels"][row, k], puzzle)
            for k in np.flatnonzero(mask)
        ]
        out.append((puzzle, numbers_of(split, batch["inputs"][row], batch["labels"][row], puzzle), shown))
    return out


def test_what_is_shown_with_what(train):
    split = train[0]
    sizes, demos = np.diff(split.puzzle_indices), split.num_demos
    for policy in ("test_only", "leave_one_out", "mixed"):
        source = sampler(train, query_policy=policy, demo_order="file")
        batch = source.take(*grid(30))
        assert batch["demo_inputs"].shape == (180, 5, 36)
        assert batch["demo_mask"].dtype == bool
        rows = read(split, batch)
        kinds = Counter()
        for puzzle, asked, shown in rows:
            everything, true = set(range(sizes[puzzle])), set(range(demos[puzzle]))
            by_test = set(shown) == true and asked not in true
            by_rest = set(shown) == everything - {asked}
            assert by_test or by_rest
            assert shown == sorted(shown)
            kinds["test" if asked not in true else "demonstration"] += 1
        assert (kinds["demonstration"] > 0) == (policy != "test_only")
        if policy == "mixed":
            assert kinds["test"] > kinds["demonstration"] / 3
        assert Counter(batch["group_ids"].tolist()) == dict.fromkeys(range(10), 18)


def test_dropout_order_and_bounds(train):
    split = train[0]
    plain = read(split, sampler(train).take(*grid(30)))
    assert any(shown != sorted(shown) for _, _, shown in plain)
    kept = [len(shown) for _, _, shown in read(split, sampler(train, demo_dropout=0.9, min_demos=2).take(*grid(30)))]
    assert min(kept) == 2
    assert np.mean(kept) < 2.6 < np.mean([len(shown) for *_, shown in plain])
    batch = sampler(train, max_demos=2).take(*grid(30))
    assert batch["demo_inputs"].shape[1] == 2
    assert set(batch["demo_mask"].sum(1).tolist()) == {2}
    assert len({tuple(sorted(shown)) for puzzle, asked, shown in read(split, batch) if puzzle == 0}) > 1
    with pytest.raises(ValueError, match="min_demos=3 is more than max_demos=2"):
        Showing(min_demos=3, max_demos=2)


def test_streams_depend_on_slot_and_position_alone(train):
    source = sampler(train)
    whole = source.take(*grid(40))
    slots, places = grid(40)
    order = np.random.default_rng(0).permutation(len(slots))
    again = sampler(train).take(slots[order], places[order])
    for key, value in whole.items():
        assert (value[order] == again[key]).all(), key
    other = FewShotSampler(train, seed=4, global_batch_size=SLOTS).take(slots, places)
    assert (other["inputs"] != whole["inputs"]).any()
    with pytest.raises(IndexError, match="slots are 0 to 5"):
        source.take(np.array([6]), np.array([0]))


def test_a_slot_takes_its_next_example_when_it_is_ready_and_nothing_is_lost(train):
    generator, source = np.random.default_rng(1), sampler(train)
    positions = np.zeros(SLOTS, dtype=np.int64)
    taken: dict[int, list[np.ndarray]] = {slot: [] for slot in range(SLOTS)}
    for step in range(25):
        ready = np.flatnonzero(generator.random(SLOTS) < 0.4)
        for mine in (ready[ready < 2], ready[ready >= 2]):  # of two ranks
            batch = source.take(mine, positions[mine])
            assert len(batch["inputs"]) == len(mine)
            for row, slot in enumerate(mine):
                taken[slot].append(batch["inputs"][row])
        positions[ready] += 1
        if step == 12:  # another process resumes from the positions
            source = sampler(train)
    for slot, rows in taken.items():
        expected = source.take(np.full(len(rows), slot), np.arange(len(rows)))["inputs"]
        assert (np.array(rows).reshape(expected.shape) == expected).all()
    assert source.examples_per_epoch == 10


def test_evaluation_asks_every_question_once_on_any_number_of_ranks(root, train):
    splits = load_splits([root], "test", like=train)
    questions = splits[0].questions()
    assert len(questions) == 15
    source = FewShotEvalSampler(splits, 4)
    seen, shown = [], []
    for index in range(2):
        for _, batch, valid in source.batches(index, 2):
            assert (batch["demo_mask"][valid:] == 0).all()
            assert (batch["group_ids"][valid:] == -1).all()
            rows = read(splits[0], {key: value[:valid] for key, value in batch.items()})
            seen += [splits[0].puzzle_indices[puzzle] + asked for puzzle, asked, _ in rows]
            shown += [len(pairs) == splits[0].num_demos[puzzle] for puzzle, _, pairs in rows]
    assert sorted(seen) == questions.tolist()
    assert all(shown)
    assert FewShotEvalSampler(splits, 4, budget=EvalBudget(groups=2, puzzles=1)).num_examples == 2
    assert len(FewShotEvalSampler(splits, 4, max_examples=7)) == 2


def test_groups_are_held_back_and_several_sets_are_one_population(train):
    held = choose_groups(train, seed=0, validation_groups=3)
    assert held is not None
    asked = examples_of(train[0], held[0])
    assert len(asked) == 3
    assert set(asked) <= set(train[0].questions())
    rows = sampler(train, held_back=held).take(*grid(20))
    assert set(rows["group_ids"].tolist()) == set(range(10)) - set(held[0].tolist())
    both = load_splits([train[0].root, train[0].root], "train")
    rows = sampler(both).take(*grid(20))
    assert set(rows["group_ids"].tolist()) == set(range(20))
    offset = train[0].metadata.num_puzzle_identifiers - 1
    second = rows["group_ids"] >= 10
    assert (rows["puzzle_identifiers"][second] > offset).all()


def test_data_without_demonstrations_is_refused(tmp_path):
    corpus = CorpusPlan(side=6, families="few", num_train=2, num_test=2, num_novel=0)
    plan = ArcBuild(output_dir=tmp_path / "set", test_sets=("evaluation",), num_aug=0, canvas=6, workers=1)
    build_subsets(plan, lambda: generate(corpus))
    with pytest.raises(UsageError, match=r"data_mode=embedding, no demonstrations: expected encoder"):
        few_shot(load_splits([tmp_path / "set"], "train"))
