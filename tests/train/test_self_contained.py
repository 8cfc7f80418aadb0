"""A run keeps its vocabularies: it is sampled and exported without its data, and a swapped alphabet is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataset.text.vocabulary import FILE, read_vocabularies
from engine.errors import UsageError
from tests.conftest import Result, run_script
from tests.train.conftest import attempt, train

SAMPLE = ("out/r", "--prompt", "to be", "--device", "cpu", "--max-new-tokens", "12", "--checkpoint", "latest")


@pytest.fixture
def own(tmp_path: Path, texts: Path) -> Path:
    """A finished run beside a copy of its data, which a test may change."""
    shutil.copytree(texts / "plain", tmp_path / "data/plain")
    train(tmp_path)
    return tmp_path


def sample(place: Path) -> Result:
    return run_script("scripts/sample", *SAMPLE, cwd=place)


def text_of(result: Result) -> str:
    assert result.code == 0, result.output
    return result.output.partition("--- step")[2]


def swap(place: Path) -> None:
    """The same data set, built anew with the letters in another order."""
    path = place / "data/plain/tokenizer.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "chars": state["chars"][::-1]}))


def test_no_data_are_needed_to_sample_and_export(own: Path) -> None:
    before = text_of(sample(own))
    exported = run_script("scripts/export_gpt2", "out/r", "a", cwd=own)
    shutil.rmtree(own / "data")
    assert text_of(sample(own)) == before
    again = run_script("scripts/export_gpt2", "out/r", "b", cwd=own)
    assert (exported.code, again.code) == (0, 0), again.output
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (own / "a" / name).read_bytes() == (own / "b" / name).read_bytes()
    assert not (own / "data").exists()


def test_a_swapped_alphabet_is_noticed(own: Path) -> None:
    before = text_of(sample(own))
    swap(own)
    after = sample(own)
    assert text_of(after) == before
    assert "warning: data/plain has another vocabulary since this run began" in after.output
    exported = run_script("scripts/export_gpt2", "out/r", "a", cwd=own)
    assert exported.code == 0, exported.output
    assert "data/plain has another vocabulary" in exported.output
    evaluated = run_script("scripts/evaluate", "out/r", "--device=cpu", cwd=own)
    assert evaluated.code == 2
    assert "data/plain has a different vocabulary than when this run started" in evaluated.output
    resumed = attempt(own, "resume=true", "max_iters=8")
    assert resumed.code == 2
    assert "data/plain" in resumed.output


def test_a_run_of_before_goes_by_its_data(own: Path) -> None:
    before = text_of(sample(own))
    (own / "out/r" / FILE).unlink()
    assert text_of(sample(own)) == before
    swap(own)
    refused = sample(own)
    assert refused.code == 2
    assert "data/plain is not the data that the run saw" in refused.output


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"vocabularies": []}',
        '{"vocabularies": [7]}',
        '{"vocabularies": [{"name": "x"}]}',
        '{"vocabularies": [{"name": "x", "path": "y", "size": 99999999999, "state": null}]}',
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError, match=FILE) as caught:
        read_vocabularies(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_are_not_put_to_other_words(own: Path) -> None:
    """init_from=prev_run on data of as many other signs: its numbers mean other words to the model."""
    swap(own)
    argv = ("--init_from=prev_run", "--prev_run_ckpt=out/r", "out_dir=out/fine")
    for source in ("out/r", "out/r/ckpt.pt", "out/r/checkpoints/step_6"):
        result = attempt(own, *argv[:1], f"--prev_run_ckpt={source}", *argv[2:])
        assert (result.code, (own / "out/fine").exists()) == (2, False), result.output
        assert "data/plain has another vocabulary than data/plain of that run" in result.output
