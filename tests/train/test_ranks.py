"""Two gloo ranks train as one process does, whoever reduces, wherever the head's weights are and however many heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_ranks
from tests.e2e.test_ranks import compare
from tests.train.conftest import TINY, train

UNTIED = "arch.wte_weight_tying=false"
MIXTURE = ("training_mode=multidataset", "dataset_list=[plain,other]")
CASES = {
    "tied": (),
    "untied": (
        UNTIED,
        "arch.loss.chunk_tokens=5",
        "arch.use_gradient_checkpointing=true",
        "accumulation=2",
        "batch_size=2",
    ),
    "multidataset_wte": (*MIXTURE, "multidataset_wte=true", UNTIED),  # each step leaves one of the two heads out
    "multicontext": ("training_mode=multicontext", "multicontext_datasets=[plain,classes]", UNTIED),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(place: Path, dynamo: None, case: str) -> None:
    argv = [*TINY, "arch.dropout=0", "ema=true", "eval_interval=6", "verify=off", *CASES[case]]
    alone = "accumulation=4" if case == "untied" else "accumulation=2"
    train(place, *argv[len(TINY) :], alone, "out_dir=out/alone", run="out/alone")
    for result in run_ranks("train", *argv, "parallel=ddp", cwd=place):
        assert result.code == 0, result.output
        assert "find_unused" not in result.output
    compare(place / "out/r", place / "out/alone", 1e-6)
