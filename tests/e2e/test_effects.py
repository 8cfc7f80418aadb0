"""Each key of pretrain.py does something: a changed value changes weights, evaluation, metric lines, files or words."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from engine.loop import compiling
from losses import ACTLossConfig, FeudalLossConfig
from models.recursive_reasoning.subgoal import SubgoalConfig
from tasks.recursive_reasoning.args import PretrainConfig
from tests.conftest import every_second_fast, run_script
from tests.e2e.traces import Trace, trace_of

BASE = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu max_steps=9 epochs=2 eval_interval=1
    global_batch_size=8 arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=1 arch.mlp_t=false arch.pos_encodings=rope
    arch.halt_max_steps=3 arch.halt_exploration_prob=0.5 puzzle_emb_lr=0.01 puzzle_emb_weight_decay=0.1
    lr_warmup_steps=2 run_name=r project_name=p
""".split()


def trace(folder: Path, *argv: str, run: str = "checkpoints/p/r") -> Trace:
    return trace_of(run_script("pretrain", *BASE, *argv, cwd=folder), folder / run)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Trace:
    folder = tmp_path_factory.mktemp("base")
    (folder / "data").symlink_to(tiny_data)
    return trace(folder)


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without code generation, which takes half a minute (forks inherit it)."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


SAME = "nothing but speed or memory"
EFFECTS = {
    "seed=1": "weights",
    "eval_seed=1": "evaluation",
    "data_order=published": "weights",
    "select_on=test": "weights",
    "validation_groups=9": "weights",
    "deterministic=true threads=1": SAME,
    "attention=math": "output",
    "threads=2": "output",
    "accumulation=2": "output",
    "compile=block": "output",
    "stats_interval=2": "lines",
    "profile_steps=2": "files",
    "enable_csv=true": "files",
    "enable_tensorboard=true": "files",
    "max_steps=5": "lines",
    "max_seconds=1e-9": "lines",
    "grad_clip=0.01": "weights",
    "ema=false": "files",
    "ema_rate=0.5": "evaluation",
    "ema_share=0.5": "evaluation",
    "+optimizer=muon +optimizer.rest.lr=0.1": "weights",
    "total_steps=5": "lines",
    "log_interval=3": "lines",
    "halting_metrics=true": "lines",
    "checkpoint_interval=2 keep_last=9": "files",
    "checkpoint_interval=2 keep_last=1 keep_every=2": "files",
    "script=pretrain": SAME,
    "data_paths=[data/debug-sudoku-4x4,copy]": "weights",
    "data_paths_test=[data/sudoku-default]": "evaluation",
    "evaluators=[{name: steps@PerStepAccuracy}]": "evaluation",
    "global_batch_size=4": "weights",
    "epochs=4": "output",
    "epochs=16 eval_interval=16": "lines",
    "epochs=16 min_eval_interval=1": "lines",
    "final_eval=false": "lines",
    "checkpoint_every_eval=false": "files",
    "eval_max_examples=2": "lines",
    "final_eval_max_examples=2": "evaluation",
    "eval_max_groups=2": "lines",
    "final_eval_max_groups=2": "evaluation",
    "eval_batch_size=4": SAME,
    "lr=0.01": "weights",
    "lr_min_ratio=0.9": "weights",
    "lr_warmup_steps=5": "weights",
    "weight_decay=0.5": "weights",
    "beta1=0.5": "weights",
    "beta2=0.5": "weights",
    "puzzle_emb_lr=0.02": "weights",
    "online_augmentation=true": "weights",
    "puzzle_emb_weight_decay=0.9": "weights",
    "freeze_weights=true": "weights",
    "arch.halt_max_steps=2": "weights",
    "arch.no_ACT_continue=false": "weights",
    "arch.H_cycles=3": "weights",
    "arch.L_cycles=2": "weights",
    "arch.L_layers=2": "weights",
    "arch.hidden_size=64": "weights",
    "arch.num_heads=2": "weights",
    "arch.expansion=16": "weights",
    "arch.mlp_t=true": "weights",
    "arch.puzzle_emb_ndim=16": "weights",
    "arch.puzzle_emb_len=2": "weights",
    "arch.pos_encodings=learned": "weights",
    "arch.rope_theta=10": "weights",
    "arch.rms_norm_eps=0.1": "weights",
    "arch.forward_dtype=bfloat16": "weights",
    "arch.loss.loss_type=softmax_cross_entropy": "weights",
    "arch.loss.precision=float64": "lines",
    "arch.loss.label_smoothing=0.1 arch.loss.q_weight=0.05 arch.gate_norm=true arch.inner_multiple=64": "weights",
    "arch.damping=0.05 arch.update_noise=0.01": "weights",
    "arch.latent_init=random arch.late_states=1.0 arch.late_steps=[2]": "weights",
    "arch.chains=2": "weights",
    "arch=hrm arch.H_layers=1 arch.puzzle_emb_len=0": "weights",
    "arch.head_dim=4": "weights",
    "arch.pos_encodings=rope_2d": "weights",
    "arch.eval_halting=latched": "evaluation",
    "arch=trm_singlez": "weights",
    "arch=trm_hier6": "weights",
    "arch=trm_hier6 arch.L_latents=2": "weights",
    "arch=transformers_baseline arch.H_layers=1": "weights",
}
FEUDAL = (
    "arch=hrm_feudal",
    "arch.H_layers=1",
    "arch.puzzle_emb_len=0",
    "arch.subgoal_head.inject_init=normal",
    "lr=0.01",
    "arch.subgoal_head.manager_period=2",
    "arch.halt_max_steps=4",
    "loss.feudal_loss_weight=0.3",
    "weight_decay=0",
)
FEUDAL_EFFECTS = {
    "loss.feudal_loss_weight=0.5": "weights",
    "arch.loss.feudal_loss_weight=0.5": "weights",
    "arch.loss.feudal_grad=both": "weights",
    "arch.loss.feudal_gate=live": "weights",
    "arch.loss.use_alignment_loss=false": "weights",
    "arch.loss.manager_loss_weight=1.0 arch.subgoal_head.manager_mode=both": "weights",
    "arch.subgoal_head=null": "weights",
    "arch.fixed_refinement_steps=2": "weights",
    "arch.subgoal_head.goal_dim=8": "weights",
    "arch.subgoal_head.manager_period=1": "weights",
    "arch.subgoal_head.schedule=[2]": "weights",
    "arch.subgoal_head.gating=false": "weights",
    "arch.subgoal_head.temperature=3.0": "weights",
    "arch.subgoal_head.gate_bias_init=-1.0": "weights",
    "arch.subgoal_head.normalize_goal=false": "weights",
    "arch.subgoal_head.goal_scale=3.0": "weights",
    "arch.subgoal_head.projection_bias=false": "weights",
    "arch.subgoal_head.inject_subgoal=false": "weights",
    "arch.subgoal_head.inject_at=LH": "weights",
    "arch.subgoal_head.inject_init=zero": "weights",
    "arch.subgoal_head.worker_pool=first": "weights",
    "arch.subgoal_head.displacement=absolute": "weights",
    "arch.subgoal_head.goal_credit=none": "weights",
    "arch.subgoal_head.goal_source=random": "weights",
    "arch.subgoal_head.manager_mode=fun": "weights",
    "arch.subgoal_head.eval_goal_source=zero": "evaluation",
}


@pytest.mark.parametrize(("overrides", "aspect"), every_second_fast(EFFECTS.items()), ids=EFFECTS)
def test_key_has_an_effect(base: Trace, workplace: Path, overrides: str, aspect: str) -> None:
    if ",copy]" in overrides:
        shutil.copytree(workplace / "data/debug-sudoku-4x4", workplace / "copy")
    changed = trace(workplace, *_split(overrides))
    if aspect == SAME:
        assert changed.weights == base.weights
    else:
        assert getattr(changed, aspect) != getattr(base, aspect)


@pytest.fixture(scope="module")
def feudal(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Trace:
    folder = tmp_path_factory.mktemp("feudal")
    (folder / "data").symlink_to(tiny_data)
    return trace(folder, *FEUDAL)


@pytest.mark.parametrize(("overrides", "aspect"), every_second_fast(FEUDAL_EFFECTS.items()), ids=FEUDAL_EFFECTS)
def test_key_of_the_manager_has_an_effect(feudal: Trace, workplace: Path, overrides: str, aspect: str) -> None:
    changed = trace(workplace, *FEUDAL, *_split(overrides))
    assert getattr(changed, aspect) != getattr(feudal, aspect)


def test_every_key_of_the_manager_is_in_the_table() -> None:
    named = {word.partition("=")[0] for overrides in FEUDAL_EFFECTS for word in overrides.split()}
    keys = {f"arch.subgoal_head.{field.name}" for field in fields(SubgoalConfig)} - {"arch.subgoal_head.hidden_size"}
    keys |= {f"arch.loss.{f.name}" for f in fields(FeudalLossConfig)} - {
        f"arch.loss.{f.name}" for f in fields(ACTLossConfig)
    }
    assert keys <= named


def test_keep_last_prunes(workplace: Path) -> None:
    kept = {}
    for number in (1, 3):
        argv = ("checkpoint_interval=2", f"keep_last={number}", f"run_name=k{number}")
        files = trace(workplace, *argv, run=f"checkpoints/p/k{number}").files
        kept[number] = {name for name in files if name.startswith("step_")}
    assert kept[1] < kept[3]
    assert len(kept[3]) == 3


def _split(overrides: str) -> list[str]:
    if overrides.startswith("evaluators="):
        return [overrides]
    return overrides.split()


def test_names_and_folders(workplace: Path) -> None:
    assert trace(workplace, "project_name=q", "run_name=s", run="checkpoints/q/s").files
    assert trace(workplace, "run_dir=elsewhere", run="elsewhere").files
    assert trace(workplace, "checkpoint_path=old_name", run="old_name").files  # the name TRM users know


def test_flag_style_is_the_same_run(base: Trace, workplace: Path) -> None:
    flags = trace(
        workplace, "--log_interval", "1", "--no-deterministic", "--lr=2e-3", "--data_paths", "data/debug-sudoku-4x4"
    )
    assert flags.weights == base.weights
    assert flags.lines == base.lines


def test_every_key_is_in_the_table() -> None:
    """Keys whose effect is tested elsewhere: resume (test_resume), parallel (test_ranks), wandb (test_trackers),
    early stopping (test_stopping), step_graph (test_step_graph), skip_finished (test_sweep_results), how checkpoints
    are written (test_background), load_checkpoint (test_start), stand-ins (test_arc_corpus), evaluated augmentations (test_predict, test_sampler)."""
    elsewhere = set(
        """
        device parallel max_skipped_steps resume resume_from project_name run_name run_dir enable_wandb wandb_entity
        wandb_group wandb_tags early_stop_patience early_stop_min_delta skip_finished verify arch offline
        checkpoint_background checkpoint_carry load_checkpoint step_graph eval_max_augmentations final_eval_max_augmentations
    """.split()
    )
    named = {
        word.lstrip("+").partition("=")[0].partition(".")[0]
        for overrides in {**EFFECTS, **FEUDAL_EFFECTS}
        for word in overrides.split()
    }
    assert {field.name for field in fields(PretrainConfig)} - elsewhere <= named


def test_accumulation_and_batching_do_not_change_the_result(base: Trace, workplace: Path) -> None:
    split = trace(workplace, "arch.forward_dtype=float64", "accumulation=2")
    whole = trace(workplace, "arch.forward_dtype=float64", "run_name=s", run="checkpoints/p/s")
    for a, b in zip(split.evaluation, whole.evaluation, strict=True):
        assert a == pytest.approx(b, abs=1e-9)
