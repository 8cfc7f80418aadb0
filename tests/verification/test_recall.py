"""Answers on disk: kept by code, question and versions; a cache that cannot be used is not an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import ROOT
from verification import observed, recall
from verification.finding import Finding
from verification.recall import load, save
from verification.static import judge
from verification.subject import Request, Subject

SEEN = [{"code": "MOD420", "level": "FAIL"}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(recall, "MEMORY", {})


def test_a_question_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer() -> list[dict]:
        asked.append(1)
        return SEEN

    assert recall.recall(["q", 1], None) is None
    assert [recall.recall(["q", 1], answer) for _ in range(2)] == [SEEN, SEEN]
    monkeypatch.setattr(recall, "MEMORY", {})  # another process
    assert recall.recall(["q", 1], answer) == recall.recall(["q", 1], None) == SEEN
    assert len(asked) == 1
    recall.recall(["q", 2], answer, keep_if=lambda value: False)
    monkeypatch.setattr(recall, "MEMORY", {})
    assert recall.recall(["q", 2], None) is None


def test_a_kept_composition_resolves_in_a_process_that_composes_nothing() -> None:
    words = [sys.executable, "scripts/verify_path.py", "--static", "--script", "feedforward_train.py"]
    outputs = [subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert "interpolation" not in outputs[0]


@pytest.mark.parametrize("text", ["", "{", "\0" * 9])
def test_a_damaged_file_is_ignored_and_replaced(text: str) -> None:
    save("a", SEEN)
    (recall.folder() / "a.json").write_text(text, encoding="utf-8")
    assert load("a") is None
    save("a", SEEN)
    assert load("a") == SEEN
    shutil.rmtree(recall.folder())
    recall.folder().write_text("", encoding="utf-8")  # a cache that cannot be written
    save("a", SEEN)
    assert load("a") is None


def test_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MOST", 4)
    for number in range(6):
        save(str(number), SEEN)
    assert len(list(recall.folder().glob("*.json"))) <= 4
    assert load("5") == SEEN


def test_the_name_follows_code_and_question(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(ROOT / "losses", root / "losses", ignore=shutil.ignore_patterns("__pycache__"))
    names = [recall.key_of(["pretrain", {"L_cycles": number}], root) for number in (1, 2)]
    names.append(recall.key_of(["train", {"L_cycles": 1}], root))
    with (root / "losses/act.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    recall.code.cache_clear()  # a process has the code that it has loaded
    names.append(recall.key_of(["pretrain", {"L_cycles": 1}], root))
    assert len(set(names)) == 4
    assert all(name.isalnum() for name in names)


def test_many_instances_are_observed_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()

    def seen(subject: Subject, **how: object) -> list[dict]:
        assert os.getpid() != here
        return [asdict(Finding("SCR120", "PASS", "2", f"seen by {os.getpid()}"))]

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(observed, "_observe", seen)
    requests = [Request(argv=("python", "pretrain.py", f"arch.L_cycles={count}")) for count in (2, 3, 4, 5)]
    messages = [one.message for report in judge(requests, root=ROOT) for one in report.findings if one.code == "SCR120"]
    assert len(messages) == 4
    assert len(set(messages)) == 2
