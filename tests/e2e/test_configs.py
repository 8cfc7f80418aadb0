"""Every shipped recipe composes, builds at full size on `meta`, takes a step, and has no key that nothing reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.conftest import ROOT, _entry, run_forked, run_script

RECIPES = sorted(path.stem for path in (ROOT / "config").glob("cfg_pretrain*.yaml"))
ARCHS = sorted(path.stem for path in (ROOT / "config/arch").glob("*.yaml"))
SHAPES = {
    "sudoku-default": (16, 6, 1), "sudoku-4x4": (16, 6, 1), "sudoku-6x6": (36, 8, 1), "sudoku-9x9-easy": (81, 11, 1),
    "sudoku-extreme-1k-aug-1000": (81, 11, 1),
}  # fmt: skip
COUNTS = {
    ("cfg_pretrain_sudoku_extreme_mlp", "trm"): 5_028_866,
    ("cfg_pretrain_sudoku_extreme_att", "trm"): 6_828_034,
    ("cfg_pretrain_sudoku_4x4", "trm"): 62_338,
    ("cfg_pretrain_sudoku_6x6", "trm"): 77_954,
    ("cfg_pretrain_sudoku_9x9_easy", "trm"): 261_890,
}


def composed(recipe: str, *overrides: str):
    from engine.config import load_synced_config
    from pretrain_args import PretrainConfig

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        config = compose(recipe, overrides=list(overrides))
    return load_synced_config(config, schema=PretrainConfig, entry="pretrain")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_full_size_model_builds_on_meta(recipe: str, arch: str) -> None:
    from engine.task import Runtime
    from models.recursive_reasoning.act import PuzzleShape
    from pretrain import create_model

    config = composed(recipe, f"arch={arch}")
    shape = PuzzleShape(*SHAPES[Path(config.data_paths[0]).name])
    device = torch.device("meta")
    runtime = Runtime(
        device=device, dtype=torch.float32, attention="auto", seed=0, accumulation=1, rank=0, world_size=1
    )
    with device:
        model, _ = create_model(config, shape, runtime)
    assert all(p.is_meta for p in model.parameters())
    if (recipe, arch) in COUNTS:
        assert model.num_parameters() == COUNTS[recipe, arch]


def one_step_reading_everything(argv: list[str]) -> None:
    """Run a command and print the declared keys that nothing read."""
    import engine.config
    import engine.registry
    import engine.resume
    from engine.schema import structure, unread

    made = []

    def collecting(cls, data, where=""):
        made.append((where, structure(cls, data, where)))
        return made[-1][1]

    for module in (engine.config, engine.registry, engine.resume):
        module.structure = collecting
    try:
        _entry("pretrain", argv)
    except SystemExit as end:
        if end.code:
            raise
    read: dict[str, bool] = {}
    for where, instance in made:
        missing = set(unread(instance, where))
        for key in vars(instance):
            name = f"{where}.{key}" if where else key
            if not key.startswith("_"):
                read[name] = read.get(name, False) or name not in missing
    print("UNREAD", sorted(name for name, seen in read.items() if not seen), file=sys.stderr)


# Keys that only some settings of others make sense of: what has to be on for them to be read.
CONDITIONAL = {
    "project_name": "run_dir=null",
    "ema_rate": "ema=true",
    "compile_cuda_graphs": "compile=block",
    "arch.rope_theta": "arch.mlp_t=false arch.pos_encodings=rope",
    "arch.puzzle_emb_len": "arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=1",
    # The transformer baseline has no recursion to count, but recipes set its sizes for whatever arch they are given.
    "arch.H_cycles": "arch.name=recursive_reasoning.hrm@HRM arch.H_layers=1",
    "arch.L_cycles": "arch.name=recursive_reasoning.hrm@HRM arch.H_layers=1",
}


def own_arch(recipe: str) -> str:
    return next(
        line.split()[-1] for line in (ROOT / f"config/{recipe}.yaml").read_text().splitlines() if "- arch:" in line
    )


PAIRS = [(recipe, own_arch(recipe)) for recipe in RECIPES]
PAIRS += [("cfg_pretrain_sudoku_4x4", arch) for arch in ARCHS if arch != "trm"]


@pytest.mark.parametrize(("recipe", "arch"), PAIRS)
def test_one_step_reads_every_key(workplace: Path, recipe: str, arch: str) -> None:
    argv = [
        f"--config-name={recipe}",
        f"arch={arch}",
        "+debug=tiny",
        "device=cpu",
        "max_steps=1",
        "eval_max_examples=4",
    ]
    result = run_forked(one_step_reading_everything, argv, cwd=workplace)
    assert result.code == 0, result.output
    unread = set(eval(result.output.split("UNREAD ")[1].splitlines()[0]))
    assert unread <= CONDITIONAL.keys(), unread - CONDITIONAL.keys()
    for key in unread:
        result = run_forked(
            one_step_reading_everything, [*argv, "run_name=again", *CONDITIONAL[key].split()], cwd=workplace
        )
        assert f"'{key}'" not in result.output.split("UNREAD ")[1], key


@pytest.mark.parametrize("name", ["layers.block@ReasoningBlock", "sparse_embedding@SparseEmbedding"])
def test_an_architecture_of_another_family_is_refused(workplace: Path, name: str) -> None:
    result = run_script("pretrain", "+debug=tiny", f"arch.name={name}", cwd=workplace)
    assert result.code == 2
    assert "FAMILY" in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["arch=nope"], "hrm"),
        (["--config-name=cfg_pretrian"], "cfg_pretrain"),
        (["arch.L_cyles=4"], "arch.L_cycles"),
        (["+arch.L_cyles=4"], "arch.L_cycles"),
        (["++arch.loss.loss_typ=x"], "arch.loss.loss_type"),
        (["--global_batch_sise", "4"], "global_batch_size"),
        (["+lrr=3"], "lr"),
        (["lr=fast"], "lr"),
        (["arch.hidden_size=30"], "arch.num_heads"),
        (["arch.loss.loss_type=softmax"], "softmax_cross_entropy"),
        (["device=gpu"], "cuda"),
        (["arch.name=recursive_reasoning.trn@TRM"], "recursive_reasoning.trm"),
        (["arch.name=recursive_reasoning.trm@TMR"], "TRM"),
        (["evaluators=[{name: steps@PerStepAcuracy}]"], "PerStepAccuracy"),
        (["evaluators=[{name: steps@PerStepAccuracy, typo: 1}]"], "typo"),
        (["data_paths=[data/sudoku-9x8]"], "data/sudoku-9x8"),
        (["epochs=7", "eval_interval=3"], "eval_interval"),
        (["global_batch_size=100000"], "global_batch_size"),
        (["accumulation=3"], "global_batch_size"),
        (["lr=nan"], "lr: expected a finite number"),
        (["arch.rope_theta=inf"], "arch.rope_theta: expected a finite number"),
        (["run_name="], "run_name"),
        (["run_name=../x"], "run_name"),
        (["run_dir=data"], "is no run"),
        (["freeze_weights=true", "arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0"], "freeze_weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_two(workplace: Path, argv: list[str], expected: str) -> None:
    tiny = [] if argv[0].startswith("--config-name") else ["+debug=tiny"]
    result = run_script("pretrain", *tiny, "device=cpu", *argv, cwd=workplace)
    assert result.code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error")]
    assert len(errors) == 1, result.output
    assert expected in errors[0]


def test_a_misspelt_key_in_yaml_is_refused(workplace: Path) -> None:
    extra = workplace / "extra"
    extra.mkdir()
    (extra / "cfg_mine.yaml").write_text(
        "defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\narch:\n  loss:\n    precison: float64\n"
    )
    result = run_script("pretrain", "--config-dir", str(extra), "--config-name=cfg_mine", "device=cpu", cwd=workplace)
    assert result.code == 2
    assert "arch.loss.precision" in result.output
