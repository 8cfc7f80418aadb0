"""Each key of train.py does something: a changed value changes weights, evaluation, metric lines, files or words."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tasks.language_model.args import TrainConfig
from tests.conftest import every_second_fast
from tests.e2e.traces import Trace, trace_of
from tests.train.conftest import attempt


def trace(folder: Path, *argv: str, run: str = "out/r") -> Trace:
    return trace_of(attempt(folder, *argv), folder / run, "ckpt_last.pt")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> dict[tuple[str, ...], Trace]:
    return {}


MIXTURE = "training_mode=multidataset dataset_list=[plain,other]"
CONTEXTS = "training_mode=multicontext multicontext_datasets=[plain,classes]"
SAMPLES = "max_sample_tokens=12"
SAME = "nothing but speed or memory"
EFFECTS = {  # overrides, after | what both runs have
    "dataset=other": "weights",
    "offline=error": SAME,
    MIXTURE: "weights",
    f"dataset_sampling_probs=[1,9] | {MIXTURE}": "weights",
    f"dataset_sampling_probs_final=[1,0] | {MIXTURE} dataset_sampling_probs=[0.1,0.9]": "weights",
    f"dataset_sampling_probs_transition_method=cosine | {MIXTURE} max_iters=80 dataset_sampling_probs=[0,1] "
    "dataset_sampling_probs_final=[1,0]": "weights",
    f"dataset_interleaving=true | {MIXTURE}": "weights",
    f"dataset_interleaving_shuffle=true | {MIXTURE} dataset_interleaving=true": "weights",
    f"multidataset_wte=true | {MIXTURE}": "weights",
    f"multidataset_criterion=mean | {MIXTURE}": "evaluation",
    CONTEXTS: "weights",
    f"multicontext_datasets=[classes,plain] | {CONTEXTS}": "weights",
    "multicontext_align=truncate": SAME,
    "batch_size=8": "weights",
    "sampling_method=sequential": "weights",
    "max_iters=8": "lines",
    "eval_interval=2": "lines",
    "eval_iters=1": "evaluation",
    "eval_mode=random": "evaluation",
    "eval_seed=1 | eval_mode=random": "evaluation",
    "eval_train=false": "evaluation",
    "eval_only=true": "lines",
    "learning_rate=0.01": "weights",
    "optimizer=sgd": "weights",
    "weight_decay=0.9": "weights",
    "beta1=0.5": "weights",
    "beta2=0.5": "weights",
    "grad_clip=0.01": "weights",
    "log_interval=2": "lines",
    "seed=1": "weights",
    "lr_scheduler=linear": "weights",
    "decay_lr=false": "weights",
    "warmup_iters=5": "weights",
    "lr_decay_iters=9": "weights",
    "min_lr=9e-4": "weights",
    "accumulation=2": "weights",
    "max_steps=4": "lines",
    "max_seconds=1e-9": "lines",
    "ema=true": "evaluation",
    "ema_rate=0.5 | ema=true": "evaluation",
    "ema_share=0.5 | ema=true": "evaluation",
    "early_stop_patience=1 | early_stop_min_delta=9": "lines",
    SAMPLES: "files",
    f"sample_start_tokens=to | {SAMPLES}": "files",
    f"num_samples=2 | {SAMPLES}": "files",
    f"temperature=3 | {SAMPLES}": "files",
    f"top_k=[1] | {SAMPLES}": "files",
    "out_dir=elsewhere": "run_dir",
    "arch.n_layer=2": "weights",
    "arch.n_head=4": "weights",
    "arch.n_embd=32": "weights",
    "arch.block_size=4": "weights",
    "arch=gpt_fast": "weights",
    "arch=gpt2": "weights",
}
FOREIGN_KEYS = {
    # shared with pretrain.py and shown there (tests/e2e/test_effects.py)
    *[
        "script",
        "device",
        "attention",
        "threads",
        "deterministic",
        "parallel",
        "compile",
        "step_graph",
        "max_skipped_steps",
        "verify",
    ],
    *[
        "stats_interval",
        "profile_steps",
        "checkpoint_interval",
        "checkpoint_background",
        "keep_last",
        "keep_every",
        "resume",
        "resume_from",
        "skip_finished",
    ],
    *[
        "project_name",
        "run_name",
        "run_dir",
        "enable_csv",
        "enable_tensorboard",
        "enable_wandb",
        "wandb_entity",
        "wandb_group",
    ],
    *["wandb_tags"],
    # the model's own (tests/models), and how weights begin (test_start.py)
    *["arch", "init_from", "gpt2_type", "prev_run_ckpt"],
}


@pytest.mark.parametrize(("overrides", "aspect"), every_second_fast(EFFECTS.items()), ids=list(EFFECTS))
def test_key_has_an_effect(bases: dict, place: Path, overrides: str, aspect: str) -> None:
    changes, _, common = overrides.partition(" | ")
    both = tuple(common.split())
    if both not in bases:
        bases[both] = trace(place, *both, "out_dir=out/base", run="out/base")
    base = bases[both]
    run = "elsewhere" if aspect == "run_dir" else "out/r"
    changed = trace(place, *both, *changes.split(), run=run)
    if aspect in (SAME, "run_dir"):
        assert changed.weights == base.weights
    else:
        assert getattr(changed, aspect) != getattr(base, aspect)


def test_every_key_is_in_the_table() -> None:
    named = {word.partition("=")[0].partition(".")[0] for key in EFFECTS for word in key.replace("|", " ").split()}
    assert {field.name for field in fields(TrainConfig)} - FOREIGN_KEYS <= named
