"""ARC data for models that are shown demonstrations: the public algorithm, whole tasks held out, the pattern task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset import catalog
from dataset.arc.build import ArcBuild, build
from dataset.arc.corpus.generate import HELD_OUT, PRESETS, SUBSETS, CorpusPlan, generate
from dataset.arc.leakage import leakage_report
from dataset.arc.pattern import PatternPlan, generate as generate_patterns
from dataset.arc.tasks import read_bundles
from dataset.arc.tokens import crop
from dataset.build_arc_dataset_encoder import main
from dataset.build_pattern_dataset import main as build_pattern
from dataset.entries import BuiltCorpus
from dataset.format import load_split, load_splits
from dataset.writing import content_hash, describe
from engine.io import UsageError
from evaluators.voting.tasks import Tasks
from tests.conftest import SHARED
from tests.dataset import naive_arc
from tests.dataset.arc_tasks import random_tasks, write_bundle

NUM_AUG = 6
INDICES = ("puzzle_identifiers", "puzzle_indices", "group_indices", "num_demos")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> str:
    """Prefix of two subsets; three of six training tasks share something with a held-out one: id, test, question."""
    folder = tmp_path_factory.mktemp("bundles")
    held, train = random_tasks(4, 7, least=3), random_tasks(3, 5, least=3)
    names = list(held)
    test, shown = held[names[1]]["test"][0], held[names[2]]["train"][0]
    other = random_tasks(1, 9, least=3)["9000"]["train"][:1]
    turned = {key: np.rot90(np.array(test[key])).tolist() for key in test}
    write_bundle(folder, "evaluation", held)
    extra = {
        names[0]: {"train": other, "test": other},
        "has_a_test": {"train": [turned], "test": other},
        "has_a_question": {"train": other, "test": [{"input": shown["input"], "output": [[1]]}]},
    }
    return write_bundle(folder, "training", {**train, **extra})


def plan(bundles: str, folder: Path, **changes) -> ArcBuild:
    values = {"prefix": bundles, "subsets": ("training", "evaluation"), "num_aug": NUM_AUG, "workers": 1}
    return ArcBuild(output_dir=folder, data_mode="encoder", **{**values, **changes})


def assert_published(prefix: str, subsets: tuple[str, ...], num_aug: int, root: Path) -> None:
    files = [
        (name, *(json.loads(Path(f"{prefix}_{name}_{kind}.json").read_text()) for kind in ("challenges", "solutions")))
        for name in subsets
    ]
    expected = naive_arc.build(files, "evaluation", num_aug=num_aug, encoder=True)
    assert json.loads((root / "identifiers.json").read_text()) == expected["identifiers"]
    assert json.loads((root / "test_puzzles.json").read_text()) == expected["test_puzzles"]
    for split in ("train", "test"):
        for array in ("inputs", "labels", *INDICES):
            values = np.load(root / split / f"all__{array}.npy")
            assert values.dtype == (np.uint8 if array in ("inputs", "labels") else np.int32)
            assert (values == expected[split][array]).all(), (split, array)


def test_arrays_and_names_of_the_public_algorithm_in_both_forms(bundles, tmp_path):
    build(plan(bundles, tmp_path / "arrays", overlap="keep"))
    assert_published(bundles, ("training", "evaluation"), NUM_AUG, tmp_path / "arrays")
    build(plan(bundles, tmp_path / "compact", overlap="keep", compact=True))
    for split in ("train", "test"):
        arrays, compact = (load_split(tmp_path / name, split) for name in ("arrays", "compact"))
        assert (np.array(compact.inputs) == arrays.inputs).all()
        assert (np.array(compact.labels) == arrays.labels).all()
        for name in INDICES:
            assert (getattr(arrays, name) == getattr(compact, name)).all()
    card = describe(tmp_path / "arrays")
    assert card["data_mode"] == load_split(tmp_path / "arrays", "test").metadata.data_mode == "encoder"
    assert card["leakage"]["empty"] is False
    changed = np.load(path := tmp_path / "arrays/train/all__num_demos.npy")
    before = content_hash(tmp_path / "arrays")
    np.save(path, changed + 9)
    assert content_hash(tmp_path / "arrays") != before
    with pytest.raises(UsageError, match=r"num_demos\.npy: every puzzle needs a demonstration, and an example that"):
        load_splits([tmp_path / "arrays"], "train")


def test_training_tasks_that_share_something_are_left_out(bundles, tmp_path, capsys):
    words = ["--input-file-prefix", bundles, "--subsets", "training", "evaluation", "--num-aug", "2"]
    assert main([*words, "--output-dir", str(tmp_path / "set"), "--translation", "none"]) == 0
    out = capsys.readouterr().out
    assert "left out: 3 training tasks that share an id or a grid with a held-out task" in out
    assert "leakage: none" in out
    report = json.loads((tmp_path / "set/leakage.json").read_text())
    assert report["left_out"] == sorted(["7000", "has_a_question", "has_a_test"])
    assert (report["empty"], report["demonstrations"], report["tests"], report["ids"]) == (True, [], [], {})
    splits = {split: load_split(tmp_path / "set", split) for split in ("train", "test")}
    assert [splits[split].num_groups for split in ("train", "test")] == [3, 4]
    assert np.intersect1d(*(split.puzzle_identifiers for split in splits.values())).size == 0
    assert splits["train"].inputs[:, 0].min() > 1  # nothing was moved
    assert Tasks([splits["test"]]).protocol.mark == "i_clean"


def test_what_is_shared_by_a_weaker_relation_is_left_out_too(tmp_path):
    held, train = random_tasks(2, 7, least=3), random_tasks(3, 5, least=3)
    test, shown = (next(iter(held.values()))[kind][0] for kind in ("test", "train"))
    mirrored = {key: (np.array(test[key]).T * 7 % 10).tolist() for key in test}  # 7 x mod 10 renames the colours
    shared = {
        "exact": {"train": [test], "test": [shown]},
        "mirrored": {"train": [mirrored], "test": [mirrored]},
        "question": {"train": [{"input": shown["input"], "output": [[1]]}], "test": [mirrored]},
    }
    write_bundle(tmp_path, "evaluation", held)
    prefix = write_bundle(tmp_path, "training", {**train, **shared})
    build(plan(prefix, tmp_path / "set", num_aug=0, overlap="drop"))
    report = json.loads((tmp_path / "set/leakage.json").read_text())
    assert report["left_out"] == sorted(shared)
    assert (report["empty"], report["demonstrations"], report["tests"]) == (True, [], [])
    assert load_split(tmp_path / "set", "train").num_groups == len(train)
    with pytest.raises(UsageError, match=r"every subset is a test set .evaluation.: add one to train on"):
        build(plan(prefix, tmp_path / "none", subsets=("evaluation",)))
    write_bundle(tmp_path, "same", held)
    with pytest.raises(UsageError, match=r"all 2 training tasks share an id or a grid.*--overlap keep"):
        build(plan(prefix, tmp_path / "none", subsets=("same", "evaluation"), overlap="drop"))


def test_real_tasks_are_disjoint_and_in_the_published_order(tmp_path):
    source = SHARED / "data/arc-bundles/arc-agi"
    if not source.parent.exists():
        pytest.skip(f"the public tasks are not here: {source.parent}")
    whole = list(read_bundles(str(source), ("training", "evaluation", "concept")))
    report = leakage_report(whole, ["evaluation"], whole_tasks=True)
    leaks = {entry["task"]: entry["in"] for entry in report["demonstrations"] if entry["relation"] == "pair"}
    assert leaks["070dd51e"] == ["training/40853293"]
    for subset in whole:
        write_bundle(tmp_path / "cut", subset.name, {task.name: task.to_json() for task in subset.tasks[:3]})
    prefix, subsets = str(tmp_path / "cut/t"), ("training", "evaluation", "concept")
    build(plan(prefix, tmp_path / "set", subsets=subsets, num_aug=4, overlap="keep"))
    assert_published(prefix, subsets, 4, tmp_path / "set")


def test_the_eight_families_ask_what_only_demonstrations_tell(tmp_path, monkeypatch, capsys):
    corpus = CorpusPlan(side=6, families="few", num_train=64, num_test=16, num_novel=0)
    assert len(PRESETS["few"]) == 8
    assert not set(PRESETS["few"]) & set(HELD_OUT)
    subsets = generate(corpus)
    report = leakage_report(subsets, SUBSETS[1:], whole_tasks=True)
    assert report["empty"]
    entry = BuiltCorpus(corpus=corpus, num_aug=1, canvas=6, data_mode="encoder")
    entry.build(tmp_path / "few")
    monkeypatch.setattr(catalog, "BUILT", {"few": entry})
    catalog.ensure(tmp_path / "few")
    assert capsys.readouterr().out == "", "it is what its name stands for"
    monkeypatch.setattr(catalog, "BUILT", {"few": replace(entry, translate=False)})
    catalog.ensure(tmp_path / "few")
    assert "(moved True, now False)" in capsys.readouterr().out
    words = entry.command().split()[3:]
    assert main([*words, "--output-dir", str(tmp_path / "other")]) == 0
    assert describe(tmp_path / "few")["content_hash"] == describe(tmp_path / "other")["content_hash"]


def test_a_stand_in_of_the_encoder_data(tmp_path, monkeypatch, capsys):
    corpus = CorpusPlan(num_train=27, num_test=27, num_novel=6, side=8)
    entry = BuiltCorpus(corpus=corpus, num_aug=1, canvas=30, data_mode="encoder")
    monkeypatch.setattr(catalog, "STAND_INS", {"arc-corpus-encoder": entry})
    root = catalog.ensure(tmp_path / "arc1concept-encoder-aug-1000")
    assert "STAND-IN DATA" in capsys.readouterr().out
    assert load_split(root, "test").metadata.data_mode == "encoder"
    with pytest.raises(UsageError, match=r"offline=error forbids those: .*build_arc_dataset_encoder"):
        catalog.ensure(root, offline="error")


def test_patterns_lie_where_the_cell_is_marked_and_are_new(tmp_path, capsys):
    root = tmp_path / "set"
    words = ["--side", "5", "--pattern", "2", "--num-train", "60", "--num-test", "12", "--test-density", "1"]
    assert build_pattern([*words, "--output-dir", str(root)]) == 0
    assert "train 60 tasks, test 12 tasks" in capsys.readouterr().out
    assert describe(root)["leakage"]["empty"] is True
    patterns: dict[str, set[bytes]] = {}
    for split in ("train", "test"):
        part = load_split(root, split)
        assert (np.diff(part.puzzle_indices) == 5).all()
        assert (part.num_demos == 4).all()
        for puzzle in range(part.num_puzzles):
            seen = set()
            for example in range(*part.puzzle_indices[puzzle : puzzle + 2]):
                question, answer = crop(part.inputs[example]), crop(part.labels[example])
                ((row, column),) = np.argwhere(question == 1)
                pattern = answer[row : row + 2, column : column + 2]
                assert pattern.shape == (2, 2)
                assert (answer != 0).sum() == (pattern != 0).sum() > (3 if split == "test" else 0)
                seen.add(pattern.tobytes())
            assert len(seen) == 1
            patterns.setdefault(split, set()).update(seen)
    assert patterns["train"].isdisjoint(patterns["test"])
    plans = PatternPlan(side=5, pattern=2, num_train=3, num_test=2)
    texts = [[task.to_json() for subset in generate_patterns(plans) for task in subset.tasks] for _ in range(2)]
    assert texts[0] == texts[1]
    for flag, value in (("--pattern", "5"), ("--density", "0"), ("--demonstrations", "16")):
        assert build_pattern([*words, flag, value, "--output-dir", str(tmp_path / "no")]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag} must be")
