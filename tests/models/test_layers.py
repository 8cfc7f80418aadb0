"""Hand-written backward passes against finite differences, and the written-out checks of the layers."""

from __future__ import annotations

import pytest
import torch

from models.layers import (
    Attention,
    CastedLinear,
    LMHead,
    ReasoningBlock,
    RotaryTables,
    SwiGLU,
    apply_rotary,
    cached_casts,
    line_positions,
    product as products,
    rms_norm,
    tied_logits,
)
from models.layers.mlp import gated_silu
from models.layers.norm import add_rms_norm
from models.layers.swiglu_cpu import LastAxis, Positions, swiglu


def draw(*shape):
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients_by_finite_differences():
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, 0.3), draw(3, 5))
    assert torch.autograd.gradcheck(gated_silu, draw(2, 3, 8))
    for axis in (1, -1):
        assert torch.autograd.gradcheck(
            lambda x, y, axis=axis: add_rms_norm(x, y, 0.3, axis), (draw(2, 3, 4), draw(2, 3, 4))
        )
    weights = draw(8, 3), draw(3, 4)
    for x, axis in ((draw(5, 3), LastAxis), (draw(2, 3, 5), Positions)):
        assert torch.autograd.gradcheck(lambda x, a, b, axis=axis: swiglu(x, a, b, (a, b), axis), (x, *weights))
    for ins, outs in ((3, 6), (6, 3)):
        layer = CastedLinear(ins, outs, bias=True).double()
        assert torch.autograd.gradcheck(
            lambda x, w, b, layer=layer: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
            (draw(2, 4, ins), layer.weight, layer.bias),
        )


def test_mixing_positions_as_they_lie_computes_what_transposed_copies_do():
    torch.manual_seed(0)
    sizes = {"size": 8, "num_heads": 2, "head_dim": 4, "expansion": 4.0, "eps": 1e-5, "length": 64, "multiple": 16}
    block = ReasoningBlock(mlp_t=True, attention="auto", **sizes)
    x = torch.randn(3, 64, 8, requires_grad=True)
    turned = x.transpose(1, 2)
    expected = rms_norm(turned + block.mlp_t(turned), 1e-5).transpose(1, 2)
    leaves = [x, *block.mlp_t.parameters()]
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    mixed = block._mix_positions(block.mlp_t, x)
    torch.testing.assert_close(mixed, expected)
    for got, reference in zip(torch.autograd.grad(mixed.square().sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(block._mix_positions(block.mlp_t, x), expected)


def test_written_out_values():
    y = rms_norm(torch.tensor([3.0, 4.0], dtype=torch.float64), 1e-5)
    torch.testing.assert_close(y, torch.tensor([0.84852779, 1.13137042], dtype=torch.float64), rtol=0, atol=1e-7)
    turned = apply_rotary(
        torch.tensor([[[0.0] * 4], [[1.0, 2.0, 3.0, 4.0]]]), *RotaryTables(4, line_positions(2), theta=1e4)()
    )
    want = torch.tensor([-1.98411059, 1.95990062, 2.46237803, 4.01979971])
    torch.testing.assert_close(turned[1, 0], want, rtol=0, atol=1e-6)


def test_rotary_tables_survive_moves_of_the_module():
    tables = RotaryTables(4, line_positions(3), theta=1e4)
    before = tables.cos.clone()
    tables.to(torch.bfloat16)
    assert torch.equal(tables.cos, before)
    with torch.device("meta"):
        made_on_meta = RotaryTables(4, line_positions(3), theta=1e4)
    assert torch.equal(made_on_meta.to_empty(device="cpu").cos, before)


def test_weight_gradients_of_repeated_calls_add_up_in_float32():
    torch.manual_seed(0)
    layer, x = CastedLinear(16, 8), torch.randn(200, 4, 16).bfloat16()
    with cached_casts(layer, torch.bfloat16):
        kept = layer._copy
        for part in x:
            layer(part).sum().backward()
            assert layer._copy is kept
    assert layer._copy is None
    exact = x.float().sum((0, 1)).expand(8, 16)
    low = torch.zeros(8, 16, dtype=torch.bfloat16)
    for part in x:
        low += part.sum(0)
    assert layer.weight.grad.dtype == torch.float32
    assert (layer.weight.grad - exact).norm() < 0.2 * (low.float() - exact).norm()


@pytest.mark.parametrize(
    "layer",
    [
        Attention(32, 4, head_dim=8),
        Attention(32, 4, head_dim=8, kind="math"),
        SwiGLU(32, 4.0),
        CastedLinear(32, 7, bias=True),
    ],
)
def test_16_bit_matmuls_in_float32_round_as_native_ones(layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms differ from float32 by the rounding of bfloat16, the converted one by no more."""
    torch.manual_seed(0)
    given = torch.randn(3, 16, 32)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def run(dtype: torch.dtype, lacking: set[torch.dtype]) -> list[torch.Tensor]:
        monkeypatch.setattr(products, "_WITHOUT_UNITS", frozenset(lacking))
        x = given.to(dtype, copy=True).requires_grad_()
        out = layer(x)
        assert out.dtype == dtype
        with torch.no_grad():
            torch.testing.assert_close(layer(x), out)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])]

    exact = run(torch.float32, set())
    native, widened = run(torch.bfloat16, set()), run(torch.bfloat16, {torch.bfloat16})
    for right, one, other in zip(exact, native, widened, strict=True):
        assert (other.float() - right).norm() < 1.1 * (one.float() - right).norm() + 1e-3 * right.norm()
        assert (other.float() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize(
    ("machine", "flags", "lacking"),
    [
        ("x86_64", "avx2 fma", {torch.bfloat16, torch.float16}),
        ("AMD64", "avx512f avx512_bf16", {torch.float16}),
        ("x86_64", "avx512f amx_bf16 avx512_fp16", set()),
        ("aarch64", "bf16", set()),
    ],
)
def test_units_for_16_bits(machine: str, flags: str, lacking: set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(products, "_PROCESSOR", f"flags\t\t: {flags}\n")
    assert products._without_units() == lacking


def test_gate_norm_is_the_written_formula_and_inner_widths_follow_the_multiple():
    torch.manual_seed(0)
    layer = SwiGLU(5, 4.0, multiple=4, gate_norm=True).double()
    assert layer.inner == 16  # 2/3 of 20 is 13.3
    x = torch.randn(3, 5, dtype=torch.float64)
    gate, up = (x @ part.T for part in layer.gate_up_proj.weight.split(16))
    product = gate * up
    normed = product / (product.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (normed / (1 + (-gate).exp())) @ layer.down_proj.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_zeros_behind_an_odd_number_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU is given: products over 24 positions in place of 17, in bfloat16; the norm still counts 17."""
    shape = {"size": 16, "num_heads": 2, "head_dim": 8, "expansion": 4.0, "eps": 1e-5, "length": 17}
    options = {
        "mlp_t": True,
        "attention": "auto",
        "multiple": 8,
        "gate_norm": True,
    }  # else a CPU has kernels of its own
    torch.manual_seed(0)
    block = ReasoningBlock(**shape, **options)
    given = torch.randn(3, 17, 16).to(torch.bfloat16)

    def passes(block: ReasoningBlock) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = given.clone().requires_grad_()
        with cached_casts(block, torch.bfloat16):
            y = block(x)
            y.float().square().sum().mul(0.5).backward()
        grads = [x.grad, *(parameter.grad for parameter in block.parameters())]
        block.zero_grad()
        return y.detach(), grads

    plain, plain_grads = passes(block)
    monkeypatch.setattr("models.layers.linear.PADDED_ON", {"cpu"})
    monkeypatch.setattr("models.layers.mlp.PADDED_ON", {"cpu"})
    assert block.mlp_t.padding(given) == 7
    assert block.mlp_t.padding(given.float()) == 0  # a weight that is used as it is
    assert block.mlp_t.gate_up_proj.cast(torch.bfloat16).shape[1] == 24
    padded, grads = passes(block)
    assert padded.is_contiguous()
    for one, other in zip([plain, *plain_grads], [padded, *grads], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


def test_a_head_over_an_odd_vocabulary_has_the_same_logits_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the product is over 16 words in place of 11; what lies behind the eleventh never leaves the head."""
    torch.manual_seed(0)
    head, given = LMHead(8, 11), torch.randn(3, 5, 8).to(torch.bfloat16)

    def passes(tied: bool) -> list[torch.Tensor]:
        x = given.clone().requires_grad_()
        with cached_casts(head, torch.bfloat16):
            logits = tied_logits(x, head.weight) if tied else head(x)
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), torch.arange(15) % 11).backward()
        grads = [x.grad, head.weight.grad]
        head.zero_grad()
        return [logits.detach(), *grads]

    plain = passes(tied=False)
    monkeypatch.setattr("models.layers.linear.PADDED_ON", {"cpu"})
    assert head.cast(torch.bfloat16).shape == (16, 8)
    for padded in (passes(tied=False), passes(tied=True)):
        for one, other in zip(plain, padded, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-3)
    assert tied_logits(given.float(), head.weight).shape == (3, 5, 11)
