"""Where weights begin: GPT-2 from a folder or the Hub cache, another run of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, run_script
from tests.train.conftest import TINY, attempt, train

GPT2 = (
    "--init_from=gpt2",
    "--dataset=bpe",
    "max_iters=1",
    "warmup_iters=0",
    "eval_iters=1",
    "learning_rate=0",
    "min_lr=0",
    "decay_lr=false",
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with random weights as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: released ones are not 1 and 0
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def theirs(folder: Path, tokens: np.ndarray) -> float:
    """Mean cross entropy of the windows [N, T + 1] by transformers' own code."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    windows = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def test_gpt2_has_the_loss_that_transformers_gives_it(place: Path, released: Path) -> None:
    lines = train(place, *GPT2, f"--gpt2_type={released}", "--block_size=16", "eval_iters=null")
    val = np.fromfile(place / "data/bpe/val.bin", dtype="<u2")
    length = 16
    count = (len(val) - 1) // length
    assert (len(val) - 1) % length == 15  # one shorter window at the end, which the sweep scores too
    windows = np.lib.stride_tricks.sliding_window_view(val[: count * length + 1], length + 1)[::length]
    rest = val[count * length :][None]
    expected = (theirs(released, windows) * count * length + theirs(released, rest) * 15) / (len(val) - 1)
    assert lines[0]["step"] == 0
    assert lines[0]["eval/val_loss"] == pytest.approx(expected, abs=1e-4)


def test_a_shorter_context_crops_the_positions(place: Path, released: Path) -> None:
    cut = attempt(place, *GPT2, f"--gpt2_type={released}", "--block_size=8", "out_dir=out/r")
    assert f"weights     GPT-2 from {released}, positions cut to 8 of 16\n" in cut.output
    ours = load_file(place / "out/r/ckpt_last.pt/model.safetensors")
    original = load_file(released / "model.safetensors")
    assert torch.equal(ours["wpe.embedding_weight"], original["transformer.wpe.weight"][:8])


def test_data_of_another_tokenizer_are_refused(place: Path, released: Path) -> None:
    result = attempt(place, *GPT2, f"--gpt2_type={released}", "--dataset=plain")
    assert result.code == 2
    assert "GPT-2's own tokens" in result.output
    assert not (place / "out").exists()


def test_an_architecture_that_does_not_fit_is_refused(place: Path, released: Path) -> None:
    result = attempt(place, *GPT2, f"--gpt2_type={released}", "--n_layer=3")
    assert result.code == 2
    assert "h.2" in result.output
    result = attempt(place, *GPT2, f"--gpt2_type={released}", "arch.norm_variant=rmsnorm")
    assert result.code == 2
    assert "norm_variant" in result.output


def test_the_hub_cache_is_found_without_a_network(
    place: Path, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub/models--openai-community--gpt2/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(released / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))  # forks inherit it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run_script("train", *TINY, *GPT2, cwd=place)
    assert result.code == 0, result.output
    assert str(snapshot) in result.output
    result = run_script("train", *TINY, "--init_from=gpt2-medium", "--dataset=bpe", "out_dir=out/m", cwd=place)
    assert result.code == 2
    assert "hf download openai-community/gpt2-medium" in result.output


def test_a_folder_that_is_no_gpt2(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = attempt(place, *GPT2, f"--gpt2_type={tmp_path}/empty")
    assert result.code == 2
    assert "config.json" in result.output
    assert result.output.count("error: ") == 1
    (tmp_path / "empty/config.json").write_text(json.dumps({"n_layer": 1, "n_head": 1, "n_embd": 4}))
    result = attempt(place, *GPT2, f"--gpt2_type={tmp_path}/empty")
    assert result.code == 2
    assert "model.safetensors" in result.output
    result = attempt(place, *GPT2, "--gpt2_type=gpt3")
    assert result.code == 2
    assert "gpt2-medium" in result.output


@pytest.mark.parametrize("word", ["--gpt2_type=gpt2-mediun", "--init_from=gpt2-mediun", "--gpt2_type=models/gtp"])
def test_a_misspelt_gpt2_is_offered(word: str, place: Path) -> None:
    (place / "models/gpt").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (place / "models/gpt" / name).touch()
    result = attempt(place, *GPT2, word)
    assert result.code == 2
    assert f"did you mean '{'models/gpt' if 'models' in word else 'gpt2-medium'}'?" in result.output
    assert result.output.count("error: ") == 1


def test_weights_of_an_earlier_run(place: Path) -> None:
    train(place, "out_dir=out/first", "max_iters=12", run="out/first")
    end = load_file(place / "out/first/ckpt.pt/model.safetensors")
    lines = train(place, "--init_from=prev_run", "--prev_run_ckpt=out/first", "eval_only=true")
    begun = load_file(place / "out/r/ckpt_last.pt/model.safetensors")
    assert end.keys() == begun.keys()
    assert all(torch.equal(end[name], begun[name]) for name in end)
    assert lines[0]["step"] == 0
    result = attempt(place, "--init_from=prev_run", "--prev_run_ckpt=out/first", "--dataset=other", "out_dir=out/b")
    assert result.code == 2
    assert "vocabulary" in result.output
    for name, hint in (("out/nothing", ""), ("out/frist", ": did you mean 'out/first'?")):
        result = attempt(place, "--init_from=prev_run", f"--prev_run_ckpt={name}", "out_dir=out/b")
        assert result.code == 2
        assert f"prev_run_ckpt={name}: no such run or checkpoint{hint}\n" in result.output
    result = attempt(place, "--init_from=prev_run", "--prev_run_ckpt=gpt2", "out_dir=out/b")
    assert "prev_run_ckpt=gpt2 is a GPT-2, not a run: set init_from=gpt2 gpt2_type=gpt2\n" in result.output
    assert not (place / "out/b").exists()


def test_a_started_run_goes_on_without_its_source(place: Path, released: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    argv = (*GPT2, f"--gpt2_type={copy}", "max_iters=4", "max_steps=2")
    train(place, *argv)
    (copy / "model.safetensors").unlink()
    lines = train(place, *argv[:-1], "max_steps=4", "resume=true")
    assert lines[-1]["step"] == 4


def test_an_empty_folder_in_the_way_of_a_release_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "gpt2").mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # forks inherit it
    result = attempt(place, "--init_from=gpt2", "--dataset=bpe")
    assert result.code == 2
    assert "the folder gpt2 here is in the way of the name" in result.output
    assert not (place / "out").exists()


@pytest.mark.slow
def test_an_earlier_run_brings_its_architecture(place: Path) -> None:
    changed = ("--n_layer=2", "--n_embd=24", "--pos_encodings=rope", "--n_kv_group=1", "--mlp_variant=swiglu")
    train(place, *changed, "out_dir=out/first", run="out/first")
    short = [word for word in TINY if not word.startswith("arch.")]
    for source, out in (("out/first", "a"), ("out/first/ckpt.pt", "b"), ("out/first/checkpoints/step_3", "c")):
        argv = (*short, "--init_from=prev_run", f"--prev_run_ckpt={source}", f"out_dir=out/{out}", "max_iters=1")
        result = run_script("train", *argv, "warmup_iters=0", "--dropout=0.1", cwd=place)
        assert result.code == 0, result.output
        first, second = (
            json.loads((place / f"out/{name}/checkpoints/{step}/manifest.json").read_text())["config"]
            for name, step in (("first", "step_6"), (out, "step_1"))
        )
        assert second["arch"] == {**first["arch"], "dropout": 0.1}
    result = attempt(place, "--init_from=prev_run", "--prev_run_ckpt=out/first", "out_dir=out/d")  # TINY says its own
    assert result.code == 2
    assert "prev_run_ckpt" in result.output


def test_an_earlier_run_gives_the_weights_that_were_evaluated(place: Path) -> None:
    lines = train(
        place, "out_dir=out/first", "ema=true", "ema_rate=0.8", "max_iters=6", "learning_rate=0.05", run="out/first"
    )
    evaluated = [line["eval/val_loss"] for line in lines if "eval/val_loss" in line]
    begun = train(place, "--init_from=prev_run", "--prev_run_ckpt=out/first", "eval_only=true")
    assert begun[0]["eval/val_loss"] == min(evaluated)


def test_a_checkpoint_of_another_script_is_refused(place: Path) -> None:
    checkpoint = ROOT / "tests/fixtures/runs_before_house/feudal/checkpoints/step_8"
    result = attempt(place, f"resume_from={checkpoint}")
    assert result.code == 2
    assert f"checkpoint {checkpoint} was written by pretrain.py, not by train.py" in result.output.replace("\n", " ")
    assert not (place / "out").exists()
