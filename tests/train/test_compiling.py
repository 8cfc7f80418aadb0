"""torch.compile of train.py, traced only (backend eager): the slow test of pretrain.py generates code too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.loop import compiling
from tests.conftest import _entry, metrics, run_forked
from tests.train.conftest import TINY, attempt, train


@pytest.mark.parametrize("mode", [pytest.param("block", marks=pytest.mark.slow), "full"])
def test_train_agrees_with_off_and_sampling_compiles_nothing(
    place: Path, dynamo: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def counting(graph: Any, inputs: Any) -> Any:
        print("GRAPH")
        return graph.forward

    argv = ["eval_interval=3", "verify=off"]
    whole = train(place, *argv, "out_dir=out/off", run="out/off")
    monkeypatch.setattr(compiling, "BACKEND", counting)
    counts = []
    for sampled in (1, 20):
        result = attempt(place, *argv, f"compile={mode}", f"out_dir=out/{sampled}", f"max_sample_tokens={sampled}")
        assert result.code == 0, result.output
        counts.append(result.output.count("GRAPH"))
        for line, want in zip(metrics(place / f"out/{sampled}"), whole, strict=True):
            assert line == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert counts[0] == counts[1] > 1


def without_dynamo(script: str, argv: list[str]) -> None:
    sys.modules["torch._dynamo"] = None  # type: ignore[assignment]  # an import of it fails
    _entry(script, argv)


older = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="an older torch imports torch._dynamo by itself"
)


@older
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_nothing_is_imported_for_compile_off(place: Path, optimizer: str) -> None:
    """torch._dynamo takes seconds to import, and torch's own optimizers ask for it."""
    result = run_forked(without_dynamo, "train", [*TINY, f"optimizer={optimizer}"], cwd=place)
    assert result.code == 0, result.output


@older
def test_nothing_is_imported_for_pretrain(workplace: Path) -> None:
    argv = ["--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "max_steps=2"]
    result = run_forked(without_dynamo, "pretrain", argv, cwd=workplace)
    assert result.code == 0, result.output
