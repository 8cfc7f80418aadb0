"""What a newcomer meets: help, hints for keys of elsewhere, presets of other scripts, empty names, runs that are over."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.cli.help import help_text
from engine.cli.keys import keys_of
from engine.cli.recipes import find_groups, options_for
from engine.loop.schedule import Decay, lr_factor
from engine.optim import build_optimizer
from models.language_models.config import GPTConfig
from models.language_models.nanogpt import read_nanogpt
from tasks.language_model.args import ALIASES, TrainConfig
from tasks.language_model.family import FAMILY
from tasks.recursive_reasoning.args import PretrainConfig
from tests.conftest import ROOT, _entry, run_forked, run_script
from tests.engine.test_trackers import fake_wandb
from tests.train.conftest import TINY, attempt, train

CONFIG = ROOT / "config"


def shown(config: str) -> str:
    return help_text(FAMILY, find_groups([CONFIG], config), [CONFIG], config)


def test_help_lists_the_architecture_with_the_recipes_defaults_and_all_aliases() -> None:
    text = shown("cfg_train_cpu")
    heads = {line.split()[0]: line for line in text.splitlines() if line.startswith("  arch.")}
    assert {f"arch.{name}" for name in keys_of(GPTConfig)} <= set(heads)
    assert heads["arch.n_layer"] == "  arch.n_layer  [integer in [1, 1000]]  4"
    assert heads["arch.dropout"].endswith("  0.0")
    assert "arch.loss.chunk_tokens" in heads
    assert "Blocks L." in text
    assert not [old for old in ALIASES if f"--{old}," not in text and f"--{old}." not in text]


def test_the_first_line_says_that_data_are_a_stand_in(tmp_path: Path) -> None:
    def lines() -> list[str]:
        result = run_script("train", "+debug=tiny_text", "device=cpu", "dataset=wikitext_byte", cwd=tmp_path)
        assert result.code == 0, result.output
        return result.output.splitlines()

    built, said, device = lines()[:3]
    assert built.startswith("data/wikitext_byte is missing: building its stand-in stdlib_docstrings now")
    assert said.startswith("STAND-IN DATA: data/wikitext_byte is stdlib_docstrings")
    assert device.startswith("device      cpu ")
    assert lines()[0] == said


def test_help_quotes_blank_defaults() -> None:
    assert '  sample_start_tokens  [text]  "\\n"\n' in shown("cfg_train")


def test_help_offers_what_the_script_composes_and_nothing_else() -> None:
    groups = find_groups([CONFIG], "cfg_train")
    ours, theirs = (options_for(schema, groups, CONFIG) for schema in (TrainConfig, PretrainConfig))
    assert (ours["debug"], ours["sweep"], ours["arch"]) == (
        ["nonfinite", "tiny_text"],
        ["seeds"],
        ["gpt", "gpt2", "gpt_fast"],
    )
    assert set(theirs) == {"arch", "debug", "optimizer", "sweep"}
    assert "tiny_text" not in theirs["debug"]
    assert theirs["sweep"] == ["depth", "lr_seed", "seeds"]
    assert "cfg_train_fast" in shown("cfg_train")
    assert "cfg_pretrain" not in shown("cfg_train")


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        ("train", ("lr=1e-3",), "did you mean 'learning_rate'?"),
        ("train", ("--lr", "1e-3"), "did you mean 'learning_rate'?"),
        ("train", ("++lr=1e-3",), "did you mean 'learning_rate'?"),
        ("train", ("--lr_decay_itrs=5",), "did you mean 'lr_decay_iters'?"),
        ("pretrain", ("learning_rate=1e-3",), "did you mean 'lr'?"),
        ("pretrain", ("--learning_rate", "1e-3"), "did you mean 'lr'?"),
        (
            "train",
            ("+debug=limit",),
            "debug=limit is not for train.py, which has no eval_max_examples: choose nonfinite or",
        ),
        ("train", ("-m", "+sweep=depth"), "sweep=depth is not for train.py, which has no arch.H_cycles: choose seeds"),
        ("train", ("-m", "+sweep=lr_seed"), "has no lr: choose seeds"),
        ("pretrain", ("+debug=tiny_text",), "debug=tiny_text is not for pretrain.py"),
        ("pretrain", ("+debug=tiny_txt",), "there is no debug=tiny_txt: did you mean 'tiny'?"),
        ("train", ("+debug=tiny_txt",), "there is no debug=tiny_txt: did you mean 'tiny_text'?"),
        ("pretrain", ("compile_cuda_graphs=true",), "step_graph"),
        ("train", ("--compile_cuda_graphs=true",), "step_graph"),
        ("train", ("--out_dir=",), "out_dir is empty"),
        ("train", ("--dataset=",), "dataset is empty"),
        ("pretrain", ("run_dir=",), "run_dir is empty"),
        ("train", ("--decay_lr", "maybe"), "--decay_lr: expected true or false, got 'maybe'"),
        ("train", ("--script", "pretrain.py"), "script=pretrain.py is not train.py: drop it"),
        ("train", ("--warmup_iters=500", "--max_iters=50"), "warmup_iters=5;"),
    ],
)
def test_a_refusal_names_the_way_out(place: Path, script: str, argv: tuple[str, ...], message: str) -> None:
    result = run_script(script, *argv, cwd=place)
    assert result.code == 2, result.output
    assert message in result.output, result.output
    assert result.output.count("\n") == 1, result.output
    assert [path.name for path in place.iterdir()] == ["data"]


def test_a_folder_without_tokens_names_the_scripts_own_key(place: Path) -> None:
    (place / "empty").mkdir()
    result = attempt(place, "dataset=./empty/")
    assert result.code == 2
    assert "name a usable data set in dataset" in result.output
    assert "data_paths" not in result.output


def test_a_run_that_is_over_says_so_and_keeps_its_seconds(place: Path) -> None:
    train(place, "verify=off")
    file = place / "out/r/summary.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "seconds": 1234.5}))  # no repetition takes as long
    for argv, end in (((), 6), (("--max_iters=3", "--lr_decay_iters=3"), 3)):
        result = run_script("train", "--init_from=resume", "--out_dir=out/r", *argv, cwd=place)
        assert result.code == 0, result.output
        assert f"note: the run is already at step 6 and ends at {end}: nothing is trained" in result.output
        assert json.loads(file.read_text()) == {**before, "seconds": 1234.5}
    more = run_script("train", "--init_from=resume", "--out_dir=out/r", "--max_iters=7", cwd=place)
    assert more.code == 0, more.output
    assert "nothing is trained" not in more.output
    assert json.loads(file.read_text())["seconds"] < 1234.5


def test_what_may_change_at_a_resume(place: Path) -> None:
    """As docs/language-models.md says: single keys may, group choices may not."""
    train(place, "max_steps=3", "verify=off")
    resume = ("--init_from=resume", "--out_dir=out/r")
    for argv in (("--optimizer", "sgd"), ("--n_layer=2",)):
        result = run_script("train", *resume, *argv, cwd=place)
        assert result.code == 2, (argv, result.output)
    argv = ("max_steps=6", "--learning_rate=0.5", "--batch_size=2", "optimizer.options.eps=1e-10", "--eval_iters=1")
    result = run_script("train", *resume, *argv, cwd=place)
    assert result.code == 0, result.output
    stored = OmegaConf.load(place / "out/r/config.resolved.yaml")
    assert (stored.learning_rate, stored.batch_size, stored.optimizer.options.eps) == (0.5, 2, 1e-10)


@pytest.mark.parametrize(
    ("begun", "changes", "expected"),
    [
        (
            ("--training_mode=multidataset", "--dataset_list", "plain", "other"),
            ("--dataset_sampling_probs", "3", "1"),
            {"dataset_sampling_probs": [3.0, 1.0]},
        ),
        (
            ("lr_scheduler=wsd", "optimizer=muon"),
            ("optimizer.options.momentum=0.9",),
            {"optimizer.options.momentum": 0.9},
        ),
        (("lr_scheduler=wsd",), ("lr_scheduler.options.share=0.25",), {"lr_scheduler.options.share": 0.25}),
        (("learning_rate=0.1",), ("--decay_lr", "--min_lr=0.01"), {"min_lr": 0.01}),
    ],
)
def test_changes_at_a_resume_need_not_fit_the_recipe(
    place: Path, begun: tuple[str, ...], changes: tuple[str, ...], expected: dict
) -> None:
    """They are values for the run's config, whose mode and choices the command does not repeat."""
    train(place, *begun, "max_steps=3", "verify=off")
    result = run_script("train", "--init_from=resume", "--out_dir=out/r", "max_steps=4", *changes, cwd=place)
    assert result.code == 0, result.output
    stored = OmegaConf.load(place / "out/r/config.resolved.yaml")
    assert {key: OmegaConf.select(stored, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--dataset_sampling_probs", "3", "1"), "with training_mode=single"),  # the run's own mode refuses it
        (("optimizer.options.momentum=0.9",), "optimizer adamw has no option 'momentum'"),
        (("lr_scheduler.options.gamma=0.5",), "lr_scheduler=cosine has no options"),
        (("--batch_size=0",), "batch_size=0"),
    ],
)
def test_changes_at_a_resume_must_fit_the_run(place: Path, changes: tuple[str, ...], message: str) -> None:
    train(place, "max_steps=3", "verify=off")
    result = run_script("train", "--init_from=resume", "--out_dir=out/r", "max_steps=4", *changes, cwd=place)
    assert result.code == 2, result.output
    assert message in result.output


def _with_fake_wandb(argv: list[str], record: Path) -> None:
    wandb, calls, _ = fake_wandb(mode="offline")
    sys.modules["wandb"] = wandb
    try:
        _entry("train", argv)
    finally:
        record.write_text(json.dumps(calls[0], default=str))


def test_wandb_project_reaches_wandb_and_is_not_warned_of(place: Path) -> None:
    argv = [*TINY, "--wandb_log", "--wandb_project", "foo", "--wandb_run_name", "mine", "--wandb_tags", "a", "b"]
    result = run_forked(_with_fake_wandb, argv, place / "wandb.json", cwd=place)
    assert result.code == 0, result.output
    assert "without effect" not in result.output
    recorded = json.loads((place / "wandb.json").read_text())
    assert (recorded["project"], recorded["name"], recorded["tags"]) == ("foo", "mine", ["a", "b"])


@pytest.mark.parametrize(
    "name", ["adam", "sgd", "rmsprop", "adagrad", "adamw", "nadam", "radam", "adafactor", "lion", "ademamix"]
)
def test_weight_decay_is_decoupled_where_the_page_says_so(name: str) -> None:
    """With a zero gradient a decoupled decay shrinks by 1 - lr·wd each step, one in the gradient does otherwise."""
    coupled = ("adam", "sgd", "rmsprop", "adagrad")
    stored = OmegaConf.load(CONFIG / f"optimizer/{name}.yaml")
    filled = OmegaConf.merge({"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99}, {"optimizer": stored})
    if name in ("lion", "ademamix"):
        pytest.importorskip("pytorch_optimizer")
    weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    options = OmegaConf.to_container(filled.optimizer, resolve=True)["options"]
    optimizer = build_optimizer(stored.name, {"w": weight}, 0.01, options)
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step(1.0, torch.tensor(1.0))
    decoupled = weight.detach().allclose(torch.full_like(weight, (1 - 0.01 * 0.1) ** 3), rtol=0, atol=1e-9)
    assert decoupled == (name not in coupled)
    page = (ROOT / "docs/language-models.md").read_text()
    assert "It is decoupled, except in adam, sgd, rmsprop and adagrad" in page


def test_inverse_sqrt_begins_below_the_peak_as_documented() -> None:
    rates = [
        max(lr_factor(step, Decay(name="inverse_sqrt"), warmup=w, horizon=1000, floor=0.0) for step in range(1, 500))
        for w in (100, 1)
    ]
    assert rates == pytest.approx([(100 / 101) ** 0.5, 0.5**0.5])


@pytest.mark.parametrize("keep", [100, 0.5, -30])
def test_a_nanogpt_checkpoint_cut_short_is_one_line(tmp_path: Path, keep: float) -> None:
    torch.save({"model_args": {}, "model": {"a": torch.zeros(1000)}}, tmp_path / "ckpt.pt")
    whole = (tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(whole[: int(len(whole) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"^it is damaged or cut short$"):
        read_nanogpt(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_gpt2_weights_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    from models.language_models.gpt2_folder import read_gpt2

    (tmp_path / name).write_bytes(os.urandom(500))
    with pytest.raises(ValueError, match=f"{name} is damaged or cut short") as caught:
        read_gpt2(tmp_path)
    assert "\n" not in str(caught.value)


def test_evaluate_says_which_checkpoint_was_asked_for(finished: Path, tmp_path: Path) -> None:
    for asked, message in (
        ("out/r", "out/r, latest: step 6"),
        ("out/r/ckpt.pt", "out/r, ckpt.pt: step"),
        ("out/r/checkpoints/step_3", "out/r, step_3: step 3"),
    ):
        result = run_script("scripts/evaluate", asked, f"--json={tmp_path}/x.json", cwd=finished)
        assert result.code == 0, result.output
        assert message in result.output, result.output
