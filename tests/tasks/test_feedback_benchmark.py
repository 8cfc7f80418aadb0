"""The benchmark of both forms, and what the choice between them has to keep."""

from __future__ import annotations

import json

import torch

from models.feedback.apply import choose_form
from scripts.bench_feedback import main, parse
from tasks.feedback.benchmark import delta_memory, timings

CPU = torch.device("cpu")


def test_low_rank_takes_a_quarter_of_the_memory_or_less():
    """At 16 rows of 128 positions, width 512, rank 8."""
    low, dense = delta_memory("lowrank", CPU), delta_memory("dense", CPU)
    # A row's own weight in float32, and its gradient: 16 x 512 x 512 x 4 bytes each, less the shared product's.
    assert dense > 2 * 16 * 512**2 * 4 * 0.9
    assert dense >= 4 * low


def test_auto_takes_the_form_that_is_faster_by_far():
    """Cells of the measured grid in which one form takes less than two thirds of the other's time."""
    for rows, length, width, rank, form in (
        (16, 512, 256, 256, "dense"),
        (16, 128, 64, 64, "dense"),
        (16, 32, 512, 1, "lowrank"),
        (16, 32, 512, 8, "lowrank"),
    ):
        assert choose_form("auto", rows, length, rank, (width, width), torch.float32, "cpu") == form
    assert choose_form("dense", 1, 1, 1, (8, 8), torch.bfloat16, "cuda") == "dense"
    assert choose_form("auto", 16, 512, 256, (256, 256), torch.float32, "cuda") == "lowrank"


def test_timings_of_a_small_grid():
    measured = [*timings(CPU, repeats=1, grid={"rows": (2,), "length": (8,), "width": (16,), "rank": (1, 2)})]
    assert [(t.rank, t.training) for t in measured] == [(1, True), (1, False), (2, True), (2, False)]
    for timing in measured:
        best = min(timing.lowrank_ms, timing.dense_ms)
        own = timing.lowrank_ms if timing.auto == "lowrank" else timing.dense_ms
        assert timing.excess == own / best - 1


def test_the_command(tmp_path, capsys):
    file = tmp_path / "bench.json"
    argv = ["--repeats", "1", "--rows", "2", "--length", "8", "--width", "16", "--rank", "2", "--json", str(file)]
    threads = torch.get_num_threads()
    try:
        main(parse(argv))
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "auto is at most" in text
    assert "low rank 4." in text
    assert len(json.loads(file.read_text())["timings"]) == 2
