"""Sinks: what they write, and that a sink that fails never touches training."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.io import atomic_write_text
from engine.loggers.sinks import ConsoleSink, CsvSink, JsonlSink, Sinks, WholeFile


class Broken:
    def __init__(self, at: str) -> None:
        self.at, self.writes = at, 0

    def write(self, step, values) -> None:
        self.writes += 1
        if self.at == "write":
            raise OSError(104, "Connection reset by peer")

    def close(self) -> None:
        if self.at == "close":
            raise RuntimeError("half closed")


def test_jsonl_appends_whole_lines(tmp_path: Path) -> None:
    for step in (1, 2):
        sink = JsonlSink(tmp_path / "metrics.jsonl")
        sink.write(step, {"train/loss": 0.1 + 0.2, "train/steps": None, "train/grad_norm": float("nan")})
        sink.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "train/loss": 0.30000000000000004, "train/steps": None, "train/grad_norm": None}
    assert lines[1]["step"] == 2


def test_a_broken_sink_is_dropped_with_one_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sinks, broken = Sinks(), Broken("write")
    sinks.add("broken", lambda: broken)
    sinks.add("jsonl", lambda: JsonlSink(tmp_path / "m.jsonl"))
    for step in range(3):
        sinks.write(step, {"x": 1.0})
    sinks.close()
    assert broken.writes == 1
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
    assert capsys.readouterr().out.count("warning") == 1


def test_opening_and_closing_may_fail(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks()

    def absent() -> Broken:
        raise ModuleNotFoundError("No module named 'wandb'")

    sinks.add("wandb", absent, hint=": pip install -e '.[wandb]'")
    sinks.add("shaky", lambda: Broken("close"))
    sinks.write(1, {"x": 1.0})
    sinks.close()
    out = capsys.readouterr().out
    assert "No module named 'wandb'" in out
    assert "pip install" in out
    assert "half closed" in out


def test_console_prints_short_runs_whole_and_long_ones_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    short, long = ConsoleSink(5), ConsoleSink(5000)
    for step in range(1, 6):
        short.write(step, {"train/loss": 1.0})
    assert len(capsys.readouterr().out.splitlines()) == 5
    for step in range(1, 200):
        long.write(step, {"train/loss": 1.0})
    long.write(200, {"eval/accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert "eval/accuracy 0.5" in lines[-1]
    epochs = ConsoleSink(24, steps_per_epoch=10)
    for step in (0, 10, 11, 24):
        epochs.write(step, {"train/loss": 1.0})
    heads = [line.partition("  train")[0] for line in capsys.readouterr().out.splitlines()]
    assert heads == ["epoch 0/3, step  0/24", "epoch 1/3, step 10/24", "epoch 2/3, step 11/24", "epoch 3/3, step 24/24"]


def test_console_leaves_out_what_only_the_file_needs(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleSink(3).write(1, {"train/loss": 1.25, "train/accuracy": None, "train/steps_live": 2.0, "time/eta_s": 61.0})
    out = capsys.readouterr().out
    assert "train/loss 1.25" in out
    assert "train/accuracy -" in out
    assert "steps_live" not in out
    assert "eta 1:01" in out


MIXED = {
    "eval/val_loss": 1.5,
    "eval/train_loss": 1.25,
    "eval/perplexity": 4.5,
    "eval/plain/val_loss": 1.5,
    "eval/plain/val_accuracy": 0.5,
    "eval/other/val_loss": 2.5,
    "eval/other/val_accuracy": 0.25,
    "data/plain/tokens": 7,
}


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
def test_lines_fit_the_terminal_and_name_every_data_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    sink = ConsoleSink(30)
    sink.write(3, MIXED)
    evaluation = capsys.readouterr().out.splitlines()
    sink.write(4, {**{f"train/value_{n}": 1.0 for n in range(20)}, "time/eta_s": 5.0, "time/examples_per_s": 8.0})
    training = capsys.readouterr().out.splitlines()
    assert all(len(line) <= columns for line in (*evaluation, *training))
    for name in ("val_loss", "plain/val_loss", "other/val_loss"):
        assert f"eval/{name} " in "".join(evaluation)
    assert training[0].endswith("8 ex/s  eta 0:05")
    assert len(evaluation) == len(training) == 1 or columns < 140
    assert "".join(training).count("train/value_") == 6  # a narrow terminal shows no fewer


def test_a_pipe_has_lines_of_140(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError()))
    ConsoleSink(30).write(4, {f"train/value_{n}": 1.0 for n in range(20)})
    assert 120 < len(capsys.readouterr().out.strip()) <= 140


def test_the_finest_rate_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"time/examples_per_s": 12.0, "time/tokens_per_s": 12288.0}
    ConsoleSink(30).write(4, {"train/loss": 1.0, **rates})
    assert capsys.readouterr().out == "step  4/30  train/loss 1  12,288 tokens/s\n"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_grows_columns_without_moving_earlier_values(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "metrics.csv", tmp_path / "metrics.jsonl")
    sink.write(1, {"train/loss": 0.1 + 0.2, "train/steps": None})
    sink.write(2, {"train/loss": 0.5, "train/steps": 3.0})
    sink.write(2, {"eval/set a, b": 0.25})
    sink.write(3, {"train/steps": float("nan"), "train/loss": 0.25})  # another order, and a name that is missing
    sink.close()
    nothing = {"train/loss": "", "train/steps": "", "eval/set a, b": ""}
    assert table(tmp_path / "metrics.csv") == [
        {"step": "1", **nothing, "train/loss": "0.30000000000000004"},
        {"step": "2", **nothing, "train/loss": "0.5", "train/steps": "3.0"},
        {"step": "2", **nothing, "eval/set a, b": "0.25"},
        {"step": "3", **nothing, "train/loss": "0.25"},
    ]


def test_csv_is_cut_back_with_the_record(tmp_path: Path) -> None:
    record, path = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    sink = CsvSink(path, record)
    for step in (1, 2, 3):
        sink.write(step, {"loss": float(step), **({"late": 1.0} if step == 3 else {})})
    record.write_text('{"step": 1, "loss": 1.0}\n')  # the resume has gone back to step 1
    again = CsvSink(path, record)
    again.write(2, {"loss": 2.0})
    assert path.read_text() == "step,loss\n1,1.0\n2,2.0\n"


def full_disk(monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
    """os-level writes of WholeFile take `room` bytes in all, as a disk that runs full does."""
    left = [room]

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            fits = min(left[0], len(data))
            left[0] -= fits
            if not fits:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:fits])

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *a, **k: (Full if "a" in mode else lambda f: f)(opened(self, mode, *a, **k)),
    )


def test_a_full_disk_leaves_whole_lines_and_one_warning_for_each_sink(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, room=100)
    sinks = Sinks()
    sinks.add("jsonl", lambda: JsonlSink(tmp_path / "m.jsonl"))
    sinks.add("csv", lambda: CsvSink(tmp_path / "m.csv", tmp_path / "none"))
    for step in range(9):
        sinks.write(step, {"x": 1.0})
    sinks.close()
    lines = (tmp_path / "m.jsonl").read_text().splitlines(keepends=True)
    assert 2 < len(lines) < 9
    assert all(line.endswith("}\n") for line in lines)
    assert (tmp_path / "m.csv").read_text().endswith("\n")
    out = capsys.readouterr().out.splitlines()
    assert ["jsonl" in line for line in sorted(out)] == [False, False, True, True]
    assert sum("wait for room" in line and "training continues" in line for line in out) == 2
    assert all("No space left" in line for line in out)


def test_what_found_no_room_is_written_once_there_is_some(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks, plain, full, step = Sinks(), WholeFile.write, [3, 4, 6], 0  # there is none at these steps
    sinks.add("jsonl", lambda: JsonlSink(tmp_path / "m.jsonl"))
    sinks.add("csv", lambda: CsvSink(tmp_path / "m.csv", tmp_path / "none"))

    def with_room(real: Callable) -> Callable:
        def write(*args: object) -> None:
            if step in full:
                raise OSError(27, "File too large")
            real(*args)

        return write

    monkeypatch.setattr(WholeFile, "write", with_room(plain))
    monkeypatch.setattr("engine.loggers.sinks.atomic_write_text", with_room(atomic_write_text))
    for step in range(9):
        sinks.write(step, {"x": 1.0, **({"late": 2.0} if step == 4 else {})})  # the table is to be written anew
    sinks.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").open()] == list(range(9))
    rows = [f"{step},1.0,{'2.0' if step == 4 else ''}" for step in range(9)]
    assert (tmp_path / "m.csv").read_text().splitlines() == ["step,x,late", *rows]
    assert capsys.readouterr().out.count("wait for room") == 4  # once for each time and sink


def test_what_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, room=7)
    file = WholeFile(tmp_path / "f")
    file.write(b"12345")
    with pytest.raises(OSError, match="No space left"):
        file.write(b"67890")
    assert os.path.getsize(tmp_path / "f") == 5
