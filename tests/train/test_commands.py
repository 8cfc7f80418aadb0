"""The guide's commands, as they stand there (with a smaller model): what they train on, keep and refuse."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from engine.cli.keys import keys_of
from engine.cli.recipes import find_groups
from engine.cli.translate import translate
from engine.errors import UsageError
from tasks.language_model.args import ALIASES, FOREIGN_KEYS, TrainConfig, rewrite
from tests.conftest import ROOT, SHARED, metrics, run_script
from tests.train.conftest import TINY, attempt, train

LISTS = ("--dataset_list", "plain", "other")


def words(*argv: str) -> list[str]:
    groups = find_groups([ROOT / "config"], "cfg_train")
    flags, overrides = translate(list(argv), TrainConfig, groups=groups, aliases=ALIASES)
    return [*flags, *rewrite(overrides, groups)]


def test_from_scratch(place: Path) -> None:
    lines = train(place, "--dataset=plain", "--out_dir=out/mine", run="out/mine")
    assert [line["step"] for line in lines if "eval/val_loss" in line] == [0, 3, 6]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    run = place / "out/mine"
    assert (run / "ckpt.pt").resolve() == (run / "checkpoints" / (run / "checkpoints/best").read_text().strip())
    assert (run / "ckpt_last.pt").resolve().name == "step_6"
    loss, step, count = (run / "best_val_loss_and_iter.txt").read_text().split(",")[:3]
    best = min((line["eval/val_loss"], line["step"]) for line in lines if "eval/val_loss" in line)
    assert (float(loss), int(step)) == pytest.approx(best)
    assert int(count) == sum(p for _, p in _parameters(run))
    assert json.loads((run / "summary.json").read_text())["name"] == "eval/val_loss"


def _parameters(run: Path) -> list[tuple[str, int]]:
    from safetensors.torch import load_file

    return [(name, tensor.numel()) for name, tensor in load_file(run / "ckpt_last.pt/model.safetensors").items()]


def test_resume_needs_nothing_but_the_folder(place: Path) -> None:
    """The original reloads its default data set here; ours continues with the run's own, its schedule and its sizes."""
    train(place, "--dataset=other", "--max_steps=3", "--learning_rate=0.01")
    result = attempt_bare(place, "--init_from=resume", "--out_dir=out/r", "--max_steps=6")
    assert result.code == 0, result.output
    assert "resuming from step_3" in result.output
    config = OmegaConf.load(place / "out/r/config.resolved.yaml")
    assert (config.dataset, config.learning_rate, config.arch.n_embd, config.max_iters) == ("other", 0.01, 16, 6)
    whole = train(place, "--dataset=other", "--learning_rate=0.01", "--out_dir=out/whole", run="out/whole")
    assert metrics(place / "out/r") == whole


def attempt_bare(folder: Path, *argv: str):
    from tests.conftest import run_script

    return run_script("train", *argv, cwd=folder)


def test_resume_of_another_architecture_is_refused(place: Path) -> None:
    train(place, "max_steps=3")
    before = (place / "out/r/config.yaml").read_text()
    result = attempt_bare(place, "--init_from=resume", "--out_dir=out/r", "--n_embd=32")
    assert result.code == 2
    assert (place / "out/r/config.yaml").read_text() == before
    result = attempt_bare(place, "--init_from=resume", "--out_dir=out/none")
    assert result.code == 2
    assert "out/none" in result.output


def test_a_mixture(place: Path) -> None:
    lines = train(
        place, "--training_mode=multidataset", *LISTS, "--dataset_sampling_probs", "0.5", "0.5", "max_iters=12"
    )
    last = lines[-1]
    assert {"eval/plain/val_loss", "eval/other/val_loss", "eval/plain/train_loss"} <= last.keys()
    assert last["eval/val_loss"] == last["eval/plain/val_loss"]
    assert last["data/plain/tokens"] + last["data/other/tokens"] == 12 * 4 * 8
    assert last["data/plain/tokens"] > 0 < last["data/other/tokens"]


def test_aligned_streams(place: Path) -> None:
    streams = ("--multicontext_datasets", "plain", "classes", "--dataset=nowhere")  # `dataset` need not be there
    lines = train(place, "--training_mode=multicontext", *streams)
    last = lines[-1]
    assert last["eval/val_loss"] == pytest.approx((last["eval/val_loss_0"] + last["eval/val_loss_1"]) / 2)


def test_streams_of_unequal_length(place: Path) -> None:
    streams = ("--training_mode=multicontext", "--multicontext_datasets", "plain", "other")
    result = attempt(place, *streams)
    assert result.code == 2
    lengths = [p.stat().st_size // 2 for p in (place / "data/plain/train.bin", place / "data/other/train.bin")]
    assert all(str(length) in result.output for length in lengths)
    assert "multicontext_align=truncate" in result.output
    assert not (place / "out").exists()
    train(place, *streams, "multicontext_align=truncate")


def test_optimizer_and_schedule_flags(place: Path) -> None:
    lines = train(
        place,
        "--optimizer",
        "sgd",
        "--weight_decay",
        "0.01",
        "--beta1",
        "0.8",
        "--beta2",
        "0.95",
        "--grad_clip",
        "0.5",
        "--lr_scheduler",
        "cosine",
        "--decay_lr",
        "--warmup_iters",
        "2",
        "--lr_decay_iters",
        "6",
        "--min_lr",
        "1e-5",
    )
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert rates[0] == pytest.approx(1e-3 / 3)
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert rates[-1] < rates[3]


def test_weight_decay_reaches_an_optimizer_without_a_file(place: Path) -> None:
    result = attempt(place, "--optimizer", "adamax", "--weight_decay", "0.3")
    assert result.code == 0, result.output
    assert "JOB031" not in result.output
    assert OmegaConf.load(place / "out/r/config.resolved.yaml").optimizer.options.weight_decay == 0.3
    assert "no option 'weight_decay'" in attempt(place, "--optimizer", "rprop", "--weight_decay", "0.3").output


def test_what_decay_means(place: Path) -> None:
    """Without a schedule the rate is held after the warm-up; decay_lr then means cosine, --no-decay_lr holds any."""
    rates = []
    for number, argv in enumerate((("none",), ("none", "--decay_lr"), ("linear", "--no-decay_lr"))):
        lines = train(place, "--lr_scheduler", *argv, f"out_dir=out/{number}", run=f"out/{number}")
        rates.append([line["train/lr"] for line in lines if "train/lr" in line])
    held, cosine, held_too = rates
    assert held == held_too == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 4])
    shares = [(1 + math.cos(math.pi * number / 4)) / 2 for number in range(4)]
    assert cosine == pytest.approx([*held[:2], *(1e-4 + share * 9e-4 for share in shares)])


def test_the_horizon_is_said_aloud(place: Path) -> None:
    assert "note: the learning rate reaches min_lr" in attempt(place, "max_iters=4", "lr_decay_iters=6").output
    assert "note: the learning rate" not in attempt(place, "out_dir=out/b").output


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--init_from=resume"], ["resume=true"]),
        (
            ["--init_from=gpt2", "--gpt2_type=gpt2-medium"],
            [
                "init_from=gpt2",
                "gpt2_type=gpt2-medium",
                "arch=gpt2",
                "arch.n_layer=24",
                "arch.n_head=16",
                "arch.n_embd=1024",
            ],
        ),
        (
            ["--init_from", "gpt2-xl", "--n_layer", "3"],
            [
                "init_from=gpt2",
                "gpt2_type=gpt2-xl",
                "arch.n_layer=3",
                "arch=gpt2",
                "arch.n_head=25",
                "arch.n_embd=1600",
            ],
        ),
        (["--dataset_list", "a b"], ["dataset_list=[a,b]"]),
        (
            ["--dataset_list", "a", "b", "--dataset_sampling_probs", "0.5 0.5"],
            ["dataset_list=[a,b]", "dataset_sampling_probs=[0.5,0.5]"],
        ),
        (["--dataset=2024"], ["dataset='2024'"]),
        (["--sample_start_tokens", "\n"], ["sample_start_tokens='\n'"]),
        (["--no-decay_lr"], ["decay_lr=false"]),
        (["--bias", "--no-use_qk_norm", "--max_iters=4"], ["arch.bias=true", "arch.use_qk_norm=false", "max_iters=4"]),
        (["--decay_lr=True"], ["decay_lr=true"]),
        (["--compile=False"], ["compile=off"]),
        (["--compile"], ["compile=block"]),
        (["--optimizer", "adan"], ["optimizer=pytorch_optimizer", "optimizer.name=adan"]),
        (["-m", "optimizer=adamax,adan"], ["-m", "optimizer=pytorch_optimizer", "optimizer.name=adamax,adan"]),
        (["-m", "optimizer=adam,lion"], ["-m", "optimizer=adam,lion"]),
        (
            ["--weight_decay=0.2", "--optimizer", "adamax"],
            [
                "weight_decay=0.2",
                "optimizer=pytorch_optimizer",
                "optimizer.name=adamax",
                "+optimizer.options.weight_decay=${weight_decay}",
            ],
        ),
        (["--optimizer=muon", "lr_scheduler=wsd"], ["optimizer=muon", "lr_scheduler=wsd"]),
        (["--block_size", "1024", "--n_kv_group=2"], ["arch.block_size=1024", "arch.n_kv_group=2"]),
        (["--top_k", "1", "2", "5"], ["top_k=[1,2,5]"]),
        (["--wandb_log", "--wandb_project=x"], ["enable_wandb=true", "project_name=x"]),
        (["--min_lr", "-1"], ["min_lr=-1"]),
    ],
)
def test_flags_become_hydra_words(argv: list[str], expected: list[str]) -> None:
    assert words(*argv) == expected


def test_a_sweep_over_optimizers_of_both_kinds_is_refused() -> None:
    with pytest.raises(UsageError, match=r"there is no optimizer=adma: did you mean 'adam'\? One of the pytorch-opt"):
        words("-m", "optimizer=adma,adamw")


@pytest.mark.parametrize("start", FOREIGN_KEYS)
def test_flags_of_other_programs_say_what_serves_instead(start: str) -> None:
    for flag in (f"--{start}", f"--no-{start}", f"--{start.replace('_', '-')}=1"):
        with pytest.raises(UsageError) as caught:
            words(flag)
        assert str(caught.value).endswith(f": {FOREIGN_KEYS[start]}")
    ours = {*keys_of(TrainConfig), *ALIASES}
    assert not [key for key in ours if key == start or (start[-1] == "_" and key.startswith(start))]
    named = set(re.findall(r"(?<![=./\w])[a-z]+(?:_[a-z]+)+(?![.\w])", FOREIGN_KEYS[start]))
    assert named <= ours


def test_the_guide_table_is_the_schema() -> None:
    """Every flag, type and default of the guide's tables."""
    guide = SHARED / "guides/train_lm.md"
    if not guide.exists():
        pytest.skip(f"the guide is not here: {guide}")
    rows = re.findall(r"^\| `--(\w+)` \| (\w+) \| ([^|]+) \|", guide.read_text(), re.M)
    assert len(rows) == 19
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        config = OmegaConf.to_container(compose("cfg_train"), resolve=True)
    for name, kind, default in rows:
        declared = config[name]
        if name in ("optimizer", "lr_scheduler"):
            declared = declared["name"]
        documented = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}[kind](
            default.strip().strip("'\"`")
        )
        assert declared == documented, name
        assert isinstance(declared, type(documented)), name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimiser=sgd"], "optimizer"),
        (["--lr_scheduler=cosin"], "cosine"),
        (["--training_mode=multidataset"], "dataset_list"),
        (["--training_mode=multicontext"], "--multicontext_datasets shakespeare_char shakespeare_class"),
        (["--init_variant=gaussian"], "init_std"),
        (["--cosine_penalty=1.0"], "samples are text alone"),
        (["--grad_clip=-1"], "expected 0 or more"),
        (["--dataset_sampling_probs", "0.5", "0.5"], "training_mode"),
        (["--training_mode=multidataset", *LISTS, "--dataset_sampling_probs", "0.5"], "2"),
        (["--dataset=nothing_here"], "nothing_here"),
        (["--optimizer=lbfgs"], "lbfgs"),
        (["--min_lr=0.1", "--learning_rate=0.01"], "min_lr"),
        (["--lr_scheduler=exponential", "--min_lr=0"], "lr_scheduler.options.gamma"),
        (["--top_k", "0"], "top_k"),
        (["--top_k", "200", "-5"], "top_k"),
        (["arch.block_size=100000"], "block_size"),
        (["--n_head=3"], "n_head"),
        (["arch=trm"], "arch"),
        (["--init_from=prev_run"], "prev_run_ckpt"),
        (["eval_mode=random", "eval_iters=null"], "eval_iters"),
        (["lr_scheduler.options.gama=1"], "gama"),
        (["optimizer.options.momentun=1"], "momentun"),
        (["--out_dir="], "error: out_dir is empty: name the run's folder"),
        (["gns_type=sogns"], "the batch does not follow the gradient noise scale"),
    ],
)
def test_a_mistake_is_one_line(place: Path, argv: list[str], message: str) -> None:
    result = attempt(place, *argv)
    assert result.code == 2, result.output
    error = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (place / "out").exists()


def test_a_short_run_trains_with_a_warning(place: Path) -> None:
    words = [word for word in TINY if "warmup" not in word and "max_iters" not in word]
    result = run_script("train", *words, "--max_iters=3", cwd=place)
    assert result.code == 0, result.output
    first = result.output.splitlines()[:3]
    assert any("CFG250" in line and "warmup_iters=100, the run has 3 steps" in line for line in first), first
    result = run_script("train", *words, "--max_iters=3", "--warmup_iters=100", "out_dir=out/b", cwd=place)
    assert result.code == 2
    assert "CFG250" in result.output
