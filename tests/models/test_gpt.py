"""Every variation of the GPT family against the written-out formulas, read at once and token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.language_models.gpt import GPT, GPTConfig, LMShape
from models.language_models.mlp import squared_relu
from tests.models.naive_gpt import naive_gpt

WORDS, LENGTH = 11, 9
FAST = {
    "pos_encodings": "rope",
    "use_qk_norm": True,
    "qk_norm_gain": 1.2,
    "norm_variant": "rmsnorm",
    "norm_gain": False,
    "norm_embedding": True,
    "activation_variant": "squared_relu",
    "wte_weight_tying": False,
    "value_embeddings": True,
    "residual_scalars": True,
    "init_std": None,
    "embd_init_std": 0.8,
    "head_init_std": 0.001,
    "zero_init_proj": True,
}
VARIATIONS = {
    "plain": {},
    "no positions": {"pos_encodings": "none"},
    "rope": {"pos_encodings": "rope", "rope_theta": 100.0},
    "partial rope": {"pos_encodings": "rope", "rope_length": 4},
    "softmax1": {"softmax_variant_attn": "softmax1"},
    "relu2max": {"softmax_variant_attn": "relu2max"},
    "sigmoidmax": {"softmax_variant_attn": "sigmoidmax"},
    "consmax": {"softmax_variant_attn": "consmax"},
    "rmsnorm": {"norm_variant": "rmsnorm"},
    "dyt": {"norm_variant": "dyt"},
    "no norm": {"norm_variant": "identity"},
    "norms without gain": {"norm_gain": False},
    "peri": {"norm_placement": "peri"},
    "post": {"norm_placement": "post"},
    "parallel": {"use_parallel_mlp": True},
    "parallel peri": {"use_parallel_mlp": True, "norm_placement": "peri"},
    "parallel post": {"use_parallel_mlp": True, "norm_placement": "post"},
    "two kv heads": {"n_kv_group": 2},
    "one kv head, written out": {"n_kv_group": 1, "softmax_variant_attn": "softmax1"},
    "qk norm": {"use_qk_norm": True, "use_qk_norm_scale": True, "qk_norm_gain": 1.5},
    "v norm": {"use_v_norm": True},
    "soft caps": {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 2.0},
    "window": {"window_size": 3},
    "window, written out": {"window_size": 3, "softmax_variant_attn": "sigmoidmax"},
    "gelu_tanh": {"activation_variant": "gelu_tanh"},
    "relu": {"activation_variant": "relu"},
    "silu": {"activation_variant": "silu"},
    "squared relu": {"activation_variant": "squared_relu", "mlp_expansion_factor": 2.5},
    "swiglu": {"mlp_variant": "swiglu"},
    "untied": {"wte_weight_tying": False},
    "value embeddings": {"value_embeddings": True, "n_kv_group": 2},
    "residual scalars": {"residual_scalars": True},
    "no biases": {"bias": False},
    "gpt_fast": {**FAST, "bias": False},
}
SHARED = {  # arch, owners of the attention and of the MLP weights
    "repeat": ({"n_layer": 4, "share_attn": "repeat", "share_size": 2}, [0, 0, 2, 2], [0, 1, 2, 3]),
    "cycle": ({"n_layer": 4, "share_mlp": "cycle", "share_size": 2}, [0, 1, 2, 3], [0, 1, 0, 1]),
    "mirror": ({"n_layer": 5, "share_attn": "mirror", "share_mlp": "mirror"}, [0, 1, 2, 1, 0], [0, 1, 2, 1, 0]),
    "mirror in pairs": (
        {"n_layer": 6, "share_attn": "mirror", "share_mlp": "repeat", "share_size": 2},
        [0, 0, 2, 2, 0, 0],
        [0, 0, 2, 2, 4, 4],
    ),
}


def make(arch: dict, words: tuple[int, ...] = (WORDS,), **kwargs) -> GPT:
    """A small model in float64 whose parameters are all drawn at random, those that start at 0 or 1 included."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": LENGTH, "bias": True, "forward_dtype": "float64"}
    model = GPT(GPTConfig(**{**sizes, **arch}), LMShape(words), **kwargs)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise + (0.9 if parameter.dim() == 1 else 0.0))
    return model.eval()


def draw(*shape: int, words: int = WORDS) -> Tensor:
    return torch.randint(words, shape, generator=torch.Generator().manual_seed(3))


def weights_of(model: GPT) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", VARIATIONS)
def test_formula(name: str) -> None:
    model, ids = make(VARIATIONS[name]), draw(2, LENGTH)
    logits = model(ids).logits().detach().numpy()
    for row in range(2):
        expected = naive_gpt(weights_of(model), model.config, [ids[row].numpy()])[0]
        np.testing.assert_allclose(logits[row], expected, rtol=1e-9, atol=1e-9)
    plain = make({"bias": model.config.bias})(ids).logits()
    if name not in ("plain", "no biases"):
        assert plain.shape != logits.shape or not np.allclose(plain.detach().numpy(), logits)  # it does something


@pytest.mark.parametrize("name", SHARED)
def test_sharing(name: str) -> None:
    arch, attn, mlp = SHARED[name]
    model, ids = make(arch), draw(1, LENGTH)
    expected = naive_gpt(weights_of(model), model.config, [ids[0].numpy()], {"attn": attn, "mlp": mlp})[0]
    np.testing.assert_allclose(model(ids).logits()[0].detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    owned = {
        part: sum(f"h.{i}.{part}.proj.weight" in model.state_dict() for i in range(10)) for part in ("attn", "mlp")
    }
    assert owned == {"attn": len(set(attn)), "mlp": len(set(mlp))}  # a shared weight is one weight, under one name


@pytest.mark.parametrize("name", [*VARIATIONS, *SHARED])
def test_cache(name: str) -> None:
    model, ids = make(VARIATIONS.get(name) or SHARED.get(name, ({},))[0]), draw(2, LENGTH)
    with torch.no_grad():
        whole, cache, pieces = model(ids).logits(), model.new_cache(2), []
        for low, high in ((0, 1), (1, 2), (2, 6), (6, LENGTH)):  # one token, then several after cached ones
            pieces.append(model(ids[:, low:high], cache=cache).logits())
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)
    assert cache.length == LENGTH


def test_several_streams() -> None:
    """Embeddings are summed and each stream has its own head, tied or not; here with value embeddings too."""
    words = (WORDS, 4, 7)
    for arch in ({}, FAST | {"bias": False}):
        model = make(arch, words)
        ids = torch.stack([draw(2, LENGTH, words=count) for count in words], dim=1)
        output = model(ids)
        for row in range(2):
            expected = naive_gpt(weights_of(model), model.config, list(ids[row].numpy()))
            for k in range(3):
                np.testing.assert_allclose(output.logits(k)[row].detach().numpy(), expected[k], rtol=1e-9, atol=1e-9)


def test_one_vocabulary_of_several() -> None:
    """A mixture with a vocabulary each: a batch uses one table and its head; nothing else gets a gradient."""
    model, ids = make({}, (WORDS, 4)), draw(2, LENGTH, words=4)
    alone = make({}, (4,))
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(model.state_dict()[name.replace("tables.0", "tables.1")])
    output = model(ids, stream=1)
    torch.testing.assert_close(output.logits(), alone(ids).logits())
    output.logits().sum().backward()
    assert model.wte.tables[0].embedding_weight.grad is None
    assert model.wte.tables[1].embedding_weight.grad is not None


@pytest.mark.parametrize("arch", [{}, {"window_size": 3, "n_kv_group": 2}], ids=["plain", "window and groups"])
def test_fused_kernels_have_the_gradients_of_the_written_out_form(arch: dict) -> None:
    ids, gradients = draw(2, LENGTH), []
    for kind in ("auto", "math"):
        model = make(arch, attention=kind)
        model(ids).logits().square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9)


def test_squared_relu_gradient() -> None:
    x = torch.tensor([-1.5, -0.2, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squared_relu, x)


@pytest.mark.parametrize("arch", [FAST | {"bias": False}, {"share_attn": "cycle", "dropout": 0.2}])
def test_gradient_checkpointing_changes_nothing(arch: dict) -> None:
    ids, results = draw(2, LENGTH), []
    for again in (False, True):
        model = make({**arch, "use_gradient_checkpointing": again}).train()
        torch.manual_seed(0)
        loss = model(ids).logits().square().mean()
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_dropout() -> None:
    """In training only, of the embeddings and of both branches."""
    model, ids = make({"dropout": 0.5}), draw(1, LENGTH)
    torch.testing.assert_close(model(ids).logits(), make({})(ids).logits())
    model.train()
    assert not torch.allclose(model(ids).logits(), model(ids).logits())


def test_low_precision_stays_near() -> None:
    arch = {"forward_dtype": "bfloat16"}
    exact, rough = make({"forward_dtype": "float32"}), make(arch)
    ids = draw(2, LENGTH)
    logits = rough(ids).logits()
    assert logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in rough.parameters())
    assert (logits.float() - exact(ids).logits()).abs().mean() < 0.05 * exact(ids).logits().abs().mean()
