"""scripts/speedrun.py: every track is a launch that composes, and a small one ends in a record and a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli.resolve import resolve
from engine.errors import UsageError
from engine.registry import ROOT
from reports.speedrun.record import add_record, make_record, row, seed_result
from reports.speedrun.tracks import TRACKS, Track, require_machine
from scripts import feedback_comparison, speedrun
from tests.conftest import run_script

TINY = ("+debug=tiny", "max_steps=4", "checkpoint_interval=2", "total_steps=4", "log_interval=2")


@pytest.mark.parametrize("track", TRACKS.values(), ids=TRACKS)
def test_the_commands_compose(track: Track, tmp_path: Path) -> None:
    folder = tmp_path / "a folder, x=é"
    for seed, words in track.commands((3, 4), folder).items():
        assert words[0] == "python"
        trace = resolve(Path(words[1]), words[2:], root=ROOT)
        assert trace.config is not None, trace.problems
        assert trace.config.seed == seed
        assert Path(trace.config.run_dir) == folder / f"seed_{seed}"


def test_a_dry_run_prints_the_commands(tmp_path: Path) -> None:
    done = run_script("scripts/speedrun", "sudoku-hard-gpu", "--dry-run", "--seeds", "1", "2", cwd=tmp_path)
    assert done.code == 0, done.output
    assert [line.split()[-2] for line in done.output.splitlines()] == ["seed=1", "seed=2"]
    assert "max_seconds=480" in done.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("word", "line"), [("max_secs=5", "did you mean 'max_seconds'?"), ("foo", "unexpected word 'foo'")]
)
def test_overrides_that_cannot_be_are_refused_before_anything_runs(word: str, line: str, tmp_path: Path) -> None:
    for more in (["--dry-run"], []):
        done = run_script("scripts/speedrun", "lm-5min", *more, "--set", word, cwd=tmp_path)
        assert done.code == 2
        assert line in done.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--set", "lr=1", "++seed=3"], r"--set \+\+seed=3: the track gives seed itself: use --seeds"),
        (["--set", "run_dir=x"], "use --out"),
        (["--seeds", "0", "1", "0"], "--seeds names 0 twice"),
    ],
)
def test_what_the_track_gives_is_not_given_again(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        speedrun.run(speedrun.parse(["sudoku-4x4-cpu", "--dry-run", *argv]))


@pytest.mark.parametrize("script", [speedrun, feedback_comparison])
def test_a_folder_that_cannot_be_made_is_one_line(script: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    words = ["sudoku-4x4-cpu"] if script is speedrun else []
    assert script.main([*words, "--out", str(tmp_path / "file/runs")]) == 2
    assert "file/runs cannot be created (Not a directory): name another folder with --out" in capsys.readouterr().err


def test_without_cuda_the_gpu_track_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_machine(TRACKS["sudoku-4x4-cpu"])
    with pytest.raises(UsageError, match="sudoku-hard-gpu needs a CUDA GPU and torch sees none here"):
        require_machine(TRACKS["sudoku-hard-gpu"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> tuple[dict[int, list[str]], Path]:
    """A tiny run of the 4x4 track, its commands, and the folder in which it lies."""
    folder = tmp_path_factory.mktemp("speedrun")
    (folder / "data").symlink_to(tiny_data)
    commands = TRACKS["sudoku-4x4-cpu"].commands((5,), folder, TINY)
    done = run_script("pretrain", *commands[5][2:], cwd=folder)
    assert done.code == 0, done.output
    return commands, folder


def test_the_record(finished: tuple[dict[int, list[str]], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    commands, folder = finished
    monkeypatch.chdir(folder)
    words = TRACKS["sudoku-4x4-cpu"].words
    track = Track("small", words, "eval/accuracy", targets=(0.0, 2.0))
    record = make_record(track, commands, {5: folder / "seed_5"})
    (seed,) = record["seeds"].values()
    assert seed["steps"] == 4
    assert seed["flops"] == 4 * seed["reached"]["0"]["flops"] / 2 > 0
    assert seed["reached"]["0"]["step"] == 2
    assert 0 < seed["reached"]["0"]["training_cpu_s"] < seed["training_cpu_s"]
    assert seed["reached"]["2"] is None
    assert record["command"].startswith("python pretrain.py --config-name=cfg_pretrain_sudoku_4x4_fast device=cpu")
    assert record["hardware"].endswith("cores")
    assert "2 by 0 of 1 seeds" in row(record)

    for number in (1, 2):
        add_record(record, folder / "results")
        lines = (folder / "results/speedruns.jsonl").read_text().splitlines()
        assert [json.loads(line)["track"] for line in lines] == ["small"] * number
        page = (folder / "results/speedruns.md").read_text()
        assert page.count("\n| small |") == number
        assert page.rstrip().endswith("<!-- end -->")


def test_operations_are_those_of_the_stages(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four steps have one cycle, whose costs are 3 x 2 block calls, and two have two: 4 x 3."""
    (tmp_path / "data").symlink_to(tiny_data)
    monkeypatch.chdir(tmp_path)
    schedule = ("arch.H_cycles=2", "arch.L_cycles=2", "arch.cycles_schedule=[[0,1,1],[0.5,2,2]]")
    records = []
    for seed, depth in ((1, schedule), (2, schedule[:2])):
        commands = TRACKS["sudoku-4x4-cpu"].commands((seed,), tmp_path, (*TINY, *depth))
        assert run_script("pretrain", *commands[seed][2:], cwd=tmp_path).code == 0
        track = Track("small", TRACKS["sudoku-4x4-cpu"].words, "eval/accuracy", targets=(0.0,))
        records.append(seed_result(track, tmp_path / f"seed_{seed}"))
    deepens, deep = records
    call = deep["flops"] / 4 / (4 * 3)
    assert deepens["reached"]["0"]["flops"] == pytest.approx(2 * 6 * call)
    assert deepens["flops"] == pytest.approx(2 * 6 * call + 2 * 12 * call)


def test_a_page_without_the_table_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "speedruns.md").write_text("mine\n")
    with pytest.raises(UsageError, match="has no table between"):
        add_record({}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["speedruns.md"]


@pytest.mark.slow
def test_the_whole_command(workplace: Path) -> None:
    argv = ("sudoku-4x4-cpu", "--seeds", "1", "--out", "out", "--results", "results", "--set", *TINY)
    done = run_script("scripts/speedrun", *argv, cwd=workplace)
    assert done.code == 0, done.output
    assert json.loads((workplace / "out/record.json").read_text())["seeds"]["1"]["steps"] == 4
    assert "a track of your own is not added" in done.output
    again = run_script("scripts/speedrun", *argv, cwd=workplace)
    assert again.code == 2
    assert "holds a speedrun already" in again.output
