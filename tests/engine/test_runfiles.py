"""What is written into a run directory, and how its metric files are cut back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from engine.run.directory import RunDirectory, open_run
from engine.run.environment import describe_environment
from engine.run.files import truncate_to
from engine.run.identity import identity_of
from engine.run.request import RunRequest, expand_pattern, to_glob
from tests.conftest import status_of

ONE = {"lr": 0.1, "arch": {"depth": 2}}


def opened(path: Path) -> RunDirectory:
    return open_run(RunRequest(path, ONE, "pretrain"))


def test_expand_pattern():
    text = (
        "run_dir: out/${arch.kind}/${run_name}\nrun_name: a_${seed}_${now:%Y/%m}\n"
        "seed: 3\narch: {kind: '${oc.env:K}'}\n"
    )
    assert expand_pattern(text) == "out/${oc.env:K}/a_3_${now:%Y/%m}"
    assert expand_pattern("run_dir: ${a}\na: ${run_dir}\n").startswith("${")
    assert expand_pattern("lr: 1\n") == ""
    assert to_glob("[x]/${name}_${now:%Y/%H}/${oc.env:A,${now:%Y/%m}}") == "[[]x]/*_*/*/*"


# --- identity and files


def test_identity_leaves_keys_out():
    config = {"lr": 1, "device": "cpu", "log": {"every": 5, "wandb": True}, "arch": {"device": 3}}
    assert identity_of(config, without=["device", "log.every"]) == {
        "lr": 1,
        "log": {"wandb": True},
        "arch": {"device": 3},
    }


def test_config_files(tmp_path):
    run = opened(tmp_path / "run")
    resolved = {
        "lr": 1e-4,
        "tiny": 1e-05,
        "big": 1e22,
        "whole": 3.0,
        "n": 3,
        "flag": True,
        "none": None,
        "text": ["1e-4", "0.5", "yes", "null", "", "a: b", "two\nlines", "täxt", ".inf"],
        "inf": float("inf"),
        "path": Path("/x/y"),
        "pair": (1, 2),
        "arch": {"depth": 2},
    }
    run.write_config("lr: ${base}\n", resolved, ["lr=1e-4", "+run_name=x"])
    expected = {**resolved, "path": "/x/y", "pair": [1, 2]}
    text = (run.path / "all_config.yaml").read_text()
    loaded = yaml.safe_load(text)
    assert loaded == expected
    assert {key: type(value) for key, value in loaded.items()} == {key: type(v) for key, v in expected.items()}
    assert OmegaConf.to_container(OmegaConf.load(run.path / "config.resolved.yaml")) == expected
    assert list(loaded) == list(resolved)
    assert os.readlink(run.path / "all_config.yaml") == "config.resolved.yaml"
    assert (run.path / "config.yaml").read_text() == "lr: ${base}\n"
    assert (run.path / "overrides.txt").read_text() == "lr=1e-4\n+run_name=x\n"
    run.write_config("lr: ${base}\n", resolved)  # again, as every resume does


def test_status_and_summary(tmp_path):
    run = opened(tmp_path / "run")
    run.set_status("running", step=7)
    run.set_status("failed", exit_code=1, message="out of memory", loss=float("nan"))
    now = status_of(run.path)
    assert now.pop("time").startswith("20")
    assert now == {
        "state": "failed",
        "pid": os.getpid(),
        "step": 7,
        "exit_code": 1,
        "message": "out of memory",
        "loss": None,
    }
    run.write_summary({"name": "eval/x", "value": 0.5, "goal": "max"}, steps=10, worst=float("inf"))
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == {"name": "eval/x", "value": 0.5, "goal": "max", "steps": 10, "worst": None}


def test_an_interrupted_installation_does_not_stop_a_launch(tmp_path, monkeypatch):
    for name, metadata in (
        ("empty", b""),
        ("unreadable", b"Name: \xff\nVersion: 1\n"),
        ("good", b"Name: x\nVersion: 7\n"),
    ):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.0.dist-info/METADATA").write_bytes(metadata)
    (tmp_path / "bare-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = describe_environment(source=tmp_path)["packages"]
    assert packages["x"] == "7"
    assert list(packages) == sorted(packages)
    assert {"empty", "unreadable", "bare", None}.isdisjoint(packages)


def test_environment(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    facts = describe_environment(argv=["pretrain.py", "lr=1"], data_cards=[{"hash": "x"}], source=tmp_path)
    assert facts["git"] is None
    assert facts["command"] == ["pretrain.py", "lr=1"]
    assert facts["torch"] == torch.__version__
    assert facts["packages"]["hydra-core"].startswith("1.3.")
    assert facts["data_cards"] == [{"hash": "x"}]
    assert {"python", "numpy", "platform", "cpu_count"} <= facts.keys()
    git("init", "-q")
    (tmp_path / "a.py").write_text("one\n")
    git("add", ".")
    git("commit", "-qm", "x", "--no-verify")
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "b.py").touch()
    state = describe_environment(source=tmp_path)["git"]
    assert len(state["commit"]) == 40
    assert "+two" in state["diff"]
    assert state["untracked"] == ["b.py"]
    run = opened(tmp_path / "run")
    run.write_environment(facts)
    assert json.loads((run.path / "environment.json").read_text()) == json.loads(json.dumps(facts))


# --- cutting back


@pytest.mark.parametrize(
    ("content", "size", "left", "warns"),
    [
        (b"aa\nbb\ncc\n", 6, b"aa\nbb\n", False),
        (b"aa\nbb\nc", 6, b"aa\nbb\n", False),
        (b"aa\nbb\n", 6, b"aa\nbb\n", False),
        (b"aa\nbb\n", 4, b"aa\n", False),
        (b"aa\nbb", 9, b"aa\n", True),
        (b"aa\n", 9, b"aa\n", True),
        (b"half", 9, b"", True),
        (b"aa\n", 0, b"", False),
        (b"x" * 70000 + b"\n" + b"y" * 140000, 210001, b"x" * 70000 + b"\n", False),
    ],
)
def test_truncate_to(tmp_path, capsys, content, size, left, warns):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    assert truncate_to(path, size) == len(left)
    assert path.read_bytes() == left
    assert ("warning" in capsys.readouterr().out) == warns


def test_cut_back_a_missing_file(tmp_path, capsys):
    assert truncate_to(tmp_path / "metrics.csv", 10) == truncate_to(tmp_path / "none.csv", 0) == 0
    output = capsys.readouterr().out
    assert "metrics.csv is missing" in output
    assert "none.csv" not in output
