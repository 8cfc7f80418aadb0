"""What train.py writes for people: text sampled over the cache, tables, TensorBoard; none of it needs an extra."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.language_models.gpt import GPT
from tasks.language_model.generation import filter_logits, generate
from tests.conftest import Result, _entry, metrics, run_forked, run_script
from tests.engine.test_trackers import scalars
from tests.models.test_gpt import LENGTH, WORDS, draw, make
from tests.train.conftest import TINY, train

CONTEXTS = ("training_mode=multicontext", "multicontext_datasets=[plain,classes]")
MIXTURE = ("training_mode=multidataset", "dataset_list=[plain,other]", "multidataset_wte=true")
EXTRAS = (
    "transformers",
    "tokenizers",
    "datasets",
    "tiktoken",
    "sentencepiece",
    "pytorch_optimizer",
    "wandb",
    "tensorboard",
    "matplotlib",
    "huggingface_hub",
)


def likeliest(model: GPT, seen: Tensor, count: int) -> Tensor:
    """Greedy text without a cache: each token from a forward pass over all before it."""
    for _ in range(count):
        output = model(seen)
        best = [output.logits(number)[:, -1].argmax(-1) for number in range(len(output.streams))]
        seen = torch.cat((seen, torch.stack(best, 1).view(*seen.shape[:-1], 1)), dim=-1)
    return seen[..., -count:]


@pytest.mark.parametrize("words", [(WORDS,), (WORDS, 4)], ids=["one stream", "two streams"])
def test_each_token_goes_on_from_all_before_it(words: tuple[int, ...]) -> None:
    """With two streams both are sampled, each from its own head, and both are fed back."""
    model = make({"bias": False}, words)
    prompt = draw(3, 2, words=WORDS) if len(words) == 1 else torch.stack([draw(3, 2, words=n) for n in words], dim=1)
    made = generate(model, prompt, LENGTH - 2, temperature=0.0)
    assert torch.equal(made, likeliest(model, prompt, LENGTH - 2))
    assert len({tuple(row.flatten().tolist()) for row in made}) > 1  # the prompts matter
    assert generate(model, prompt, 2 * LENGTH, temperature=0.0).shape == (*prompt.shape[:-1], 2 * LENGTH)


def test_frequencies_follow_temperature_top_k_and_min_p() -> None:
    model, prompt, count = make({"bias": False}), draw(1, 3), 5_000
    logits = model(prompt).logits()[0, -1].detach()
    order = logits.argsort(descending=True)
    for options, kept in (({}, WORDS), ({"top_k": 3}, 3), ({"min_p": 0.3}, None), ({"top_k": 1}, 1)):
        chances = (logits / 1.7).softmax(-1)
        if kept is None:
            kept = int((chances >= 0.3 * chances.max()).sum())
            assert 1 < kept < WORDS
        chances[order[kept:]] = 0.0
        chances /= chances.sum()
        made = generate(model, prompt.expand(count, -1), 1, temperature=1.7, seed=4, **options)[:, 0]
        frequencies = torch.bincount(made, minlength=WORDS) / count
        assert torch.all((frequencies - chances).abs() <= 4 * (chances * (1 - chances) / count).sqrt() + 1e-12)


def test_filters() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert torch.isfinite(filter_logits(logits, top_k=2, min_p=None)).tolist() == [[False, False, True, True]]
    assert torch.isfinite(filter_logits(logits, top_k=9, min_p=0.2)).tolist() == [[False, False, True, True]]
    assert torch.equal(filter_logits(logits, top_k=None, min_p=None), logits)


def test_text_ends_where_every_sample_has_ended() -> None:
    model, prompt = make({"bias": False}), draw(2, 2)
    whole = generate(model, prompt, 6, temperature=0.0)
    end = int(whole[0, 1])
    met = [row.tolist().index(end) if end in row.tolist() else 5 for row in whole]
    assert generate(model, prompt, 6, temperature=0.0, stop=end).shape[1] == max(met) + 1


def sample(place: Path, run: str, *argv: str) -> Result:
    return run_script("scripts/sample", run, *argv, "--device", "cpu", "--max-new-tokens", "9", cwd=place)


def test_samples_at_each_evaluation(finished: Path) -> None:
    folder = finished / "out/r/samples"
    assert sorted(file.name for file in folder.iterdir()) == ["step_0.txt", "step_3.txt", "step_6.txt"]
    text = (folder / "step_6.txt").read_text()
    heads = [f"--- step 6 top_k {k} sample {n}" for k in (1, 3) for n in (0, 1)]
    assert [line for line in text.splitlines() if line.startswith("---")] == heads
    assert text.count("to be") >= 4


def test_sample(place: Path, finished: Path) -> None:
    run = str(finished / "out/r")
    (place / "start.txt").write_text("so on")
    each = ("--top-k", "1", "5", "--num-samples", "2")
    one = sample(place, run, "--checkpoint", "latest", "--prompt", "FILE:start.txt", *each)
    assert one.code == 0, one.output
    heads = [f"--- step 6 top_k {k} sample {n}" for k in (1, 5) for n in (0, 1)]
    assert [line for line in one.output.splitlines() if line.startswith("---")] == heads
    assert one.output.count("so on") >= 4
    assert sample(place, run, "--checkpoint", "step_6", "--prompt", "so on", *each).output == one.output
    assert sample(place, run, "--prompt", "so on", *each, "--seed", "2").output != one.output
    for argv, message in (
        (("--prompt", "§"), "§"),
        (("--prompt", "a", "b"), "2 were given, expected 1"),
        (("--dataset", "plain"), "one vocabulary"),
        (("--steps", "3"), "--steps has no meaning for a model that writes from left to right"),
        (("--feedback-every", "3"), "--feedback-every has no meaning for a model that writes from left to right"),
        (("--checkpoint", "step_99"), "error: --checkpoint=step_99: no such checkpoint"),
    ):
        done = sample(place, run, *argv)
        assert done.code == 2, done.output
        assert message in done.output.splitlines()[-1]


@pytest.mark.slow
def test_sample_of_streams_and_mixtures(place: Path) -> None:
    train(place, *CONTEXTS)
    assert "note: no --prompt for classes" in sample(place, "out/r", "--prompt", "to").output
    done = sample(place, "out/r", "--prompt", "to", "Aa")
    assert done.code == 0, done.output
    assert [line.partition("]")[0] for line in done.output.splitlines() if line.startswith("[")] == [
        "[plain",
        "[classes",
    ]
    assert (
        sample(place, "out/r", "--prompt", "to", "Aaa")
        .output.splitlines()[-1]
        .endswith("they annotate the same positions")
    )
    train(place, *MIXTURE, "out_dir=out/m", run="out/m")
    done = sample(place, "out/m", "--dataset", "other", "--prompt", "1+")
    assert done.code == 0, done.output
    assert set(done.output.partition("sample 0\n")[2]) <= set("0123456789+= \n")


def test_a_mixture_on_one_table_samples_what_the_vocabulary_that_decodes_has(place: Path) -> None:
    """The first set has 14 characters, the table as many rows as the second set has."""
    mixture = ("training_mode=multidataset", "dataset_list=[other,plain]", "dataset_sampling_probs=[0.5,0.5]")
    train(place, *mixture, "max_sample_tokens=50", "sample_start_tokens=1")
    done = sample(place, "out/r", "--prompt", "1")
    assert done.code == 0, done.output
    for text in (done.output, (place / "out/r/samples/step_6.txt").read_text()):
        samples = text[text.index("---") :].splitlines()
        written = "".join(line for line in samples if not line.startswith("---"))
        assert len(written) > 8
        assert set(written) <= set("0123456789+= ")


def test_tables_and_tensorboard(finished: Path) -> None:
    lines = metrics(finished / "out/r")
    with (finished / "out/r/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [line["step"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert {name: float(row[name]) for name in line} == pytest.approx(line)
    curves = scalars(finished / "out/r/tensorboard")
    expected = [(line["step"], line["eval/val_loss"]) for line in lines if "eval/val_loss" in line]
    assert [step for step, _ in curves["eval/val_loss"]] == [step for step, _ in expected]
    assert [value for _, value in curves["eval/val_loss"]] == pytest.approx([value for _, value in expected])
    assert {"train/loss", "train/lr", "eval/bits_per_byte", "data/tokens"} <= curves.keys()


def without_extras(argv: list[str]) -> None:
    for name in EXTRAS:
        sys.modules[name] = None  # type: ignore[assignment]
    _entry("train", argv)


def test_no_extra_is_needed(place: Path) -> None:
    done = run_forked(without_extras, [*TINY, "max_sample_tokens=3"], cwd=place)
    assert done.code == 0, done.output
    assert "warning" not in done.output


@pytest.mark.slow
def test_offline_wandb(place: Path) -> None:
    pytest.importorskip("wandb")
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = run_script("train", *TINY, "enable_wandb=true", "--wandb_project=words", cwd=place, env=env)
    assert done.code == 0, done.output
    assert "warning" not in done.output
    assert list((place / "out/r").rglob("run-*.wandb"))
