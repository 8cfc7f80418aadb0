"""Every file of config/optimizer learns at its defaults, or says what it needs and learns with that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from engine.config import load_synced_config
from engine.errors import UsageError
from engine.loop.trainer import Trainer
from engine.signals import StopSignal
from engine.task import Runtime
from tasks.language_model.args import TrainConfig
from tasks.language_model.build import build
from tasks.optimizers import USUAL_RATES, check_optimizer, check_optimizers
from tests.conftest import ROOT
from tests.train.conftest import TINY

PRESETS = sorted(path.stem for path in (ROOT / "config/optimizer").glob("*.yaml") if path.stem != "pytorch_optimizer")
IN_TORCH = ("adafactor", "adagrad", "adam", "adamw", "lookahead", "muon", "nadam", "radam", "rmsprop", "sgd")
NEEDS = {"prodigy": 1.0}  # refused without it
SIZES = (
    "arch.n_embd=32",
    "arch.block_size=16",
    "batch_size=8",
    "max_iters=50",
    "lr_decay_iters=50",
    "warmup_iters=2",
    "eval_interval=50",
    "eval_train=false",
    "eval_iters=4",
    "seed=0",
    "lr_scheduler=none",
    "decay_lr=false",
)


def compose_run(texts: Path, *overrides: str) -> TrainConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        words = [*TINY[1:], *SIZES, f"dataset={texts / 'plain'}", *overrides]
        return load_synced_config(compose("cfg_train_cpu", words), schema=TrainConfig, entry="train")


def learned(config: TrainConfig) -> float:
    """By how much the validation loss fell, in nats."""
    torch.manual_seed(config.seed)
    runtime = Runtime(
        device=torch.device("cpu"), dtype=torch.float32, attention="math", seed=0, accumulation=1, rank=0, world_size=1
    )
    lines: list[dict] = []
    trainer = Trainer(
        build(config, runtime),
        config,
        runtime,
        save=lambda *_: None,
        write=lambda _, values: lines.append(values),
        stop=StopSignal(),
    )
    trainer.fit()
    losses = [values["eval/val_loss"] for values in lines if "eval/val_loss" in values]
    return losses[0] - losses[-1]


def check(config: TrainConfig) -> None:
    check_optimizers(config.optimizer, config.learning_rate)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_learns(texts: Path, preset: str, capsys: pytest.CaptureFixture) -> None:
    if preset not in IN_TORCH:
        pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")
    config = compose_run(texts, f"optimizer={preset}")
    if preset in NEEDS:
        with pytest.raises(UsageError, match="set learning_rate=1"):
            check(config)
        config = compose_run(texts, f"optimizer={preset}", f"learning_rate={NEEDS[preset]}")
    elif usual := USUAL_RATES.get(config.optimizer["name"]):
        check(config)
        assert f"needs a learning_rate near {usual:g}" in capsys.readouterr().out
        config = compose_run(texts, f"optimizer={preset}", f"learning_rate={usual}")
    check(config)
    assert "note" not in capsys.readouterr().out
    assert learned(config) > 0.2  # nats; at a rate far too small it is below 0.06


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam", "dadaptlion"])
def test_what_finds_its_rate_is_refused_at_another_ones(name: str) -> None:
    pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")
    for outer, options in ((name, {}), ("lookahead", {"inner": name})):
        with pytest.raises(UsageError, match="set learning_rate=1"):
            check_optimizer(outer, options, 1e-3)
        check_optimizer(outer, options, 1.0)
