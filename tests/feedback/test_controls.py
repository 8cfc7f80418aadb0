"""The controls of an evaluation: over the rows of the losses, whatever the batch size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.feedback.conftest import adapter


@pytest.mark.parametrize("batch_size", [1, 4])
def test_controls_are_over_the_rows_of_the_losses(place: Path, batch_size: int) -> None:
    """A last batch of one row: of 9 pieces in batches of 4, and of each piece alone."""
    words = ("max_steps=1", "num_samples=0", "eval_max_examples=9", f"batch_size={batch_size}", "run_dir=run")
    result = adapter(place, *words)
    assert result.code == 0, result.output
    results = json.loads((place / "run/summary.json").read_text())["results"]
    assert results["eval/zero_nll"] == pytest.approx(results["eval/nll_pass0"], rel=1e-6)
    assert results["eval/input_dependence"] == pytest.approx(results["eval/shuffled_nll"] - results["eval/nll_pass1"])
    assert "eval/delta_spectral" in results
    assert "eval/delta_nll_sq" not in results
    assert "delta_nll_sq" not in (place / "run/metrics.jsonl").read_text()
