"""Sinks: what they write, and that a sink that fails never touches training."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from engine.sinks import ConsoleSink, JsonlSink, Sinks, WandbSink


class Broken:
    def __init__(self, at: str) -> None:
        self.at, self.writes = at, 0

    def write(self, step, values) -> None:
        self.writes += 1
        if self.at == "write":
            raise OSError(28, "No space left on device")

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


def test_console_leaves_out_what_only_the_file_needs(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleSink(3).write(1, {"train/loss": 1.25, "train/accuracy": None, "train/steps_live": 2.0, "time/eta_s": 61.0})
    out = capsys.readouterr().out
    assert "train/loss 1.25" in out
    assert "train/accuracy -" in out
    assert "steps_live" not in out
    assert "eta 1:01" in out


def test_wandb_goes_on_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict] = []
    logged: list[tuple[dict, int]] = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)), finish=lambda: None)
    fake.init = lambda **keys: calls.append(keys) or run  # type: ignore[attr-defined]
    fake.util = types.SimpleNamespace(generate_id=lambda: "abc123")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        sink = WandbSink(tmp_path, project="p", name="n", config={"lr": 1})
        sink.write(step, {"a": 1.0, "b": None})
        sink.close()
        monkeypatch.setattr(fake.util, "generate_id", lambda: "other")
    assert [call["id"] for call in calls] == ["abc123", "abc123"]
    assert calls[0]["resume"] == "allow"
    assert logged == [({"a": 1.0}, 1), ({"a": 1.0}, 2)]
