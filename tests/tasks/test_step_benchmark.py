"""scripts/bench.py: the published form computes what ours computes, and the command measures and prints."""

from __future__ import annotations

import json

import pytest
import torch

from engine.errors import UsageError
from scripts.bench import main, parse
from tasks.recursive_reasoning.step_benchmark.measure import Case, Pair

SMALL = {"hidden_size": 32, "num_heads": 4, "H_cycles": 2, "L_cycles": 2, "L_layers": 1, "halt_exploration_prob": 0.0}
TRM = {"name": "recursive_reasoning.trm@TRM", "puzzle_emb_ndim": 32, "puzzle_emb_len": 2, **SMALL}
HRM = {**SMALL, "name": "recursive_reasoning.hrm@HRM", "H_layers": 1, "puzzle_emb_ndim": 32, "no_ACT_continue": False}
CASES = {
    "attention": TRM,
    "mlp_t": {**TRM, "mlp_t": True, "pos_encodings": "none"},
    "no table": {**TRM, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0},
    "hrm": HRM,
    "bf16": {**TRM, "forward_dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_published_form_computes_the_same(tmp_path, name):
    """Six steps, so that rows halt and begin anew: losses, moments of the gradients, table, average; an evaluation."""
    pair = Pair(Case(name, CASES[name], rows=6, tokens=9), tmp_path)
    loose = name == "bf16"
    for step in range(1, 7):
        expected = pair.literal.step(pair.offered(step))
        values = pair.ours(1)
        for key in ("lm_loss", "q_halt_loss", "accuracy", "steps"):
            if values[key] is not None:
                close = {"rel": 0.05, "abs": 0.05} if loose else {"rel": 1e-4}  # a cell of 54 may round to another word
                assert values[key] == pytest.approx(expected[key], **close), (step, key)
    close = {"rtol": 0.1, "atol": 0.02} if loose else {"rtol": 1e-3, "atol": 1e-5}
    own = pair.trainer.optimizers["trunk"]
    assert len(own.exp_avg) == len(pair.literal.optimizer.moments)
    theirs = dict(zip(dict(pair.literal.model.named_parameters()), pair.literal.optimizer.moments, strict=True))
    for key, mean, square in zip(own.names, own.exp_avg, own.exp_avg_sq, strict=True):
        torch.testing.assert_close(mean, theirs[key][0], **close)
        torch.testing.assert_close(square, theirs[key][1], **close)
    if loose:
        return
    for key, shadow in pair.trainer.ema.shadow.items():
        torch.testing.assert_close(shadow, pair.literal.shadow[key], **close)
    if (table := pair.task.model.puzzle_emb) is not None:
        torch.testing.assert_close(table.weights, pair.literal.model.inner.puzzle_emb.weights, **close)
    evaluated, expected = pair.task.evaluate(final=True), pair.literal.evaluate(pair.test)
    for key in ("lm_loss", "accuracy", "q_halt_accuracy"):
        assert evaluated[f"eval/{key}"] == pytest.approx(expected[key], rel=1e-3), key


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    try:
        main(parse(["--only", "training: mlp_t, hidden 64, 16", "--pairs", "2", "--json", str(file)]))
    finally:
        torch.set_num_threads(threads)
    assert "| training: mlp_t, hidden 64, 16 tokens | " in capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    assert len(row["ratios"]) == 2
    assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]


def test_a_name_that_is_no_line():
    with pytest.raises(UsageError, match="evaluation: HRM, hidden 64, 81 tokens"):
        main(parse(["--only", "nothing"]))
