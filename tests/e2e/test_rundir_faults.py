"""What happens to a run's folder: refused commands, a folder that goes away, disks that refuse, data cut short."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import engine.run.launch
from engine.errors import UsageError
from engine.run.environment import check_data
from tests.conftest import Result, _entry, metrics, run_forked, run_script, status_of
from tests.train.conftest import TINY, attempt, place, texts, train  # noqa: F401 (fixtures)

PRETRAIN = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "run_dir=r")


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `folder` but the data: time of change and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "data" not in path.relative_to(folder).parts and path.name != ".lock"
    }


def one_line(result: Result, code: int) -> str:
    lines = [line for line in result.output.splitlines() if line.startswith("error")]
    assert result.code == code, result.output
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


# --- a refused command leaves everything where it is


def test_a_prompt_that_the_vocabulary_lacks(place: Path) -> None:  # noqa: F811
    train(place)
    before = tree(place)
    sampling = ("max_sample_tokens=5", "sample_start_tokens=§", "learning_rate=2e-3")
    one_line(attempt(place, *sampling), 2)
    assert tree(place) == before
    assert [path.name for path in (place / "out").iterdir()] == ["r"]


def test_a_signal_while_the_folder_is_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def report(path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engine.run.launch, "report_run_dir", report)
    result = attempt(place)
    assert result.code == 3, result.output
    assert status_of(place / "out/r")["state"] == "interrupted"


def test_a_branch_off_a_checkpoint_of_another_model(workplace: Path) -> None:
    assert run_script("pretrain", *PRETRAIN, cwd=workplace).code == 0
    assert run_script("pretrain", *PRETRAIN[:3], "run_dir=other", "arch.hidden_size=16", cwd=workplace).code == 0
    before = tree(workplace)
    one_line(run_script("pretrain", *PRETRAIN, "resume_from=other/step_2", cwd=workplace), 2)
    assert tree(workplace) == before
    assert not (workplace / "r.1").exists()


def test_another_data_set_is_refused_at_a_resume(place: Path) -> None:  # noqa: F811
    train(place)
    before = {name: content for name, (_, content) in tree(place).items()}
    result = run_script("train", "--init_from=resume", "--out_dir=out/r", "--dataset=classes", cwd=place)
    assert "data/classes is not among the data that this run began with (data/plain)" in one_line(result, 2)
    assert {name: content for name, (_, content) in tree(place).items()} == before  # the run is still done


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"data/a": "1", "data/b": "2"}, None),
        ({"moved/a": "1", "data/b": "2"}, None),
        ({"data/a": "3", "data/b": "2"}, "data/a is not what this run began with (content hash 3, then 1)"),
        ({"data/c": "3", "data/b": "2"}, "data/c is not among the data that this run began with (data/a, data/b)"),
        ({"data/a": "1"}, "this run began with data/b too"),
    ],
)
def test_data_are_told_by_their_content(tmp_path: Path, cards: dict[str, str], message: str | None) -> None:
    began = [{"path": "data/a", "content_hash": "1"}, {"path": "data/b", "content_hash": "2"}]
    (tmp_path / "environment.json").write_text(json.dumps({"data_cards": began}))
    now = [{"path": path, "content_hash": content} for path, content in cards.items()]
    with contextlib.nullcontext() if message is None else pytest.raises(UsageError, match=re.escape(message)):
        check_data(tmp_path, {}, now)


KEPT = (
    "config.yaml",
    "config.resolved.yaml",
    "overrides.txt",
    "environment.json",
    "identity.json",
    "path_signature.json",
)


def test_a_resume_that_trains_nothing_keeps_the_stored_config(workplace: Path) -> None:
    assert run_script("pretrain", *PRETRAIN, cwd=workplace).code == 0
    before = {name: (workplace / "r" / name).read_bytes() for name in KEPT}
    again = ("resume=true", "run_dir=r", "lr=0.5", "device=cpu")
    result = run_script("pretrain", *again, cwd=workplace)
    assert result.code == 0, result.output
    assert "nothing is trained" in result.output
    assert {name: (workplace / "r" / name).read_bytes() for name in KEPT} == before
    assert run_script("pretrain", *again, "max_steps=3", cwd=workplace).code == 0
    assert all((workplace / "r" / name).read_bytes() != before[name] for name in KEPT[:5])


# --- the folder goes away while a run writes into it


def _at_step(script: str, argv: list[str], step: int, what: str, run: str) -> None:
    """Run a script; after `step` steps do `what` to its run directory."""
    from engine.loop.trainer import Trainer

    train_step = Trainer._train_step

    def acting(self: Trainer) -> None:
        train_step(self)
        if self.step == step:
            if what == "rename":
                os.rename(run, "elsewhere")
            elif what == "remove":
                shutil.rmtree(run)
            elif what == "empty":
                for path in Path(run).iterdir():
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            elif what == "replace":
                os.rename(run, "elsewhere")
                os.mkdir(run)

    Trainer._train_step = acting  # type: ignore[method-assign]
    _entry(script, argv)


@pytest.mark.parametrize(
    ("script", "what"), [("pretrain", "rename"), ("train", "remove"), ("pretrain", "empty"), ("train", "replace")]
)
def test_a_run_whose_folder_goes_away_says_so(workplace: Path, texts: Path, what: str, script: str) -> None:  # noqa: F811
    argv = [*PRETRAIN, "max_steps=6", "checkpoint_interval=2", "eval_interval=1", "epochs=4"]
    if script == "train":
        (workplace / "data").unlink()
        (workplace / "data").symlink_to(texts)
        argv = [*TINY, "out_dir=r"]
    result = run_forked(_at_step, script, argv, 5, what, "r", cwd=workplace)
    assert "was removed or renamed during the run" in one_line(result, 1)
    if what in ("rename", "replace"):
        assert status_of(workplace / "elsewhere")["state"] == "failed"
    assert not (workplace / "r").exists() or os.listdir(workplace / "r") in ([], ["status.json"])


# --- data cut short under a run


def _cut_short(script: str, argv: list[str], files: list[str]) -> None:
    from engine.loop.trainer import Trainer

    train_step = Trainer._train_step

    def acting(self: Trainer) -> None:
        train_step(self)
        if self.step == 3:
            for file in files:
                os.truncate(file, 16)

    Trainer._train_step = acting  # type: ignore[method-assign]
    _entry(script, argv)


@pytest.mark.parametrize("file", ["train.bin", "val.bin"])
def test_a_text_that_is_cut_short_under_a_run(tmp_path: Path, texts: Path, file: str) -> None:  # noqa: F811
    shutil.copytree(texts, tmp_path / "data")
    result = run_forked(_cut_short, "train", [*TINY], [f"data/plain/{file}"], cwd=tmp_path)
    line = one_line(result, 1)
    assert f"data/plain/{file} was cut short while it was in use (16 bytes" in line
    assert status_of(tmp_path / "out/r")["state"] == "failed"


@pytest.mark.parametrize("file", ["train/all__inputs.npy", "test/all__labels.npy"])
def test_a_grid_that_is_cut_short_under_a_run(tmp_path: Path, tiny_data: Path, file: str) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    argv = [*PRETRAIN, "max_steps=6", "epochs=4"]
    result = run_forked(_cut_short, "pretrain", argv, [f"data/debug-sudoku-4x4/{file}"], cwd=tmp_path)
    assert "was cut short while it was in use" in one_line(result, 1)


# --- disks that refuse


def _failing_at(script: str, argv: list[str], name: str, code: int) -> None:
    """Run a script on a disk that refuses to write any file called `name`."""
    replace = os.replace

    def refuse(old, new, **keys) -> None:
        if Path(new).name == name:
            raise OSError(code, os.strerror(code))
        replace(old, new, **keys)

    os.replace = refuse
    _entry(script, argv)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("identity.json", errno.EACCES),
        ("status.json", errno.EROFS),
        ("config.yaml", errno.ENOSPC),
        ("summary.json", errno.ENOSPC),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(workplace: Path, name: str, code: int) -> None:
    result = run_forked(_failing_at, "pretrain", [*PRETRAIN], name, code, cwd=workplace)
    assert result.code in (1, 2), result.output
    assert os.strerror(code) in one_line(result, result.code)
    again = run_script("pretrain", *PRETRAIN, cwd=workplace)
    assert again.code == 0, again.output
    assert status_of(workplace / "r")["state"] == "done"


def _building_on_a_full_disk(argv: list[str], text: str) -> None:
    import numpy as np

    def refuse(*_: object, **__: object) -> None:
        raise OSError(text) if text else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    np.save = refuse
    _entry("pretrain", argv)


@pytest.mark.parametrize("text", ["", "4096 requested and 100 written"])
def test_a_disk_that_is_full_while_data_are_built(tmp_path: Path, text: str) -> None:
    result = run_forked(_building_on_a_full_disk, [*PRETRAIN], text, cwd=tmp_path)
    line = one_line(result, 1)
    assert "No space left on device" in line
    assert "data" in line
    assert not (tmp_path / "r").exists()
    assert run_script("pretrain", *PRETRAIN, cwd=tmp_path).code == 0
    assert metrics(tmp_path / "r")
