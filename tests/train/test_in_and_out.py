"""Weights in from nanoGPT and out to transformers, by the commands of a user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Result, run_script
from tests.models.test_gpt2_weights import nano_file
from tests.train.conftest import attempt, train

NANO = ("arch.n_layer=2", "arch.n_head=4", "arch.n_embd=32", "arch.block_size=24", "--init_from=prev_run")


def export(place: Path, *argv: str) -> Result:
    return run_script("scripts/export_gpt2", *argv, cwd=place)


def test_a_run_becomes_a_folder_of_transformers(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    train(place)
    done = export(place, "out/r", "exported/r")
    assert done.code == 0, done.output
    model = transformers.GPT2LMHeadModel.from_pretrained(place / "exported/r").eval()
    words = transformers.AutoTokenizer.from_pretrained(place / "exported/r")
    text = "to be\n or  Loop"
    ids = words(text, return_tensors="pt").input_ids
    assert words.decode(ids[0]) == text
    chars = json.loads((place / "data/plain/tokenizer.json").read_text())["chars"]
    assert ids[0].tolist() == [chars.index(char) for char in text]
    ours = load_file(place / "out/r/ckpt.pt/model.safetensors")
    torch.testing.assert_close(model.transformer.wte.weight, ours["wte.tables.0.embedding_weight"])
    with torch.no_grad():
        assert model(ids[:, :8]).logits.shape == (1, 8, len(chars))
    again = export(place, "out/r", "exported/r")
    assert again.code == 2
    assert again.output.splitlines()[-1] == "error: exported/r exists already: remove it or choose another folder"


def test_what_is_no_gpt2_is_not_exported(place: Path) -> None:
    train(place, "arch.pos_encodings=rope")
    done = export(place, "out/r", "exported")
    assert done.code == 2
    assert "arch.pos_encodings=rope is not GPT-2's: it has learned" in done.output.splitlines()[-1]
    assert not (place / "exported").exists()


def test_a_run_begins_with_the_weights_of_nanogpt(place: Path) -> None:
    words = json.loads((place / "data/plain/meta.json").read_text())["vocab_size"]
    nano, path = nano_file(place, rows=words)
    train(place, *NANO, f"--prev_run_ckpt={path.name}", "eval_only=true")
    begun = load_file(place / "out/r/ckpt_last.pt/model.safetensors")
    torch.testing.assert_close(begun["h.1.attn.qkv.weight"], nano.h[1].c_attn.weight.detach())
    torch.testing.assert_close(begun["wte.tables.0.embedding_weight"], nano.wte.weight.detach())
    refused = attempt(place, *NANO, f"--prev_run_ckpt={path.name}", "arch.n_head=2", "out_dir=out/b")
    assert refused.code == 2
    assert f"prev_run_ckpt={path.name}: it was trained with arch.n_head=4: set the same" in refused.output
    other = attempt(place, *NANO, f"--prev_run_ckpt={path.name}", "dataset=classes", "out_dir=out/b")
    assert other.code == 2
    assert "it has 17 tokens, the data have 9: another vocabulary" in other.output
    assert not (place / "out/b").exists()
