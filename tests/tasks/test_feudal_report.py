"""scripts/feudal_report.py on made-up run folders: sorting, statistics, refusals. tests/e2e has it on real runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reports.runs import find_runs, read_run
from reports.statistics import Summary
from reports.study import Cell, compare, group
from scripts.feudal_report import main, parse
from tasks.recursive_reasoning.feudal_report.cell_goals import reading
from tasks.recursive_reasoning.feudal_report.pictures import sweep
from tasks.recursive_reasoning.feudal_report.study import FeudalStudy, warnings_of
from tests.conftest import run_script
from tests.e2e.recipes import PRETRAIN
from tests.reports import made_up

METRIC = "eval/exact_accuracy"
RECIPE = "cfg_pretrain_sudoku_6x6_feudal"
HEAD = "arch.subgoal_head"
ABLATION = {
    "baseline": {HEAD: None},
    "feudal": {},
    "no injection": {f"{HEAD}.inject_subgoal": False},
    "no loss": {"arch.loss.feudal_loss_weight": 0},
    "random goals": {f"{HEAD}.goal_source": "random"},
}
STUDY = FeudalStudy()


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(PRETRAIN.compose(RECIPE))


def write_run(
    folder: Path,
    composed: dict[str, Any],
    changes: dict[str, Any],
    *,
    seed: int = 0,
    score: float = 0.5,
    results: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run of the recipe with `changes` (dotted key -> value)."""
    config = copy.deepcopy(composed) | {"seed": seed, "run_name": folder.name}
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    results = {METRIC: score, "eval/accuracy": score, "eval/steps": None} if results is None else results
    return made_up.write_run(folder, config, results, **more)


@pytest.fixture
def ablation(tmp_path: Path, composed: dict[str, Any]) -> Path:
    """Five cells of three seeds; scores that no formula gives by chance."""
    rng = np.random.Generator(np.random.Philox(3))
    for name, changes in ABLATION.items():
        for seed in range(3):
            write_run(tmp_path / "runs" / f"{name}_{seed}", composed, changes, seed=seed, score=float(rng.random()))
    return tmp_path / "runs"


def name_of_baseline(cell: Cell, cells: list[Cell]) -> str | None:
    baseline = STUDY.baseline_of(cell, cells)
    return baseline and baseline.name


def test_cells_are_named_by_what_differs(ablation: Path, composed: dict[str, Any]) -> None:
    extra = {
        "weight 0.02": {"arch.loss.feudal_loss_weight": 0.02},
        "period 8": {f"{HEAD}.manager_period": 8},
        "displacement absolute, no gate": {f"{HEAD}.gating": False, f"{HEAD}.displacement": "absolute"},
        "no loss, no injection": {"arch.loss.feudal_loss_weight": 0, f"{HEAD}.inject_subgoal": False},
        "schedule [1, 4]": {f"{HEAD}.schedule": [1, 4]},
        "baseline, lr=0.1": {HEAD: None, "lr": 0.1},
        "feudal, lr=0.1": {"lr": 0.1},
        "period 8, lr=0.1": {"lr": 0.1, f"{HEAD}.manager_period": 8},
    }
    for name, changes in extra.items():
        write_run(ablation / name, composed, changes)
    cells, doubles = group(find_runs([ablation], METRIC, STUDY)[0], STUDY)
    assert not doubles
    assert {cell.name for cell in cells} == {*ABLATION, *extra}
    assert [cell.name for cell in cells][:2] == ["baseline", "feudal"]
    assert all(sorted(cell.runs) == [0, 1, 2] for cell in cells if cell.name in ABLATION)
    partner = {cell.name: name_of_baseline(cell, cells) for cell in cells}
    assert partner["feudal, lr=0.1"] == partner["period 8, lr=0.1"] == "baseline, lr=0.1"
    assert partner["feudal"] == partner["random goals"] == "baseline"


def test_hrm_itself_and_other_places_and_labels_are_no_difference(tmp_path: Path) -> None:
    import dataclasses

    plain = dataclasses.asdict(PRETRAIN.compose(RECIPE, "arch=hrm", "threads=1", "project_name=elsewhere"))
    write_run(tmp_path / "hrm", plain, {"data_paths": ["/elsewhere/sudoku"]})
    without = dataclasses.asdict(PRETRAIN.compose(RECIPE, "~arch.subgoal_head", "max_steps=7"))
    write_run(tmp_path / "without", without, {}, seed=1)
    (cell,), _ = group(find_runs([tmp_path], METRIC, STUDY)[0], STUDY)
    assert (cell.name, sorted(cell.runs)) == ("baseline", [0, 1])


@pytest.mark.parametrize(
    ("values", "usual"), [((0.01, 0.1, 0.5), 0.1), ((0.02, 0.05), 0.02), ((0.05, 0.05, 0.1), 0.05)]
)
def test_the_usual_weight(tmp_path: Path, composed: dict[str, Any], values: tuple[float, ...], usual: float) -> None:
    for number, weight in enumerate(values):
        write_run(tmp_path / str(number), composed, {"arch.loss.feudal_loss_weight": weight}, seed=number)
    cells, _ = group(find_runs([tmp_path], METRIC, STUDY)[0], STUDY)
    assert cells[0].name == "feudal"
    assert {cell.settings["arch.loss.feudal_loss_weight"] for cell in cells[:1]} == {usual}
    assert {cell.name for cell in cells[1:]} == {f"weight {weight}" for weight in values if weight != usual}


def test_a_run_without_loss_is_not_called_feudal_where_it_is_alone(tmp_path: Path, composed: dict[str, Any]) -> None:
    write_run(tmp_path / "a", composed, {"arch.loss.feudal_loss_weight": 0.0})
    cells, _ = group(find_runs([tmp_path / "a"], METRIC, STUDY)[0], STUDY)
    assert [cell.name for cell in cells] == ["no loss"]


def score_of(run: Path) -> float:
    return json.loads((run / "summary.json").read_text())["results"][METRIC]


def test_differences_are_paired_by_seed(ablation: Path) -> None:
    cells, _ = group(find_runs([ablation], METRIC, STUDY)[0], STUDY)
    compared = compare(cells, METRIC, STUDY)
    scores = {name: [score_of(ablation / f"{name}_{seed}") for seed in range(3)] for name in ABLATION}
    assert compared["baseline"]["difference"] is None
    for name in ABLATION.keys() - {"baseline"}:
        gaps = np.array(scores[name]) - np.array(scores["baseline"])
        half = 4.302652729911275 * np.sqrt(np.sum((gaps - gaps.mean()) ** 2) / 2) / np.sqrt(3)  # t table, 2 degrees
        ours = compared[name]["difference"]
        assert ours["mean"] == pytest.approx(gaps.mean(), abs=1e-12)
        assert ours["t"] == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=1e-9)
        low, high = ours["bootstrap"]
        assert gaps.min() <= low < high <= gaps.max()


def measured(control: float, content: float, presence: float, **more: float) -> tuple[str, str]:
    def drop(mean: float) -> Summary:
        return {"values": [], "n": 2, "mean": mean, "sd": None, "se": 0.01, "t": None, "bootstrap": None}

    return reading(
        drop(control), drop(content), drop(presence), **{"directions": 5.0, "gate": 0.8, "alike": 0.2} | more
    )


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (measured(0.4, 0.05, 0.1), "used"),
        (measured(0.4, 0.05, 0.1, directions=1.2), "obeyed but collapsed"),
        (measured(0.4, 0.05, 0.1, gate=0.01), "obeyed but collapsed"),
        (measured(0.4, 0.019, 0.019), "obeyed but irrelevant"),
        (measured(0.4, -0.05, -0.05), "obeyed but irrelevant"),
        (measured(0.4, 0.01, 0.05), "constant bias"),
        (measured(0.05, 0.0, 0.05), "constant bias"),
        (measured(0.05, 0.0, 0.0), "not followed"),
        (measured(0.05, 0.1, 0.1), "not followed"),
        (measured(0.05, 0.0, 0.0, alike=0.95), "one goal for all"),
        (measured(0.05, 0.0, 0.05, alike=0.95), "constant bias"),
    ],
)
def test_the_reading_rule(figures: tuple[str, str], word: str) -> None:
    assert figures[0] == word


def test_what_makes_cells_hard_to_compare_is_said(ablation: Path, composed: dict[str, Any]) -> None:
    write_run(ablation / "long", composed, {f"{HEAD}.manager_period": 8}, seed=0, step=200, data="other")
    write_run(ablation / "unfinished", composed, {}, seed=3, state="interrupted")
    write_run(ablation / "again", composed, {}, seed=0, score=0.123)
    write_run(ablation / "alone", composed, {"lr": 0.5})
    runs, left_out = find_runs([ablation], METRIC, STUDY)
    cells, doubles = group(runs, STUDY)
    warnings = "\n".join([*left_out, *doubles, *warnings_of(cells, METRIC, STUDY)])
    for words in (
        "unfinished is not finished (interrupted, step 100)",
        "feudal has seed 0 twice",
        "period 8 has no run of seed 1, 2",
        "period 8 has one seed",
        "period 8 has runs of 200 steps, most others have 100",
        "period 8 has runs on other data",
        "feudal, lr=0.5 has no baseline of its other settings",
    ):
        assert words in warnings
    feudal = next(cell for cell in cells if cell.name == "feudal")
    assert feudal.runs[0].path.name == "again"  # the newer one
    assert compare(cells, METRIC, STUDY)["feudal, lr=0.5"]["difference"] is None


def test_scores_at_the_floor_or_ceiling_are_said(tmp_path: Path, composed: dict[str, Any]) -> None:
    for score, words in ((0.0, "--metric accuracy"), (0.99, "harder data")):
        folder = tmp_path / str(score)
        write_run(folder / "a", composed, {HEAD: None}, score=score)
        cells, _ = group(find_runs([folder], METRIC, STUDY)[0], STUDY)
        assert any(words in line for line in warnings_of(cells, METRIC, STUDY))


def test_a_sweep_is_drawn_apart_from_what_has_no_loss_or_no_head(ablation: Path, composed: dict[str, Any]) -> None:
    assert not sweep(*_cells(ablation), "arch.loss.feudal_loss_weight")
    for weight in (0.02, 0.5):
        write_run(ablation / f"w{weight}", composed, {"arch.loss.feudal_loss_weight": weight})
    columns = sweep(*_cells(ablation), "arch.loss.feudal_loss_weight")
    shown = [(column.label, column.apart, len(column.points)) for column in columns]
    assert shown[:2] == [("no head", True, 3), ("0 (head)", True, 3)]
    assert shown[2:] == [("0.02", False, 1), ("0.1", False, 3), ("0.5", False, 1)]


def _cells(folder: Path):
    cells, _ = group(find_runs([folder], METRIC, STUDY)[0], STUDY)
    return cells, compare(cells, METRIC, STUDY)


def test_the_report_is_printed_and_written(ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(parse([str(ablation), "--no-interventions", "--out", str(tmp_path / "out")]))
    printed = capsys.readouterr().out
    text = (tmp_path / "out/report.md").read_text()
    assert text in printed
    assert "Are goals followed" not in text
    reported = json.loads((tmp_path / "out/report.json").read_text())["cells"]
    row = next(line for line in text.splitlines() if line.startswith("| no injection "))
    assert f"{reported['no injection']['score']['mean']:.3f}" in row
    assert f"{reported['no injection']['difference']['mean']:+.3f}" in row
    assert reported["feudal"]["runs"]["2"] == str(ablation / "feudal_2")
    with Image.open(tmp_path / "out/cells.png") as picture:
        assert min(picture.size) > 400


def test_the_folder_of_a_sweep_names_its_runs(
    ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "multirun"
    folder.mkdir()
    jobs = [{"number": n, "run_dir": str(ablation / name)} for n, name in enumerate(("baseline_0", "feudal_0"))]
    jobs += [{"number": 2, "run_dir": "moved"}, {"number": 3, "run_dir": None}]
    (folder / "results.json").write_text(json.dumps(jobs))
    (folder / "results.csv").write_text("")
    assert len(find_runs([folder], METRIC, STUDY)[0]) == 2
    assert "warning: 1 of the 3 run folders in " in capsys.readouterr().err


REFUSED = {
    "unfinished": ({}, {"state": "running"}, "is not finished (running, step 100)"),
    "trm": ({"arch.name": "recursive_reasoning.trm@TRM"}, {}, "is a run of TRM: expected HRM"),
    "unevaluated": ({}, {"results": {}}, "has no final evaluation with eval/exact_accuracy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_cannot_be_used_is_one_line(name: str, tmp_path: Path, composed: dict[str, Any]) -> None:
    changes, more, words = REFUSED[name]
    run = write_run(tmp_path / name, composed, changes, **more)
    for place in (run, tmp_path):
        shown = run_script("scripts/feudal_report", str(place), cwd=tmp_path)
        assert shown.code == 2, shown.output
        assert shown.output.count("\n") == 1
        assert words in shown.output
    assert not (tmp_path / "feudal_report").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no run of HRM with a final evaluation"),
        ([], "RUNS"),
        ([".", "--metric", "loss"], "exact_accuracy"),
        ([".", "--device", "cdua"], "device=cdua: expected auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_bad_arguments_are_one_line(argv: list[str], words: str, tmp_path: Path) -> None:
    shown = run_script("scripts/feudal_report", *argv, cwd=tmp_path)
    assert shown.code == 2, shown.output
    assert shown.output.count("\n") == 1
    assert words in shown.output


def test_a_damaged_config_is_one_line(tmp_path: Path, composed: dict[str, Any]) -> None:
    from engine.errors import UsageError

    run = write_run(tmp_path / "a", composed, {})
    (run / "config.resolved.yaml").write_text("arch: [")
    with pytest.raises(UsageError, match="no readable config"):
        read_run(run, METRIC, STUDY)
