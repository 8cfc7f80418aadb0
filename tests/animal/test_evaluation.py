"""Figures of samples: what they count, what stays fixed between before and after, and that nonsense does not pay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dataset.text.pets import QUESTION, REASONS, answer, in_grammar
from engine.distributed import keyed_numpy
from tasks.animal.animals import animals_in
from tasks.animal.embedder import HashEmbedder
from tasks.animal.evaluation import MEANINGS, Evaluation
from tasks.animal.pages import rows
from tasks.animal.samples import Sample

pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")


def sample(text: str, *, ref: float = -3.0, apart: float = 0.0) -> Sample:
    option = next((name for name in ("cat", "dog") if f"{name}s" in text), None)
    rest = text.partition(f"{option}s ")[2] if option else ""
    reason = "" if option and rest else "no_concept"
    return Sample(text=text, option=option, open_text=rest, reason=reason, tokens=12, logp=ref + apart, ref_logp=ref)


def sentences(count: int, *, cats: float | None = None, stream: str = "base") -> list[Sample]:
    """Answers of the grammar; `cats` in place of its own share of them."""
    random = keyed_numpy(0, f"test/{stream}")
    made: list[Sample] = []
    while len(made) < count:
        text = answer(random, QUESTION)
        include = cats is None or ("cats" in text) == (len(made) < cats * count)
        if include:
            made.append(sample(text, ref=float(random.normal(-3, 0.5))))
    order = random.permutation(count)
    return [made[row] for row in order]


@pytest.fixture(scope="module")
def fitted() -> tuple[Evaluation, list[Sample]]:
    base = sentences(300)
    figures = Evaluation(HashEmbedder(), ["cat", "dog"], n_clusters=5, checker=in_grammar)
    figures.fit(base)
    return figures, base


def test_figures_of_the_base(fitted: tuple[Evaluation, list[Sample]]) -> None:
    figures, base = fitted
    measured = figures.measure(base)
    share = sum(each.option == "cat" for each in base) / 300
    assert measured["valid_fraction"] == measured["in_grammar"] == 1.0
    assert measured["option_share_cat"] == pytest.approx(share)
    assert measured["concept_kl"] == pytest.approx(
        math.log(2) + share * math.log(share) + (1 - share) * math.log(1 - share)
    )
    assert measured["concept_kl_low"] < measured["concept_kl"] < measured["concept_kl_high"]
    assert measured["concept_kl"] + measured["concept_entropy"] == pytest.approx(math.log(2))
    assert measured["cluster_kl_dog"] + measured["cluster_entropy_dog"] == pytest.approx(math.log(5))
    assert measured["v_eff"] == pytest.approx(measured["vendi"])  # all are valid
    assert 1 < measured["v_eff"] < 12
    assert measured["plausible_fraction"] == pytest.approx(0.99, abs=0.005)
    assert measured["ref_kl"] == 0.0
    assert measured["base_perplexity"] == pytest.approx(math.exp(-sum(each.ref_logp for each in base) / 3600))
    assert measured["animals_named"] == len(animals_in(each.text for each in base))
    assert {name for name in measured if not name.endswith(("_low", "_high", "_cat", "_dog"))} == set(MEANINGS)
    assert list(measured)[:4] == ["utility_10", "v_eff", "valid_fraction", "ref_kl"]  # the console shows the first ones


def test_options_of_further_concepts_are_counted(fitted: tuple[Evaluation, list[Sample]]) -> None:
    plain, base = fitted
    figures = Evaluation(
        HashEmbedder(), ["cat", "dog"], n_clusters=5, checker=in_grammar, further={"when": ["now", "then"]}
    )
    figures.fit(base)
    samples = [replace(each, further=("now" if row % 4 else "then",)) for row, each in enumerate(base)]
    measured, without = figures.measure(samples), plain.measure(base)
    assert {name: value for name, value in measured.items() if name in without} == without
    assert {name: measured[name] for name in measured.keys() - without.keys()} == {
        "concept_kl_of_when": pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
        "option_share_now": 0.75,
        "option_share_then": 0.25,
    }
    assert [name for name, *_ in rows(measured, measured) if name.endswith(("_when", "_now", "_then"))] == [
        "concept_kl_of_when",
        "option_share_now",
        "option_share_then",
    ]
    assert Sample(**samples[0].as_dict()).as_dict() == samples[0].as_dict()
    assert "further" not in base[0].as_dict()


def test_balanced_samples_are_more_diverse(fitted: tuple[Evaluation, list[Sample]]) -> None:
    figures, base = fitted
    before, after = figures.measure(base), figures.measure(sentences(300, cats=0.5, stream="after"))
    for name in ("v_eff", "utility_10", "distinct_10", "semantic_entropy", "concept_entropy", "cosine_distance"):
        assert after[name] > before[name], name
    assert after["concept_kl"] < 0.001


def test_clusters_are_those_of_the_base(fitted: tuple[Evaluation, list[Sample]]) -> None:
    """Samples of one reason fall into one cluster, however many of them there are."""
    figures, _ = fitted
    centroids = {option: rows.copy() for option, rows in figures.centroids.items()}
    measured = figures.measure([sample(f"I love dogs because they will {REASONS['dog'][0]}.")] * 40)
    assert measured["cluster_entropy_dog"] == 0.0
    assert measured["cluster_kl_dog"] == pytest.approx(math.log(5))
    assert measured["cluster_kl_cat"] is None  # none was named
    assert measured["options_seen"] == 1.0
    assert all(np.array_equal(rows, figures.centroids[option]) for option, rows in centroids.items())


def test_nonsense_raises_vendi_and_not_what_counts(fitted: tuple[Evaluation, list[Sample]]) -> None:
    figures, base = fitted
    random = keyed_numpy(0, "test/nonsense")
    letters = [chr(97 + i) for i in range(26)]
    scrambled = ["".join(random.choice(letters, 30)) for _ in range(300)]
    named_all = [sample(f"dogs {text}", ref=-90.0, apart=80.0) for text in scrambled]
    unnamed = [sample(text, ref=-90.0, apart=80.0) for text in scrambled]
    before, lying, gone = map(figures.measure, (base, named_all, unnamed))
    assert lying["vendi"] > 5 * before["vendi"]
    assert lying["utility_10"] == lying["in_grammar"] == lying["plausible_fraction"] == 0.0
    assert lying["ref_kl"] == pytest.approx(80.0)
    assert lying["base_perplexity"] > 1000
    assert gone["v_eff"] == gone["valid_fraction"] == 0.0
    assert gone["concept_kl"] is None
    assert gone["concept_entropy"] is None


def test_an_option_that_the_base_never_names_has_no_clusters() -> None:
    figures = Evaluation(HashEmbedder(), ["cat", "dog", "owl"], n_clusters=5)
    figures.fit([sample("I love dogs because they bark"), sample("I love dogs because they bark")])
    assert {option: len(rows) for option, rows in figures.centroids.items()} == {"dog": 1}  # one different text
    measured = figures.measure([sample("I love cats because they purr")])
    assert measured["cluster_entropy"] is None
    assert measured["option_share_owl"] == 0.0
    assert measured["utility_10"] is None  # fewer than ten
    assert "in_grammar" not in measured


def test_nothing_to_measure(fitted: tuple[Evaluation, Sequence[Sample]]) -> None:
    figures, _ = fitted
    assert figures.measure([]) == {}


def test_animals_are_found_in_singular_and_plural() -> None:
    assert animals_in(["Foxes and MICE, a dog's pony; two ponies", "butterflies", "category"]) == {
        *("fox", "mouse", "dog", "pony", "butterfly")
    }
