"""A report on another family, of one screen: what the library asks of it, and what it gives."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from reports.naming import difference_names
from reports.runs import Run, find_runs
from reports.study import Cell, Study, compare, comparison_warnings, group
from reports.tables import Column, Table
from tests.reports.made_up import write_run

LOSS = "eval/val_loss"
SCORES = {"gpt": (2.0, 2.5, 3.5), "looped": (1.5, 2.25, 3.0), "looped, lr": (1.0, 1.0, 1.0)}


def config(model: str, lr: float, seed: int, **more: object) -> dict[str, object]:
    return {"arch": {"name": model, "n_layer": 4}, "learning_rate": lr, "seed": seed, "run_name": f"{seed}", **more}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", config("gpt@GPT", 1e-3, seed), {LOSS: SCORES["gpt"][seed]})
        write_run(tmp_path / f"b{seed}", config("looped@Looped", 1e-3, seed), {LOSS: SCORES["looped"][seed]})
        write_run(tmp_path / f"c{seed}", config("looped@Looped", 3e-3, seed), {LOSS: SCORES["looped, lr"][seed]})
    return tmp_path


def study_of(folder: Path, study: Study) -> list[Cell]:
    runs, left_out = find_runs([folder], LOSS, study)
    cells, twice = group(runs, study)
    assert not left_out + twice
    return cells


def test_cells_are_named_by_all_settings_that_differ(runs: Path) -> None:
    cells = study_of(runs, Study(baseline={"arch.name": "gpt@GPT"}))
    assert [cell.name for cell in cells] == [
        "name=gpt@GPT, learning_rate=0.001",
        "name=looped@Looped, learning_rate=0.001",
        "name=looped@Looped, learning_rate=0.003",
    ]
    assert [sorted(cell.runs) for cell in cells] == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("copies", "message"),
    [
        (2, "seed 0 twice: {}/0 counts, the older {}/1 does not"),
        (3, "3 times: {}/0 counts, 2 older ones do not (e.g. {}/1)"),
    ],
)
def test_the_newest_of_repeated_runs_counts(tmp_path: Path, copies: int, message: str) -> None:
    for number in range(copies):
        write_run(tmp_path / str(number), config("gpt@GPT", 1e-3, 0), {LOSS: float(number)})
        os.utime(tmp_path / str(number) / "summary.json", (100 - number, 100 - number))
    runs, _ = find_runs([tmp_path], LOSS, Study())
    (cell,), (warning,) = group(runs, Study())
    assert cell.runs[0].path == tmp_path / "0"
    assert message.format(tmp_path, tmp_path) in warning


def test_a_cell_is_compared_with_the_baseline_of_its_other_settings(runs: Path) -> None:
    study = Study(baseline={"arch.name": "gpt@GPT"})
    cells = study_of(runs, study)
    compared = list(compare(cells, LOSS, study).values())
    assert [each["score"]["mean"] for each in compared] == pytest.approx([8 / 3, 2.25, 1.0])
    assert compared[0]["difference"] is None
    assert compared[1]["difference"] is not None
    assert compared[1]["difference"]["values"] == [-0.5, -0.25, -0.5]
    assert compared[2]["difference"] is None  # no GPT was trained at that rate
    (line,) = comparison_warnings(cells, study)
    assert (
        line == "name=looped@Looped, learning_rate=0.003 has no baseline of its other settings: no difference is given"
    )


def test_two_studied_settings_make_one_baseline_for_all(runs: Path) -> None:
    study = Study(baseline={"arch.name": "gpt@GPT", "learning_rate": 1e-3})
    cells = study_of(runs, study)
    assert not comparison_warnings(cells, study)
    difference = compare(cells, LOSS, study)[cells[2].name]["difference"]
    assert difference is not None
    assert difference["values"] == [-1.0, -1.5, -2.5]


def test_a_block_that_is_absent_is_a_baseline(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"without{seed}", {"seed": seed, "encoder": None}, {LOSS: 1.0})
        write_run(tmp_path / f"with{seed}", {"seed": seed, "encoder": {"depth": 2, "width": 8}}, {LOSS: 1.5})
    study = Study(baseline={"encoder": None})
    without, with_encoder = study_of(tmp_path, study)
    assert study.baseline_of(with_encoder, [without, with_encoder]) is without
    assert (without.name, with_encoder.name) == ("no encoder", "encoder")


def test_a_report_adds_columns_of_its_own(runs: Path) -> None:
    """Such as the protocol class of an ARC score, which is in no setting."""

    class Protocols(Study):
        def protocol(self, run: Run) -> str:
            return "joint" if "looped" in run.config["arch"]["name"] else "zero-shot"

    study = Protocols()
    table = Table([Column("cell"), Column("protocol"), Column("loss", "number", digits=2)])
    cells = study_of(runs, study)
    for cell in cells:
        table.add(cell.name, study.protocol(cell.runs[0]), compare(cells, LOSS, study)[cell.name]["score"]["mean"])
    assert table.markdown().splitlines()[2] == "| name=gpt@GPT, learning_rate=0.001       | zero-shot | 2.67 |"
    assert comparison_warnings(cells, study) == [study.no_baseline]


def test_settings_that_share_a_last_name_are_written_out(tmp_path: Path) -> None:
    for number, (a, b) in enumerate(((1, 1), (2, 1), (1, 2))):
        write_run(tmp_path / str(number), {"seed": 0, "low": {"depth": a}, "high": {"depth": b}}, {LOSS: 1.0})
    names = [cell.name for cell in study_of(tmp_path, Study())]
    assert names == ["high.depth=1, low.depth=1", "high.depth=1, low.depth=2", "high.depth=2, low.depth=1"]


def test_labels_and_devices_are_no_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"seed": 0, "device": "cpu", "run_name": "a", "threads": 1}, {LOSS: 1.0})
    write_run(tmp_path / "b", {"seed": 1, "device": "cuda", "run_name": "b", "threads": 4}, {LOSS: 2.0})
    (cell,) = study_of(tmp_path, Study())
    assert (cell.name, cell.values(LOSS)) == ("all runs", {0: 1.0, 1: 2.0})


def test_stand_in_data_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"seed": 0}, {LOSS: 1.0}, summary={"stand_in": True})
    study = Study()
    assert any("stand-in data" in line for line in comparison_warnings(study_of(tmp_path, study), study))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([{"a.x": 1}, {"a.x": 1}], ["all runs", "all runs"]),
        ([{"lr": 1}, {}], ["lr=1", "lr=null"]),
        ([{"b": 1, "e.depth": 2}, {"b": 1}, {"b": 1, "e.depth": 3}], ["e, depth=2", "no e", "e, depth=3"]),
        ([{"a": "1"}, {"a": 1}, {"a": "null"}, {}], ["a='1'", "a=1", "a='null'", "a=null"]),
        ([{"x.e.a": 1}, {"y.e.a": 1}], ["x, no y", "no x, y"]),
        # keys that only one of two models has follow from its name
        ([{"m.name": "A", "m.x": 1}, {"m.name": "B", "m.y": 2}], ["name=A", "name=B"]),
        (
            [{"m.name": "A", "m.x": 1}, {"m.name": "B"}, {"m.name": "A"}],
            ["name=A, x=1", "name=B, x=null", "name=A, x=null"],
        ),
        ([{"m.a.b.c": 1}, {"m.d": 1}, {"m.d": 1, "m.a.b.c": 2}], ["a, c=1, d=null", "no a, d=1", "a, c=2, d=1"]),
    ],
)
def test_names_tell_settings_apart_and_list_only_what_differs(settings: list[dict], names: list[str]) -> None:
    assert difference_names(settings) == names


def test_two_settings_never_share_a_name() -> None:
    rng = np.random.Generator(np.random.Philox(5))
    keys = ("lr", "m.name", "m.x", "m.e.x", "m.e.name", "m.e.f.x")
    for _ in range(300):
        rows = rng.integers(0, 3, size=(5, len(keys)))
        settings = [{key: int(v) for key, v in zip(keys, row, strict=True) if v} for row in rows]
        names = difference_names(settings)
        for a, b in itertools.combinations(range(5), 2):
            assert (names[a] == names[b]) is (settings[a] == settings[b]), settings
