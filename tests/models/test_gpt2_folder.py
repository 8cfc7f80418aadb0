"""GPT-2 folders as people have them: shards, padded tables, a folder that merely has the name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import UsageError
from models.language_models.config import GPTConfig, LMShape
from models.language_models.gpt import GPT
from models.language_models.gpt2_folder import gpt2_folder, read_gpt2
from models.language_models.gpt2_weights import from_gpt2, gpt2_config, to_gpt2
from tasks.language_model.source import gpt2_sizes

SHAPE = LMShape((33,))
CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, bias=True, activation_variant="gelu_tanh")


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return to_gpt2(GPT(CONFIG, SHAPE).state_dict(), CONFIG, SHAPE)


def put(folder: Path, weights: dict[str, torch.Tensor], *, shards: int = 1, pickled: bool = False) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(gpt2_config(CONFIG, SHAPE)))
    stem, end = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    where = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}{end}" if shards > 1 else stem + end
        part = {key: weights[key] for key in list(weights)[number::shards]}
        torch.save(part, folder / name) if pickled else save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / f"{stem}{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_whole_and_sharded_folders(tmp_path: Path, theirs: dict, shards: int, pickled: bool) -> None:
    folder = put(tmp_path / "x", theirs, shards=shards, pickled=pickled)
    assert gpt2_folder(str(folder)) == folder
    tensors = read_gpt2(folder)
    assert tensors.keys() == theirs.keys()
    assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', "names '../x.safetensors': expected files beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected files beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
        ('{"weight_map": ["a"]}', "is not an index of shards"),
        ("[" * 100_000, "is not an index of shards"),
        ('{"weight_map": {"a": {}}}', "is not an index of shards"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_gpt2(tmp_path)
    assert "\n" not in str(caught.value)


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"is a shard: its model.safetensors.index.json is missing"):
        read_gpt2(tmp_path)


@pytest.mark.parametrize("more", [1, 15, 64])
@pytest.mark.parametrize("head", [False, True])
def test_rows_beyond_the_vocabulary_are_cut(theirs: dict, more: int, head: bool) -> None:
    table = torch.cat((theirs["transformer.wte.weight"], torch.ones(more, 8)))
    padded = {**theirs, "transformer.wte.weight": table} | ({"lm_head.weight": table.clone()} if head else {})
    weights = from_gpt2(padded, CONFIG, SHAPE)
    assert torch.equal(weights["wte.tables.0.embedding_weight"], table[:33])


def test_the_table_of_another_vocabulary_is_refused(theirs: dict) -> None:
    for rows in (32, 33 + 2000):
        with pytest.raises(ValueError, match=rf"wte.weight is \[{rows}, 8\], expected \[33, 8\]"):
            from_gpt2({**theirs, "transformer.wte.weight": torch.ones(rows, 8)}, CONFIG, SHAPE)


WTE, QKV = "transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WTE, lambda w: w.to(torch.int8), "wte.weight is int8, expected a dense float32"),
        (
            QKV,
            lambda w: w.to(torch.float8_e4m3fn),
            "c_attn.weight is float8_e4m3fn, expected",
        ),  # its scale is elsewhere
        (QKV, lambda w: w * 1j, "is complex64"),
        (QKV, lambda w: w.to_sparse(), "is sparse_coo"),
        (WTE, lambda w: w.to("meta"), "is empty"),
        (QKV, lambda w: w / 0, "c_attn.weight holds numbers that are not finite"),
        (WTE, lambda w: w.sum(), r"wte.weight is \[\], expected \[33, 8\]"),
        (QKV, lambda w: w[None], r"c_attn.weight is \[1, 8, 24\], expected \[8, 24\]"),
        (QKV, lambda w: w.t(), r"c_attn.weight is \[24, 8\], expected \[8, 24\]"),  # as in the file, not as in ours
        ("wte.weight", lambda w: torch.ones(33, 8), "wte.weight is there twice"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(theirs: dict, name: str, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_gpt2({**theirs, name: change(theirs.get(name, torch.ones(1)))}, CONFIG, SHAPE)


def test_half_precision_weights_are_read(theirs: dict) -> None:
    for kind in (torch.float16, torch.bfloat16):
        weights = from_gpt2({name: tensor.to(kind) for name, tensor in theirs.items()}, CONFIG, SHAPE)
        model = GPT(CONFIG, SHAPE)
        model.load_state_dict(weights)
        assert torch.equal(model.ln_f.weight, theirs["transformer.ln_f.weight"].to(kind).float())


def test_a_state_dict_without_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a state dict"):
        read_gpt2(tmp_path)


def test_a_folder_that_has_only_the_name(tmp_path: Path, theirs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert gpt2_folder("gpt2") is None
    assert gpt2_sizes("gpt2")["n_layer"] == 12
    (tmp_path / "gpt2").rmdir()
    put(tmp_path / "gpt2", theirs)
    assert gpt2_sizes("gpt2")["n_layer"] == 2  # a GPT-2 of one's own under the name


@pytest.mark.parametrize("content", ["[]", "{}", '{"n_layer": 1, "n_head": 1, "n_embd": "4"}', '{"n_embd": 0}', "{"])
def test_a_config_that_cannot_be_used_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config.json \(") as caught:
        gpt2_sizes(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": None}, "n_layer is missing: expected a positive integer"),
        ({"n_embd": 0}, "n_embd=0: expected a positive integer"),
        ({"n_inner": "32"}, "n_inner='32': expected a positive integer"),
        ({"activation_function": ["relu"]}, r"activation_function=\['relu'\]: expected one of gelu_new"),
    ],
)
def test_a_key_of_the_config_is_named(tmp_path: Path, change: dict, message: str) -> None:
    content = {"n_layer": 1, "n_head": 1, "n_embd": 4, **change}
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    with pytest.raises(UsageError, match=message):
        gpt2_sizes(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"hello", b"", b"I5\n.", b"\x80\x02hello", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_weights_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged or cut short|is not a state dict"):
            read_gpt2(tmp_path)
