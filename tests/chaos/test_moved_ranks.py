"""A run moved from four ranks to two and to three, each time killed: one rank's losses, and its samples in its order."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.inject import Injection, Strike
from chaos.storm import Command
from reports.losses import compare_losses, read_losses
from tasks.recursive_reasoning.task import RecursiveReasoningTask

WORDS = """
    --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu threads=1 max_steps=12 epochs=4 eval_interval=1
    checkpoint_interval=2 log_interval=1 verify=off run_dir=run global_batch_size=12 eval_batch_size=12 lr=0.001 ema=true
    arch.halt_max_steps=4 arch.halt_exploration_prob=0.5 arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=2
    puzzle_emb_lr=0.001 arch.forward_dtype=float64
""".split()
TOLERANCE = 1e-5
"""Relative: sums of float32 gradients in another order, over 12 steps."""
Drawn = dict[int, list[str]]
"""step -> digests of the rows of the global batch, in their order."""


def recording(draw: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def micro_batches(self: RecursiveReasoningTask, step: int) -> Iterator[Any]:
        pieces = list(draw(self, step))
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for _, part in pieces for row in part["inputs"]]
        with open("../drawn.jsonl", "a") as stream:
            stream.write(json.dumps([step, int(os.environ.get("RANK", 0)), rows]) + "\n")
        return iter(pieces)

    return micro_batches


def launch(folder: Path, ranks: int, kill: Strike | None = None) -> tuple[list[int], Drawn]:
    """The exit codes, and what was drawn in this launch."""
    place, notes = folder / "place", folder / f"notes-{ranks}"
    notes.mkdir()
    (folder / "drawn.jsonl").unlink(missing_ok=True)
    order = Injection(str(place), str(notes), [kill] if kill else [])
    command = Command.of(["python", "pretrain.py", *WORDS], ranks)
    outcomes = command.launch(place, {rank: replace(order, rank=rank) for rank in range(ranks)})
    assert (folder / "drawn.jsonl").exists(), outcomes[0].output
    drawn: dict[int, dict[int, list[str]]] = defaultdict(dict)
    for line in (folder / "drawn.jsonl").read_text().splitlines():
        step, rank, rows = json.loads(line)
        drawn[step][rank] = rows
    whole = {step: [row for rank in sorted(parts) for row in parts[rank]] for step, parts in drawn.items()}
    return [outcome.code for outcome in outcomes], whole


@pytest.mark.slow
def test_from_four_ranks_to_two_to_three(
    tmp_path: Path, tiny_data: Path, dynamo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecursiveReasoningTask, "micro_batches", recording(RecursiveReasoningTask.micro_batches))
    for name in ("one", "moved"):
        (tmp_path / name / "place").mkdir(parents=True)
        (tmp_path / name / "place/data").symlink_to(tiny_data)
    codes, expected = launch(tmp_path / "one", 1)
    assert codes == [0]
    assert sorted(expected) == list(range(1, 13))
    assert all(len(set(rows)) == 12 for rows in expected.values())  # no two rows of a batch are the same

    moved, strikes = tmp_path / "moved", {4: Strike("rank", 6, 0, 2, 0.0), 2: Strike("rank", 10, 0, 0, 0.0), 3: None}
    steps = {}
    for ranks, kill in strikes.items():
        codes, drawn = launch(moved, ranks, kill)
        if kill is None:
            assert codes == [0, 0, 0]
        else:
            assert codes[kill.rank] == -signal.SIGKILL
        complete = {step: rows for step, rows in drawn.items() if len(rows) == 12}
        steps[ranks] = list(complete)[ranks != 4 :]  # a resumed launch looks at step 1 before it loads its state
        assert complete == {step: expected[step] for step in complete}
    assert steps[4][0] == 1
    assert steps[4][-1] >= 5
    assert steps[2][0] == 6  # from the checkpoint of step 5, where an evaluation was
    assert steps[3][0] == 9
    assert steps[3][-1] == 12
    ours, theirs = (read_losses(folder / "place/run") for folder in (tmp_path / "one", moved))
    differences, compared = compare_losses(ours, theirs, tolerance=TOLERANCE, absolute=1e-7)
    assert differences == []
    assert compared > 100
