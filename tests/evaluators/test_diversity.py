"""Identities of the diversity figures, and cases calculated by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluators.diversity import (
    classes,
    compression_ratio,
    distinct,
    entropy,
    kl_interval,
    kl_to_uniform,
    mean_distance,
    self_bleu,
    utility,
    vendi,
)

RANDOM = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- counts -----------------------------------------------------------------------------------------------------------


def test_entropy_and_divergence_add_up_to_log_k() -> None:
    counts = [3, 1, 0, 4]
    assert entropy(counts) == pytest.approx(3 / 8 * math.log(8 / 3) + 1 / 8 * math.log(8) + 1 / 2 * math.log(2))
    assert entropy(counts) + kl_to_uniform(counts) == pytest.approx(math.log(4))
    assert entropy([5, 5, 5]) == pytest.approx(math.log(3))
    assert kl_to_uniform([7, 7]) == 0.0
    assert kl_to_uniform([7, 0]) == pytest.approx(math.log(2))  # an option that is never named counts
    assert (entropy([]), entropy([0, 0]), kl_to_uniform([0, 0]), kl_interval([0, 0])) == (0.0, 0.0, None, None)


def test_the_interval_narrows_with_n_and_holds_the_value_where_it_is_not_at_the_edge() -> None:
    wide, narrow = kl_interval([88, 12]), kl_interval([880, 120])
    assert wide[0] < narrow[0] < kl_to_uniform([88, 12]) < narrow[1] < wide[1]
    assert kl_interval([50, 0]) == (pytest.approx(math.log(2)),) * 2
    assert kl_interval([88, 12]) == wide  # the same numbers every time


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 40])
def test_vendi_of_equal_and_of_orthogonal_texts(n: int) -> None:
    assert vendi(np.tile(unit(RANDOM.normal(size=(1, 40))), (n, 1))) == pytest.approx(1.0)
    assert vendi(np.eye(40)[:n]) == pytest.approx(n)


def test_vendi_is_the_entropy_of_the_eigenvalues_of_the_kernel() -> None:
    for shape in ((12, 5), (5, 12)):
        rows = unit(RANDOM.normal(size=shape))
        values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
        values = values[values > 1e-12]
        assert vendi(rows) == pytest.approx(math.exp(-(values * np.log(values)).sum()))
        assert vendi(np.tile(rows, (3, 1))) == pytest.approx(vendi(rows))  # copies add nothing
    groups = np.repeat(np.eye(3), [6, 3, 1], axis=0)
    assert vendi(groups) == pytest.approx(math.exp(entropy([6, 3, 1])))


def test_vendi_of_texts_without_features() -> None:
    assert vendi(np.zeros((0, 4))) == 0.0
    assert vendi(np.zeros((3, 4))) == pytest.approx(1.0)
    assert vendi(np.concatenate([np.eye(4)[:1], np.zeros((1, 4))])) == pytest.approx(2.0)


def test_mean_distance_is_that_of_all_pairs() -> None:
    rows = unit(RANDOM.normal(size=(7, 3)))
    pairs = [1 - rows[i] @ rows[j] for i in range(7) for j in range(i)]
    assert mean_distance(rows) == pytest.approx(np.mean(pairs))
    assert mean_distance(rows[:1]) is None
    assert mean_distance(np.eye(3)) == pytest.approx(1.0)


def test_a_class_is_of_one_kind_and_near_its_first_text() -> None:
    near = unit(np.array([[1.0, 0.0], [1.0, 0.5], [1.0, 1.0], [1.0, 0.0]]))
    assert classes(near, "aaab") == [0, 0, 1, 2]  # the third is near the second, but not near the first
    assert classes(near[:0], "") == []


def test_utility_by_hand() -> None:
    assert utility([0, 1, 2, 3], [1, 1, 1, 1]) == pytest.approx(1.0)
    assert utility([0, 0, 0, 0], [1, 1, 1, 1]) == pytest.approx(0.2 / (1 - 0.8**4))
    assert utility([0, 0, 1], [1, 1, 1], p=0.5) == pytest.approx((1 + 0.25) * 0.5 / (1 - 0.125))
    assert utility([0, 1, 0], [0, 0, 1], p=0.5) == pytest.approx(0.25 * 0.5 / (1 - 0.125))
    assert utility([0, 1], [0, 0]) == 0.0
    assert utility([], []) == 0.0


# --- texts ------------------------------------------------------------------------------------------------------------


def test_distinct_counts_different_ngrams() -> None:
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["A, b."], 1) == 1.0
    assert distinct(["a"], 2) is None


def test_self_bleu_of_equal_and_of_unlike_texts() -> None:
    assert self_bleu(["I love dogs because they bark"] * 4) == pytest.approx(1.0)
    assert self_bleu(["a b c d e", "f g h i j"]) == 0.0
    assert self_bleu(["a b c d e"]) is None


def naive_self_bleu(texts: list[str]) -> float:
    scores = []
    for row, text in enumerate(texts):
        own, others = text.split(), [each.split() for at, each in enumerate(texts) if at != row]
        logs = []
        for n in range(1, 5):
            grams = [tuple(own[i : i + n]) for i in range(len(own) - n + 1)]
            if not grams:
                continue
            matched = 0
            for gram in set(grams):
                most = max(sum(tuple(o[i : i + n]) == gram for i in range(len(o) - n + 1)) for o in others)
                matched += min(grams.count(gram), most)
            smooth = int(n > 1)
            logs.append(math.log((matched + smooth) / (len(grams) + smooth)) if matched + smooth else -math.inf)
        closest = min((len(o) for o in others), key=lambda length: (abs(length - len(own)), length))
        scores.append(math.exp(min(0.0, 1 - closest / len(own)) + sum(logs) / len(logs)))
    return sum(scores) / len(scores)


def test_self_bleu_equals_plain_loops() -> None:
    texts = [" ".join(RANDOM.choice(list("abcd"), size=RANDOM.integers(1, 9))) for _ in range(25)]
    assert self_bleu(texts) == pytest.approx(naive_self_bleu(texts))
    assert self_bleu(texts, limit=10) == pytest.approx(naive_self_bleu(texts[:10]))


def test_repetition_compresses() -> None:
    assert compression_ratio(["the same words"] * 50) > 5 * compression_ratio(["the same words"])
    assert compression_ratio([]) is None
