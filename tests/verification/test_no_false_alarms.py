"""What people type and what is right never fails: static, and at a launch under the default verify=strict."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_ranks, run_script
from tests.e2e.recipes import PRETRAIN
from tests.verification.probing import rules_and_probes
from verification.static import verify_command

RECIPES = PRETRAIN.recipes
PROBED = ("cfg_pretrain", "cfg_pretrain_arc_agi_1", "cfg_pretrain_maze_8x8", "cfg_pretrain_sudoku_hard_fast")
"""One recipe of each kind of puzzle and optimizer."""
OPTIONS = {
    "arch": PRETRAIN.archs,
    "debug": sorted(p.stem for p in (ROOT / "config/debug").glob("*.yaml") if not p.stem.endswith("_text")),
}
SMALL = "--config-name=cfg_pretrain_sudoku_4x4"
TINY = (SMALL, "+debug=tiny", "device=cpu")

LINES = f"""
python pretrain.py
python pretrain.py device=cpu max_steps=10
python pretrain.py {SMALL}.yaml device=cpu
python pretrain.py device=cpu max_steps=10 enable_wandb=false global_batch_size=4
python pretrain.py device=cpu max_steps=5 enable_wandb=false global_batch_size=2
python pretrain.py enable_wandb=true project_name=scout run_name=feudal_exp_1
python -u pretrain.py -cn cfg_pretrain_sudoku_extreme_att
env OMP_NUM_THREADS=1 nohup python3.11 pretrain.py max_steps=30
./pretrain.py device=cpu
srun python pretrain.py lr=1e-3 --config-name cfg_pretrain_sudoku_4x4 arch.halt_exploration_prob=1.0
uv run python pretrain.py device=cpu
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node=2 pretrain.py
torchrun --standalone --nproc_per_node 2 pretrain.py +debug=tiny device=cpu
torchrun --nproc-per-node=gpu pretrain.py
torchrun --nnodes=2 --node-rank=0 --master-addr=h0 --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_att
torchrun --nnodes=1:4 --rdzv-backend=c10d --rdzv-endpoint=h0:29400 pretrain.py
python -m torch.distributed.run --nproc-per-node=2 pretrain.py device=cpu
python pretrain.py resume=true run_name=on_another_machine max_steps=500
python pretrain.py resume=false
python pretrain.py resume_from=best run_name=b
python pretrain.py {SMALL} arch=hrm arch.H_layers=1
python pretrain.py arch=trm arch.mlp_t=true arch.pos_encodings=none
python pretrain.py arch=trm arch.pos_encodings=rope_2d
python pretrain.py arch.pos_encodings=learned arch.head_dim=32
python pretrain.py arch.puzzle_emb_ndim=0 arch.puzzle_emb_len=0
python pretrain.py arch.puzzle_emb_ndim=0
python pretrain.py freeze_weights=true
python pretrain.py arch.halt_exploration_prob=0 arch.halt_max_steps=4
python pretrain.py arch.no_ACT_continue=true arch.eval_halting=latched
python pretrain.py arch.loss.loss_type=softmax_cross_entropy arch.forward_dtype=float32
python pretrain.py seed=3 lr=3e-4 weight_decay=0 grad_clip=1.0 lr_warmup_steps=0
python pretrain.py ema=true ema_rate=0.9
python pretrain.py 'data_paths=[data/sudoku-4x4]' 'data_paths_test=[data/sudoku-4x4]'
python pretrain.py 'evaluators=[{{name: steps@PerStepAccuracy, confidence: 0.9}}]'
python pretrain.py final_eval=false eval_interval=1 epochs=4 early_stop_patience=3
python pretrain.py compile=block stats_interval=5 profile_steps=2
python pretrain.py enable_csv=true enable_tensorboard=true enable_wandb=true wandb_entity=me 'wandb_tags=[a,b]'
python pretrain.py -m seed=0,1,2
python pretrain.py -m lr=1e-3,1e-4 arch=trm,hrm
python pretrain.py -m +sweep=seeds
python pretrain.py -m +sweep=lr_seed max_steps=30
python pretrain.py -m +sweep=depth {SMALL}
python pretrain.py -m +sweep=seeds seed=7,8
python pretrain.py {SMALL} -m hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1
python pretrain.py {SMALL} -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 seed=0,1
python pretrain.py -m hydra/sweeper=optuna hydra.sweeper.n_trials=20 'lr=interval(1e-4,1e-2)'
python pretrain.py --multirun 'arch.L_cycles=range(1,4)' device=cpu
python pretrain.py {SMALL} -m arch=trm,trm_singlez,trm_hier6,hrm,hrm_feudal,transformers_baseline
python pretrain.py --help
python pretrain.py --cfg job --resolve arch=hrm
python pretrain.py --info defaults-tree
python pretrain.py project_name=p run_name=r checkpoint_path=out/x
python pretrain.py hydra.run.dir=/tmp/x verify=off
python pretrain.py ++arch.L_cycles=3 +lr=1e-3
python pretrain.py --device cpu --max-steps 5 --no-ema
python pretrain.py global_batch_size=16 accumulation=4 parallel=ddp
python pretrain.py checkpoint_interval=5 keep_last=3 keep_every=10
python pretrain.py threads=2 deterministic=true log_interval=100 attention=math
""".strip().splitlines()
CUT_SHORT = {"CFG250"}  # max_steps ends the run within its warm-up: a warning
DOUBTFUL = {  # line -> what it is warned of
    "python pretrain.py project_name=p run_name=r checkpoint_path=out/x": {"JOB031"},
    "python pretrain.py arch.halt_exploration_prob=0 arch.halt_max_steps=4": {"ARC340"},  # one goal for each episode
}


def judged(line: str, probes: bool = False):
    report = verify_command(shlex.split(line), root=ROOT, probes=probes)
    assert report.verdict != "SKIP", "nothing was examined"
    return report


@rules_and_probes("line", LINES, probed=[line for line in LINES if "arch" in line])
def test_what_is_right_passes(line: str, probes: bool) -> None:
    report = judged(line, probes)
    short = CUT_SHORT if "max_steps" in line or "max-steps" in line or "+debug" in line else set()
    assert not report.of("FAIL"), report.of("FAIL")
    assert report.codes("WARN") <= short | DOUBTFUL.get(line, set()), report.of("WARN")


@rules_and_probes("recipe", RECIPES, probed=PROBED, fast=RECIPES[::3])
def test_every_option_of_every_group_passes_with_every_recipe(recipe: str, probes: bool) -> None:
    alarms = []
    for more in [*(f"arch={name}" for name in OPTIONS["arch"]), *(f"+debug={name}" for name in OPTIONS["debug"])]:
        report = judged(f"python pretrain.py --config-name={recipe} {more}", probes)
        allowed = CUT_SHORT if "debug" in more else set()
        alarms += [(more, f.code, f.message) for f in report.of("FAIL", "WARN") if f.code not in allowed]
    text = (ROOT / f"config/{recipe}.yaml").read_text(encoding="utf-8")
    if "H_layers:" in text:  # a model with one stack refuses it
        alarms = [alarm for alarm in alarms if "TRM has one stack" not in alarm[2]]
    if "L_cycles: 9" in text:  # a model of six latents has no nine updates
        alarms = [alarm for alarm in alarms if alarm[0] != "arch=trm_hier6"]
    if "halt_max_steps:" in text:  # too few steps for the manager's period
        alarms = [alarm for alarm in alarms if alarm[1] != "ARC340"]
    assert not alarms


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("python pretrain.py -m arch.halt_max_steps=16,1", "CFG230", "job 1 of the sweep (arch.halt_max_steps=1)"),
        ("python pretrain.py -m arch=trm,trn", "JOB030", "job 1 of the sweep (arch=trn)"),
        ("python pretrain.py -m lr=1e-3,fast", "JOB030", "job 1 of the sweep (lr=fast)"),
        ("python pretrain.py +sweep=seeds", "JOB030", "add -m"),
        ("python pretrain.py -m hydra/launcher=jobilb seed=0,1", "JOB030", "there is no hydra/launcher=jobilb"),
        ("env OMP_NUM_THREADS=1 python pretrain.py lrr=1", "JOB030", "did you mean 'lr'"),
    ],
)
def test_what_is_wrong_there_is_found(line: str, code: str, what: str) -> None:
    failures = judged(line).of("FAIL")
    assert {finding.code for finding in failures} & {code, "CFG210"}, failures
    assert any(what in finding.message for finding in failures), failures


def test_nothing_is_said_of_what_is_not_ours() -> None:
    report = verify_command(["bash", "-c", "make demo"], root=ROOT)
    assert (report.verdict, "JOB010" in report.codes("SKIP")) == ("SKIP", True)


# --- true launches under the default ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", OPTIONS["arch"])
def test_each_architecture_starts(arch: str, workplace: Path) -> None:
    done = run_script("pretrain", *TINY, f"arch={arch}", "lr_warmup_steps=1", cwd=workplace)
    assert done.code == 0, done.output
    assert "warning" not in done.output


def test_a_recipe_of_another_folder_starts_and_resumes(workplace: Path) -> None:
    mine = workplace / "mine"
    mine.mkdir()
    (mine / "cfg_mine.yaml").write_text("defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\n\nlr_warmup_steps: 1\n")
    words = ["--config-dir=mine", "--config-name=cfg_mine", "+debug=tiny", "device=cpu", "run_name=r"]
    done = run_script("pretrain", *words, cwd=workplace)
    assert (done.code, "warning" in done.output) == (0, False), done.output
    done = run_script("pretrain", *words, "max_steps=3", "resume=true", cwd=workplace)
    assert (done.code, "warning" in done.output) == (0, False), done.output


def test_two_ranks_start_and_one_goes_on_with_a_warning(workplace: Path) -> None:
    words = [*TINY, "lr_warmup_steps=1", "run_name=r", "global_batch_size=8"]
    for done in run_ranks("pretrain", *words, cwd=workplace):
        assert (done.code, "warning" in done.output) == (0, False), done.output
    done = run_script("pretrain", *words, "max_steps=3", "resume=true", cwd=workplace)
    assert done.code == 0, done.output
    warnings = [line for line in done.output.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: since this run began, world_size: 2 -> 1"]
