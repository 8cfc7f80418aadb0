"""The same numbers however the batch is cut: accumulation, ranks, evaluation over ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import metrics, run_ranks
from tests.train.conftest import TINY, train


def weights(run: Path) -> np.ndarray:
    tensors = load_file(run / "ckpt_last.pt/model.safetensors")
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


@pytest.mark.parametrize(
    "mode",
    [
        (),
        ("training_mode=multidataset", "dataset_list=[plain,other]"),
        ("training_mode=multicontext", "multicontext_datasets=[plain,classes]"),
    ],
    ids=["single", "mixture", "contexts"],
)
def test_one_batch_of_eight(place: Path, mode: tuple[str, ...]) -> None:
    """B=8, B=4 with accumulation 2, and two ranks of B=4 are one batch."""
    mode = (*mode, "eval_iters=null")
    whole = train(place, *mode, "batch_size=8", "out_dir=out/whole", run="out/whole")
    split = train(place, *mode, "batch_size=4", "--gradient_accumulation_steps=2", "out_dir=out/split", run="out/split")
    results = run_ranks("train", *TINY, *mode, "batch_size=4", "out_dir=out/ranks", cwd=place)
    assert [result.code for result in results] == [0, 0], results[0].output
    ranks = metrics(place / "out/ranks")
    for other in (split, ranks):
        for a, b in zip(whole, other, strict=True):
            assert b == pytest.approx(a, abs=2e-5)
    for name in ("split", "ranks"):
        assert weights(place / f"out/{name}") == pytest.approx(weights(place / "out/whole"), abs=2e-6)


def test_a_sweep_scores_every_token_once(place: Path) -> None:
    """The evaluation of the untrained model is the mean over all tokens, whatever the batch."""
    lines = [
        train(
            place, "eval_only=true", "eval_iters=null", f"batch_size={rows}", f"out_dir=out/{rows}", run=f"out/{rows}"
        )[0]
        for rows in (1, 3, 50)
    ]
    assert lines[1]["eval/val_loss"] == pytest.approx(lines[0]["eval/val_loss"], abs=1e-6)
    assert lines[2]["eval/val_loss"] == pytest.approx(lines[0]["eval/val_loss"], abs=1e-6)
    nats = lines[0]["eval/val_loss"]
    assert lines[0]["eval/bits_per_byte"] == pytest.approx(nats / np.log(2), rel=1e-6)  # one byte a character
    assert lines[0]["eval/perplexity"] == pytest.approx(np.exp(nats))


def test_one_stream_of_contexts_is_a_single_run(place: Path) -> None:
    single = train(place, "out_dir=out/a", run="out/a")
    one = train(place, "training_mode=multicontext", "multicontext_datasets=[plain]", "out_dir=out/b", run="out/b")
    for a, b in zip(single, one, strict=True):
        assert {k: b.get(k) for k in a if "loss" in k} == pytest.approx({k: v for k, v in a.items() if "loss" in k})


@pytest.mark.parametrize(
    ("criterion", "pick"),
    [("first", lambda a, b: a), ("mean", lambda a, b: (a + b) / 2), ("weighted", lambda a, b: 0.25 * a + 0.75 * b)],
)
def test_the_criterion_of_a_mixture(place: Path, criterion: str, pick) -> None:
    lines = train(
        place,
        "training_mode=multidataset",
        "dataset_list=[plain,other]",
        "max_steps=1",
        "dataset_sampling_probs=[1,3]",
        f"multidataset_criterion={criterion}",
    )
    last = lines[-1]
    assert last["eval/val_loss"] == pytest.approx(pick(last["eval/plain/val_loss"], last["eval/other/val_loss"]))
