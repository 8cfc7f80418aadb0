"""Folders that are not what they should be, and the curves of runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from reports.output import prepare_folder, write_json_result, write_report
from reports.runs import curve, curves, find_runs, first_step, read_metrics, read_run
from reports.study import Study
from reports.tables import Column, Table
from tests.reports.made_up import write_run

METRIC = "eval/accuracy"
STUDY = Study()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "ended with eval/accuracy=null: expected a number below 1e\\+100"),
        (float("nan"), "ended with eval/accuracy=NaN"),
        (float("inf"), "ended with eval/accuracy=Infinity"),
        (True, "ended with eval/accuracy=true"),
        ("0.5", 'ended with eval/accuracy="0.5"'),
        (-1e300, "expected a number below"),
        (10**400, "expected a number below"),
        ([0.5], "expected a number below"),
    ],
)
def test_a_result_that_is_no_number(tmp_path: Path, value: Any, message: str) -> None:
    run = write_run(tmp_path / "r", {"seed": 0}, {METRIC: value})
    with pytest.raises(UsageError, match=message):
        read_run(run, METRIC, STUDY)


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", {"seed": 0}, {METRIC: 1, "eval/steps": None}), METRIC, STUDY)
    assert (run.results, run.seed, run.step) == ({METRIC: 1.0}, 0, 100)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.resolved.yaml", "seed: [", "no readable config"),
        ("config.resolved.yaml", "- seed", "no readable config"),
        ("config.resolved.yaml", "seed: many", "no readable config"),
        ("config.resolved.yaml", "seed: .inf", "no readable config"),
        ("status.json", '{"state": "do', "is not finished (without status.json, step None)"),
        ("status.json", '{"state": "failed", "step": 3}', "is not finished (failed, step 3)"),
        ("summary.json", '{"step": 100, "resu', "has no final evaluation"),
        ("summary.json", "[]", "has no final evaluation"),
        ("summary.json", '{"step": "x", "results": {"eval/accuracy": 1}}', "has no final evaluation"),
        ("summary.json", '{"results": [1]}', "has no final evaluation"),
        ("summary.json", '{"step": 1, "results": {"eval/bpb": 1}}', "evaluation has no eval/accuracy, but eval/bpb "),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "r", {"seed": 0}, {METRIC: 0.5})
    (run / file).write_text(content)
    with pytest.raises(UsageError) as error:
        find_runs([run], METRIC, STUDY)
    assert message in str(error.value)
    write_run(tmp_path / "good", {"seed": 1}, {METRIC: 0.5})
    runs, left_out = find_runs([tmp_path], METRIC, STUDY)
    assert [one.seed for one in runs] == [1]
    assert len(left_out) == 1
    assert message in left_out[0]


def test_a_run_counts_once_however_often_it_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "p/r", {"seed": 0}, {METRIC: 0.5})
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "p/loop").symlink_to(tmp_path / "p")
    assert len(find_runs([run, tmp_path / "link", tmp_path / "p", tmp_path], METRIC, STUDY)[0]) == 1


def test_a_curve_leaves_out_what_is_damaged_or_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"step": 1, METRIC: 0.25},
        {"step": 2, "train/loss": 1.0},
        {"step": 3, METRIC: None},
        {"step": 4, METRIC: 0.75},
        {"step": None, METRIC: 1.0},
        [1],
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n\x00\n{"step": 5, "eval/accu'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert len(list(read_metrics(tmp_path))) == 5
    points = curve(tmp_path, METRIC)
    assert capsys.readouterr().err == f"warning: {tmp_path}/metrics.jsonl: 2 damaged line(s) left out\n"
    assert points == [(1, 0.25), (4, 0.75)]
    assert [first_step(points, reached) for reached in (0.2, 0.75, 0.8)] == [1, 4, None]
    assert first_step(points, 0.3, higher_is_better=False) == 1
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"metrics\.jsonl"):
        curve(tmp_path, METRIC)
    (tmp_path / "pipe").rename(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match="is a pipe"):
        curve(tmp_path, METRIC)


def test_a_table_as_markdown_and_csv() -> None:
    table = Table([Column("cell"), Column("mean", "number", signed=True), Column("95 %", "interval", digits=1)])
    table.add("a|b\nc", 0.12345, (0.0, 1.0))
    table.add("d", None, None)
    assert table.markdown().splitlines() == [
        "| cell   | mean   | 95 %         |",
        "|--------|--------|--------------|",
        "| a\\|b c | +0.123 | +0.0 .. +1.0 |",
        "| d      | -      | -            |",
    ]
    assert table.csv() == 'cell,mean,95 % low,95 % high\n"a|b\nc",0.12345,0.0,1.0\nd,,,\n'
    with pytest.raises(ValueError, match="2 values for 3 columns"):
        table.add("x", 1.0)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/inside", Path("/proc/no/such")):
        with pytest.raises(UsageError, match="--json"):
            write_json_result(folder / "a.json", {})
        for refuse in (prepare_folder, lambda place: write_report(place, {"report.md": "text"})):
            with pytest.raises(UsageError, match="--out"):
                refuse(folder)
    with pytest.raises(UsageError, match=r"a name that is not UTF-8, .*run b.udcff"):
        write_report(tmp_path / "report", {"report.json": {"a": "run b\udcff"}})
    prepare_folder(tmp_path / "new/report")
    write_report(tmp_path / "new/report", {"report.md": "text", "report.json": {"a": 1}})
    assert json.loads((tmp_path / "new/report/report.json").read_text()) == {"a": 1}


def test_a_step_without_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1{"0" * 400}, "x": 1}}\n{{"step": 2, "x": 3}}\n')
    assert curve(tmp_path, "x") == curves(tmp_path)["x"] == [(2, 3.0)]
