"""Verdicts on disk: kept by code, settings and versions; a cache that cannot be used is no error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from verification import verdicts
from verification.finding import Finding
from verification.verdicts import Verdict

SEEN = Verdict([Finding("MOD420", "FAIL", "5", "forward does not branch", "branch", "models/a.py", 3)], {"task": "a@B"})


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_verdict_is_found_again() -> None:
    assert verdicts.load("a") is None
    verdicts.save("a", SEEN)
    assert verdicts.load("a") == SEEN


def test_what_could_not_be_built_is_not_kept() -> None:
    verdicts.save("a", Verdict(SEEN.findings))
    assert verdicts.load("a") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"findings": [{"code": 1}], "facts": {}}', '{"findings": 3}', "\0" * 9]
)
def test_a_damaged_file_is_ignored_and_replaced(text: str) -> None:
    verdicts.save("a", SEEN)
    (verdicts.folder() / "a.json").write_text(text, encoding="utf-8")
    assert verdicts.load("a") is None
    verdicts.save("a", SEEN)
    assert verdicts.load("a") == SEEN


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verdicts.save("a", SEEN)
    assert verdicts.load("a") is None


def test_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "MOST", 3)
    for number in range(6):
        verdicts.save(str(number), SEEN)
    assert len(list(verdicts.folder().glob("*.json"))) == 3
    assert verdicts.load("5") == SEEN


def test_the_key_follows_code_settings_and_script(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shutil.copytree(ROOT / "losses", root / "losses", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pretrain.py").write_text("", encoding="utf-8")
    keys = [verdicts.key_of("pretrain", {"arch": {"L_cycles": 1}}, root)]
    keys += [verdicts.key_of("pretrain", {"arch": {"L_cycles": 2}}, root)]
    keys += [verdicts.key_of("train", {"arch": {"L_cycles": 1}}, root)]
    with (root / "losses/act.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    verdicts.code.cache_clear()  # a process has the code that it has loaded
    keys += [verdicts.key_of("pretrain", {"arch": {"L_cycles": 1}}, root)]
    assert len(set(keys)) == 4
    assert all(key.isalnum() for key in keys)
