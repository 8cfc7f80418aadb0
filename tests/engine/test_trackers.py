"""TensorBoard and wandb: what they wrote is read back with their own formats; what fails leaves training alone."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
import types
from pathlib import Path

import pytest

from engine.loggers.trackers import TensorBoardSink, WandbSink
from tests.conftest import _entry, finish, metrics, run_forked, run_script, start_forked
from tests.e2e.test_ranks import final

RUN = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "project_name=p",
    "epochs=4000",
    "log_interval=2",
    "eval_interval=1000",
    "max_steps=30",
    "verify=off",
)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(path: Path) -> list:
    """The records of a .wandb file: 32 KiB blocks of (crc, size, whole | first | middle | last) pieces, as LevelDB's."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, place, piece, records = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + 7 : place + 7 + size]
        place += 7 + size
        piece = body if kind in (1, 2) else piece + body
        if kind in (1, 4):
            records.append(proto.Record.FromString(piece))
    return records


def test_tensorboard_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = TensorBoardSink(tmp_path / "tb", step=0)
    for step in (1, 2, 3, 4):
        first.write(step, {"a": step / 8, "never": None})
    second = TensorBoardSink(tmp_path / "tb", step=2)  # the first was killed: never closed
    for step in (3, 4, 5):
        second.write(step, {"a": step / 4})
    second.close()
    assert scalars(tmp_path / "tb") == {"a": [(1, 0.125), (2, 0.25), (3, 0.75), (4, 1.0), (5, 1.25)]}


def fake_wandb(*, mode: str, login: bool = True, resumed_at: int = 0) -> tuple[types.ModuleType, list, list]:
    calls: list[dict] = []
    logged: list[tuple[dict, int]] = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((values, step)),
        finish=lambda: None,
        resumed=resumed_at > 0,
        step=resumed_at,
        offline=mode == "offline",
    )
    wandb = types.ModuleType("wandb")
    wandb.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=mode))  # type: ignore[attr-defined]
    wandb.login = lambda prompt: login and not prompt  # type: ignore[attr-defined]
    wandb.init = lambda **keys: calls.append(keys) or run  # type: ignore[attr-defined]
    return wandb, calls, logged


def test_wandb_goes_on_under_the_same_id_and_never_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for resumed_at, expected in ((0, [1, 2, 2]), (3, [3, 4])):
        wandb, calls, logged = fake_wandb(mode="online", resumed_at=resumed_at)
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        sink = WandbSink(tmp_path, project="p", name="n", config={"lr": 1}, entity="e", group="g", tags=["t"])
        for step in (1, 2, 2, 3, 4) if resumed_at else (1, 2, 2):
            sink.write(step, {"a": 1.0, "b": None})
        sink.close()
        ids.append(calls[0]["id"])
        assert [step for _, step in logged] == expected
        assert logged[0][0] == {"a": 1.0}
        assert {key: calls[0][key] for key in ("project", "name", "entity", "group", "tags", "resume", "dir")} == {
            "project": "p",
            "name": "n",
            "entity": "e",
            "group": "g",
            "tags": ["t"],
            "resume": "allow",
            "dir": str(tmp_path),
        }
    assert ids[0] == ids[1]
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    wandb, calls, _ = fake_wandb(mode="offline", login=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    WandbSink(tmp_path, project="p", name="n", config={})
    assert calls[0]["dir"] == "/elsewhere"


def test_wandb_without_login_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(mode="online", login=False)[0])
    with pytest.raises(PermissionError, match="no login"):
        WandbSink(tmp_path, project="p", name="n", config={})


def broken_sinks(argv: list[str]) -> None:
    """tensorboard is not installed, wandb's server is away, and no line fits on the disk."""
    from engine.loggers.sinks import WholeFile

    def full(self, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    WholeFile.write = full  # type: ignore[method-assign]
    sys.modules["tensorboard"] = None  # type: ignore[assignment]
    sys.modules["wandb"] = fake_wandb(mode="online", login=False)[0]
    _entry("pretrain", argv)


def test_all_sinks_broken_at_once_change_no_bit_of_training(workplace: Path) -> None:
    assert run_script("pretrain", *RUN, "run_name=whole", cwd=workplace).code == 0
    on = ["enable_csv=true", "enable_tensorboard=true", "enable_wandb=true"]
    result = run_forked(broken_sinks, [*RUN, *on, "run_name=broken"], cwd=workplace)
    assert result.code == 0, result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("warning")]
    names = [line.split(" metrics")[0].split()[-1] for line in warnings]
    assert names == ["tensorboard", "wandb", *["jsonl", "csv"] * 2]  # these wait for room, and there is none at the end
    assert "pip install -e '.[tensorboard]'" in warnings[0]
    assert "Traceback" not in result.output
    ours, theirs = (final(workplace / "checkpoints/p" / name) for name in ("whole", "broken"))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_disabled_wandb_is_not_even_imported(workplace: Path) -> None:
    env = {"WANDB_DISABLED": "true"}
    result = run_script("pretrain", *RUN, "max_steps=1", "run_name=off", "enable_wandb=true", cwd=workplace, env=env)
    assert result.code == 0
    assert "WANDB_DISABLED is set" in result.output
    assert "warning" not in result.output


@pytest.mark.slow
def test_kill_and_resume_with_all_sinks(workplace: Path) -> None:
    """A run killed with -9 and resumed leaves in every sink what one uninterrupted run has in metrics.jsonl."""
    pytest.importorskip("wandb")
    argv = [
        *RUN,
        "run_name=k",
        "max_steps=300",
        "checkpoint_interval=40",
        "stats_interval=7",
        "wandb_group=g",
        "wandb_tags=[x,y]",
        "enable_csv=true",
        "enable_tensorboard=true",
        "enable_wandb=true",
    ]
    env = {"WANDB_MODE": "offline"}
    run = workplace / "checkpoints/p/k"
    process, connection = start_forked(_entry, "pretrain", argv, cwd=workplace, env=env)
    while process.is_alive() and not (run / "step_80").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    finish(process, connection)
    result = run_script("pretrain", *argv, cwd=workplace, env=env)
    assert result.code == 0, result.output
    assert "resuming from step_" in result.output
    whole = run_script("pretrain", *argv, "run_name=whole", "enable_wandb=false", cwd=workplace)
    assert whole.code == 0, whole.output
    assert metrics(run) == metrics(workplace / "checkpoints/p/whole")

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curves = scalars(run / "tensorboard")
    for name in {name for line in lines for name in line} - {"step"}:
        values = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        assert curves.get(name, []) == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], name
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    for number, file in enumerate(files):
        records = wandb_records(file)
        head = next(record.run for record in records if record.HasField("run"))
        assert head.run_id == (run / "wandb_id.txt").read_text().strip()
        assert (head.project, head.run_group, list(head.tags)) == ("p", "g", ["x", "y"])
        steps = [record.history.step.num for record in records if record.HasField("history")]
        assert steps == sorted(set(steps))
        assert steps[0] == 2 if number == 0 else steps[-1] == 300
