"""Sizes that no machine holds are refused before they take memory, by the key that is to blame."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.building import build_module
from engine.errors import UsageError
from tests.conftest import run_script

CPU = torch.device("cpu")


@dataclass
class Inner:
    width: int = 8


@dataclass
class Sizes:
    width: int = 8
    depth: int = 2
    inner: Inner = field(default_factory=Inner)


def make(sizes: Sizes) -> nn.Module:
    return nn.Sequential(*(nn.Linear(sizes.width, sizes.inner.width) for _ in range(sizes.depth)))


def test_what_fits_is_built_with_the_same_numbers() -> None:
    torch.manual_seed(3)
    plain = make(Sizes()).state_dict()
    torch.manual_seed(3)
    built = build_module(lambda: make(Sizes()), CPU, Sizes()).state_dict()
    assert all(torch.equal(plain[name], built[name]) for name in plain)


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        (Sizes(width=10**13), "arch.width=10000000000000"),
        (Sizes(inner=Inner(width=10**18)), "arch.inner.width=1000000000000000000"),
        (Sizes(width=10**9, inner=Inner(width=10)), "arch.width=1000000000"),
    ],
)
def test_what_does_not_fit_names_the_key(sizes: Sizes, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.building.memory_of", lambda device: 10**9)
    with pytest.raises(UsageError) as caught:
        build_module(lambda: make(sizes), CPU, sizes)
    assert str(caught.value) == f"the weights of this model take more than the 1 GB of memory here: lower {key}"


def test_other_errors_of_a_model() -> None:
    def broken(error: Exception) -> nn.Module:
        raise error

    with pytest.raises(UsageError, match="no way"):
        build_module(lambda: broken(ValueError("no way")), CPU, Sizes())
    with pytest.raises(UsageError, match=r"cannot build the model with arch\.width=900"):
        build_module(lambda: broken(ZeroDivisionError("division by zero")), CPU, Sizes(width=900))
    with pytest.raises(UsageError, match=r"lower arch's sizes, or the vocabulary and length of the data"):
        build_module(lambda: broken(MemoryError()), CPU, Sizes())
    with pytest.raises(RuntimeError, match="a bug"):
        build_module(lambda: broken(RuntimeError("a bug")), CPU, Sizes())


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("pretrain", ("arch.hidden_size=1000000",), "lower arch.hidden_size=1000000"),
        ("pretrain", ("arch.subgoal_head.goal_dim=1000000000",), "lower arch.subgoal_head.goal_dim=1000000000"),
        ("pretrain", ("arch.expansion=1e-300",), "arch.expansion=1e-300: expected a number from 0.01 to 1000"),
        ("pretrain", ("arch.L_layers=1000000",), "arch.L_layers=1000000: expected at most 1000"),
        ("pretrain", ("threads=20000",), "threads=20000: expected at most 1024"),
        ("pretrain", ("epochs=100000000",), "set eval_interval to at most 8388608"),
        ("train", ("arch.n_embd=1000000",), "lower arch.n_embd=1000000"),
        ("train", ("arch.n_layer=1000000",), "arch.n_layer=1000000: expected at most 1000"),
        ("train", ("arch.mlp_expansion_factor=1e300",), "lower arch.mlp_expansion_factor=1e+300"),
    ],
)
def test_sizes_of_the_scripts(workplace: Path, script: str, words: tuple[str, ...], message: str) -> None:
    debug = {"pretrain": "+debug=tiny", "train": "+debug=tiny_text"}[script]
    done = run_script(script, debug, "device=cpu", *words, cwd=workplace)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (workplace / "checkpoints").exists()
    assert not (workplace / "out").exists()
