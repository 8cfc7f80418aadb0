"""GPT-2's weights in, out and between: transformers' own model and a literal nanoGPT are the judges."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from losses.language_model import LMLossConfig, LMLossHead
from models.language_models.gpt import GPT, GPTConfig, LMShape
from models.language_models.gpt2_weights import from_gpt2, gpt2_arch, gpt2_config, to_gpt2
from models.language_models.nanogpt import from_nanogpt, read_nanogpt
from tasks.language_model.nanogpt_baseline import NanoGPT, Sizes
from tests.models.test_gpt import VARIATIONS, draw

WORDS, SHAPE = 101, LMShape((101,))
SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24}


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """The same model with no parameter at its start, so that a norm left at 1 or a bias left at 0 is seen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def theirs(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 24, "vocab_size": WORDS}
    return scattered(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **changes})))


def loaded(config: GPTConfig, weights: dict[str, Tensor]) -> GPT:
    model = GPT(config, SHAPE)
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_function": "relu", "n_inner": 48, "layer_norm_epsilon": 1e-3},
        {"activation_function": "swish"},
    ],
    ids=["plain", "other", "swish"],
)
def test_import_has_the_logits_of_transformers(changes: dict) -> None:
    hf, ids = theirs(**changes), draw(2, 24, words=WORDS)
    config = GPTConfig(**gpt2_arch(hf.config.to_dict()))
    model = loaded(config, from_gpt2(hf.state_dict(), config, SHAPE))
    torch.testing.assert_close(model(ids).logits(), hf(ids).logits, rtol=0, atol=1e-4)


def test_shorter_context_and_old_files() -> None:
    """block_size below GPT-2's cuts the positions; the masks of old files and other prefixes are not weights."""
    hf, ids = theirs(), draw(2, 16, words=WORDS)
    old = {name.removeprefix("transformer."): tensor for name, tensor in hf.state_dict().items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    old["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    config = GPTConfig(**{**gpt2_arch(hf.config.to_dict()), "block_size": 16})
    model = loaded(config, from_gpt2(old, config, SHAPE))
    torch.testing.assert_close(model(ids).logits(), hf(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.h.1.ln_2.bias"), r"h\.1\.ln_2\.bias is missing"),
        (lambda w: w.update(extra=torch.ones(2)), r"extra is not known"),
        (
            lambda w: w.update({"transformer.wpe.weight": torch.ones(23, 32)}),
            r"wpe\.weight is \[23, 32\], expected \[24",
        ),
        (
            lambda w: w.update({"transformer.wte.weight": torch.ones(9, 32)}),
            r"wte\.weight is \[9, 32\], expected \[101",
        ),
        (lambda w: w.update({"lm_head.weight": torch.ones(101, 32)}), r"lm_head\.weight differs from wte\.weight"),
        (lambda w: w.clear(), r"wte\.weight is missing; wpe\.weight is missing; 37 more; ln_f\.bias is missing$"),
    ],
)
def test_other_weights_are_refused(change, message: str) -> None:
    hf = theirs()
    weights = dict(hf.state_dict())
    change(weights)
    config = GPTConfig(**gpt2_arch(hf.config.to_dict()))
    with pytest.raises(ValueError, match=message):
        from_gpt2(weights, config, SHAPE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "tanh"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("model_type", "llama"),
    ],
)
def test_kinds_of_gpt2_that_are_not_ours_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value}"):
        gpt2_arch({"n_layer": 1, "n_head": 1, "n_embd": 8, name: value})


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        {"bias": True, "activation_variant": "gelu_tanh"},
        {"activation_variant": "squared_relu", "mlp_expansion_factor": 2.5, "norm_eps": 1e-3, "n_kv_group": 4},
        {"activation_variant": "silu"},
        {"activation_variant": "gelu"},
    ],
    ids=lambda arch: arch["activation_variant"],
)
def test_an_exported_folder_loads_in_transformers(arch: dict, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    config = GPTConfig(**SIZES, **arch)
    model, ids = scattered(GPT(config, SHAPE)), draw(2, 24, words=WORDS)
    save_file(to_gpt2(model.state_dict(), config, SHAPE), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(gpt2_config(config, SHAPE, eot=3)))
    hf, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert hf.config.eos_token_id == 3
    torch.testing.assert_close(hf.eval()(ids).logits, model(ids).logits(), rtol=0, atol=1e-4)
    again = GPTConfig(**gpt2_arch(json.loads((tmp_path / "config.json").read_text())))
    back = loaded(again, from_gpt2(hf.state_dict(), again, SHAPE))
    torch.testing.assert_close(back(ids).logits(), model(ids).logits())


MAPPABLE = {"plain", "no biases", "gelu_tanh", "relu", "silu", "squared relu"}


@pytest.mark.parametrize("name", sorted(VARIATIONS.keys() - MAPPABLE))
def test_what_gpt2_cannot_be_is_named(name: str) -> None:
    arch = {"n_layer": 2, "n_head": 4, "n_embd": 24, **VARIATIONS[name]}
    with pytest.raises(ValueError, match=r"^arch\.(\w+)=\S+ is not GPT-2's: it has \w+$") as refused:
        gpt2_config(GPTConfig(**arch), SHAPE)
    assert str(refused.value).split("=")[0].removeprefix("arch.") in VARIATIONS[name]


def test_several_streams_are_no_gpt2() -> None:
    with pytest.raises(ValueError, match="2 vocabularies"):
        gpt2_config(GPTConfig(), LMShape((5, 3)))


# --- nanoGPT ----------------------------------------------------------------------------------------------------------


def nano_file(path: Path, *, compiled: bool = True, rows: int = WORDS, **changes) -> tuple[NanoGPT, Path]:
    """A checkpoint as nanoGPT writes it, and the literal model whose weights it holds."""
    model = scattered(NanoGPT(Sizes(vocab=rows, layers=2, heads=4, width=32, length=24)))
    prefix, weights = "_orig_mod." if compiled else "", {}
    places = {"c_attn": "attn.c_attn", "c_proj": "attn.c_proj", "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "h":
            parts[2] = places.get(parts[2], parts[2])
        weights[prefix + ("" if parts[0] == "lm_head" else "transformer.") + ".".join(parts)] = tensor
    args = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "block_size": 24,
        "bias": False,
        "vocab_size": rows,
        "dropout": 0.0,
    }
    content = {
        "model": weights,
        "model_args": {**args, **changes},
        "optimizer": {"state": {}, "param_groups": []},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.88),
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save(content, path / "ckpt.pt")
    return model, path / "ckpt.pt"


NANO = GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=24)


@pytest.mark.parametrize("compiled", [True, False])
def test_nanogpt_checkpoint(compiled: bool, tmp_path: Path) -> None:
    """The same loss and the same gradients as the literal model, whose lines share nothing with ours."""
    nano, path = nano_file(tmp_path, compiled=compiled)
    model = loaded(NANO, from_nanogpt(read_nanogpt(path), NANO, SHAPE))
    drawn = draw(3, 25, words=WORDS)
    tokens, targets = drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
    result = LMLossHead(LMLossConfig())(model(tokens), targets)
    expected = nano(tokens, targets)
    torch.testing.assert_close(result.total / result.weight, expected, rtol=1e-5, atol=1e-5)
    (result.total / result.weight).backward()
    expected.backward()
    for ours, nanos in (
        ("wte.tables.0.embedding_weight", "lm_head.weight"),
        ("wpe.embedding_weight", "wpe.weight"),
        ("h.0.attn.qkv.weight", "h.0.c_attn.weight"),
        ("h.1.mlp.proj.weight", "h.1.mlp_proj.weight"),
        ("h.0.norms_in.1.weight", "h.0.ln_2.weight"),
        ("ln_f.weight", "ln_f.weight"),
    ):
        grad = model.get_parameter(ours).grad
        torch.testing.assert_close(grad, nano.get_parameter(nanos).grad, rtol=1e-4, atol=1e-5, msg=ours)


def test_padded_vocabulary_is_cut(tmp_path: Path) -> None:
    nano, path = nano_file(tmp_path, rows=128)  # 101 rounded up to a multiple of 64
    weights = from_nanogpt(read_nanogpt(path), NANO, SHAPE)
    torch.testing.assert_close(weights["wte.tables.0.embedding_weight"], nano.wte.weight[:101].detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 2}, r"it was trained with arch\.n_head=2: set the same"),
        ({"bias": True, "n_layer": 6}, r"arch\.n_layer=6 arch\.bias=True"),
        ({"block_size": 16}, r"arch\.block_size=16"),
    ],
)
def test_another_architecture_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    checkpoint = read_nanogpt(nano_file(tmp_path, **changes)[1])
    with pytest.raises(ValueError, match=message):
        from_nanogpt(checkpoint, NANO, SHAPE)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path(self.mark),)  # type: ignore[attr-defined]


def test_files_that_run_code_are_not_opened(tmp_path: Path) -> None:
    evil = Evil()
    evil.mark = str(tmp_path / "ran")  # type: ignore[attr-defined]
    torch.save({"model": {}, "model_args": {}, "best_val_loss": evil}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="which may run code"):
        read_nanogpt(tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(ValueError, match=r"run code|cannot be read"):
        read_nanogpt(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "not a nanoGPT checkpoint"),
        ([1, 2], "not a nanoGPT checkpoint"),
        (b"", "damaged or cut short"),
        ({"model": {}, "model_args": {"n_layer": 1}}, "its model_args have n_head=None, expected a whole number"),
        (
            {"model": {}, "model_args": {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": "16"}},
            "block_size='16', expected a whole number",
        ),
    ],
)
def test_other_files_are_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_nanogpt(path)
    with pytest.raises(ValueError, match="not there"):
        read_nanogpt(tmp_path / "nothing.pt")
