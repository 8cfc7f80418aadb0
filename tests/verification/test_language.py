"""train.py: every recipe, architecture, optimizer, schedule and mode verifies; what is doubtful is a warning."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, archs_of
from tests.e2e.recipes import TRAIN
from tests.verification.probing import rules_and_probes
from verification.finding import Report
from verification.static import verify_command

RECIPES = TRAIN.recipes
ARCHS = archs_of("language_models")
OPTIONS = {g: sorted(p.stem for p in (ROOT / "config" / g).glob("*.yaml")) for g in ("optimizer", "lr_scheduler")}
MODES = {
    "single": "",
    "multidataset": "training_mode=multidataset dataset_list=[wikitext,gsm8k] multidataset_wte=true",
    "multicontext": "training_mode=multicontext multicontext_datasets=[shakespeare_char,shakespeare_class]",
    "gpt2": "--init_from=gpt2 --dataset=shakespeare",
}


def judged(line: str, probes: bool = False) -> Report:
    return verify_command(shlex.split(line), root=ROOT, local_data=False, probes=probes)


@rules_and_probes("recipe", RECIPES, probed=("cfg_train", "cfg_train_fast"), fast=RECIPES[:2])
def test_every_option_of_every_group_passes(recipe: str, probes: bool) -> None:
    start = f"python train.py --config-name={recipe}"
    modes = MODES.values() if probes or recipe == RECIPES[0] else [""]
    lines = [f"{start} arch={arch} {mode}" for arch in ARCHS for mode in modes]
    lines += [f"{start} optimizer={name}" for name in OPTIONS["optimizer"] if name != "pytorch_optimizer"]
    lines += [f"{start} --optimizer adan", f"{start} optimizer=pytorch_optimizer optimizer.name=adan"]
    lines += [f"{start} lr_scheduler={name}" for name in OPTIONS["lr_scheduler"]]
    problems = [(line, f.code, f.message) for line in lines for f in judged(line, probes).of("FAIL", "WARN")]
    assert not problems


@rules_and_probes(
    "line",
    [
        "python train.py --dataset=shakespeare_char --out_dir=out/mine",
        "python train.py --init_from=resume --out_dir=out/mine",
        "python train.py --init_from=gpt2-xl --dataset=shakespeare --out_dir=out/mine",
        "python train.py --init_from=gpt2 --gpt2_type=gpt2-large --dataset=shakespeare --block_size=512",
        "python train.py --n_layer 4 --n_head 4 --n_embd 128 --gradient_accumulation_steps 2 --dtype float32",
        "python train.py --optimizer muon --lr_scheduler wsd --decay_lr --warmup_iters 200 --lr_decay_iters 3500 --min_lr 1e-5",
        "python train.py --max_sample_tokens 100 --temperature 0.7 --top_k 1 2 5 --num_samples 2",
        "python train.py --config-name=cfg_train_cpu --no-decay_lr",
        "python train.py --wandb_log --wandb_tags a b --wandb_entity me wandb_group=g",
        "python train.py --window_size 255 --max_steps 3499 --share_attn repeat --share_size 2",
        "python train.py --wandb_log --wandb_project=words",
        "python train.py eval_only=true init_from=gpt2 dataset=shakespeare",
        "python train.py -m lr_scheduler=cosine,linear,wsd optimizer=adamw,muon",
        "torchrun --standalone --nproc-per-node=3 train.py --batch_size=12",
    ],
)
def test_what_people_type_passes(line: str, probes: bool) -> None:
    assert not (problems := judged(line, probes).of("FAIL", "WARN")), problems


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("lr_decay_iters=100", "JOB031", "decay_lr=false"),
        ("lr_scheduler=step lr_decay_iters=100", "JOB031", "no horizon"),
        ("--no-decay_lr lr_scheduler=cosine", "JOB031", "lr_scheduler is overridden without effect"),
        ("--window_size 256", "JOB031", "block_size"),
        ("--max_steps 3500", "JOB031", "max_iters"),
        ("--n_layer 1 --share_attn repeat", "JOB031", "nothing to share"),
        ("--wandb_tags a b", "JOB031", "enable_wandb=false"),
        ("--wandb_project foo", "JOB031", "wandb is off"),
        ("multicontext_align=truncate", "JOB031", "multicontext"),
        ("training_mode=multicontext multicontext_datasets=[shakespeare_char,shakespeare_char]", "DAT542", "twice"),
        ("lr_scheduler=linear warmup_iters=1000 lr_decay_iters=900 max_iters=3500", "CFG256", "within the warm-up"),
        ("--max_iters=60", "CFG250", "warmup_iters=100, the run has 60 steps"),
        ("learning_rate=0", "CFG251", "nothing is trained"),
        ("init_from=prev_run prev_run_ckpt=out/gone", "JOB033", "out/gone"),
        ("out_dir=out/gpt_fast_iters500", "JOB032", "max_iters=3500"),
    ],
)
def test_what_is_doubtful_is_warned_of(line: str, code: str, message: str) -> None:
    report = judged(f"python train.py {line}")
    assert not report.of("FAIL"), report.of("FAIL")
    assert any(f.code == code and message in f.message for f in report.of("WARN")), report.of("WARN")


def test_a_relative_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["python", "train.py", "--init_from=gpt2-medium", "--dataset=shakespeare"]
    report = verify_command(words, root=Path("."), probes=False)
    assert report.verdict == "PASS", report.of("FAIL")
