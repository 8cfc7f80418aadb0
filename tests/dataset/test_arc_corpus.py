"""The generated corpus: every family keeps its promise, splits are apart, and it stands in for ARC-AGI with a notice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dataset import catalog
from dataset.arc.corpus.generate import FAMILIES, HELD_OUT, PRESETS, SUBSETS, CorpusPlan, generate
from dataset.arc.corpus.parts import SMALLEST_SIDE
from dataset.arc.leakage import leakage_report
from dataset.arc.tasks import read_task
from dataset.build_arc_dataset import main
from dataset.entries import BuiltCorpus
from dataset.format import load_split
from dataset.writing import describe
from engine.io import UsageError

SMALL = CorpusPlan(num_train=27, num_test=27, num_novel=6, side=8)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_different_pairs_that_fit(name):
    for side in (SMALLEST_SIDE, 10):
        rule = FAMILIES[name](np.random.default_rng(1), side)
        questions, changed = set(), 0
        for number in range(12):
            question, answer = rule(np.random.default_rng(number))
            for grid in (question, answer):
                assert grid.ndim == 2
                assert 1 <= min(grid.shape) <= max(grid.shape) <= side
                assert 0 <= grid.min() <= grid.max() <= 9
            questions.add(question.tobytes())
            changed += not np.array_equal(question, answer)
        assert len(questions) >= 8
        assert changed >= 8
    again = FAMILIES[name](np.random.default_rng(1), 10)(np.random.default_rng(3))
    same = FAMILIES[name](np.random.default_rng(1), 10)(np.random.default_rng(3))
    assert all((a == b).all() for a, b in zip(again, same, strict=True))


def test_answers_worked_out_by_hand():
    rule = FAMILIES["gravity"](np.random.default_rng(0), 8)
    question, fallen = rule(np.random.default_rng(0))
    assert sorted(question.ravel()) == sorted(fallen.ravel())
    settled = [np.diff((np.rot90(fallen, k) != 0).astype(int), axis=0).min() >= 0 for k in range(4)]
    assert any(settled)
    question, answered = FAMILIES["both"](np.random.default_rng(0), 9)(np.random.default_rng(0))
    width = answered.shape[1]
    assert ((answered != 0) == ((question[:, :width] != 0) & (question[:, -width:] != 0))).all()
    question, answered = FAMILIES["counted"](np.random.default_rng(0), 9)(np.random.default_rng(0))
    assert answered.shape == (1, (question != 0).sum())
    question, answered = FAMILIES["most_frequent"](np.random.default_rng(0), 9)(np.random.default_rng(0))
    assert answered.tolist() == [[int(np.bincount(question[question != 0]).argmax())]]
    question, answered = FAMILIES["filled"](np.random.default_rng(0), 9)(np.random.default_rng(0))
    inside = (question == 0) & (answered != 0)
    rows, columns = np.nonzero(inside)
    assert inside.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_the_corpus_is_seeded_and_its_splits_are_apart():
    subsets = generate(SMALL)
    assert [subset.name for subset in subsets] == list(SUBSETS)
    assert [len(subset.tasks) for subset in subsets] == [27, 27, 6]
    families = [{task.name.rpartition("_")[0] for task in subset.tasks} for subset in subsets]
    assert families[0] == families[1] == set(PRESETS["all"]) - set(HELD_OUT)
    assert families[2] == set(HELD_OUT)
    assert len(PRESETS["all"]) >= 25
    assert leakage_report(subsets, SUBSETS[1:])["empty"]
    again, other = generate(SMALL), generate(replace(SMALL, seed=1))
    texts = [
        [json.dumps(task.to_json()) for subset in each for task in subset.tasks] for each in (subsets, again, other)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_presets_and_single_families():
    assert set(PRESETS["first"]) <= set(FAMILIES)
    tasks = generate(replace(SMALL, side=6, families="shifted,keep,reduced", num_train=4, num_test=2, num_novel=1))
    assert [task.name for task in tasks[0].tasks] == ["shifted_t0000", "keep_t0001", "shifted_t0002", "keep_t0003"]
    assert [task.name for task in tasks[2].tasks] == ["reduced_n0000"]
    tasks = generate(replace(SMALL, side=6, families="shifted,keep,keep", num_train=3, num_test=3, num_novel=0))
    assert [task.name for task in tasks[0].tasks] == ["shifted_t0000", "keep_t0001", "keep_t0002"]
    assert [task.name for task in tasks[1].tasks] == ["shifted_e0000", "keep_e0001", "shifted_e0002"], "equal shares"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--families", "recolor"], "--families recolor: did you mean 'recolour'?"),
        (["--families", "reduced"], "all of them are held-out families"),
        (["--families", "keep"], "none of the held-out ones"),
        (["--canvas", "5"], "--canvas and --largest must be at least 6 for generated tasks, got 5"),
        (["--canvas", "8", "--largest", "9"], "--largest 9 is more than --canvas 8"),
        (["--demonstrations", "3", "2"], "--demonstrations 3 2: expected LO HI"),
        (["--num-train", "0"], "--num-train must be at least 1, got 0"),
        (["--subsets", "training"], "--subsets is for tasks of files"),
    ],
)
def test_flags_of_a_corpus_that_cannot_be(tmp_path, capsys, words, text):
    assert main(["--generated", *words, "--output-dir", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error
    assert main(["--corpus-seed", "1", "--output-dir", str(tmp_path / "set")]) == 2
    assert "--corpus-seed is for a generated corpus: add --generated" in capsys.readouterr().err


@pytest.fixture
def small_entries(monkeypatch):
    """The catalogue with tiny corpora."""
    entry = BuiltCorpus(corpus=SMALL, num_aug=1, canvas=10)
    monkeypatch.setattr(catalog, "BUILT", {**catalog.BUILT, "arc-corpus-10x10": entry})
    monkeypatch.setattr(catalog, "STAND_INS", {"arc-corpus": replace(entry, canvas=30)})


def test_a_corpus_of_the_catalogue_is_what_its_command_builds(tmp_path, capsys, small_entries):
    root = tmp_path / "arc-corpus-10x10"
    catalog.ensure(root)
    assert "60 grid tasks of up to 8x8" in capsys.readouterr().out
    catalog.ensure(root)
    assert capsys.readouterr().out == "", "it is what its name stands for"
    words = catalog.build_command(root).split()[3:]
    assert main([*words[:-1], str(tmp_path / "other")]) == 0
    assert describe(root)["content_hash"] == describe(tmp_path / "other")["content_hash"]
    card = describe(root)
    assert card["held_out_families"] == [name for name in PRESETS["all"] if name in HELD_OUT]
    assert not card.get("stand_in")
    tasks = sorted((root / "tasks").rglob("*.json"))
    assert len(tasks) == 33
    assert read_task(tasks[0]).name in json.loads((root / "test_puzzles.json").read_text())


def test_a_stand_in_says_that_it_is_one(tmp_path, capsys, small_entries):
    root = tmp_path / "arc1concept-aug-1000"
    with pytest.raises(
        UsageError, match=r"offline=error forbids its stand-in arc-corpus\. .* --subsets training evaluation"
    ):
        catalog.ensure(root, offline="error")
    with pytest.raises(UsageError, match=r"a run's config does not build data"):
        catalog.ensure(root, build=False)
    catalog.ensure(root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{root} is missing: building its stand-in arc-corpus now")
    assert lines[1].startswith(f"STAND-IN DATA: {root} is made of generated tasks, not of ARC-AGI")
    card = describe(root)
    assert card["stand_in"] is True
    assert card["stand_in_for"] == root.name
    assert load_split(root, "test").inputs.shape[1] == 900
    catalog.ensure(root)
    assert capsys.readouterr().out.startswith("STAND-IN DATA")
    with pytest.raises(UsageError, match=r"is a stand-in .* and offline=error forbids those: .* --overwrite"):
        catalog.ensure(root, offline="error")
