"""Two gloo ranks are one process with the same global batch: same numbers, one run directory, checkpoints for both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import last_checkpoint, metrics, run_ranks, run_script, status_of

BASE = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu max_steps=20 epochs=4 global_batch_size=8
    log_interval=4 arch.halt_max_steps=4 arch.halt_exploration_prob=0.5 ema=true ema_rate=0.9
    arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=2 puzzle_emb_lr=0.001 lr=0.001 lr_warmup_steps=5 project_name=p
    run_name=r
""".split()
ATTENTION = ("arch.mlp_t=false", "arch.pos_encodings=rope")
DRAWN = ("arch.late_states=0.5", "arch.late_steps=[1,2]", "arch.chains=2")
HRM = (
    "arch=hrm",
    "arch.hidden_size=32",
    "arch.num_heads=4",
    "arch.H_layers=1",
    "arch.L_layers=1",
    "arch.puzzle_emb_len=0",
)


def final(run: Path) -> dict[str, torch.Tensor]:
    last = last_checkpoint(run)
    tensors = {}
    for file in ("model", "ema"):
        for name, value in load_file(last / f"{file}.safetensors").items():
            tensors[f"{file}.{name}"] = value
    return tensors


def compare_weights(ours: Path, theirs: Path, tolerance: float) -> None:
    a, b = final(ours), final(theirs)
    assert a.keys() == b.keys()
    worst = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    assert worst <= tolerance, f"weights differ by {worst}"


def compare(ours: Path, theirs: Path, tolerance: float) -> None:
    compare_weights(ours, theirs, tolerance)
    for line, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert line.keys() == other.keys()
        for key, value in line.items():
            near = other[key] if value is None else pytest.approx(other[key], abs=10 * tolerance, rel=10 * tolerance)
            assert value == near, (key, line["step"])


@pytest.mark.parametrize(
    ("extra", "tolerance"),
    [
        pytest.param(("arch.forward_dtype=float64",), 1e-6, id="mlp_t-float64", marks=pytest.mark.slow),
        pytest.param((*ATTENTION, *DRAWN, "arch.forward_dtype=float64"), 1e-6, id="attention-float64-chains"),
        pytest.param((*HRM, "arch.forward_dtype=float64"), 1e-6, id="hrm-float64"),
        pytest.param(ATTENTION, 1e-6, id="attention-float32"),
        pytest.param((*ATTENTION, "parallel=ddp"), 1e-6, id="attention-float32-ddp"),
        pytest.param(
            (*HRM, "arch.forward_dtype=float64", "parallel=ddp"), 1e-6, id="hrm-float64-ddp", marks=pytest.mark.slow
        ),
    ],
)
def test_two_ranks_are_one_process(workplace: Path, dynamo: None, extra: tuple[str, ...], tolerance: float) -> None:
    argv = [*BASE, *extra]
    alone = run_script("pretrain", *argv, "accumulation=4", "run_name=alone", cwd=workplace)
    assert alone.code == 0, alone.output
    for result in run_ranks("pretrain", *argv, "accumulation=2", cwd=workplace):
        assert result.code == 0, result.output
    compare(workplace / "checkpoints/p/r", workplace / "checkpoints/p/alone", tolerance)


def test_one_run_directory_though_ranks_start_seconds_apart(workplace: Path) -> None:
    argv = [*BASE, "max_steps=2", "run_dir=runs/${run_name}_${now:%H-%M-%S}"]
    results = run_ranks("pretrain", *argv, cwd=workplace, stagger_s=1.5)
    assert [result.code for result in results] == [0, 0], results
    assert len(list((workplace / "runs").glob("r_*"))) == 1
    # Only rank 0 speaks.
    assert "done:" in results[0].output
    assert results[1].output.strip() == ""


@pytest.mark.parametrize("first", [1, 2])
def test_resume_on_another_number_of_ranks(workplace: Path, first: int) -> None:
    argv = [*BASE, *ATTENTION, *DRAWN, "arch.forward_dtype=float64"]
    whole = run_script("pretrain", *argv, "run_name=whole", cwd=workplace)
    assert whole.code == 0, whole.output

    def run(ranks: int, *more: str) -> None:
        for result in run_ranks("pretrain", *argv, *more, cwd=workplace, ranks=ranks):
            assert result.code == 0, result.output

    run(first, "max_steps=9")
    run(3 - first, "resume=true")
    # Only the weights: the first part has lines of its own, since its last step is logged and evaluated.
    compare_weights(workplace / "checkpoints/p/r", workplace / "checkpoints/p/whole", 1e-6)


def test_an_error_on_rank_0_ends_all_ranks_with_its_line(workplace: Path) -> None:
    results = run_ranks("pretrain", *BASE, "data_paths=[data/nowhere]", cwd=workplace)
    assert [result.code for result in results] == [2, 2], results
    assert "data/nowhere" in results[0].output
    results = run_ranks("pretrain", *BASE, "resume=true", "run_name=nothing", cwd=workplace)
    assert [result.code for result in results] == [2, 2], results


def test_a_batch_that_does_not_divide_is_refused(workplace: Path) -> None:
    results = run_ranks("pretrain", *BASE, "global_batch_size=6", "accumulation=2", cwd=workplace)
    assert [result.code for result in results] == [2, 2], results
    assert "global_batch_size=6" in results[0].output
    assert status_of(workplace / "checkpoints/p/r")["state"] == "refused"
