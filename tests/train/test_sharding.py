"""parallel=fsdp: two gloo ranks with pieces of the parameters are one process, and any number of ranks resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import RunConfig
from engine.registry import families
from tests.conftest import metrics, run_ranks
from tests.e2e.test_ranks import compare, compare_weights
from tests.train.conftest import TINY, attempt, train

SHARDED = ("arch.dropout=0", "ema=true", "grad_clip=0.5", "stats_interval=1", "eval_interval=6", "verify=off")
CASES = {
    "tied": ("arch.n_layer=2", "arch.n_embd=20"),
    "untied": ("arch.wte_weight_tying=false", "arch.loss.chunk_tokens=5", "arch.use_gradient_checkpointing=true"),
    "shared": ("arch.n_layer=2", "arch.share_mlp=repeat", "arch.share_size=2", "optimizer=adam_atan2"),
    "mixture": ("training_mode=multidataset", "dataset_list=[plain,other]", "multidataset_wte=true"),
}


@pytest.fixture(scope="module")
def fsdp() -> None:
    """What every rank imports, loaded once for all forks."""
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401


def ranks(place: Path, *argv: str, number: int = 2) -> None:
    for result in run_ranks("train", *TINY, *SHARDED, "parallel=fsdp", *argv, cwd=place, ranks=number):
        assert result.code == 0, result.output


def test_two_ranks_then_one_then_two_are_one_process(place: Path, fsdp: None) -> None:
    case = CASES["tied"]
    train(place, *SHARDED, *case, "accumulation=4", "out_dir=out/alone", run="out/alone")
    ranks(place, *case, "accumulation=2", "max_steps=2")
    train(place, *SHARDED, *case, "accumulation=4", "max_steps=4", "resume=true")
    ranks(place, *case, "accumulation=2", "max_steps=6", "resume=true")
    compare_weights(place / "out/r", place / "out/alone", 1e-6)
    same = ("train/loss", "train/grad_norm", "train/weight_norm_matrix", "train/update_ratio_matrix")
    lines = [
        {line["step"]: line for line in metrics(place / run) if "train/loss" in line} for run in ("out/r", "out/alone")
    ]
    for step, line in lines[1].items():
        for name in same:
            assert lines[0][step][name] == pytest.approx(line[name], rel=1e-5), (step, name)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES)[1:])
def test_every_form_of_the_model(place: Path, fsdp: None, case: str) -> None:
    train(place, *SHARDED, *CASES[case], "accumulation=6", "out_dir=out/alone", run="out/alone")
    ranks(place, *CASES[case], "accumulation=2", number=3)
    compare(place / "out/r", place / "out/alone", 1e-6)


def test_who_takes_it_and_what_is_refused(place: Path) -> None:
    takes = " and ".join(f"{family.entry}.py" for family in families() if family.schema.SHARDS)
    with pytest.raises(ValueError, match=f"only {takes} take it"):
        RunConfig(parallel="fsdp")
    for words, reason in (
        ("optimizer=muon", "muon needs whole tensors"),
        ("compile=full", "gathers block by block"),
    ):
        refused = attempt(place, "parallel=fsdp", "verify=off", words)
        assert refused.code == 2
        assert reason in refused.output.splitlines()[-1]
