"""torch.compile: what is compiled, that names and numbers stay, and one line where it cannot work.

The fast tests only trace (backend eager: what is traced runs in torch's own kernels), the slow one generates code too.
"""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.config import RunConfig
from engine.errors import UsageError
from engine.loop import compiling
from tests.conftest import run_ranks, run_script
from tests.e2e.test_ranks import ATTENTION, BASE, compare, compare_weights

CPU = torch.device("cpu")
SHORT = (
    *BASE,
    *ATTENTION,
    "max_steps=5",
    "log_interval=1",
    "verify=off",
    "arch.H_cycles=2",
    "arch.L_cycles=1",
    "arch.halt_max_steps=2",
    "eval_max_examples=4",
    "final_eval_max_examples=4",
    "eval_batch_size=4",
)

NO_TABLE = ("arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0")  # a table splits the graph, which takes long to trace

IN_FORKS = True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # forked runs inherit it


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What compiling prints; capsys would keep a test out of its fork."""
    lines: list[str] = []
    monkeypatch.setattr(compiling, "print_rank0", lines.append)
    return lines


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def task(module: nn.Module) -> types.SimpleNamespace:
    """Its loss, and its evaluation, run every layer."""

    def loss(x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer in module.layers]

    return types.SimpleNamespace(module=module, loss=loss, evaluate=loss)


def test_blocks_stay_where_they_are(quick: None) -> None:
    net = Net()
    names, x = list(net.state_dict()), torch.randn(2, 3)
    expected = [layer(x) for layer in net.layers]
    made = task(net)
    assert compiling.compile_task(made, RunConfig(compile="block"), CPU, steps=1) == "block"
    assert list(net.state_dict()) == names
    for results in (made.loss(x), made.evaluate(x), [layer(x) for layer in net.layers]):
        for result, want in zip(results, expected, strict=True):
            assert torch.allclose(result, want)


@pytest.mark.parametrize("mode", ["block", "full"])
def test_only_training_steps_are_compiled(monkeypatch: pytest.MonkeyPatch, printed: list[str], mode: str) -> None:
    """Sampling has another length for each token, the last rows of an evaluation are fewer: neither compiles, nor do
    they use up dynamo's limit, after which training would run uncompiled."""
    graphs, runs = [], []

    def counting(graph, inputs):
        graphs.append(graph)
        return lambda *values: runs.append(graph) or graph.forward(*values)

    monkeypatch.setattr(compiling, "BACKEND", counting)
    monkeypatch.setattr(compiling, "compiler_fault", lambda *_: None)
    net = Net()
    made = task(net)
    compiling.compile_task(made, RunConfig(compile=mode), CPU, steps=1)
    for length in range(2, 100):
        net.layers[0](torch.ones(length, 3))
        made.evaluate(torch.ones(length, 3))
    assert not graphs
    made.loss(torch.ones(4, 3))
    compiled = len(graphs)
    assert 1 <= compiled <= 2  # layers that are alike may share one graph
    assert f"{mode}: the first loss took " in printed[-1]
    before = len(runs)
    for length in range(2, 100):
        net.layers[0](torch.ones(length, 3))
    made.evaluate(torch.zeros(4, 3))
    assert len(runs) == before
    made.loss(torch.zeros(4, 3))
    assert len(graphs) == compiled
    assert len(runs) == 2 * before  # training still is compiled
    assert len(printed) == 2


@pytest.mark.parametrize("mode", ["block", "full"])
def test_a_compiler_that_fails_in_the_first_step_leaves_training_uncompiled(
    monkeypatch: pytest.MonkeyPatch, printed: list[str], mode: str
) -> None:
    def failing(graph, inputs):
        raise RuntimeError("no kernel for this\nand much more")

    monkeypatch.setattr(compiling, "BACKEND", failing)
    monkeypatch.setattr(compiling, "compiler_fault", lambda *_: None)
    net, x = Net(), torch.randn(2, 3)
    made = task(net)
    expected = made.evaluate(x)
    compiling.compile_task(made, RunConfig(compile=mode), CPU, steps=1)
    for _ in range(2):
        for result, want in zip(made.loss(x), expected, strict=True):
            assert torch.equal(result, want)
    assert made.compiled == "off"
    (warning,) = [line for line in printed if line.startswith("warning")]
    assert "no kernel for this)" in warning


@pytest.mark.parametrize(
    ("asked", "device", "suits", "steps", "seconds", "mode", "why"),
    [
        ("auto", "cpu", "block", 10**6, None, "off", ""),
        ("auto", "mps", "full", 10**6, 1e9, "off", ""),
        ("auto", "cuda", "block", 1_000, None, "block", ""),
        (
            "auto",
            "cuda",
            "block",
            10**6,
            59,
            "off",
            "59 s left of max_seconds do not repay the warm-up (60 would); compile=block",
        ),
        ("auto", "cuda", "block", 1_000, 60, "block", ""),
        ("auto", "cuda", "block", 999, 1e9, "off", "999 steps do not repay the warm-up"),
        ("auto", "cuda", "full", 9_999, None, "off", "compile=full compiles"),
        ("auto", "cuda", "full", 10_000, 480, "full", ""),
        ("auto", "cuda", "full", 10**6, 300, "off", "300 s left of max_seconds do not repay"),
        ("auto", "cuda", None, 10**6, None, "off", "the same shapes"),
        ("block", "cpu", None, 1, 0.1, "block", ""),
        ("full", "cuda", "block", 1, 0.1, "full", ""),
        ("off", "cuda", "block", 10**6, None, "off", ""),
    ],
)
def test_what_auto_stands_for(
    asked: str, device: str, suits: str | None, steps: int, seconds: float | None, mode: str, why: str
) -> None:
    chosen, reason = compiling.choose_mode(asked, device=device, suits=suits, steps=steps, seconds=seconds)
    assert chosen == mode
    assert why in reason
    assert bool(reason) == bool(why)


def test_disable_compile_in_the_environment_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"device": "cuda", "suits": "block", "steps": 10**6, "seconds": None}
    monkeypatch.setenv("DISABLE_COMPILE", "1")
    assert compiling.choose_mode("auto", **long) == ("off", "DISABLE_COMPILE is set")
    assert compiling.choose_mode("block", **long) == ("block", "")
    monkeypatch.setenv("DISABLE_COMPILE", "")
    assert compiling.choose_mode("auto", **long) == ("block", "")


def test_a_run_that_is_too_short_says_why_it_is_not_compiled(printed: list[str]) -> None:
    made = task(Net())
    made.compiles = "block"
    assert compiling.compile_task(made, RunConfig(), torch.device("cuda"), steps=20) == "off"
    assert printed[0].startswith("compile     off: 20 steps do not repay the warm-up")


def test_a_budget_that_is_too_short_is_not_spent_on_compiling(printed: list[str]) -> None:
    made = task(Net())
    made.compiles = "block"
    assert compiling.compile_task(made, RunConfig(max_seconds=30), torch.device("cuda"), steps=10**6) == "off"
    assert printed[0].startswith("compile     off: 30 s left of max_seconds do not repay the warm-up")


def test_what_earlier_processes_spent_of_a_budget_does_not_repay_compiling(printed: list[str]) -> None:
    made, config = task(Net()), RunConfig(max_seconds=100)
    made.compiles = "block"
    assert compiling.compile_task(made, config, torch.device("cuda"), steps=10**6, spent=70.0) == "off"
    assert printed[0].startswith("compile     off: 30 s left of max_seconds do not repay the warm-up")


def test_off_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    made = task(Net())
    made.compiles = "block"
    assert compiling.compile_task(made, RunConfig(), CPU, steps=10**6) == "off"


def test_a_model_without_blocks_is_refused(quick: None) -> None:
    with pytest.raises(UsageError, match="compile=full"):
        compiling.compile_task(task(nn.Linear(2, 2)), RunConfig(compile="block"), CPU, steps=1)


def test_without_a_compiler_one_line_says_so_and_training_is_as_ever(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(graph, inputs):
        raise RuntimeError("g++ was not found\nand much more")

    assert run_script("pretrain", *SHORT, "run_name=off", cwd=workplace).code == 0
    monkeypatch.setattr(compiling, "BACKEND", missing)
    result = run_script("pretrain", *SHORT, "compile=block", cwd=workplace)
    assert result.code == 0, result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "RuntimeError: g++ was not found)" in warnings[0]
    assert "and much more" not in result.output
    compare(workplace / "checkpoints/p/r", workplace / "checkpoints/p/off", 0.0)


@pytest.mark.parametrize("mode", ["block", pytest.param("full", marks=pytest.mark.slow)])
def test_numbers_and_names_agree_with_off(workplace: Path, quick: None, mode: str) -> None:
    argv = [*SHORT, *(NO_TABLE if mode == "full" else ())]
    assert run_script("pretrain", *argv, "run_name=off", cwd=workplace).code == 0
    result = run_script("pretrain", *argv, f"compile={mode}", cwd=workplace)
    assert result.code == 0, result.output
    assert "compile     " in result.output
    compare(workplace / "checkpoints/p/r", workplace / "checkpoints/p/off", 1e-4)  # names, evaluation and lines too


@pytest.mark.slow
def test_resume_across_modes(workplace: Path, quick: None) -> None:
    assert run_script("pretrain", *SHORT, "run_name=off", cwd=workplace).code == 0
    for mode, steps in (("block", 3), ("off", 5)):
        resume = [] if steps == 3 else ["resume=true"]
        result = run_script("pretrain", *SHORT, f"compile={mode}", f"max_steps={steps}", *resume, cwd=workplace)
        assert result.code == 0, result.output
        assert "with changes" not in result.output
    compare_weights(workplace / "checkpoints/p/r", workplace / "checkpoints/p/off", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["block", "full"])
def test_two_ranks_with_ddp_and_accumulation(workplace: Path, quick: None, mode: str) -> None:
    argv = [*SHORT, "arch.forward_dtype=float64"]
    assert run_script("pretrain", *argv, "run_name=alone", cwd=workplace).code == 0
    ranks = run_ranks("pretrain", *argv, "accumulation=2", "parallel=ddp", f"compile={mode}", cwd=workplace)
    for result in ranks:
        assert result.code == 0, result.output
    compare(workplace / "checkpoints/p/r", workplace / "checkpoints/p/alone", 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["block", "full"])
def test_generated_code(workplace: Path, mode: str) -> None:
    """With inductor, C++ compiler and all."""
    argv = [*SHORT, *(NO_TABLE if mode == "full" else ())]
    assert run_script("pretrain", *argv, "run_name=off", cwd=workplace).code == 0
    result = run_script("pretrain", *argv, f"compile={mode}", cwd=workplace)
    assert result.code == 0, result.output
    assert "warning" not in result.output
    compare(workplace / "checkpoints/p/r", workplace / "checkpoints/p/off", 1e-4)
