"""Every variant against the naive double, and the properties that a user relies on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.models.parity import BASE, SHAPE, assert_same, batch, compare_training, make

TINY = TRMConfig(**BASE, H_cycles=2, L_cycles=2, L_layers=2, puzzle_emb_len=3)
TINY_HRM = HRMConfig(**BASE, H_layers=1, L_layers=2)
VARIANTS = {
    "trm": TINY,
    "trm_mlp_t": replace(TINY, mlp_t=True, pos_encodings="none"),
    "trm_learned": replace(TINY, pos_encodings="learned"),
    "trm_grid": replace(TINY, pos_encodings="rope_2d"),
    "trm_wide_heads": replace(TINY, num_heads=3, head_dim=12),
    "trm_no_positions": replace(TINY, pos_encodings="none"),
    "trm_continue": replace(TINY, no_ACT_continue=False),
    "trm_no_embedding": replace(TINY, puzzle_emb_ndim=0),
    "trm_mlp_t_no_embedding": replace(TINY, puzzle_emb_ndim=0, puzzle_emb_len=0, mlp_t=True),
    "trm_wide_embedding": replace(TINY, puzzle_emb_ndim=40),
    "trm_one_cycle": replace(TINY, H_cycles=1, L_cycles=1),
    "hrm": TINY_HRM,
    "hrm_learned": replace(TINY_HRM, pos_encodings="learned"),
    "hrm_no_embedding": replace(TINY_HRM, puzzle_emb_ndim=0),
    "hrm_mlp_t": replace(TINY_HRM, mlp_t=True),
}


def build(config, seed=0, **kwargs):
    return make(HRM if isinstance(config, HRMConfig) else TRM, config, seed, **kwargs)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_training_steps_equal_the_naive_double(name):
    config = VARIANTS[name]
    compare_training(build(config), "hrm" if isinstance(config, HRMConfig) else "trm", config)


@pytest.mark.parametrize("name", ["trm", "trm_mlp_t", "hrm"])
def test_gradients_do_not_depend_on_how_a_batch_is_split(name):
    model, head = build(VARIANTS[name]).train(), ACTLossHead(ACTLossConfig())
    whole = batch(3, rows=6)
    grads = []
    for sizes in ((6,), (1, 2, 3)):
        model.zero_grad(set_to_none=True)
        start, pieces = 0, []
        for size in sizes:
            part = {k: v[start : start + size] for k, v in whole.items()}
            head(model(part)).total.backward()
            start += size
        ids, rows = model.puzzle_emb.take_pending()
        assert torch.equal(ids, whole["puzzle_identifiers"])
        pieces = [p.grad.clone() for p in model.parameters()] + [rows]
        grads.append(pieces)
    for a, b in zip(*grads, strict=True):
        assert_same(a, b)


COUNTS = [
    (TRM, TRMConfig(), (81, 11), 6_828_034),
    (TRM, TRMConfig(mlp_t=True, pos_encodings="none"), (81, 11), 5_028_866),
    (TRM, TRMConfig(), (900, 12), 6_829_058),
    (TRM, TRMConfig(), (900, 6), 6_822_914),
    (TRM, TRMConfig(mlp_t=True), (900, 6), 18_795_522),
    (HRM, HRMConfig(), (81, 11), 27_275_266),
    (HRM, HRMConfig(), (900, 12), 27_276_290),
]


@pytest.mark.parametrize(("kind", "config", "data", "count"), COUNTS)
def test_published_parameter_counts(kind, config, data, count):
    with torch.device("meta"):
        model = kind(config, PuzzleShape(*data, num_puzzle_identifiers=5))
    assert model.num_parameters() == count
    assert sum(p.numel() for p in model.param_groups()["trunk"]) == count


def test_flops_of_the_published_recipes():
    with torch.device("meta"):
        att = TRM(TRMConfig(), PuzzleShape(81, 11, 1)).flops(768)
        mlp = TRM(TRMConfig(mlp_t=True), PuzzleShape(81, 11, 1)).flops(768)
        arc = TRM(TRMConfig(L_cycles=4), PuzzleShape(900, 12, 1)).flops(768)
        hrm = HRM(HRMConfig(), PuzzleShape(81, 11, 1)).flops(768)
    assert [round(f["train"] / 1e12, 1) for f in (att, mlp)] == [36.6, 32.8]
    assert [round(f["train"] / 1e12) for f in (arc, hrm)] == [306, 28]
    assert att["eval"] / 768 / 16 * 16 == pytest.approx(16 * att["train"] / 768 * 21 / 35)


def test_flops_follow_the_depth_of_training_and_evaluation_is_deep_throughout():
    """Counted from the recipe's shapes: 82 positions, width 512, two SwiGLU in each of two blocks, 2N a product."""
    sizes = {"mlp_t": True, "pos_encodings": "none", "puzzle_emb_ndim": 0, "puzzle_emb_len": 0, "registers": 1}
    schedule = [[0, 2, 1], [0.3, 4, 2], [0.6, 6, 3]]
    with torch.device("meta"):
        model = TRM(TRMConfig(**sizes, H_cycles=3, L_cycles=6, cycles_schedule=schedule), PuzzleShape(81, 11, 1))
    stack = 2 * (2 * 3 * 82 * 512 * 1536 + 2 * 3 * 512 * 82 * 256)
    # all cycles forward, and twice the last one, which is the window, for its backward
    train = [384 * stack * ((high + 2) * (low + 1)) for _, low, high in schedule]
    for share in (0.0, 0.5, 1.0):  # whatever the present depth
        model.train().set_progress(share)
        assert model.stage_flops(384) == list(zip((0, 0.3, 0.6), train, strict=True))
        assert model.flops(384) == {"train": train[-1], "eval": 384 * 16 * stack * 3 * 7}
    with torch.device("meta"):
        plain = TRM(TRMConfig(**sizes, H_cycles=3, L_cycles=6), PuzzleShape(81, 11, 1))
    assert plain.stage_flops(384) == [(0.0, train[-1])]


def test_meta_model_becomes_real():
    with torch.device("meta"):
        model = TRM(TINY, SHAPE)
    real = build(TINY)
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(model.eval()(batch(0)).logits, real.eval()(batch(0)).logits)
    assert not any("rotary" in key for key in real.state_dict())


def test_blocks_are_the_compile_units():
    assert len(build(TINY).blocks()) == 2
    assert len(build(TINY_HRM).blocks()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near_and_gradients_stay_float32(dtype):
    exact, near = build(TINY), build(replace(TINY, forward_dtype="auto"), auto_dtype=dtype)
    near.load_state_dict(exact.state_dict())
    head = ACTLossHead(ACTLossConfig())
    totals = []
    for model in (exact, near):
        result = head(model.train()(batch(0)))
        result.total.backward()
        totals.append(result.total.item())
    assert totals[1] == pytest.approx(totals[0], rel=1e-5 if dtype == torch.float32 else 0.03)
    for (name, a), b in zip(exact.named_parameters(), near.parameters(), strict=True):
        assert b.grad.dtype == torch.float32
        error = (a.grad - b.grad).norm() / (a.grad.norm() + 1e-12)
        assert error < (1e-4 if dtype == torch.float32 else 0.25), name


def test_attention_kinds_agree_and_unknown_ones_are_refused():
    models = [build(TINY, attention=kind).eval() for kind in ("auto", "sdpa", "math")]
    first, *others = (model(batch(0)).logits for model in models)
    for logits in others:
        assert_same(logits, first)
    with pytest.raises(ValueError, match="attention=fast"):
        build(TINY, attention="fast")
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"\[flash\]"):
            build(TINY, attention="flash")


def test_fresh_model_halts_exactly_at_the_last_step():
    torch.manual_seed(0)
    model, carry = TRM(TINY, SHAPE).train(), None
    for step in (1, 2, 3):
        output = model(batch(step), carry)
        carry = output.carry
        assert carry.halted.tolist() == [step == 3] * 4
        assert carry.data["inputs"].equal(batch(1)["inputs"])  # nobody took the later offers
        assert (output.q_halt_logits == -5).all()
    assert model(batch(4), carry).carry.data["inputs"].equal(batch(4)["inputs"])


def test_exploration_demands_a_minimum_of_steps():
    model, carry = build(replace(TINY, halt_max_steps=4, halt_exploration_prob=0.5)).train(), None
    with torch.no_grad():
        model.inner.q_head.weight.zero_()
        model.inner.q_head.bias.fill_(1.0)  # always willing to halt
    numbers = torch.tensor([[0.6, 0.9], [0.1, 0.0], [0.1, 0.5], [0.1, 0.999]])  # no, at least 2, 3, 4
    halts = []
    for _ in range(4):
        output = model({**batch(0), "exploration": numbers}, carry)
        carry = output.carry
        halts.append(carry.halted.tolist())
        assert "exploration" not in carry.data
        carry.halted = torch.zeros_like(carry.halted)  # keep every row going to see each threshold
    assert halts == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True] * 4,
    ]
    model.eval()
    assert model(batch(0)).carry.steps.tolist() == [4] * 4


def test_think_goes_deeper_and_leaves_the_grad_mode_alone():
    model = build(TINY).eval()
    outputs = []
    for output in model.think(batch(0), steps=5):
        assert torch.is_grad_enabled()
        outputs.append(output)
    assert len(outputs) == 5
    assert torch.equal(outputs[2].logits, model(batch(0)).logits)
    assert not torch.equal(outputs[4].logits, outputs[2].logits)
    assert not model.puzzle_emb.pending


def test_carry_holds_no_graph_and_pending_rows_are_counted_once():
    model = build(TINY).train()
    output = model(batch(0))
    assert not any(z.requires_grad for z in output.carry.latents.values())
    ids, grads = model.puzzle_emb.take_pending()  # no backward took place
    assert ids.shape == (4,)
    assert not grads.any()
    assert model.puzzle_emb.take_pending()[0].shape == (0,)
    with torch.no_grad():
        model(batch(0))
    assert not model.puzzle_emb.pending
