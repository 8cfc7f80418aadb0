"""scripts/bench.py --device cuda, with tiny stand-ins on a CPU: turns, rows, processes, the table."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import engine.device
from engine.device import DeviceChoice
from engine.errors import UsageError
from engine.loop import compiling
from scripts.bench import main, parse
from tasks.gpu_benchmark import case as case_module, processes, timing
from tasks.gpu_benchmark.case import PLAIN, Bench
from tasks.gpu_benchmark.processes import Row, Settings, measured_rows
from tasks.gpu_benchmark.puzzles import PuzzleCase
from tasks.gpu_benchmark.rows import CASES
from tasks.gpu_benchmark.table import HEAD, lines_of
from tasks.recursive_reasoning.step_benchmark.literal_training import AdamATan2

CPU = torch.device("cpu")
SMALL = ("arch.hidden_size=32", "arch.num_heads=4", "arch.L_layers=1", "arch.H_cycles=2", "arch.L_cycles=1")
PUZZLES = replace(CASES[0], name="puzzles", rows=4, tokens=9, recipe=(*CASES[0].recipe, *SMALL))
TEXT = replace(
    CASES[3],
    name="text",
    rows=4,
    tokens=16,
    recipe=(*CASES[3].recipe, "arch.n_layer=1", "arch.n_embd=32", "arch.n_head=2"),
)
EAGER = ["ours, eager", "public code, eager"]
SETTINGS = Settings(device="cpu", pairs=3, seconds=1.0, modes="eager", threads=1)


@pytest.mark.parametrize("case", [PUZZLES, TEXT], ids=lambda case: case.name)
def test_a_row(tmp_path, case):
    row = Row(case, SETTINGS, tmp_path)
    row.warm_up()
    assert not row.works  # eager modes wait until they are timed
    figures = row.measure()
    assert list(figures["modes"]) == EAGER
    assert not figures["errors"]
    for mode in figures["modes"].values():
        low, middle, high = mode["ms"]
        assert 0 < low <= middle <= high
        assert len(mode["rounds_ms"]) == 3
        assert mode["tflops"] == pytest.approx(1e-9 * figures["flops"] / middle)


def test_the_published_form_compiled_as_a_whole(tmp_path, monkeypatch):
    """One graph, loss included, and the step of the eager form."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    case = replace(PUZZLES, recipe=(*PUZZLES.recipe, "arch.halt_exploration_prob=0.0"))
    losses = []
    for mode in ("public code, compiled", "public code, eager"):
        steps = Bench(case, CPU, tmp_path / mode[-5:]).work(mode)
        steps(2)
        (training,) = [cell.cell_contents for cell in steps.__closure__ if hasattr(cell.cell_contents, "carry")]
        losses.append([*training.model.parameters()])
    assert len(graphs) == 1
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_shapes(tmp_path, case):
    """Each recipe gives the sizes that its row is named after."""
    assert f"B {case.rows}" in case.name
    assert len(set(case.modes)) == (6 if case.small else 5)
    expected = {"mlp_t, B": (97, 3, 6), "attention, B": (97, 3, 6), "ARC": (916, 3, 4), "4x4": (16, 2, 1)}
    trainer = Bench(replace(case, rows=2), CPU, tmp_path).trainer(*PLAIN)
    for part, (positions, H_cycles, L_cycles) in expected.items():
        if part in case.name:
            config = trainer.task.model.config
            assert config.prefix_len + case.tokens == positions
            assert (config.H_cycles, config.L_cycles) == (H_cycles, L_cycles)
    assert trainer.last_step > 10_000  # longer than any timing
    assert trainer.module.flops(case.rows)["train"] > 0


def test_turns(monkeypatch):
    """Every round has each work once, in changing order; one that fails is left out, with its reason."""
    order = []

    def measured(work, steps, device):
        order.append(work)
        if work == "breaks" and order.count("breaks") == 3:
            raise RuntimeError("CUDA error: device-side assert\nsecond line")
        return {"quick": 0.001, "slow": 400.0, "breaks": 50.0}[work] + steps

    monkeypatch.setattr(timing, "milliseconds", measured)
    works = {name: name for name in ("quick", "slow", "breaks")}
    times, errors = timing.in_rounds(works, CPU, rounds=4, seconds=1000.0)
    assert errors == {"breaks": "RuntimeError: CUDA error: device-side assert"}
    assert set(times) == {"quick", "slow"}
    assert len(times["quick"]) == len(times["slow"]) == 4
    assert times["slow"] == [401.0] * 4  # one step is a turn
    assert order[:6] == ["quick", "slow", "breaks", "breaks", "slow", "quick"]
    times, _ = timing.in_rounds({"quick": "quick"}, CPU, rounds=9, seconds=0.0)
    assert len(times["quick"]) == timing.FEWEST_ROUNDS


def test_ceilings():
    rates = timing.ceilings(CPU, size=16, copied=1 << 12)
    assert set(rates) == {"matmul_tflops", "copy_tbs"}
    assert min(rates.values()) > 0


@pytest.mark.slow
def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TIMING_LIMIT", 1e6)
    broken = replace(PUZZLES, name="broken", recipe=("--config-name=cfg_pretrain_of_nothing",), vocab_size=-1)
    rows = {row["name"]: row for row in measured_rows([broken, PUZZLES], replace(SETTINGS, warm_up=1e6), tmp_path)}
    assert "error" in rows["broken"]
    assert list(rows["puzzles"]["modes"]) == EAGER


def test_a_mode_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(PuzzleCase, "compile", "whole")
    row = Row(PUZZLES, replace(SETTINGS, modes="ours"), tmp_path)
    row.warm_up()
    figures = row.measure()
    assert list(figures["modes"]) == ["ours, eager"]
    assert "compile" in figures["errors"]["ours, compile=whole"]
    assert "ratio" not in figures["modes"]["ours, eager"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (None, "step_graph=on is for device=cuda"),
        (lambda trainer: SimpleNamespace(works=False, step=lambda *_: False), "the step could not be captured"),
    ],
    ids=["refused", "falls back"],
)
def test_a_step_that_is_not_captured_is_not_timed(tmp_path, monkeypatch, make, expected):
    if make is not None:
        monkeypatch.setattr(case_module, "make_step_graph", make)
        monkeypatch.setattr(PuzzleCase, "ours", {"ours, step_graph": PLAIN})  # a CPU refuses step_graph=on
    row = Row(replace(PUZZLES, small=True), replace(SETTINGS, modes="^ours, step_graph"), tmp_path)
    row.warm_up()
    figures = row.measure()
    assert not figures["modes"]
    assert expected in figures["errors"]["ours, step_graph"]


def test_what_is_printed():
    mode = {"ms": [1.0, 2.0, 3.0], "ratio": [0.5, 1.0, 1.5], "tflops": 50.0}
    row = {"name": "r", "modes": {"m": mode}, "errors": {"n": "no"}, "notes": {"m": ["warning: w", "plain"]}}
    assert list(lines_of(row, 100.0)) == [
        "| r | m | 2 | 1 .. 3 | 1.00 | 0.50 .. 1.50 | 50 | 50.0 % |",
        "failed: r: n: no",
        "note: r: m: warning: w",
    ]
    assert list(lines_of({"name": "r", "error": "e"}, 100.0)) == ["failed: r: e"]
    bare = {"name": "r", "modes": {"m": {"ms": [1.0, 2.0, 3.0]}}, "errors": {}, "notes": {}}
    columns = {
        line.count("|") for line in (*HEAD.splitlines(), *lines_of(bare, 1.0), *lines_of(row, 1.0)) if "|" in line
    }
    assert len(columns) == 1


def test_parameters_are_updated_together_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator), torch.randn(2)]
    gradients = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator), None]
    results = []
    for how in ("step_loop", "step_foreach"):
        params = [start.clone().requires_grad_() for start in starts]
        optimizer = AdamATan2(params, 0.1, (0.9, 0.95), 0.5)
        for _ in range(3):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = None if gradient is None else gradient.clone()
            getattr(optimizer, how)()
            assert all(param.grad is None for param in params)
        results.append(params)
    torch.testing.assert_close(*results)


def test_the_command(tmp_path, monkeypatch, capsys):
    """What it gives to `measured_rows`, and what it makes of the rows that come."""
    given = []

    def measured(cases, settings, folder):
        assert folder.is_dir()
        given.append((cases, settings))
        yield from ({"name": case.name, "error": "no"} for case in cases)

    monkeypatch.setattr(processes, "measured_rows", measured)
    monkeypatch.setattr(timing, "ceilings", lambda device: {"matmul_tflops": 790.0, "copy_tbs": 3.0})
    monkeypatch.setattr(engine.device, "choose_device", lambda asked: DeviceChoice(CPU, torch.float32, f"a {asked}"))
    file = tmp_path / "bench.json"
    words = ["--device", "cuda", "--only", "TRM", "--modes", "ours", "--seconds", "2", "--json", str(file)]
    main(parse(words))
    ((cases, settings),) = given
    assert [case.name for case in cases] == [case.name for case in CASES if "TRM" in case.name]
    assert settings == Settings(device="cpu", pairs=7, seconds=2, warm_up=240, modes="ours", threads=None)
    out = capsys.readouterr().out
    assert out.startswith("a cuda; 790 TFLOP/s in a product, 3.00 TB/s in a copy\n" + HEAD)
    assert out.count("failed: TRM") == 4
    written = json.loads(file.read_text())
    assert written["ceilings"]["matmul_tflops"] == 790.0
    assert len(written["rows"]) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    with pytest.raises(UsageError) as refused:
        main(parse(["--device", "cuda"]))
    assert "\n" not in str(refused.value)
