"""Runs of the feedback scripts: layout, flags, resume bit for bit, ranks, refusals."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dataset.text.build import TextBuild, build
from engine.checkpoint.manifest import load_checkpoint
from engine.errors import UsageError
from engine.io import sha256_file
from engine.run.load_run import find_checkpoint, read_config
from models.feedback.adapter_config import HyperConfig
from tasks.feedback.args import FeedforwardConfig
from tasks.feedback.base import location_hint, require_same, weight_hashes
from tasks.feedback.task import FeedbackTask
from tests.conftest import ROOT, metrics, run_ranks, run_script
from tests.e2e.test_ranks import compare_weights
from tests.feedback.conftest import BASES, adapter, attempt, runs


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def test_layout_of_a_base(bases: Path) -> None:
    run = bases / ".out/gsm8k" / BASES["gsm8k"]
    assert (run / "epoch_ckpt_gsm8k.pt").resolve() == (run / "checkpoints/step_8").resolve()
    assert (run / "best_ckpt_gsm8k.pt").is_symlink()
    table = rows(run)
    assert list(table[0]) == ["type", "epoch", "loss", "lr", "step"]
    assert [(row["type"], row["epoch"], row["step"]) for row in table] == [
        ("train", "1", "4"),
        ("val", "1", "4"),
        ("train", "2", "8"),
        ("val", "2", "8"),
        ("test", "2", "8"),
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["name"] == "val/loss"
    assert float(table[-1]["loss"]) == summary["results"]["eval/loss"]
    log = (run / "log.txt").read_text()
    assert "tokenizer byte, vocabulary 257" in log
    assert "epoch 2 step 8" in log
    kept = json.loads((run / "vocabularies.json").read_text())["vocabularies"][0]
    assert kept["size"] == 257


def test_checkpoints_of_epochs_are_kept_by_number(place: Path) -> None:
    """Of 5 epochs every second one; a pruned checkpoint leaves no link behind."""
    words = ("epochs.gsm8k=5", "save_epoch_interval=2", "keep_last=1", "select_on=test", "num_samples=0")
    assert attempt(place, "feedforward_train", "active_dataset=gsm8k", *words).code == 0
    run = next(run for run in runs(place, "gsm8k", "ff_model") if run.name not in BASES.values())
    best = (run / "best_ckpt_gsm8k.pt").resolve().name
    named = {link.name: link.resolve().name for link in run.glob("epoch_ckpt_*")}
    numbered = {
        f"epoch_ckpt_gsm8k_{n}.pt": f"step_{4 * n}" for n in range(1, 6) if n in (2, 4, 5) or best == f"step_{4 * n}"
    }
    assert named == {"epoch_ckpt_gsm8k.pt": "step_20", **numbered}
    assert [row["type"] for row in rows(run)] == ["train", "val"] * 5


def test_a_run_that_stops_early_has_the_figures_of_the_test_split(place: Path) -> None:
    words = ("early_stop_patience=1", "early_stop_min_delta=9", "eval_interval=2", "run_dir=early")
    result = attempt(place, "feedforward_train", "active_dataset=gsm8k", *words)
    assert result.code == 0, result.output
    summary = json.loads((place / "early/summary.json").read_text())
    assert (summary["step"], summary["stopped_early"]) == (4, True)
    assert {"val/loss", "eval/loss", "eval/parameters"} <= summary["results"].keys()
    table = rows(place / "early")
    assert [(row["type"], row["step"]) for row in table[2:]] == [("train", "4"), ("val", "4"), ("test", "4")]
    assert float(table[-1]["loss"]) == summary["results"]["eval/loss"]


def test_the_published_table_is_not_that_of_enable_csv(place: Path) -> None:
    """It says that it does nothing, and no other table stands in its place before the first evaluation."""
    words = ("active_dataset=gsm8k", "enable_csv=true", "max_steps=1", "run_dir=table")
    result = attempt(place, "feedforward_train", *words)
    assert result.code == 0, result.output
    assert "enable_csv is overridden without effect: metrics.csv is the published table" in result.output
    assert [row["type"] for row in rows(place / "table")] == ["train", "val", "test"]
    config = read_config(find_checkpoint(place / "table"), FeedforwardConfig, device="cpu")
    assert config.enable_csv is False


def test_a_new_run_is_named_after_its_time(place: Path) -> None:
    assert attempt(place, "feedforward_train", "active_dataset=gsm8k", "max_steps=1").code == 0
    assert re.fullmatch(r"ff_model_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", runs(place, "gsm8k", "ff_model")[-1].name)


@pytest.mark.parametrize("script", ["feedbackward_alt_train", "feedbackward_rec_alt_train"])
def test_hypernetworks_leave_their_base_alone(place: Path, script: str) -> None:
    result = adapter(place, "--feedback_reverse", "True", "max_steps=4", script=script)
    assert result.code == 0, result.output
    (run,) = runs(place, "gsm8k", "fb_rec_model" if "rec" in script else "fb_model")
    checkpoint = load_checkpoint(run / "epoch_ckpt_gsm8k.pt")
    assert checkpoint.config["arch"]["feedback_reverse"] is True
    assert checkpoint.config["arch"]["lora_rank"] == 2
    assert not any(name.startswith("wte") for name in checkpoint.model)
    table = rows(run)
    assert list(table[0]) == ["type", "epoch", "loss", "loss_lora", "rel_change", "lr", "step"]
    assert table[1]["type"] == "val"
    base = rows(place / ".out/gsm8k" / BASES["gsm8k"])[3]
    assert float(table[1]["loss"]) == pytest.approx(float(base["loss"]), rel=1e-6)  # the same masks


@pytest.mark.parametrize(
    ("budget", "at", "larger"),
    [
        ("max_steps=3", 3, "max_steps=null"),
        pytest.param("max_seconds=1e-9", 1, "max_seconds=null", marks=pytest.mark.slow),
    ],
)
def test_resume_is_exact(place: Path, budget: str, at: int, larger: str) -> None:
    """8 steps at once, and some (inside an epoch) and the rest: weights, metrics, table and log."""
    whole = adapter(place, "fb_run_name=whole")
    assert whole.code == 0, whole.output
    assert adapter(place, "fb_run_name=parts", budget, "eval_interval=4").code == 0
    resumed = adapter(place, "fb_run_name=parts", "--resume", "True", larger)
    assert resumed.code == 0, resumed.output
    assert f"resuming from step_{at}" in resumed.output
    words = ("--active_dataset", "gsm8k", "--resume", "True", "--checkpoint_dir", runs(place, "gsm8k", "parts")[0].name)
    other = attempt(place, "feedforward_train", *words)
    assert other.code == 2
    assert "is a run of feedbackward_alt_train.py, not of feedforward_train.py" in errors(other.output)[0]
    (left,), (right,) = runs(place, "gsm8k", "whole"), runs(place, "gsm8k", "parts")
    ours, theirs = (load_checkpoint(run / "epoch_ckpt_gsm8k.pt").model for run in (left, right))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert [row for row in metrics(left) if row["step"] > 3 and "train/loss" in row] == [
        row for row in metrics(right) if row["step"] > 3 and "train/loss" in row
    ]
    assert rows(left)[-1] == rows(right)[-1]


def test_a_state_may_be_older_than_a_key() -> None:
    """What it does not set had the default of today; what it sets has to be the same."""
    task = FeedbackTask.__new__(FeedbackTask)
    task.model, task.runtime = SimpleNamespace(config=HyperConfig(alpha=2.0)), SimpleNamespace(rank=0)
    task.base, task._sums = None, torch.zeros(2, 2)
    arch = {name: value for name, value in task._arch.items() if name not in ("scale_rule", "accumulate")}
    assert len(arch) == len(task._arch) - 2
    task.load_state_dict({"step": 3, "history": [], "sums": torch.ones(2, 2), "arch": arch})
    assert task._step == 3
    for other in ({"alpha": 1.0}, {"scale_rule": "rank"}):
        with pytest.raises(ValueError, match="another architecture"):
            task.load_state_dict({"step": 3, "history": [], "sums": torch.ones(2, 2), "arch": {**arch, **other}})


def test_two_ranks_are_one(place: Path) -> None:
    words = ("--config", "small.json", "--active_dataset", "gsm8k", "--lora_rank", "2", "--ff_checkpoint_dir")
    words += (BASES["gsm8k"], "--ff_checkpoint_name", "epoch_ckpt_gsm8k.pt", "max_steps=4")
    run_ranks("feedbackward_rec_alt_train", *words, "fb_rec_run_name=two", cwd=place, ranks=2)
    assert adapter(place, "max_steps=4", "fb_rec_run_name=one", script="feedbackward_rec_alt_train").code == 0
    (one,), (two,) = runs(place, "gsm8k", "one"), runs(place, "gsm8k", "two")
    ours, theirs = (load_checkpoint(run / "epoch_ckpt_gsm8k.pt").model for run in (one, two))
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-5 for name in ours)
    for left, right in zip(rows(one), rows(two), strict=True):
        assert float(left["loss_lora"]) == pytest.approx(float(right["loss_lora"]), rel=1e-5)
    last, other = (
        {name: value for line in metrics(run) for name, value in line.items() if name.startswith("eval/") and value}
        for run in (one, two)
    )
    assert {"eval/nll_pass1", "eval/shuffled_nll", "eval/mean_nll", "eval/delta_nll_se"} <= last.keys()
    assert last == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert last["eval/zero_nll"] == pytest.approx(last["eval/base_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_sharded_base_is_that_of_one_process(place: Path) -> None:
    words = ("--config", "small.json", "--active_dataset", "gsm8k", "ema=true", "grad_clip=0.5")
    for result in run_ranks("feedforward_train", *words, "run_dir=two", "parallel=fsdp", cwd=place, ranks=2):
        assert result.code == 0, result.output
    assert run_script("feedforward_train", *words, "run_dir=one", cwd=place).code == 0
    compare_weights(place / "two", place / "one", 1e-5)
    refused = adapter(place, "parallel=fsdp")
    assert refused.code == 2
    assert "only train.py and feedforward_train.py take it" in refused.output.splitlines()[-1]


@pytest.mark.parametrize("script", ["feedforward_train", "feedbackward_alt_train"])
def test_what_a_run_will_cost(place: Path, script: str) -> None:
    base = ("--ff_checkpoint_dir", BASES["gsm8k"], "--ff_checkpoint_name", "epoch_ckpt_gsm8k.pt", "--lora_rank", "2")
    words = ("--config", "small.json", "--active_dataset", "gsm8k", *(base if "back" in script else ()))
    result = run_script("scripts/estimate", "--probe-steps", "1", "--", "python", f"{script}.py", *words, cwd=place)
    assert result.code == 0, result.output
    assert "1 timed" in result.output
    assert len(runs(place, "gsm8k", "fb_model")) + len(runs(place, "gsm8k", "ff_model")) == 1  # the base


def test_both_styles_are_one_experiment(place: Path) -> None:
    """Flags and Hydra's words give the same identity, in any order; the command line wins over the file."""
    assert (
        attempt(place, "feedforward_train", "--active_dataset", "gsm8k", "--batch_size", "4", "max_steps=1").code == 0
    )
    words = ("active_dataset=gsm8k", "training.batch_size=4", "max_steps=1")
    assert attempt(place, "feedforward_train", *words, "model.n_layer=2").code == 0
    made = [run for run in runs(place, "gsm8k", "ff_model") if run.name not in BASES.values()]
    identities = {json.loads((run / "identity.json").read_text())["identity"] for run in made}
    assert len(identities) == 1
    assert load_checkpoint(made[0] / "checkpoints/step_1").config["batch_size"] == 4


def test_a_run_to_resume_by_any_name(place: Path) -> None:
    """A bare name, a relative path, an absolute one; a checkpoint of it; the newest where none is named."""
    assert attempt(place, "feedforward_train", "--active_dataset", "wikitext", "max_steps=1").code == 0
    run = next(run for run in runs(place, "wikitext", "ff_model") if run.name not in BASES.values())
    for number, name in enumerate((run.name, f".out/wikitext/{run.name}", str(run.absolute()), None)):
        chosen = () if name is None else ("--checkpoint_dir", name, "--checkpoint_name", "epoch_ckpt_wikitext.pt")
        words = ("--active_dataset", "wikitext", "--resume", "True", *chosen, f"max_steps={number + 2}")
        result = attempt(place, "feedforward_train", *words)
        assert result.code == 0, result.output
        assert (run / "epoch_ckpt_wikitext.pt").resolve().name == f"step_{number + 2}"


JUDGED = "evaluators=[{name: final_number@FinalNumber}]"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "active_dataset is required and has no value: choose a key of datasets, gsm8k, wikitext"),
        (["--active_dataset", "gsm8"], "not a key of datasets, which has gsm8k, wikitext: did you mean 'gsm8k'"),
        (["--active_dataset", "gsm8k", "--config", "gone.json"], "--config gone.json cannot be read"),
        (["--active_dataset", "gsm8k", "--checkpoint_dir", "x"], "add --resume True"),
        (["--active_dataset", "gsm8k", "--resume", "True", "--checkpoint_dir", "x"], "no checkpoint in .out/gsm8k/x"),
        (["--active_dataset", "gsm8k", "--resume", "True", "--checkpoint_name", "x"], "epoch_ckpt_gsm8k.pt"),
        (["--active_dataset", "gsm8k", "datasets.gsm8k.block_size=1024"], "arch.block_size=512"),
        (["--active_dataset", "gsm8k", "arch=feedbackward"], "DATA_MODE"),
        (["--active_dataset", "gsm8k", "epochs.gsm8k=0"], "epochs.gsm8k=0"),
        (
            ["--active_dataset", "gsm8k", "eval_t_grid=0"],
            "eval_t_grid=0: expected a number of levels from 1 to 4096, or",
        ),
        (["--active_dataset", "gsm8k", "eval.t_grid=[0.5,1.5]"], "eval.t_grid=[0.5, 1.5]: expected a number of levels"),
        (
            ["--active_dataset", "gsm8k", "eval_t_grid=few"],
            "eval_t_grid: expected integer or list of number, got 'few'",
        ),
        (["--active_dataset", "gsm8k", "ff_run_name=a/b"], "ff_run_name='a/b': expected what begins a folder's name"),
        (["--active_dataset", "gsm8k", "datasets.gsm8k.path=gone"], "error: data set gone does not exist"),
        (["--active_dataset", "gsm8k", "datasets.gsm8k.block_size=4", JUDGED], "none of the"),
    ],
)
def test_unusable_commands_of_a_base(place: Path, argv: list[str], expected: str) -> None:
    result = attempt(place, "feedforward_train", *argv)
    assert result.code == 2, result.output
    (line,) = errors(result.output)
    assert expected in line
    assert ("device " in result.output) == (
        expected in ("arch.block_size=512", "none of the")
    )  # the rest is known without a model


def test_a_single_document_cannot_be_held_back(place: Path) -> None:
    (place / "one.txt").write_text("a line of text\nanother line")
    plan = TextBuild(
        output_dir=place / "one",
        inputs=(place / "one.txt",),
        source="test",
        tokenizer="byte",
        lines=True,
        val_fraction=0.5,
    )
    build(plan)
    result = attempt(place, "feedforward_train", "--active_dataset", "gsm8k", "datasets.gsm8k.path=one")
    assert result.code == 2
    assert "one trains on a single document, so none can be held back: add select_on=test" in errors(result.output)[0]


def test_a_data_set_of_ones_own_is_resumed_by_its_name(place: Path) -> None:
    """No recipe has it: the run to be resumed does."""
    own = (f"datasets.mine.{word}" for word in ("name=gsm8k", "path=data/gsm8k_byte", "block_size=48"))
    begun = attempt(place, "feedforward_train", "--active_dataset", "mine", *own, "max_steps=1")
    assert begun.code == 0, begun.output
    words = ("--active_dataset", "mine", "--resume", "True", "max_steps=2")
    result = run_script("feedforward_train", *words, cwd=place)
    assert result.code == 0, result.output
    assert "resuming from step_1" in result.output
    refused = run_script("feedforward_train", *words, "--checkpoint_dir", "gone", cwd=place)
    message = "checkpoint_dir=gone: nothing to resume: no checkpoint in .out/mine/gone: choose one of ff_model_"
    assert message in errors(refused.output)[0]


def test_nothing_to_resume(tmp_path: Path) -> None:
    result = run_script("feedforward_train", "--active_dataset", "wikitext", "--resume", "True", cwd=tmp_path)
    assert result.code == 2
    assert "nothing to resume: no checkpoint in any .out/wikitext/ff_model_* of this" in errors(result.output)[0]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("named", "searched"),
    [
        ((), "any .out/wikitext/fb_model_*"),
        (("--fb_checkpoint_dir", "gone"), ".out/wikitext/gone"),
        (("--fb_checkpoint_dir", "a/gone"), "a/gone"),
    ],
)
def test_no_hypernetwork_to_resume(tmp_path: Path, named: tuple[str, ...], searched: str) -> None:
    words = ("--active_dataset", "wikitext", "--resume", "True", *named)
    result = run_script("feedbackward_alt_train", *words, cwd=tmp_path)
    assert result.code == 2
    (line,) = errors(result.output)
    assert f"nothing to resume: no run in {searched}; a new one, without resume, needs ff_checkpoint_dir, " in line


PUBLISHED = {
    "datasets": {
        "gsm8k": {"name": "gsm8k", "config_name": "main", "block_size": 48, "max_seq_length": 4096},
        "wikitext": {"name": "wikitext", "config_name": "wikitext-2-raw-v1", "block_size": 48, "max_seq_length": 4096},
    },
    "model": {"n_layer": 8, "n_head": 8, "n_embd": 256, "dropout": 0.1, "lora_rank": None, "feedback_reverse": None},
    "diffusion": {"generation_steps": 10, "eps": 0.001},
    "training": {
        "epochs": {"gsm8k": 100, "wikitext": 100},
        "batch_size": 64,
        "learning_rate": 3e-4,
        "decay_lr": True,
        "warmup_ratio": 0.1,
        "min_lr": 3e-5,
        "grad_clip": 1.0,
        "device": "cuda:0",
        "dtype": "bfloat16",
        "compile": True,
        "eval_interval": 250,
        "eval_save_multiple": 5,
        "log_interval": 100,
        "save_best_ckpt": True,
        "save_multiple_eval_interval": True,
        "save_epoch": True,
        "save_epoch_interval": 10,
        "out_dir": ".out",
        "ff_run_name": "ff_model",
        "fb_run_name": "fb_model",
        "ft_run_name": "ft_model",
        "fb_rec_run_name": "fb_rec_model",
        "log_file_name": "log.txt",
        "csv_file_name": "metrics.csv",
    },
}
"""The published config.json, but for the tokenizer."""


@pytest.mark.parametrize("script", ["feedforward_train", "feedbackward_alt_train", "feedbackward_rec_alt_train"])
def test_the_published_config_is_a_config(tmp_path: Path, script: str) -> None:
    (tmp_path / "published.json").write_text(json.dumps(PUBLISHED))
    words = ["--config", "published.json", "--active_dataset", "gsm8k", "device=cpu", "--cfg", "job"]
    needed = ["--ff_checkpoint_dir", "a", "--ff_checkpoint_name", "b", "--lora_rank", "4"]
    result = run_script(script, *words, *(needed if "back" in script else []), cwd=tmp_path)
    assert result.code == 0, result.output
    assert "eval_interval: 250" in result.output
    assert "forward_dtype: bfloat16" in result.output


def test_a_published_key_with_another_value_is_refused(tmp_path: Path) -> None:
    other = {**PUBLISHED, "training": {**PUBLISHED["training"], "save_best_ckpt": False}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = run_script("feedforward_train", "--config", "other.json", "--active_dataset", "gsm8k", cwd=tmp_path)
    assert result.code == 2
    assert "'training.save_best_ckpt': the best and the newest checkpoint are always kept" in errors(result.output)[0]


def test_more_passes_than_were_trained(place: Path) -> None:
    trained = adapter(place, "max_steps=2", "run_dir=hyper")
    assert trained.code == 0, trained.output
    figures = {}
    for steps in ((), ("--steps", "3")):
        result = run_script("scripts/evaluate", "hyper", "--device", "cpu", *steps, cwd=place)
        assert result.code == 0, result.output
        file = "evaluation_step_2_steps-3.json" if steps else "evaluation_step_2.json"
        written = json.loads((place / "hyper" / file).read_text())
        assert written["settings"]["arch.n_passes"] == (3 if steps else 1)
        figures[steps] = {name: value for name, value in written["results"].items() if "nll_pass" in name}
    one, more = figures.values()
    assert list(more) == [f"eval/nll_pass{number}" for number in range(4)]
    assert {name: more[name] for name in one} == one
    base = run_script("scripts/evaluate", f".out/gsm8k/{BASES['gsm8k']}", "--steps", "3", cwd=place)
    assert base.code == 2
    assert "--steps has no meaning for a run of feedforward_train.py" in base.output


@pytest.mark.parametrize(
    ("arch", "flag", "why"),
    [
        (
            "attn_finetune",
            "--lora_rank=4",
            "unknown key 'lora_rank': this architecture trains whole matrices: leave it",
        ),
        ("static_lora", "training.dtype=float32", "'training.dtype': this architecture computes in its base's dtype"),
    ],
)
def test_what_a_baseline_does_not_have(place: Path, arch: str, flag: str, why: str) -> None:
    needed = ("--ff_checkpoint_dir", BASES["gsm8k"], "--ff_checkpoint_name", "epoch_ckpt_gsm8k.pt", "--lora_rank=2")
    result = attempt(place, "feedbackward_alt_train", "--active_dataset", "gsm8k", *needed, f"arch={arch}", flag)
    assert result.code == 2
    assert why in errors(result.output)[0]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("--lora_rank", "lora_rank is required"),
        ("--ff_checkpoint_dir", "ff_checkpoint_dir is required"),
        ("--ff_checkpoint_name", "ff_checkpoint_name is required"),
        ("--active_dataset", "active_dataset is required"),
    ],
)
def test_missing_flags_fail_before_any_data_is_read(tmp_path: Path, missing: str, expected: str) -> None:
    flags = {"--active_dataset": "gsm8k", "--ff_checkpoint_dir": "a", "--ff_checkpoint_name": "b", "--lora_rank": "4"}
    words = [word for flag, value in flags.items() if flag != missing for word in (flag, value)]
    result = run_script("feedbackward_alt_train", *words, cwd=tmp_path)
    assert result.code == 2
    assert expected in errors(result.output)[0]
    assert not list(tmp_path.iterdir())


def test_a_base_that_does_not_fit_is_refused(place: Path, documents: Path) -> None:
    other = ("--ff_checkpoint_dir", "ff_model_2025-08-17_12-00-00", "--ff_checkpoint_name", "epoch_ckpt_wikitext.pt")
    assert adapter(place, "max_steps=1").code == 0
    resumed = adapter(place, "--resume", "True", "max_steps=2", *other)
    assert resumed.code == 2
    assert "is another base (sha256" in errors(resumed.output)[0]
    ranked = adapter(place, "--resume", "True", "max_steps=2", "--lora_rank", "4")
    assert ranked.code == 2
    assert "lora_rank: 2 in the checkpoint, 4 now" in errors(ranked.output)[0]
    turned = adapter(place, "--resume", "True", "max_steps=2", "--feedback_reverse", "True")
    assert turned.code == 2
    assert "feedback_reverse: false in the checkpoint, true now" in errors(turned.output)[0]
    foreign = adapter(place, "indomain_checkpoint_dir=ff_model_2025-08-17_12-00-00", "--resume", "False")
    assert foreign.code == 2
    assert "error: indomain_checkpoint_name=best_ckpt_gsm8k.pt: there is no such checkpoint in " in foreign.output
    named = ("indomain_checkpoint_dir=ff_model_2025-08-17_12-00-00", "indomain_checkpoint_name=step_10")
    foreign = adapter(place, *named, "--resume", "False")
    assert foreign.code == 2
    assert "was trained on wikitext, expected a base of active_dataset=gsm8k" in errors(foreign.output)[0]
    gone = adapter(place, "--ff_checkpoint_dir", "ff_model_gone")
    assert gone.code == 2
    assert "ff_model_2025-08-17_1" in errors(gone.output)[0]
    copy, source = place / "copy", place / ".out/gsm8k" / BASES["gsm8k"]
    shutil.copytree(source / "checkpoints/step_8", copy / "checkpoints/step_8")
    (copy / "epoch_ckpt_gsm8k.pt").symlink_to("checkpoints/step_9")
    dangling = adapter(place, "--ff_checkpoint_dir", "./copy")
    assert dangling.code == 2
    assert (
        "copy/epoch_ckpt_gsm8k.pt links to checkpoints/step_9, which is gone: choose one of step_8" in dangling.output
    )
    kept = json.loads((source / "vocabularies.json").read_text())
    kept["vocabularies"][0] |= {"state": {"type": "char", "chars": ["a"], "eot": True}, "size": 2}
    (copy / "vocabularies.json").write_text(json.dumps(kept))
    tokens = adapter(place, "--ff_checkpoint_dir", "./copy", "--ff_checkpoint_name", "step_8")
    assert tokens.code == 2
    assert "reads tokens of 'char' (2, " in errors(tokens.output)[0]
    assert "in tokens of 'byte' (257, data/gsm8k_byte)" in errors(tokens.output)[0]


def test_a_base_that_was_set_aside_is_found(tmp_path: Path) -> None:
    for name, content in (("b", "new"), ("b.1", "old"), ("c.1", "else")):
        (tmp_path / name / "checkpoints/step_1").mkdir(parents=True)
        (tmp_path / name / "checkpoints/step_1/model.safetensors").write_text(content)
    old = tmp_path / "b.1/checkpoints/step_1"
    (tmp_path / "b/step_1").symlink_to("checkpoints/step_1")
    assert location_hint(tmp_path / "b/step_1", sha256_file(old / "model.safetensors")) == f", which is in {old}"
    assert (
        location_hint(tmp_path / "b/step_1", sha256_file(tmp_path / "c.1/checkpoints/step_1/model.safetensors")) == ""
    )


@pytest.mark.slow
def test_a_base_of_other_averages_is_another_base(place: Path) -> None:
    """Two bases that differ in ema_rate alone, so in their averaged weights, which an adapter reads."""
    words = ("active_dataset=gsm8k", "max_steps=2", "ema=true")
    for rate in ("0.5", "0.9"):
        assert attempt(place, "feedforward_train", *words, f"ema_rate={rate}", f"run_dir=base{rate}").code == 0
    folders = [place / f"base{rate}/checkpoints/step_2" for rate in ("0.5", "0.9")]
    first, second = map(weight_hashes, folders)
    assert first["model.safetensors"] == second["model.safetensors"]
    named = ("max_steps=2", "run_dir=adapter", "--ff_checkpoint_dir")
    assert adapter(place, *named, "./base0.5", "max_steps=1").code == 0
    resumed = adapter(place, *named, "./base0.9", "--resume", "True")
    assert resumed.code == 2
    assert "base0.9/epoch_ckpt_gsm8k.pt is another base (sha256" in errors(resumed.output)[0]
    shutil.rmtree(place / "base0.5/checkpoints/step_2")
    shutil.copytree(folders[1], place / "base0.5/checkpoints/step_2")
    assert "base0.5/epoch_ckpt_gsm8k.pt is another base" in run_script("scripts/evaluate", "adapter", cwd=place).output
    old = {"path": "x", "sha256": first["model.safetensors"]}  # by an earlier version
    require_same(folders[1], second, old)
    with pytest.raises(UsageError):
        require_same(folders[1], second, {**old, "file": "model.safetensors"})  # of a base without averages
    assert location_hint(place / "base0.9/x/y", second["ema.safetensors"]) == f", which is in {folders[1]}"


def test_a_wrong_base_is_noticed_before_data_are_built(tmp_path: Path) -> None:
    words = ("--active_dataset", "gsm8k", "--ff_checkpoint_dir", "a", "--ff_checkpoint_name", "b", "--lora_rank", "4")
    result = run_script("feedbackward_alt_train", *words, cwd=tmp_path)
    assert result.code == 2
    assert "ff_checkpoint_dir=a: there is no such run in .out/gsm8k (nor in any .out/*)" in errors(result.output)[0]
    assert "device " not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_autoregressive_base_two_passes_and_both_forms(place: Path) -> None:
    """A base that predicts the next token; its adapter reads half of a text, twice; both forms give the same losses."""
    made = attempt(
        place, "feedforward_train", "active_dataset=gsm8k", "arch=feedforward_ar", "max_steps=2", "run_dir=ar"
    )
    assert made.code == 0, made.output
    losses = {}
    for form in ("lowrank", "dense"):
        words = ("--ff_checkpoint_dir", "./ar", "arch.n_passes=2", f"arch.lora_apply={form}", "max_steps=3")
        result = adapter(place, *words, f"run_dir={form}")
        assert result.code == 0, result.output
        assert f"changes     rank 2 of q, k, v, o in 2 blocks, in {form} form (lora_apply={form})" in result.output
        figures = json.loads((place / form / "summary.json").read_text())["results"]
        losses[form] = [figures[f"eval/nll_pass{number}"] for number in range(3)]
        assert figures["eval/nll_pass0"] == pytest.approx(figures["eval/zero_nll"])
    assert losses["lowrank"] == pytest.approx(losses["dense"], rel=1e-4)
    assert len(set(losses["lowrank"])) == 3
    shown = run_script("scripts/feedback_report", "ar", "lowrank", "--out", "report", cwd=place)
    assert shown.code == 0, shown.output
    assert "gsm8k -> gsm8k: distinct, rank 2, 2 passes" in (place / "report/report.md").read_text()


def test_the_conditioning_task_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/results/feedback.md: a step of its base and of its hypernetwork, on few lines of its data."""
    monkeypatch.setattr("dataset.text.generated.TRAIN_COPIES", 64)
    monkeypatch.setattr("dataset.text.generated.VALID_COPIES", 8)
    words = ("--config", str(ROOT / "config/feedback_copies.json"), "device=cpu", "max_steps=1", "--active_dataset")
    base = run_script("feedforward_train", *words, "copies", "run_dir=base", cwd=tmp_path)
    assert base.code == 0, base.output
    words += ("permuted_copies", "--ff_checkpoint_dir", "base", "--ff_checkpoint_name", "epoch_ckpt_copies.pt")
    options = ("--lora_rank", "8", "arch.targets=[o]", "arch.init_std=0.1", "arch.delta_l2=0", "run_dir=hyper")
    hyper = run_script("feedbackward_alt_train", *words, *options, cwd=tmp_path)
    assert hyper.code == 0, hyper.output
    last = json.loads((tmp_path / "hyper/summary.json").read_text())["results"]
    assert {"eval/base_accuracy", "eval/shuffled_accuracy", "eval/mean_accuracy", "eval/input_dependence"} <= set(last)
