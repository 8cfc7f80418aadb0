"""trm_singlez, trm_hier6 and the transformer baseline: parity with the naive double, sizes, keys, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.transformers_baseline import TransformerBaseline, TransformerBaselineConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from models.recursive_reasoning.trm_hier6 import TRMHier6, TRMHier6Config
from models.recursive_reasoning.trm_singlez import TRMSingleZ
from tests.models.parity import BASE, SHAPE, batch, compare_training, make

SINGLEZ = TRMConfig(**BASE, H_cycles=2, L_cycles=2, L_layers=2, puzzle_emb_len=3)
HIER6 = TRMHier6Config(**BASE, H_cycles=2, L_cycles=6, L_layers=1, puzzle_emb_len=2)
BASELINE = TransformerBaselineConfig(**BASE, H_layers=3)
VARIANTS = {
    "singlez": (TRMSingleZ, "singlez", SINGLEZ),
    "singlez_mlp_t": (TRMSingleZ, "singlez", replace(SINGLEZ, mlp_t=True)),
    "singlez_continue": (TRMSingleZ, "singlez", replace(SINGLEZ, no_ACT_continue=False)),
    "hier6": (TRMHier6, "hier6", HIER6),
    "hier6_two_updates": (TRMHier6, "hier6", replace(HIER6, L_cycles=2, no_ACT_continue=False)),
    "hier6_no_embedding": (TRMHier6, "hier6", replace(HIER6, L_cycles=3, puzzle_emb_ndim=0)),
    "baseline": (TransformerBaseline, "baseline", BASELINE),
    "baseline_one_pass": (TransformerBaseline, "baseline", replace(BASELINE, no_ACT_continue=True)),
    "baseline_odd_heads": (TransformerBaseline, "baseline", replace(BASELINE, num_heads=3, head_dim=4)),
    "baseline_learned": (TransformerBaseline, "baseline", replace(BASELINE, pos_encodings="learned")),
}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_training_steps_equal_the_naive_double(name):
    model_class, kind, config = VARIANTS[name]
    compare_training(make(model_class, config), kind, config)


def on_meta(model_class, config, *data):
    with torch.device("meta"):
        return model_class(config, PuzzleShape(*data, num_puzzle_identifiers=5))


PUBLIC_HEADS = TransformerBaselineConfig(num_heads=12, head_dim=42)
COUNTS = [
    (TransformerBaseline, TransformerBaselineConfig(), (900, 12), 27_276_290),
    (TransformerBaseline, PUBLIC_HEADS, (900, 12), 27_145_218),
    (TransformerBaseline, TransformerBaselineConfig(), (81, 11), 27_275_266),
    (TRMSingleZ, TRMConfig(), (81, 11), 6_828_034),  # as TRM: it differs in a buffer only
    (TRMSingleZ, TRMConfig(mlp_t=True), (81, 11), 5_028_866),
    (TRMHier6, TRMHier6Config(), (81, 11), 6_828_034),
    (TRMHier6, TRMHier6Config(), (900, 6), 6_822_914),
]


@pytest.mark.parametrize(("kind", "config", "data", "count"), COUNTS)
def test_parameter_counts(kind, config, data, count):
    model = on_meta(kind, config, *data)
    assert model.num_parameters() == count
    assert sum(p.numel() for p in model.param_groups()["trunk"]) == count


def keys_of(stack, layers, qkv=1536, mixed=512):
    return {
        f"inner.{stack}.layers.{i}.{name}": shape
        for i in range(layers)
        for name, shape in {
            "self_attn.qkv_proj.weight": (qkv, 512),
            "self_attn.o_proj.weight": (512, mixed),
            "mlp.gate_up_proj.weight": (3072, 512),
            "mlp.down_proj.weight": (512, 1536),
        }.items()
    }


ENDS = {
    "inner.embed_tokens.embedding_weight": (11, 512),
    "inner.lm_head.weight": (11, 512),
    "inner.q_head.weight": (2, 512),
    "inner.q_head.bias": (2,),
    "inner.puzzle_emb.weights": (5, 512),
}
TABLES = [
    (TRMSingleZ, TRMConfig(), ["L"], keys_of("L_level", 2)),
    (TRMHier6, TRMHier6Config(), ["H", "L1", "L2", "L3", "L4", "L5", "L6"], keys_of("L_level", 2)),
    (TransformerBaseline, TransformerBaselineConfig(), ["H"], keys_of("H_level", 8)),
    (TransformerBaseline, PUBLIC_HEADS, ["H"], keys_of("H_level", 8, qkv=1512, mixed=504)),
    (TransformerBaseline, TransformerBaselineConfig(L_layers=3), ["H"], keys_of("H_level", 8)),
]


@pytest.mark.parametrize(("kind", "config", "starts", "blocks"), TABLES)
def test_state_dict_has_the_published_names_and_shapes(kind, config, starts, blocks):
    """Non-persistent tables are absent, a stack that nothing calls is not made."""
    model = on_meta(kind, config, 81, 11)
    want = {**ENDS, **blocks, **{f"inner.{name}_init": (512,) for name in starts}}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == want
    assert len(model.blocks()) == len(blocks) // 4


def test_operations_follow_the_plan():
    """Layer: S(8·D·h·d + 6·D·I) + 4·S²·h·d forward; window twice more; the continue target one pass more."""
    S, D, inner = 97, 512, 1536
    layer = S * (8 * D * D + 6 * D * inner) + 4 * S * S * D
    for model_class, config in ((TRMSingleZ, TRMConfig()), (TRMHier6, TRMHier6Config())):
        flops = on_meta(model_class, config, 81, 11).flops(3)
        assert flops == {"train": 3 * 2 * layer * (21 + 2 * 7), "eval": 3 * 2 * layer * 21 * 16}
    S = 82
    for config, mixed in ((TransformerBaselineConfig(), 512), (PUBLIC_HEADS, 504)):
        layer = S * (8 * D * mixed + 6 * D * inner) + 4 * S * S * mixed
        flops = on_meta(TransformerBaseline, config, 81, 11).flops(3)
        assert flops == {"train": 3 * 8 * layer * (2 + 2), "eval": 3 * 8 * layer * 16}


def test_recipe_keys_of_recursion_leave_the_baseline_alone():
    plain, other = BASELINE, replace(BASELINE, H_cycles=2, L_cycles=5, L_layers=1)
    first, second = (make(TransformerBaseline, config).eval()(batch(0)).logits for config in (plain, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TRMHier6Config, {"L_cycles": 7}, r"arch\.L_cycles=7.*arch\.L_latents=6: choose arch\.L_cycles <= 6"),
        (TRMHier6Config, {"L_latents": 4}, r"arch\.L_cycles=6.*arch\.L_latents=4"),
        (TRMHier6Config, {"H_layers": 2}, r"arch\.H_layers=2: TRM has one stack"),
        (TransformerBaselineConfig, {"H_layers": 0}, r"arch\.H_layers=0"),
        (TransformerBaselineConfig, {"num_heads": 12}, r"arch\.num_heads=12 does not divide arch\.hidden_size=512"),
        (TransformerBaselineConfig, {"head_dim": 41}, r"arch\.head_dim=41 .*rope: expected a multiple of 2"),
        (TRMConfig, {"head_dim": 42, "pos_encodings": "rope_2d"}, r"arch\.head_dim=42 .*rope_2d: .* multiple of 4"),
        (TRMConfig, {"head_dim": -1}, r"arch\.head_dim=-1"),
        (TRMConfig, {"num_heads": 256, "pos_encodings": "rope_2d"}, r"rope_2d cannot rotate \(4 channels .* 64$"),
        (TRMConfig, {"eval_halting": "latch"}, r"arch\.eval_halting=latch: choose one of fixed, latched"),
    ],
)
def test_what_cannot_be_built_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_more_latents_than_six():
    config = TRMHier6Config(**BASE, H_cycles=1, L_cycles=7, L_latents=8, L_layers=1)
    model = make(TRMHier6, config)
    assert sum(name.endswith("_init") for name in model.state_dict()) == 9
    carry = model.train()(batch(0)).carry
    still = model.inner.L8_init.expand_as(carry.latents["z_L8"])
    assert torch.equal(carry.latents["z_L8"], still)  # no update is its own
    fewer = make(TRMHier6, replace(config, L_latents=7))
    fewer.load_state_dict({k: v for k, v in model.state_dict().items() if "L8" not in k})
    assert not torch.allclose(fewer.eval()(batch(0)).logits, model.eval()(batch(0)).logits)  # and yet it counts


@pytest.mark.parametrize("name", ["singlez", "hier6", "baseline"])
def test_meta_model_becomes_real_and_bfloat16_is_near(name):
    model_class, _, config = VARIANTS[name]
    with torch.device("meta"):
        model = model_class(config, SHAPE)
    real = make(model_class, config)
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(model.eval()(batch(0)).logits, real.eval()(batch(0)).logits)

    low = make(model_class, replace(config, forward_dtype="auto"), auto_dtype=torch.bfloat16)
    low.load_state_dict(real.state_dict())
    head = ACTLossHead(ACTLossConfig())
    exact, near = (head(m.train()(batch(0))).total for m in (real, low))
    near.backward()
    assert near.item() == pytest.approx(exact.item(), rel=0.03)
    assert low.eval()(batch(0)).logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in low.parameters())


def test_input_added_outside_the_stack_is_the_same_sum():
    """The published single-z code calls f(z + x) with one argument; ours hands z and x to the stack."""
    model = make(TRMSingleZ, SINGLEZ)
    z, x = torch.randn(2, 3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rope, stack = model.inner.rotary(), model.inner.L_level
    assert torch.equal(stack(z, x, rope), stack(z + x, None, rope))


def test_variants_are_not_trm():
    outputs = [make(kind, SINGLEZ).eval()(batch(0)).logits for kind in (TRM, TRMSingleZ)]
    assert not torch.allclose(*outputs)
