"""Bits per byte by their definition, and evaluate.py on runs of train.py: the run's own numbers once more."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.text.build import TextBuild, build
from dataset.text.meta import load_tokenizer, read_meta
from engine.errors import UsageError
from engine.run.load_run import open_checkpoint
from scripts import evaluate as script
from tests.conftest import Result, metrics, run_ranks, run_script
from tests.train.conftest import TINY, train

MIXTURE = ("training_mode=multidataset", "dataset_list=[plain,other]")
CONTEXTS = ("training_mode=multicontext", "multicontext_datasets=[plain,classes]")


@pytest.fixture
def documents(place: Path) -> Path:
    """./docs: short documents in bytes, more than one for a byte in a character, each with a token for its end."""
    rng = np.random.default_rng(3)
    words = ["naïve", "café", "→", "ab", "x"]
    lines = [json.dumps({"text": " ".join(rng.choice(words, rng.integers(1, 9)))}) for _ in range(150)]
    (place / "docs.jsonl").write_text("\n".join(lines))
    build(TextBuild(output_dir=place / "docs", inputs=(place / "docs.jsonl",), source="docs", tokenizer="byte"))
    return place / "docs"


def by_definition(place: Path, folder: Path, run: str = "out/r", length: int = 8) -> float:
    """Σ nats of targets that are text / (ln 2 · Σ bytes of text), windows of `length` side by side."""
    tokens = np.fromfile(folder / "val.bin", dtype="<u2").astype(np.int64)
    end = read_meta(folder).eot
    with contextlib.chdir(place):
        model = open_checkpoint(run, device="cpu").plan.task.model
    nats = 0.0
    for start in range(0, len(tokens) - 1, length):
        window = torch.from_numpy(tokens[start : start + length + 1])
        with torch.no_grad():
            chances = model(window[None, :-1]).logits()[0].double().softmax(-1)
        nats -= sum(float(chances[i, word].log()) for i, word in enumerate(window[1:].tolist()) if word != end)
    text = load_tokenizer(folder).decode(tokens[tokens != end] if end is not None else tokens)
    scored = (len(tokens) - 1) / len(tokens)  # the first token has nothing before it
    return nats / np.log(2) / (len(text.encode()) * scored)


def test_ends_of_documents_are_no_text(place: Path, documents: Path) -> None:
    last = train(place, "dataset=./docs", "eval_iters=null", "eval_train=false")[-1]
    assert last["eval/bits_per_byte"] == pytest.approx(by_definition(place, documents), rel=1e-5)
    card = json.loads((documents / "card.json").read_text())
    with_ends = last["eval/val_loss"] / np.log(2) / card["bytes_per_token"]["val"]
    assert last["eval/bits_per_byte"] < 0.99 * with_ends


def test_each_data_set_has_its_own(place: Path, documents: Path) -> None:
    mode = ("training_mode=multidataset", "dataset_list=[plain,./docs]", "multidataset_wte=true")
    last = train(place, *mode, "eval_iters=null")[-1]
    nats = last["eval/plain/val_loss"]
    assert last["eval/plain/val_bits_per_byte"] == pytest.approx(nats / np.log(2))  # one byte a character, no ends
    card = json.loads((documents / "card.json").read_text())
    for split in ("val", "train"):
        with_ends = last[f"eval/docs/{split}_loss"] / np.log(2) / card["bytes_per_token"][split]
        assert 0.5 * with_ends < last[f"eval/docs/{split}_bits_per_byte"] < 0.99 * with_ends
    assert "eval/bits_per_byte" not in last


@pytest.mark.slow
def test_a_rank_without_rows_agrees(place: Path, documents: Path) -> None:
    mode = ("dataset=./docs", "eval_iters=1", "batch_size=1", "eval_only=true")
    alone = train(place, *mode)[0]
    results = run_ranks("train", *TINY, *mode, "out_dir=out/ranks", cwd=place)
    assert [result.code for result in results] == [0, 0], results[0].output
    (ranks,) = metrics(place / "out/ranks")
    assert ranks == pytest.approx(alone)


# --- scripts/evaluate.py ----------------------------------------------------------------------------------------------


def evaluate(place: Path, *argv: str) -> Result:
    return run_script("scripts/evaluate", *argv, "--device", "cpu", cwd=place)


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """Step -> what the run itself found."""
    lines = [line for line in metrics(run) if "eval/val_loss" in line]
    return {line["step"]: {k: v for k, v in line.items() if k.startswith("eval/")} for line in lines}


@pytest.mark.parametrize(
    "mode",
    [
        ("ema=true", "eval_mode=random"),
        pytest.param((*MIXTURE, "multidataset_wte=true"), marks=pytest.mark.slow),
        pytest.param(CONTEXTS, marks=pytest.mark.slow),
    ],
    ids=["averaged", "mixture", "contexts"],
)
def test_the_last_evaluation_once_more(place: Path, mode: tuple[str, ...]) -> None:
    train(place, *mode)
    done = evaluate(place, "out/r")
    assert done.code == 0, done.output
    stored = json.loads((place / "out/r/evaluation_step_6.json").read_text())
    own = evaluations(place / "out/r")[6]
    assert stored["results"] == own
    assert re.search(rf"eval/val_loss +{own['eval/val_loss']:.4f}", done.output)
    assert "step 6" in done.output


def test_the_best_weights_and_the_raw_ones(place: Path) -> None:
    train(place, "learning_rate=3.0", "ema=true", "ema_rate=0.5", "optimizer=sgd", "grad_clip=0")
    own = evaluations(place / "out/r")
    best = min(own, key=lambda step: own[step]["eval/val_loss"] if step else np.inf)
    assert evaluate(place, "out/r/ckpt.pt", "--json", "best.json").code == 0
    assert json.loads((place / "best.json").read_text())["results"] == own[best]
    assert evaluate(place, "out/r", "--weights", "raw").code == 0
    raw = json.loads((place / "out/r/evaluation_step_6_raw.json").read_text())
    assert raw["results"]["eval/val_loss"] != own[6]["eval/val_loss"]


def test_another_data_set_of_the_same_tokenizer(place: Path, finished: Path) -> None:
    shutil.copytree(finished / "out", place / "out", symlinks=True)
    own = evaluations(place / "out/r")[6]
    shutil.copytree(place / "data/plain", place / "copy")
    assert evaluate(place, "out/r", "--data", "./copy", "--json", "copy.json").code == 0
    assert json.loads((place / "copy.json").read_text())["results"] == own
    (place / "more.txt").write_text("so on and on and not to be " * 60)
    (place / "more").mkdir()
    plan = {"inputs": (place / "more.txt",), "source": "more", "tokenizer_from": place / "data/plain"}
    build(TextBuild(output_dir=place / "more/set", **plan))
    done = evaluate(place, "out/r", "--data", "more/set")
    assert done.code == 0, done.output
    (file,) = (place / "out/r").glob("evaluation_step_6_data-*.json")
    assert json.loads(file.read_text())["results"]["eval/val_loss"] != own["eval/val_loss"]


REFUSED = (
    (("--data", "other"), "its tokens are not those of data/plain, which the model reads"),
    (("--data", "plain", "other"), "--data takes one data set"),
    (("--data", "nowhere"), "data/nowhere does not exist"),
    (("--steps", "3"), "--steps has no meaning for a run of train.py"),
    (("--max-examples", "9"), "--max-examples has no meaning"),
    (("--weights", "ema"), "keeps no averaged weights"),
)


def test_what_cannot_be_evaluated_is_one_line(finished: Path) -> None:
    done = evaluate(finished, "out/r", *REFUSED[0][0])
    assert (done.code, done.output.count("error: ")) == (2, 1), done.output
    for argv, message in REFUSED:
        with contextlib.chdir(finished), pytest.raises(UsageError, match=message):
            script.main(script.parse(["out/r", "--device", "cpu", *argv]))
    assert not list((finished / "out/r").glob("evaluation_*"))
