"""What a GPT is beside its formula: sizes, first values, parameter groups, decoding, configs that are refused."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from engine.cli.recipes import read_option
from losses.language_model import LMLossConfig, LMLossHead
from models.language_models.gpt import GPT, GPTConfig, LMShape
from models.language_models.gpt2_weights import GPT2_SIZES
from tests.conftest import ROOT
from tests.models.test_gpt import FAST, LENGTH, SHARED, VARIATIONS, draw, make

WRONG = [
    ({"n_head": 5}, r"arch\.n_head=5 does not divide arch\.n_embd=384: choose one of 1, 2, 3, 4, 6"),
    ({"n_embd": 6, "n_head": 2, "pos_encodings": "rope"}, r"arch\.n_head=2 gives heads of odd width"),
    ({"n_kv_group": 4}, r"arch\.n_kv_group=4: must divide arch\.n_head=6: choose one of 1, 2, 3, 6"),
    ({"pos_encodings": "alibi"}, r"arch\.pos_encodings=alibi: choose one of learned, rope, none"),
    ({"pos_encodings": "rope", "rope_length": 65}, r"arch\.rope_length=65: expected an even number from 2 to"),
    ({"rope_length": 8}, r"arch\.rope_length=8: needs arch\.pos_encodings=rope"),
    ({"softmax_variant_attn": "softplus"}, r"choose one of softmax, softmax1, relu2max, sigmoidmax, consmax"),
    ({"use_qk_norm_scale": True}, r"arch\.use_qk_norm_scale=True: needs arch\.use_qk_norm=true"),
    ({"qk_norm_gain": 1.2}, r"arch\.qk_norm_gain=1\.2: needs arch\.use_qk_norm=true"),
    ({"attn_logit_softcapping": 0.0}, r"arch\.attn_logit_softcapping=0\.0: expected a positive number"),
    ({"window_size": 0}, r"arch\.window_size=0: expected at least 1"),
    ({"share_mlp": "repeat"}, r"arch\.share_mlp=repeat: shares nothing"),
    ({"share_attn": "cycle", "share_size": 6}, r"arch\.share_attn=cycle: shares nothing with arch\.share_size=6"),
    ({"share_size": 2}, r"arch\.share_size=2: needs arch\.share_attn or arch\.share_mlp"),
    ({"head_init_std": 0.1}, r"arch\.head_init_std=0\.1: needs arch\.wte_weight_tying=false"),
    ({"dropout": 1.0}, r"arch\.dropout=1\.0"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_nonsense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**values)


@pytest.mark.parametrize("name", ["gpt", "gpt2", "gpt_fast"])
def test_files_give_every_option(name: str) -> None:
    values = read_option(ROOT / f"config/arch/{name}.yaml")["arch"]
    assert values.pop("name") == "language_models.gpt@GPT"
    loss = values.pop("loss")
    assert loss.pop("name") == "losses@LMLossHead"
    assert set(values) == {field.name for field in fields(GPTConfig)}
    assert list(loss) == [field.name for field in fields(LMLossConfig)]
    config = GPTConfig(**values)
    if name == "gpt":
        assert config == GPTConfig()  # the file and the class agree on what plain is
    if name == "gpt2":
        assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (*GPT2_SIZES["gpt2"], 1024)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "published"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_published_sizes(kind: str, published: int) -> None:
    layers, heads, width = GPT2_SIZES[kind]
    with torch.device("meta"):
        model = GPT(
            GPTConfig(n_layer=layers, n_head=heads, n_embd=width, block_size=1024, bias=True), LMShape((50257,))
        )
    assert model.num_parameters() == published


def test_sizes_of_the_character_recipes() -> None:
    """nanoGPT prints 10.65M for its GPU recipe (positions left out); the CPU recipe has 804,096 in all."""
    with torch.device("meta"):
        large = GPT(GPTConfig(), LMShape((65,)))
        small = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64), LMShape((65,)))
    assert f"{(large.num_parameters() - large.wpe.embedding_weight.numel()) / 1e6:.2f}" == "10.65"
    assert small.num_parameters() == 804_096


def test_operations() -> None:
    """PaLM's estimate for the CPU recipe: 6 per weight and token, 12·L·D·T for the scores; shared weights twice."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 64}
    weights = 2 * 12 * 128**2 + 65 * 128
    operations = GPT(GPTConfig(**sizes), LMShape((65,))).flops(12)
    assert operations["train"] == 12 * 64 * (6 * weights + 12 * 2 * 128 * 64)
    assert operations["eval"] == operations["train"] / 3
    shared = GPT(GPTConfig(**sizes, share_attn="cycle", share_mlp="cycle"), LMShape((65,)))
    assert shared.flops(12) == operations
    near = GPT(GPTConfig(**sizes, window_size=16), LMShape((65,))).flops(12)
    assert operations["train"] - near["train"] == 12 * 64 * 12 * 2 * 128 * 48


# --- first values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [{}, {"bias": True}, FAST, {"norm_placement": "peri", "mlp_variant": "swiglu"}])
def test_first_loss_is_that_of_guessing(arch: dict) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, **arch), LMShape((65,)))
    tokens = draw(8, 65, words=65)
    result = LMLossHead(LMLossConfig())(model(tokens[:, :-1]), tokens[:, 1:])
    assert (result.total / result.weight).item() == pytest.approx(math.log(65), abs=0.06)


def test_deviations() -> None:
    torch.manual_seed(0)
    plain = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=128, block_size=64), LMShape((512,))).state_dict()
    small = 0.02 / math.sqrt(2 * 2)
    for name, std in (
        ("wte.tables.0.embedding_weight", 0.02),
        ("wpe.embedding_weight", 0.02),
        ("h.1.attn.qkv.weight", 0.02),
        ("h.1.attn.proj.weight", small),
        ("h.0.mlp.fc.weight", 0.02),
        ("h.0.mlp.proj.weight", small),
    ):
        assert plain[name].std().item() == pytest.approx(std, rel=0.05), name
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=128, block_size=64, **FAST), LMShape((512,)))
    fast = model.state_dict()
    assert fast["h.0.attn.proj.weight"].abs().max() == fast["h.1.mlp.proj.weight"].abs().max() == 0
    assert fast["wte.tables.0.embedding_weight"].std().item() == pytest.approx(0.8, rel=0.05)
    assert fast["lm_head.0.weight"].std().item() == pytest.approx(0.001, rel=0.05)
    assert fast["h.1.mlp.fc.weight"].abs().max().item() == pytest.approx(math.sqrt(3 / 128), rel=0.01)
    assert fast["h.1.values.words.tables.0.embedding_weight"].std().item() == pytest.approx(
        1 / math.sqrt(128), rel=0.05
    )
    torch.testing.assert_close(torch.stack([b.residual for b in model.h]), torch.tensor([[1.15, 0.2], [1.05, 0.05]]))
    assert "h.0.values.gate" not in fast  # every second block, the last one included


@pytest.mark.parametrize("name", [*VARIATIONS, *SHARED])
def test_every_parameter_learns_and_is_in_one_group(name: str) -> None:
    model = make(VARIATIONS.get(name) or SHARED.get(name, ({},))[0])
    model(draw(4, LENGTH)).logits().square().sum().backward()
    named = dict(model.named_parameters())
    assert [key for key, parameter in named.items() if parameter.grad is None or not parameter.grad.any()] == []
    groups = model.param_groups()
    grouped = [key for members in groups.values() for key in members]
    assert sorted(grouped) == sorted(named)
    for kind, members in groups.items():
        for key, parameter in members.items():
            assert parameter is named[key]
            assert (parameter.dim() == 2) or kind in ("vector", "scalar")
    assert set(model.fused_rows()) <= set(groups["matrix"])
    for key, rows in model.fused_rows().items():
        assert sum(rows) == named[key].shape[0]


def test_groups_of_the_fast_model() -> None:
    groups = {kind: set(members) for kind, members in make({**FAST, "bias": False}).param_groups().items()}
    assert groups == {
        "matrix": {f"h.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")},
        "embedding": {"wte.tables.0.embedding_weight", "h.1.values.words.tables.0.embedding_weight"},
        "head": {"lm_head.0.weight"},
        "scalar": {"h.0.residual", "h.1.residual", "h.1.values.gate"},
    }


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [{}, {"pos_encodings": "rope", "window_size": 3}], ids=["learned", "rope"])
def test_decoding_past_the_context(arch: dict) -> None:
    """Within block_size `step` is the full forward pass; beyond it, that of the last half and what came after."""
    model, ids = make(arch), draw(2, 3 * LENGTH)
    cache, length = model.new_cache(2), 0
    for end in range(1, ids.shape[1] + 1):
        (logits,) = model.step(ids[:, end - 1 : end], cache)
        length = length + 1 if length < LENGTH else LENGTH // 2
        expected = model(ids[:, end - length : end]).logits()[:, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_a_prompt_longer_than_the_context_is_cut() -> None:
    model, ids = make({}, (11, 4)), draw(2, 2, 3 * LENGTH, words=4)
    logits = model.step(ids, model.new_cache(2))
    expected = model(ids[..., -LENGTH:])
    torch.testing.assert_close(logits, tuple(expected.logits(k)[:, -1] for k in (0, 1)))


@pytest.mark.parametrize(
    ("words", "shape", "stream", "message"),
    [
        ((5,), (2, LENGTH + 1), None, rf"{LENGTH + 1} tokens do not fit arch\.block_size={LENGTH}"),
        ((5,), (2, 2, 4), None, r"\[2, 2, 4\], expected \[B, T\]: the model has 1 stream"),
        ((5, 3), (2, 4), None, r"\[2, 4\], expected \[B, 2, T\]: the model has 2 stream"),
        ((5, 3), (2, 2, 4), 1, r"\[2, 2, 4\], expected \[B, T\] with stream="),
    ],
)
def test_other_shapes_are_refused(words: tuple[int, ...], shape: tuple[int, ...], stream: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        make({}, words)(torch.zeros(shape, dtype=torch.long), stream=stream)


def test_flash_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(ValueError, match=r"attention=flash cannot compute arch\.softmax_variant_attn=consmax"):
        make({"softmax_variant_attn": "consmax"}, attention="flash")
