"""Sampling at the edges: ends of documents, extreme temperatures, more than can be made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dataset.build_text_dataset import main
from dataset.text.chars import Char
from engine.errors import UsageError
from engine.signals import StopSignal
from engine.task import Evaluation
from models.language_models.gpt import GPT, GPTConfig, LMShape
from tasks.language_model.generation import check_memory, generate, truncate
from tasks.language_model.report import LanguageReport, encode_prompt, start_text

CONFIG = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=16)


def model(*words: int) -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG, LMShape(words))


def test_a_sample_ends_at_its_first_end() -> None:
    assert truncate(torch.tensor([4, 1, 5, 1, 2]), 1).tolist() == [4, 1]
    assert truncate(torch.tensor([4, 2]), 1).tolist() == [4, 2]
    assert truncate(torch.tensor([4, 2]), None).tolist() == [4, 2]
    assert truncate(torch.tensor([[4, 1, 5], [7, 8, 9]]), 1).tolist() == [[4, 1], [7, 8]]  # the first stream decides


def test_streams_end_with_the_first_one() -> None:
    prompt = torch.zeros(3, 2, 1, dtype=torch.long)
    made = generate(model(2, 9), prompt, 400, stop=1)
    assert made.shape[-1] < 400
    assert all((truncate(row, 1)[0][:-1] != 1).all() for row in made)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-9])
@pytest.mark.parametrize("top_k", [None, 2, 2**64])
def test_the_smallest_temperatures_take_the_likeliest_token(temperature: float, top_k: int | None) -> None:
    prompt = torch.zeros(2, 1, dtype=torch.long)
    made = generate(model(9), prompt, 5, temperature=temperature, top_k=top_k)
    assert torch.equal(made, generate(model(9), prompt, 5, temperature=0.0))


def test_more_than_can_be_made_is_refused() -> None:
    prompt = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(UsageError, match=r"samples of 1000000000000 tokens: expected at most 1,000,000"):
        generate(model(9), prompt, 10**12)
    with pytest.raises(UsageError, match=r"samples at once need .* MiB, .* are free: lower num_samples"):
        generate(model(9), prompt.expand(10**12, 1), 5)


def test_memory_that_others_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.language_model.generation.usual_limit", lambda: 10_000)
    check_memory(model(9), 5, 10)
    with pytest.raises(UsageError, match="10 samples at once"):
        check_memory(model(9), 10, 10)
    with pytest.raises(UsageError, match="5 samples at once"):
        check_memory(model(900), 5, 10)  # the scores


@pytest.mark.parametrize("text", ["\udcff", "abc \ud83d"])
def test_half_a_character_is_no_prompt(text: str) -> None:
    with pytest.raises(UsageError, match="it holds half a character"):
        start_text(text)


def test_a_prompt_that_the_vocabulary_lacks_is_named_with_its_key() -> None:
    message = r"^--prompt='xy': the character 'y' \(U\+0079\) is not among the 3 of this vocabulary: 'abx'$"
    with pytest.raises(UsageError, match=message):
        encode_prompt(Char("abx", eot=True), "xy")
    with pytest.raises(UsageError, match=r"the 140 of this vocabulary: .*, \.\.\.$"):
        encode_prompt(Char([chr(97 + n) for n in range(140)], eot=False), "\n")


def test_prompts_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_bytes("\ufeffonce".encode())
    assert start_text("FILE:~/p.txt") == "once"
    (tmp_path / "p.txt").write_bytes("once".encode("utf-16"))
    with pytest.raises(UsageError, match="is UTF-16, expected UTF-8"):
        start_text("FILE:~/p.txt")
    for path in ("~", "~/gone", "/dev/zero"):
        with pytest.raises(UsageError):
            start_text(f"FILE:{path}")


def test_training_samples_end_with_their_document_or_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("ab", "ba", "a", "b") * 10))
    argv = ["d", "--input", str(tmp_path / "d.jsonl"), "--tokenizer", "char", "--output-dir", str(tmp_path / "d")]
    assert main(argv) == 0
    config = SimpleNamespace(
        training_mode="single",
        multidataset_wte=False,
        num_samples=4,
        top_k=[3],
        temperature=1.0,
        seed=1,
        max_sample_tokens=60,
        sample_start_tokens="a",
    )
    report = LanguageReport(config, model(3), [tmp_path / "d"])
    parts = report.samples(7).split("--- step 7 top_k 3 sample ")[1:]
    assert len(parts) == 4
    assert all(part.rstrip("\n").count("<|endoftext|>") == 1 for part in parts)
    assert all(part.rstrip("\n").endswith("<|endoftext|>") for part in parts)

    evaluation = Evaluation(step=7, results={}, best=None, step_ms=None)
    assert "samples/step_7.txt" in report(evaluation)
    config.max_sample_tokens, told = 1_000_000, StopSignal()  # a signal in the middle, which the first token sees
    told.received = "SIGTERM"
    monkeypatch.setattr(StopSignal, "current", told)
    assert "samples/step_7.txt" not in report(evaluation)
    assert "note: no samples of step 7: a signal stops the run" in capsys.readouterr().out
