"""Which data set a step trains on: frequencies, patterns, transitions and counters, against the formulas."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataset.text.loading import open_text, short_names
from dataset.text.mixture import PLAN, Mixture
from engine.io import UsageError
from tests.dataset.test_text_build import made


def drawn(mixture: Mixture, steps: int) -> np.ndarray:
    return np.array([mixture.choice(step) for step in range(steps)])


def test_frequencies_lie_within_three_sigma() -> None:
    steps, weights = 20_000, (1.0, 3.0, 6.0)
    counts = np.bincount(drawn(Mixture("abc", seed=5, max_steps=steps, probs=weights), steps), minlength=3)
    for count, weight in zip(counts, weights, strict=True):
        p = weight / sum(weights)
        assert abs(count - steps * p) < 3 * math.sqrt(steps * p * (1 - p))


def test_draws_depend_on_the_seed_and_the_step_alone() -> None:
    first = Mixture("ab", seed=1, max_steps=99, probs=(0.5, 0.5))
    forward = drawn(first, 3 * PLAN)
    backward = [Mixture("ab", seed=1, max_steps=99).choice(step) for step in (700, 300, 5)]
    assert backward == forward[[700, 300, 5]].tolist()
    assert not np.array_equal(forward, drawn(Mixture("ab", seed=2, max_steps=99), 3 * PLAN))


def test_interleaving_patterns() -> None:
    counted = Mixture("abc", seed=0, max_steps=9, probs=(1, 3, 2), interleaving=True)
    assert "".join(counted.names[k] for k in drawn(counted, 12)) == "abbbccabbbcc"
    plain = Mixture("abc", seed=0, max_steps=9, interleaving=True)
    assert drawn(plain, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    repeated = Mixture(["a", "b", "a", "c"], seed=0, max_steps=9, interleaving=True)
    assert repeated.names == ["a", "b", "c"]
    assert drawn(repeated, 5).tolist() == [0, 1, 0, 2, 0]
    assert counted.probabilities(3).tolist() == [1 / 6, 3 / 6, 2 / 6]


def test_interleaving_shuffled_keeps_every_cycle_whole() -> None:
    mixture = Mixture("abc", seed=4, max_steps=9, probs=(1, 3, 2), interleaving=True, shuffle=True)
    cycles = drawn(mixture, 600).reshape(100, 6)
    assert all(sorted(cycle) == [0, 1, 1, 1, 2, 2] for cycle in cycles.tolist())
    assert len({tuple(cycle) for cycle in cycles.tolist()}) > 20


@pytest.mark.parametrize("transition", ["linear", "cosine", "exponential"])
def test_transitions_follow_their_formulas_and_end_at_the_final_probabilities(transition: str) -> None:
    start, final, steps = (0.9, 0.1), (0.2, 0.8), 1000
    mixture = Mixture("ab", seed=0, max_steps=steps, probs=start, probs_final=final, transition=transition)
    assert mixture.probabilities(0) == pytest.approx(start)
    assert mixture.probabilities(steps) == pytest.approx(final)
    assert mixture.probabilities(steps + 50) == pytest.approx(final)
    for step in (1, 250, 700):
        r = step / steps
        raw = {
            "linear": [p + r * (q - p) for p, q in zip(start, final, strict=True)],
            "cosine": [p + 0.5 * (1 - math.cos(math.pi * r)) * (q - p) for p, q in zip(start, final, strict=True)],
            "exponential": [p * (q / p) ** r for p, q in zip(start, final, strict=True)],
        }[transition]
        assert mixture.probabilities(step) == pytest.approx([value / sum(raw) for value in raw])
    late = np.mean([mixture.choice(step) for step in range(900, 1000)])
    expected = np.mean([mixture.probabilities(step)[1] for step in range(900, 1000)])
    assert abs(late - expected) < 3 * math.sqrt(0.25 / 100)


def test_repeated_names_add_their_weights() -> None:
    mixture = Mixture(["a", "b", "a"], seed=0, max_steps=9, probs=(1, 2, 1))
    assert mixture.probabilities(0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("options", [{"probs": (0.3, 0.7)}, {"interleaving": True, "probs": (2, 3), "shuffle": True}])
def test_counters_are_the_draws_before_a_step(options: dict) -> None:
    mixture = Mixture("ab", seed=3, max_steps=1000, **options)
    draws = drawn(mixture, 2 * PLAN + 20)
    for step in (2 * PLAN + 7, 0, 1, PLAN - 1, PLAN, 2 * PLAN):
        assert mixture.taken(step).tolist() == [int((draws[:step] == k).sum()) for k in (0, 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probs": (1,)}, "dataset_sampling_probs has 1 values for 2 data sets"),
        ({"probs": (0, 0)}, "not all 0"),
        ({"probs": (1, -1)}, "numbers >= 0"),
        ({"probs": (0.5, 0.5), "interleaving": True}, "whole numbers"),
        ({"probs_final": (1, 1), "interleaving": True}, "no meaning with dataset_interleaving"),
        ({"probs": (1, 0), "probs_final": (1, 1), "transition": "exponential"}, "above 0"),
        ({"transition": "quadratic"}, "choose one of linear, cosine, exponential"),
    ],
)
def test_refusals(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mixture("ab", seed=0, max_steps=9, **options)


def test_data_sets_of_one_folder_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("to be or not to be\n" * 60)
    for root in ("one/text", "two/text", "data/other"):
        made(tmp_path / root, tmp_path / "in.txt", tokenizer="char")
    config = SimpleNamespace(
        training_mode="multidataset",
        dataset_list=["one/text", "./two/text", "other", "data/other", "one/text"],
        offline="error",
        from_file=False,
        seed=1,
        max_iters=9,
        dataset_sampling_probs=None,
        dataset_sampling_probs_final=None,
        dataset_sampling_probs_transition_method="linear",
        dataset_interleaving=True,
        dataset_interleaving_shuffle=False,
        sampling_method="sequential",
        multicontext_align="error",
        eval_train=True,
        multidataset_wte=False,
        batch_size=2,
        eval_iters=1,
        eval_mode="sweep",
        eval_seed=0,
    )
    opened = open_text(config, block_size=8, rows=2)
    names = ["one-text", "two-text", "other"]
    assert [name for name, _ in opened.batches.rows_drawn(5)] == names  # two spellings of data/other are one data set
    assert [count for _, count in opened.batches.rows_drawn(5)] == [4, 2, 4]
    assert [entry.name for entry in opened.held_out] == names * 2
    assert len(opened.cards) == 3


def test_short_names() -> None:
    folders = [Path("a/x"), Path("b/x"), Path("c/a/x"), Path("y")]
    assert short_names(folders) == [f"{Path.cwd().name}-a-x", "b-x", "c-a-x", "y"]


@pytest.mark.parametrize("mode", ["sweep", "random"])
def test_runs_of_any_seed_are_evaluated_on_the_same_windows(tmp_path: Path, mode: str) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{n} " for n in range(900)))
    made(tmp_path / "d", tmp_path / "in.txt", tokenizer="char")
    config = SimpleNamespace(
        training_mode="single",
        dataset=str(tmp_path / "d"),
        offline="error",
        from_file=False,
        sampling_method="random",
        eval_train=False,
        multicontext_align="error",
        multidataset_wte=False,
        batch_size=2,
        eval_iters=3,
        eval_mode=mode,
        eval_seed=0,
    )
    first, second = (
        open_text(SimpleNamespace(**vars(config), seed=seed), block_size=8, rows=2).held_out[0].batches
        for seed in (1, 2)
    )
    for index in range(len(first)):
        rows = [batches.rows(index, 0, batches.batch_size)["tokens"] for batches in (first, second)]
        assert np.array_equal(*rows)
