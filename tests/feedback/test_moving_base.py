"""A hypernetwork whose base trains on: the name epoch_ckpt_<dataset>.pt moves, the checkpoint that it stood for counts."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tasks.feedback.base import is_moving, location_hint
from tests.conftest import run_script
from tests.feedback.conftest import BASES, adapter, attempt


def test_the_base_of_a_hypernetwork_may_train_on(place: Path) -> None:
    """Resume, evaluation and samples use the checkpoint of the training while it is there; then they say what to do."""
    base = place / "base"
    trained = partial(attempt, place, "feedforward_train", "active_dataset=gsm8k", "run_dir=base")
    assert trained("max_steps=2").code == 0
    words = ("run_dir=hyper", "--ff_checkpoint_dir", "./base")
    made = adapter(place, *words, "max_steps=1", script="feedbackward_rec_alt_train")
    assert made.code == 0, made.output
    assert "note: ff_checkpoint_name=epoch_ckpt_gsm8k.pt is a link that moves" in made.output
    assert "it now points to step_2" in made.output
    before = json.loads((place / "hyper/summary.json").read_text())["results"]
    assert trained("max_steps=3", "resume=true").code == 0
    assert (base / "epoch_ckpt_gsm8k.pt").resolve().name == "step_3"

    evaluated = run_script("scripts/evaluate", "hyper", "--device", "cpu", "--json", "again.json", cwd=place)
    assert evaluated.code == 0, evaluated.output
    after = json.loads((place / "again.json").read_text())["results"]
    assert after["eval/base_loss"] == pytest.approx(before["eval/base_loss"], rel=1e-6)
    sampled = run_script("scripts/sample", "hyper", "--device", "cpu", "--max-new-tokens", "2", cwd=place)
    assert sampled.code == 0, sampled.output
    resumed = adapter(place, *words, "--resume", "True", "max_steps=2", script="feedbackward_rec_alt_train")
    assert resumed.code == 0, resumed.output
    assert "base/checkpoints/step_2 (step 2), on which this run was trained: epoch_ckpt_gsm8k.pt has" in resumed.output
    last = json.loads((place / "hyper/summary.json").read_text())["results"]
    assert last["eval/base_loss"] == pytest.approx(before["eval/base_loss"], rel=1e-6)
    named = adapter(place, *words, "--ff_checkpoint_name", "step_3", "--resume", "True", "max_steps=3")
    assert named.code == 2  # asked for by its step

    shutil.rmtree(base / "checkpoints/step_2")
    for refused in (
        adapter(place, *words, "--resume", "True", "max_steps=3", script="feedbackward_rec_alt_train"),
        run_script("scripts/evaluate", "hyper", "--device", "cpu", cwd=place),
        run_script("scripts/sample", "hyper", "--device", "cpu", cwd=place),
    ):
        assert refused.code == 2
        assert "is another base" in refused.output
        assert "which no longer exists: restore it from a copy" in refused.output
        assert "keep_every" in refused.output


def test_links_that_move(tmp_path: Path, bases: Path) -> None:
    run = bases / ".out/gsm8k" / BASES["gsm8k"]
    names = ("epoch_ckpt_gsm8k.pt", "best_ckpt_gsm8k.pt", "epoch_ckpt_gsm8k_2.pt", "step_8", "checkpoints/step_8")
    (tmp_path / "epoch_ckpt_data_2.pt").symlink_to("step_1")
    assert [is_moving(run / name) for name in names] == [True, True, False, False, False]
    assert is_moving(tmp_path / "epoch_ckpt_data_2.pt")
    assert location_hint(run / "step_8", "0") == ""
