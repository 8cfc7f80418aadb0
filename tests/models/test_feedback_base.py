"""The base language models of the feedback family: against numpy, padding, the option, sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.feedback.base import BaseLM
from models.feedback.config import BaseConfig, LoopedConfig, TextShape
from models.feedback.looped import LoopedLM
from tests.models.naive_feedback import naive_row

SHAPE = TextShape(words=20, mask_id=20, pad_id=21)
SMALL = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_multiple": 8, "init_std": 0.3}
MODELS = {
    "masked": (BaseLM, BaseConfig(**SMALL, forward_dtype="float64")),
    "autoregressive": (BaseLM, BaseConfig(**SMALL, forward_dtype="float64", objective="autoregressive")),
    "looped": (LoopedLM, LoopedConfig(**SMALL, forward_dtype="float64", loops=3, loop_start=1, loop_layers=1)),
}


@pytest.fixture(scope="module", params=MODELS)
def base(request):
    torch.manual_seed(0)
    cls, config = MODELS[request.param]
    model = cls(config, SHAPE).freeze()
    if request.param == "looped":
        for parameter in model.injection.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def padded(seed=0, length=9):
    ids = torch.randint(SHAPE.words + 1, (3, length), generator=torch.Generator().manual_seed(seed))
    ids[1, 5:], ids[2, 2:] = SHAPE.pad_id, SHAPE.pad_id
    return ids, ids != SHAPE.pad_id


@torch.no_grad()
def test_equals_numpy_row_by_row(base):
    ids, real = padded()
    output = base(ids, real)
    for row in range(len(ids)):
        expected = naive_row(base, ids[row][real[row]].numpy())
        np.testing.assert_allclose(output.hidden[row][real[row]].numpy(), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["auto", "math"])
def test_padding_and_neighbours_change_nothing(base, kind):
    """Appended padding, what stands there, and the other rows have no effect on a row's text."""
    if kind == "math":
        written_out = type(base)(base.config, SHAPE, attention="math").freeze()
        written_out.load_state_dict(base.state_dict())
        base = written_out
    ids, real = padded()
    expected = base(ids, real).logits()
    longer = torch.cat((ids, torch.full((3, 3), SHAPE.pad_id)), 1)
    wider = torch.cat((real, torch.zeros(3, 3, dtype=torch.bool)), 1)
    other = longer.masked_fill(~wider, 7)
    for inputs in (longer, other):
        logits = base(inputs, wider).logits()[:, :9]
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-10)
    for row in range(3):
        alone = base(ids[row : row + 1, real[row]]).logits()[0]
        torch.testing.assert_close(alone, expected[row][real[row]], rtol=0, atol=1e-10)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(base(ids[order], real[order]).logits(), expected[order], rtol=0, atol=1e-10)
    empty = torch.zeros_like(real)
    assert base(ids, empty).hidden.isfinite().all()  # a row of padding alone is finite, too


@torch.no_grad()
def test_only_words_can_be_predicted(base):
    ids, real = padded()
    logits = base(ids, real).logits()
    assert logits.shape == (3, 9, 24)
    assert logits[..., SHAPE.words :].eq(-math.inf).all()
    assert logits[..., : SHAPE.words].isfinite().all()


@torch.no_grad()
def test_only_the_autoregressive_base_looks_backwards_alone(base):
    ids, _ = padded()
    ids = ids.masked_fill(ids == SHAPE.pad_id, 3)
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % SHAPE.words
    same = torch.allclose(base(ids).hidden[:, :5], base(other).hidden[:, :5], atol=1e-12)
    assert same == base.config.causal


@torch.no_grad()
def test_states_are_the_residual_stream(base):
    ids, real = padded()
    output = base(ids, real, keep_states=True)
    assert len(output.states) == base.config.n_layer + 1
    torch.testing.assert_close(output.states[0], base.wte(ids))
    torch.testing.assert_close(base.ln_f(output.states[-1]), output.hidden)
    assert base(ids, real).states == ()


@torch.no_grad()
def test_one_loop_is_the_plain_stack_at_the_start():
    torch.manual_seed(1)
    looped = LoopedLM(LoopedConfig(**SMALL, forward_dtype="float64", loops=1), SHAPE).freeze()
    plain = BaseLM(BaseConfig(**SMALL, forward_dtype="float64"), SHAPE).freeze()
    assert all("injection" in name for name in plain.load_state_dict(looped.state_dict(), strict=False).unexpected_keys)
    ids, real = padded()
    torch.testing.assert_close(
        looped(ids, real).hidden, plain(ids, real).hidden, rtol=0, atol=1e-8
    )  # constants are float32


def test_the_injection_decays_whatever_is_learned():
    looped = LoopedLM(LoopedConfig(**SMALL), SHAPE)
    for value in (-30.0, 0.0, 5.0):
        with torch.no_grad():
            looped.injection.a.fill_(value), looped.injection.b.fill_(value)
            one, zero = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)
            decay = looped.injection(one, zero)
        assert ((decay >= 0) & (decay <= 1)).all()


def test_sizes_of_the_published_setting():
    with torch.device("meta"):
        model = BaseLM(BaseConfig(), TextShape(words=50257, mask_id=50257, pad_id=50258))
    assert model.num_parameters() == 19_169_280
    assert model.wte.embedding_weight.shape[0] == 50304
    # 8 blocks of 24 C² + 4 T C, and the head
    assert model.forward_flops(2) == 2 * 512 * (8 * (24 * 256**2 + 4 * 512 * 256) + 2 * 256 * 50304)


def test_looped_blocks_count_as_often_as_they_are_applied():
    config = LoopedConfig(**SMALL, loops=3, loop_start=1, loop_layers=2)
    assert config.applied == 7
    plain = BaseLM(BaseConfig(**{**SMALL, "n_layer": 7}), SHAPE)
    assert LoopedLM(config, SHAPE).forward_flops(1) == plain.forward_flops(1)


def test_what_is_decayed():
    groups = LoopedLM(LoopedConfig(**SMALL), SHAPE).param_groups()
    assert set(groups) == {"matrix", "embedding", "scalar"}
    assert set(groups["embedding"]) == {"wte.embedding_weight"}
    assert set(groups["scalar"]) == {"injection.a", "injection.b", "injection.mix"}
    assert len(groups["matrix"]) == 18


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_head": 3}, "arch.n_head=3 does not divide arch.n_embd=16: choose one of 1, 2, 4, 8"),
        ({"n_head": 16}, "heads of odd width"),
        ({"loop_start": 2, "loop_layers": 2}, "reach beyond arch.n_layer=3"),
        ({"dropout": 1.0}, "arch.dropout=1.0"),
        ({"objective": "both"}, "arch.objective=both: choose one of masked_diffusion, autoregressive"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        LoopedConfig(**{**SMALL, **values})


def test_too_many_positions_and_flash_are_refused():
    base = BaseLM(BaseConfig(**SMALL), SHAPE)
    with pytest.raises(ValueError, match="13 positions do not fit"):
        base(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="use attention=auto"):
        BaseLM(BaseConfig(**SMALL), SHAPE, attention="flash")
    with pytest.raises(ValueError, match="two different ids"):
        TextShape(words=5, mask_id=4, pad_id=6)
