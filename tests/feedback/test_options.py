"""Options of the feedback scripts on real runs: each changes what it names and nothing else, and such a run is read back,
resumed and sampled as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint.manifest import load_checkpoint
from engine.run.load_run import find_checkpoint
from tests.conftest import ROOT, run_script
from tests.feedback.conftest import BASES, adapter

SHORT = (
    "max_steps=2",
    "eval_max_examples=4",
    "num_samples=8",
    "temperature=1",
    "arch.init_std=0.3",
    "learning_rate=0.1",
    "min_lr=0.1",
    "arch.alpha=30",
)
OTHER = ("--active_dataset", "wikitext", "--ff_checkpoint_dir", BASES["gsm8k"], "arch.dropout=0.5")
OPTIONS = {
    "plain": (),
    "passes": ("arch.n_passes=2",),
    "scale": ("feedback.scale_rule=rank",),
    "added": ("arch.n_passes=2", "feedback.accumulate=true"),
    "grid": ("eval.t_grid=[0.3,0.8]",),
    "kept": ("feedback_every=4",),
    "other": OTHER,
    "gap": (*OTHER, f"indomain_checkpoint_dir={BASES['wikitext']}"),
}

pytestmark = pytest.mark.slow


def trained(place: Path, name: str) -> dict[str, torch.Tensor]:
    result = adapter(place, *SHORT, *OPTIONS[name], f"run_dir={name}")
    assert result.code == 0, result.output
    return load_checkpoint(find_checkpoint(place / name).path).model


def results(run: Path) -> dict[str, float]:
    return json.loads((run / "summary.json").read_text())["results"]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_smallest_settings(place: Path) -> None:
    """config/feedback_smoke.json: 20 steps of a base and of a hypernetwork on it."""
    words = ("--config", str(ROOT / "config/feedback_smoke.json"), "device=cpu", "--active_dataset")
    base = run_script("feedforward_train", *words, "wikitext", "run_dir=base", cwd=place)
    assert base.code == 0, base.output
    on = ("--ff_checkpoint_dir", "./base", "--ff_checkpoint_name", "epoch_ckpt_wikitext.pt", "--lora_rank", "2")
    made = run_script("feedbackward_rec_alt_train", *words, "gsm8k", *on, "run_dir=hyper", cwd=place)
    assert made.code == 0, made.output
    assert "note: model." not in made.output
    assert json.loads((place / "hyper/summary.json").read_text())["step"] == 20


def test_what_each_option_changes(place: Path) -> None:
    plain = trained(place, "plain")
    figures, text = results(place / "plain"), (place / "plain/samples/step_2.txt").read_text()
    assert not same(trained(place, "scale"), plain)
    assert not same(trained(place, "added"), trained(place, "passes"))
    assert same(trained(place, "grid"), plain)
    assert results(place / "grid")["eval/base_loss"] != figures["eval/base_loss"]
    assert same(trained(place, "kept"), plain)
    assert results(place / "kept") == pytest.approx(figures)
    assert (place / "kept/samples/step_2.txt").read_text().splitlines()[1:] != text.splitlines()[1:]
    assert (figures["eval/nfe"], results(place / "added")["eval/nfe"]) == (2, 3)
    assert same(trained(place, "gap"), trained(place, "other"))  # the base beside it draws nothing of the run's
    more = {"eval/gap_closed", "eval/indomain_loss", "val/gap_closed", "val/indomain_loss"}
    assert results(place / "gap").keys() - results(place / "other").keys() == more
    assert "val/gap_closed" in (place / "gap/log.txt").read_text()


def test_a_run_with_options_is_read_back_as_it_is(place: Path) -> None:
    """Evaluated as it evaluated itself, sampled with the deltas that it was trained with; not resumed as another one."""
    trained(place, "added")
    trained(place, "gap")
    for name in ("added", "gap"):
        again = run_script("scripts/evaluate", name, "--device", "cpu", "--json", str(place / "e.json"), cwd=place)
        assert again.code == 0, again.output
        stored = json.loads((place / "e.json").read_text())
        figures = {key: value for key, value in results(place / name).items() if key.startswith("eval/")}
        assert stored["results"] == pytest.approx(figures)
        assert stored["settings"]["eval_t_grid"] == 16
    (place / ".out/wikitext" / BASES["wikitext"]).unlink()
    again = run_script("scripts/evaluate", "gap", "--device", "cpu", cwd=place)
    assert again.code == 0, again.output
    assert "note: gap_closed is left out, indomain_checkpoint_dir=" in again.output
    assert "eval/indomain_loss" not in again.output
    for key, told in (("accumulate", "true in the checkpoint, false now"), ("scale_rule", "sqrt in the checkpoint")):
        value = {"accumulate": "false", "scale_rule": "none"}[key]
        other = adapter(place, f"arch.{key}={value}", "run_dir=added", "resume=true", "max_steps=3", "lora_rank=2")
        assert other.code == 2
        assert f"arch.{key}: {told}" in other.output
