"""Every preset of config/debug does on a real run what its first line says; those of config/sweep make clean runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.conftest import Result, metrics, run_script, status_of
from tests.e2e.recipes import PRETRAIN, TRAIN
from tests.launcher.sweep_cases import ROOT, results, start

composed, RECIPES = PRETRAIN.compose, PRETRAIN.recipes
plain = functools.cache(composed)
ALL = sorted(path.stem for path in (ROOT / "config/debug").glob("*.yaml"))
DEBUG = [name for name in ALL if not name.endswith("_text")]
SWEEP = sorted(path.stem for path in (ROOT / "config/sweep").glob("*.yaml"))
SMALL = ("arch.hidden_size=32", "data_paths=[data/debug-sudoku-4x4]", "device=cpu", "verify=off", "run_name=r")
RUN = Path("checkpoints/debug/r")


def run(preset: str, folder: Path, *more: str) -> Result:
    return run_script(
        "pretrain", "--config-name=cfg_pretrain_sudoku_4x4", f"+debug={preset}", *SMALL, *more, cwd=folder
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", DEBUG)
def test_every_recipe_composes_with_every_debug_preset(recipe: str, preset: str) -> None:
    assert plain(recipe) != composed(recipe, f"+debug={preset}")


@pytest.mark.parametrize("recipe", TRAIN.recipes)
def test_tiny_text_shrinks_every_recipe_of_train(recipe: str) -> None:
    small = TRAIN.compose(recipe, "+debug=tiny_text")
    assert (small.max_iters, small.batch_size, small.arch["n_layer"]) == (4, 4, 1)


def test_all_debug_presets_are_tested_here() -> None:
    assert set(ALL) - set(DEBUG) == {"tiny_text"}
    assert DEBUG == ["limit", "nonfinite", "overfit", "profile", "tiny"]


def test_limit_keeps_the_size_and_ends_after_ten_steps(workplace: Path) -> None:
    done = run("limit", workplace, "global_batch_size=8", "epochs=20")
    assert done.code == 0, done.output
    assert "steps       10 of 160 (max_steps)" in done.output
    lines = metrics(workplace / RUN)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 11))
    assert (workplace / RUN / "step_10/manifest.json").exists()
    full, limited = composed("cfg_pretrain_sudoku_4x4"), composed("cfg_pretrain_sudoku_4x4", "+debug=limit")
    assert (limited.arch, limited.global_batch_size, limited.data_paths) == (
        full.arch,
        full.global_batch_size,
        full.data_paths,
    )


def test_nonfinite_stops_at_the_first_bad_step(workplace: Path) -> None:
    done = run("nonfinite", workplace, "lr=1e30", "lr_warmup_steps=0", "max_steps=6", "global_batch_size=8")
    assert done.code == 1
    status = status_of(workplace / RUN)
    assert (status["state"], status["step"]) == ("failed", 2)
    assert "attention math" in done.output
    fine = run("nonfinite", workplace, "max_steps=2", "global_batch_size=8", "run_name=fine")
    assert fine.code == 0, fine.output


@pytest.mark.slow
def test_overfit_learns_its_64_boards_by_heart(workplace: Path) -> None:
    done = run_script(
        "pretrain", "--config-name=cfg_pretrain_sudoku_4x4", "+debug=overfit", "device=cpu", "run_name=r", cwd=workplace
    )
    assert done.code == 0, done.output
    last = [line for line in metrics(workplace / RUN) if "train/loss" in line][-1]
    assert last["train/loss"] < 0.1
    assert last["train/exact_accuracy"] == 1.0


def test_overfit_sees_all_boards_in_every_batch(workplace: Path) -> None:
    done = run("overfit", workplace, "epochs=2")
    assert done.code == 0, done.output
    assert "steps       2" in done.output


@pytest.mark.slow
def test_profile_leaves_a_trace(workplace: Path) -> None:
    done = run("profile", workplace, "global_batch_size=8", "epochs=20")
    assert done.code == 0, done.output
    (trace,) = (workplace / RUN / "profile").glob("trace*.json")
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.slow
def test_the_preset_of_weights_is_that_of_the_shell_script() -> None:
    weights = OmegaConf.load(ROOT / "config/sweep/w_o.yaml").hydra.sweeper.params["arch.loss"]
    points = OverridesParser.create().parse_override(f"arch.loss={weights}").sweep_iterator()
    pairs = [(point["w_c"], point["w_o"]) for point in points]
    assert pairs == [(round(1 - tenths / 10, 1), tenths / 10) for tenths in range(2, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in SWEEP if preset != "w_o"])  # train_animal.py's
def test_sweep_presets_make_clean_runs_and_one_table(preset: str, workplace: Path) -> None:
    argv = [
        "--config-name=cfg_pretrain_sudoku_4x4",
        "+debug=tiny",
        f"+sweep={preset}",
        "-m",
        "device=cpu",
        "verify=off",
    ]
    process = start(workplace, str(ROOT / "pretrain.py"), *argv)
    output, error = process.communicate()
    assert process.returncode == 0, output + error
    swept = OmegaConf.load(ROOT / f"config/sweep/{preset}.yaml").hydra.sweeper.params
    rows = results(workplace)
    assert len(rows) == {"depth": 9, "lr_seed": 6, "seeds": 5}[preset]
    assert {row["state"] for row in rows} == {"done"}
    assert len({row["run directory"] for row in rows}) == len(rows)
    assert set(swept) <= set(rows[0])


def page_commands() -> list[list[str]]:
    from tests.e2e.test_docs import commands, read

    blocks = read(ROOT / "docs/sweeps.md").blocks
    return [words for block in blocks if block.kind in ("bash", "text") for words in commands(block.body)]


def test_the_page_names_every_preset_and_its_estimates_compose() -> None:
    from scripts.estimate import parse

    page = (ROOT / "docs/sweeps.md").read_text()
    assert all(f"`+debug={name}`" in page for name in DEBUG)
    assert all(f"`+sweep={name}`" in page for name in SWEEP)
    estimates = [words for words in page_commands() if words[1] == "scripts/estimate.py"]
    assert len(estimates) == 3
    for words in estimates:
        PRETRAIN.accept(parse(words[2:])[1])


@pytest.mark.parametrize(
    ("plugin", "uses"),
    [("joblib_launcher", "hydra/launcher=joblib"), ("submitit_launcher", "submitit_"), ("optuna_sweeper", "optuna")],
)
def test_commands_of_the_page_that_need_a_plugin_compose(plugin: str, uses: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    commands = [words for words in page_commands() if words[1] == "pretrain.py" and any(uses in word for word in words)]
    assert commands
    for words in commands:
        PRETRAIN.accept([word for word in words[2:] if "interval(" not in word])
