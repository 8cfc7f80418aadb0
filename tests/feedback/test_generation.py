"""Masked text filled in: context, schedule, banned ids, rows by themselves, blocks; final numbers; answers and samples."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluators.final_number import FinalNumber, final_number
from models.feedback.base import BaseLM
from models.feedback.config import BaseConfig
from tasks.feedback.answers import answer_marker
from tasks.feedback.base import text_shape
from tasks.feedback.generation import Sampling, base_passes, fill, predictor, unscored_batch
from tests.conftest import run_script
from tests.feedback.conftest import BASES, adapter, attempt, runs
from tests.models.test_feedback_hyper import make_base, make_hyper

SHAPE = text_shape(20)
MASK, PAD = SHAPE.mask_id, SHAPE.pad_id


@pytest.fixture(scope="module")
def model() -> BaseLM:
    torch.manual_seed(0)
    config = BaseConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0, init_std=0.3)
    return BaseLM(config, SHAPE).freeze()


def rows() -> Tensor:
    return torch.tensor([[1, 2, 3] + [MASK] * 13, [4] + [MASK] * 9 + [PAD] * 6])


def test_context_stays_all_is_filled_nothing_banned(model: BaseLM) -> None:
    for temperature in (0.0, 1.5):
        made = fill(predictor(model), rows(), SHAPE, Sampling(steps=4, temperature=temperature))
        assert made.tokens[0, :3].tolist() == [1, 2, 3]
        assert made.tokens[1, 0] == 4
        assert (made.tokens[1, 10:] == PAD).all()
        written = torch.cat((made.tokens[0, 3:], made.tokens[1, 1:10]))
        assert written.max() < SHAPE.words
        assert made.evaluations == 4


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rows_follow_their_own_schedule(model: BaseLM, schedule: str) -> None:
    steps = 5
    made = fill(predictor(model), rows(), SHAPE, Sampling(steps=steps, schedule=schedule))
    for row, count in enumerate((13, 9)):
        left = [count * (steps - i) // steps for i in range(steps + 1)]
        if schedule == "cosine":
            left = [math.floor(count * math.cos(math.pi / 2 * i / steps)) for i in range(steps)] + [0]
        assert [each[row] for each in made.counts] == [before - after for before, after in pairwise(left)]


def test_a_row_does_not_depend_on_its_batch(model: BaseLM) -> None:
    sampling = Sampling(steps=3, temperature=0.7, seed=5)
    both = fill(predictor(model), rows(), SHAPE, sampling).tokens
    alone = fill(predictor(model), rows()[1:, :10], SHAPE, sampling, numbers=[1]).tokens
    assert both[1, :10].tolist() == alone[0].tolist()
    other = fill(predictor(model), rows(), SHAPE, Sampling(steps=3, temperature=0.7, seed=6)).tokens
    assert both.tolist() != other.tolist()


def test_one_step_takes_the_likeliest(model: BaseLM) -> None:
    tokens = rows()
    made = fill(predictor(model), tokens, SHAPE, Sampling(steps=1)).tokens
    best = model(tokens, tokens != PAD).logits().argmax(-1)
    assert made.tolist() == torch.where(tokens == MASK, best, tokens).tolist()


def test_the_surest_first_and_blocks_from_the_left() -> None:
    order: list[Tensor] = []

    def predict(inputs: Tensor, real: Tensor, anew: bool) -> Tensor:
        order.append(inputs.clone())
        logits = torch.zeros(*inputs.shape, SHAPE.words)
        logits[..., 7] = torch.arange(inputs.shape[1]) * 1.0  # the surer, the further to the right
        return logits

    tokens = torch.full((1, 6), MASK)
    assert fill(predict, tokens, SHAPE, Sampling(steps=6, schedule="linear")).evaluations == 6
    assert (order[1] != MASK).tolist() == [[False] * 5 + [True]]
    order.clear()
    fill(predict, tokens, SHAPE, Sampling(steps=1, block_length=2))
    assert [(each != MASK).sum().item() for each in order] == [0, 2, 4]
    assert (order[1] != MASK).tolist() == [[True, True, False, False, False, False]]


@pytest.mark.parametrize("variant", ["distinct", "passes", "loss_gradient"])
@pytest.mark.parametrize(("every", "block"), [(1, None), (2, None), (3, 4)])
def test_deltas_are_kept_for_some_steps(variant: str, every: int, block: int | None) -> None:
    """A row beside another, against a loop over its own steps that makes deltas in every `every`-th of them; the passes
    of the base are counted as they happen."""
    base, hyper = make_base(), make_hyper(variant, opened=True)
    mask, pad = base.shape.mask_id, base.shape.pad_id
    sampling = Sampling(steps=4, feedback_every=every, block_length=block)
    ids = torch.tensor([[1, 2] + [mask] * 7, [3] + [mask] * 3 + [pad] * 5])
    passes, run = [], base.run
    base.run = lambda *args, **options: passes.append(1) or run(*args, **options)  # type: ignore[func-returns-value,method-assign]
    made = fill(predictor(hyper, base), ids, base.shape, sampling)
    assert len(passes) == base_passes(made, hyper, base)
    assert made.renewals < made.evaluations or every == 1
    for row, length in ((0, 9), (1, 4)):
        tokens, fixed, renewed = ids[row : row + 1, :length].clone(), made.row(row), set()
        whole = torch.ones(1, length, dtype=torch.bool)
        width = block or length
        places = (tokens[0] == mask).nonzero().flatten().tolist()
        for number, first in enumerate(range(0, len(places), width)):
            group = places[first : first + width]
            for step in range(4):
                period = (4 * number + step) // every
                keep = math.floor(len(group) * math.cos(math.pi / 2 * (step + 1) / 4)) if step < 3 else 0
                hidden = [place for place in group if tokens[0, place] == mask]
                if len(hidden) <= keep:
                    continue
                with torch.no_grad():
                    if period not in renewed:
                        kept = hyper(base, unscored_batch(tokens, whole, whole)).deltas[-1]
                    logits = base(tokens, whole, kept).logits()[0].softmax(-1)
                renewed.add(period)
                best = sorted(hidden, key=lambda place: (-logits[place].max().item(), place))
                for place in best[: len(hidden) - keep]:
                    tokens[0, place] = logits[place].argmax()
        assert made.tokens[row, :length].tolist() == tokens[0].tolist()
        assert fixed.renewals == len(renewed)
    base.run = run  # type: ignore[method-assign]


def test_an_autoregressive_model_writes_from_left_to_right() -> None:
    config = BaseConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0, objective="autoregressive")
    made_of = BaseLM(config, SHAPE).freeze()
    tokens = torch.tensor([[1, 2, MASK, MASK, MASK]])
    made = fill(predictor(made_of), tokens, SHAPE, Sampling(), causal=True)
    expected = tokens[:, :2]
    for _ in range(3):
        expected = torch.cat((expected, made_of(expected).logits()[:, -1:].argmax(-1)), 1)
    assert made.tokens.tolist() == expected.tolist()
    assert made.evaluations == 3


@pytest.mark.parametrize("variant", ["distinct", "logits", "loss_gradient", "tokens"])
def test_an_adapter_of_an_autoregressive_base_does_not_read_the_places_to_be_written(variant: str) -> None:
    base, hyper = (make(objective="autoregressive") for make in (make_base, partial(make_hyper, variant, opened=True)))
    predict, mask = predictor(hyper, base), base.shape.mask_id

    def last(count: int) -> Tensor:
        inputs = torch.tensor([[1, 2, 3] + [mask] * count])
        return predict(inputs, torch.ones_like(inputs, dtype=torch.bool))[0, 2]

    with torch.no_grad():
        assert torch.allclose(last(1), last(6), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(last(1), predictor(base)(torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool())[0, 2])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", 72.0),
        ("#### 1,200", 1200.0),
        ("she has $18.00", 18.0),
        ("3 then -4", -4.0),
        ("none", None),
        ("#### none of 5", 5.0),
        ("12 ####", 12.0),
    ],
)
def test_final_numbers(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_exact_match() -> None:
    judge = FinalNumber()
    judge.begin()
    judge.update({"texts": ["#### 3", "#### 4", "#### 5", "#### 6"]}, None, ["so 3", "#### 4.0", "no", "x"], 3)
    assert judge.result() == {"exact_match": 2 / 3, "answered": 2 / 3, "answers": 3.0}


def test_answer_marker_a_template() -> None:
    assert answer_marker("Question: {question}\nAnswer: {answer}") == "\nAnswer: "
    assert answer_marker("{text}") == answer_marker("") == ""


def test_answers_are_judged_and_shown_and_text_is_written(place: Path) -> None:
    """One run of a hypernetwork: exact match at its end, again by evaluate.py, samples, and scripts/sample.py. It is
    compared with a base of the data, whose loss under the same masks is that of the base's own run."""
    judged = ("evaluators=[{name: final_number@FinalNumber}]", "answer_examples=3", "max_steps=1", "feedback_every=2")
    other = ("--ff_checkpoint_dir", BASES["wikitext"], "--ff_checkpoint_name", "epoch_ckpt_wikitext.pt")
    near = (f"indomain_checkpoint_dir={BASES['gsm8k']}", "indomain_checkpoint_name=epoch_ckpt_gsm8k.pt")
    words = ("generation_schedule=linear", *other, *near)
    result = adapter(place, *judged, *words, script="feedbackward_rec_alt_train")
    assert result.code == 0, result.output
    assert re.search(r"^in-domain   .*/checkpoints/step_8 \(step 8, trained on gsm8k\), ", result.output, re.M)
    (run,) = runs(place, "gsm8k", "fb_rec_model")
    figures = json.loads((run / "summary.json").read_text())["results"]
    own = json.loads((place / ".out/gsm8k" / BASES["gsm8k"] / "summary.json").read_text())["results"]
    for split in ("val", "eval"):
        loss, base, indomain = (figures[f"{split}/{name}"] for name in ("loss", "base_loss", "indomain_loss"))
        assert indomain == pytest.approx(own[f"{split}/loss"], rel=1e-6)
        closed = (base - loss) / (base - indomain) if base > indomain else None
        assert figures.get(f"{split}/gap_closed") == (closed and pytest.approx(closed))
    assert figures["eval/flops_ratio"] > 2
    assert (figures["eval/nfe"], figures["eval/answer_nfe"]) == (2, 6)  # of 4 steps, 2 make deltas
    assert figures["eval/answers"] == 3
    assert 0 <= figures["eval/exact_match"] <= 1
    assert figures["eval/nll_pass0"] == pytest.approx(figures["eval/base_loss"])
    assert figures["eval/zero_nll"] == pytest.approx(figures["eval/nll_pass0"])
    assert {"eval/shuffled_nll", "eval/mean_nll", "eval/static_nll", "eval/delta_ratio_max"} <= figures.keys()
    table = (run / "evaluations/step_1_deltas.csv").read_text().splitlines()
    assert (table[0], len(table)) == ("block,target,ratio,spectral,stable_rank,gate", 1 + 2 * 4)
    shown = (run / "samples/step_1.txt").read_text()
    assert shown.startswith("Sampling(steps=4, temperature=0.0, ")
    assert "schedule='linear'" in shown
    assert "Answer: \n--- true" in shown
    assert "--- adapted" in shown
    again = run_script("scripts/evaluate", str(run), "--device", "cpu", "--json", str(place / "e.json"), cwd=place)
    assert again.code == 0, again.output
    stored = json.loads((place / "e.json").read_text())
    assert stored["results"]["eval/exact_match"] == figures["eval/exact_match"]
    assert stored["results"]["eval/loss"] == pytest.approx(figures["eval/loss"])
    assert stored["settings"]["generation_steps"] == 4
    words = (str(run), "--prompt", "Question: ", "--max-new-tokens", "8", "--temperature", "0", "--device", "cpu")
    written = run_script("scripts/sample", *words, "--steps", "2", cwd=place)
    assert written.code == 0, written.output
    cost = "--- step 1 2 evaluations ({} with new deltas, {} passes of the base) sample 0\nQuestion: "
    assert cost.format(1, 3) in written.output
    written = run_script("scripts/sample", *words, "--steps", "2", "--feedback-every", "1", cwd=place)
    assert cost.format(2, 4) in written.output
    refused = run_script("scripts/sample", *words, "--top-k", "5", cwd=place)
    assert refused.code == 2
    assert "--top-k has no meaning" in refused.output
    refused = run_script("scripts/sample", *words, "--num-samples", "1000000000", cwd=place)
    assert refused.code == 2
    assert "--num-samples 1,000,000,000 at once need" in refused.output


def test_a_base_writes_text(place: Path) -> None:
    run = f".out/wikitext/{BASES['wikitext']}"
    result = run_script("scripts/sample", run, "--prompt", "line ", "--device", "cpu", cwd=place)
    assert result.code == 0, result.output
    assert "note: 43 new tokens fit behind the prompt, not 500" in result.output
    assert "--- step 10 4 evaluations sample 0\n" in result.output
    refused = run_script("scripts/sample", run, "--feedback-every", "2", cwd=place)
    assert "which has no deltas to keep" in refused.output
    bad = attempt(place, "feedforward_train", "--active_dataset", "gsm8k", "evaluators=[{name: final_number@Nope}]")
    assert bad.code == 2
    assert "FinalNumber" in bad.output
