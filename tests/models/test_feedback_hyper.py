"""The adapters of a frozen base: step 0, what a delta depends on, order, sizes, controls, refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.adapter_config import AdapterShape, FineTuneConfig, HyperConfig, StaticLoraConfig
from models.feedback.attention_finetune import AttentionFineTune
from models.feedback.base import BaseLM
from models.feedback.config import BaseConfig, TextShape
from models.feedback.hypernetwork import HyperNetwork
from models.feedback.static_lora import StaticLora
from models.layers import product
from tasks.feedback.health import delta_health, delta_sources
from tasks.feedback.noise import hide, next_tokens, training_noise
from tests.models.naive_feedback import naive_row
from tests.models.test_feedback_base import SHAPE, SMALL

CONFIG = BaseConfig(**SMALL)
VARIANTS = {
    "distinct": {},
    "recurrent": {"mode": "recurrent", "feedback_reverse": True},
    "logits": {"conditioning": "logits", "mode": "recurrent"},
    "loss_gradient": {"conditioning": "loss_gradient", "n_passes": 2, "loss_weights": "uniform"},
    "tokens": {"conditioning": "tokens", "share_base_embedding": False},
    "narrow": {"hyper_dim": 8, "targets": ["v", "fc", "proj"], "delta_norm_cap": 0.1},
    "added": {"n_passes": 2, "accumulate": True, "scale_rule": "rank", "alpha": 4.0},
    "passes": {"n_passes": 3, "loss_weights": "linear", "detach_between": False},
}


def make_base(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return BaseLM(replace(CONFIG, **changes), SHAPE, auto_dtype=dtype).freeze()


def make_hyper(variant=None, *, dtype=torch.float32, objective="masked_diffusion", opened=False, **changes):
    torch.manual_seed(3)
    config = HyperConfig(**{"lora_rank": 2, "init_std": 0.2, **VARIANTS.get(variant, {}), **changes})
    hyper = HyperNetwork(config, AdapterShape(replace(CONFIG, objective=objective), SHAPE), auto_dtype=dtype).eval()
    if opened:
        with torch.no_grad():
            hyper.readout.gates.fill_(0.5)
            for part in hyper.readout.static_b.values():
                part.normal_(std=0.1)
    return hyper


def tokens(rows=4, length=9, seed=0):
    ids = torch.randint(SHAPE.words, (rows, length), generator=torch.Generator().manual_seed(seed))
    for row in range(1, rows):
        ids[row, length - 2 * row :] = SHAPE.pad_id
    return ids


def batch_of(ids, objective="masked_diffusion", step=1):
    if objective == "autoregressive":
        return next_tokens(ids, SHAPE, 0.5)
    return hide(ids, SHAPE, training_noise(0, step, rows=len(ids), block_size=12, eps=1e-3))


@pytest.mark.parametrize("objective", ["masked_diffusion", "autoregressive"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_0_is_the_base_bit_for_bit(variant, objective):
    base, hyper = make_base(objective=objective), make_hyper(variant, objective=objective)
    head, batch = MaskedDiffusionLoss(), batch_of(tokens(), objective)
    output = hyper(base, batch)
    for each in output.passes[1:]:
        assert torch.equal(each.hidden, output.passes[0].hidden)
    result = head(output, batch)
    assert torch.equal(result.metrics["loss"][0], result.metrics["base_loss"][0])
    result.total.backward()
    opened = [name for name, p in hyper.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {"readout.gates", *(f"readout.static_b.{target}" for target in hyper.config.targets)} <= set(opened)
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        (None, {}, 0.0),
        (AttentionFineTune, {}, 0.03),
        (StaticLora, {}, 0.03),
        (HyperNetwork, {"n_passes": 2}, 0.15),
        (HyperNetwork, {"n_passes": 2, "detach_between": False}, 0.15),
        (HyperNetwork, {"n_passes": 3, "accumulate": True, "lora_rank": 32, "targets": ["q"]}, 0.15),
        (HyperNetwork, {"conditioning": "logits"}, 0.15),
        (HyperNetwork, {"mode": "recurrent", "lora_rank": 2}, 0.15),
    ],
)
def test_operations_of_a_training_step_are_those_that_torch_counts(kind, options, error, monkeypatch):
    monkeypatch.setattr(product, "_ONEDNN", None)  # torch does not count the products of oneDNN
    config = BaseConfig(n_layer=3, n_head=2, n_embd=64, block_size=12)
    base, ids = BaseLM(config, SHAPE, attention="math"), tokens(length=12).clamp(max=SHAPE.words - 1)
    model = base
    if kind is not None:
        model = kind(kind.Config(**options), AdapterShape(config, SHAPE), attention="math")
        base.freeze()
    with FlopCounterMode(display=False) as counter:
        output = base(ids) if kind is None else model(base, batch_of(ids)).final
        output.head(output.hidden).masked_fill(~base.allowed, 0.0).sum().backward()
    counted = model.flops(len(ids))
    assert counter.get_total_flops() == pytest.approx(counted["train"], rel=max(error, 1e-9))
    assert 1.0 < counted["train"] / counted["eval"] < 3.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_in_both_dtypes(dtype):
    base, hyper = make_base(dtype), make_hyper(dtype=dtype)
    batch = batch_of(tokens())
    output = hyper(base, batch)
    assert torch.equal(output.final.hidden, output.passes[0].hidden)
    assert output.final.hidden.dtype is dtype
    assert all(part.dtype is torch.float32 for pair in output.deltas[0].factors.values() for part in pair)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_once_the_gates_are_open(variant):
    base, hyper = make_base(), make_hyper(variant, opened=True)
    before = [p.clone() for p in base.parameters()]
    batch = batch_of(tokens())
    MaskedDiffusionLoss()(hyper(base, batch), batch).total.backward()
    still = [name for name, p in hyper.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still
    assert all(torch.equal(p, old) for p, old in zip(base.parameters(), before, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_delta_depends_on_nothing_but_what_is_visible_of_its_row(variant):
    """Not on padding, nor on what is in it, nor on the other rows, nor on the tokens behind the masks."""
    base, hyper = (
        make_base(torch.float64, forward_dtype="float64"),
        make_hyper(variant, forward_dtype="float64", opened=True),
    )
    ids = tokens()
    batch = batch_of(ids)

    def same(other, rows=slice(None)):
        for ours, theirs in zip(hyper(base, batch).deltas, hyper(base, other).deltas, strict=True):
            for name, pair in ours.factors.items():
                for part, expected in zip(theirs.factors[name], pair, strict=True):
                    torch.testing.assert_close(part, expected[rows], rtol=0, atol=1e-10)

    longer = batch_of(F.pad(ids, (0, 3), value=SHAPE.pad_id))
    same(longer)
    same(replace(longer, inputs=longer.inputs.masked_fill(~longer.real, 5)))
    hidden = batch.inputs == SHAPE.mask_id
    assert hidden.any()
    same(replace(batch, labels=batch.labels.masked_fill(hidden, 0)))
    for row in range(len(ids)):
        alone = batch.rows(slice(row, row + 1))
        same(alone, slice(row, row + 1))
        cut = int(alone.real.sum())
        parts = {name: getattr(alone, name)[:, :cut] for name in ("inputs", "labels", "real", "readable")}
        same(replace(alone, **parts), slice(row, row + 1))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["distinct", "logits", "loss_gradient", "tokens"])
def test_no_look_ahead_through_the_delta(variant):
    """With an autoregressive base, logits depend on no later token though the hypernetwork reads both ways."""
    kind = "autoregressive"
    base, hyper = make_base(objective=kind), make_hyper(variant, objective=kind, opened=True)
    ids = torch.randint(SHAPE.words, (2, 10), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 7:] = (other[:, 7:] + 1) % SHAPE.words
    ours, theirs = (hyper(base, batch_of(each, kind)).final.hidden for each in (ids, other))
    torch.testing.assert_close(ours[:, :7], theirs[:, :7], rtol=0, atol=1e-6)
    assert not torch.allclose(ours[:, 7:], theirs[:, 7:], atol=1e-3)
    batch = batch_of(ids, kind)
    assert not (batch.readable & (batch.labels != -100))[:, :4].any()


@torch.no_grad()
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", ["distinct", "recurrent"])
def test_order(mode, reverse, monkeypatch):
    """The i-th applied block writes for block i, or for block L - 1 - i; the embedding is that of the written block."""
    hyper = make_hyper(mode=mode, feedback_reverse=reverse)
    applied = []

    def record(number, x, rope, mask, place=None):
        applied.append((number, place))
        return x, torch.full((len(x), 16, x.shape[-1]), float(len(applied) - 1))

    for number, block in enumerate(hyper.h):
        monkeypatch.setattr(block, "forward", partial(record, number))
    rows = hyper.rows(torch.zeros(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    written = [2, 1, 0] if reverse else [0, 1, 2]
    assert [int(rows[0, written[i], 0, 0]) for i in range(3)] == [0, 1, 2]
    if mode == "recurrent":
        assert all(torch.equal(place, hyper.places[written[i]]) for i, (_, place) in enumerate(applied))
    else:
        assert [number for number, _ in applied] == [0, 1, 2]


@torch.no_grad()
def test_weight_tokens_alone_are_computed_as_if_all_were():
    """Queries of the weight tokens equal those rows of a self-attention over [x ; tokens] in which only x has positions."""
    block = make_hyper(opened=True).h[0].double()
    x, rope = torch.randn(2, 5, 16, dtype=torch.float64), tuple(table[:5].double() for table in make_hyper().rotary())
    _, rows = block(x, rope, None)
    x = block.trunk(x, rope, None)
    both = torch.cat((x, block.tokens.expand(2, -1, -1)), 1)
    n, read = block.norm_x(both), block.read
    count = block.tokens.shape[0]
    still = tuple(
        torch.cat((table, fill.expand(count, 1, table.shape[-1])))
        for table, fill in zip(rope, (torch.ones(1, dtype=x.dtype), torch.zeros(1, dtype=x.dtype)), strict=True)
    )
    z = both + read(n, still, None, False, {})
    z = z + block.mlp(block.norm_mlp(z), {})
    torch.testing.assert_close(rows, z[:, 5:], rtol=0, atol=1e-12)


def test_sizes_of_the_published_setting():
    """Private token table, bare readout: the numbers of parameters that the public runs print."""
    text = TextShape(words=50257, mask_id=50257, pad_id=50258)
    for mode, rank, expected in (
        ("distinct", 1, 25_477_120),
        ("distinct", 256, 29_655_040),
        ("recurrent", 1, 14_454_784),
    ):
        config = HyperConfig(
            mode=mode, lora_rank=rank, conditioning="tokens", share_base_embedding=False, readout="raw"
        )
        with torch.device("meta"):
            assert HyperNetwork(config, AdapterShape(BaseConfig(), text)).num_parameters() == expected


@torch.no_grad()
@pytest.mark.parametrize("cap", [0.05, 0.9])
def test_the_cap_holds_and_leaves_smaller_changes_alone(cap):
    base, batch = make_base(), batch_of(tokens())
    hyper, free = (make_hyper("narrow", opened=True, delta_norm_cap=limit) for limit in (cap, None))
    for part in (part for each in (hyper, free) for part in (each.readout.gates, *each.readout.static_b.values())):
        part.mul_(1e-4)
    small, same = (each(base, batch).deltas[0].factors for each in (hyper, free))
    assert all(torch.equal(small[name][1], same[name][1]) for name in small)
    hyper.readout.gates.fill_(50.0)
    delta = hyper(base, batch).deltas[0]
    spectral = torch.stack([base.spectral_norms(name) for name in delta.factors], -1)
    sizes = delta.squares().sqrt() / spectral
    assert sizes.max() <= cap * (1 + 1e-5)
    assert sizes.min() > cap * 0.98
    assert delta_health(delta, base)["spectral"] <= cap * (1 + 1e-5)


@torch.no_grad()
def test_passes():
    base, hyper = make_base(), make_hyper("passes", opened=True)
    batch = batch_of(tokens())
    three = hyper(base, batch)
    assert len(three.passes) == 4
    assert three.loss_weights == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    one = hyper(base, batch, passes=1)
    assert torch.equal(one.final.hidden, three.passes[1].hidden)
    assert len(hyper(base, batch, passes=5).passes) == 6
    assert not torch.allclose(three.passes[1].hidden, three.passes[2].hidden)
    assert torch.equal(hyper(base, batch, passes=0).final.hidden, three.passes[0].hidden)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["hidden", "logits", "loss_gradient"])
def test_accumulated_changes_add_up_pass_by_pass(conditioning):
    """Against the plain hypernetwork of the same weights, asked for each summand, and a base in numpy with their sums."""
    base = make_base(torch.float64, forward_dtype="float64")
    changes = {"conditioning": conditioning, "forward_dtype": "float64", "n_passes": 3, "opened": True}
    adding, plain = make_hyper(accumulate=True, **changes), make_hyper(**changes)
    batch = batch_of(tokens(rows=2, length=7))
    output = adding(base, batch)
    assert [delta.shape[2] for delta in output.deltas] == [2, 4, 6]
    seen, before, total = base(batch.inputs, batch.real, keep_states=True), None, {}
    for number, delta in enumerate(output.deltas):
        made, _ = plain.make_delta(base, batch, seen, before)
        for block, target in itertools.product(range(3), made.factors):
            total[block, target] = total.get((block, target), 0.0) + made.dense(block, target)
            torch.testing.assert_close(delta.dense(block, target), total[block, target], rtol=0, atol=1e-12)
        before, seen = delta, base(batch.inputs, batch.real, delta, keep_states=True)
        for row in range(2):
            own = [{t: total[block, t][row].numpy() for t in made.factors} for block in range(3)]
            expected = naive_row(base, batch.inputs[row][batch.real[row]].numpy(), own)
            hidden = output.passes[number + 1].hidden[row][batch.real[row]].numpy()
            np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-9)
    still, one = adding.static_delta(base), plain.static_delta(base)
    torch.testing.assert_close(still.dense(1, "q"), 3 * one.dense(1, "q"))
    figures = delta_sources(output.deltas[-1], adding, base)
    moved = sum((total[key] - 3 * one.dense(*key)).square().sum((1, 2)) for key in total)
    kept = sum((3 * one.dense(*key)).square().sum() for key in total)
    assert figures["dynamic"] == pytest.approx((moved / (moved + kept)).mean().item())


@torch.no_grad()
def test_the_cap_is_of_the_sum():
    base, batch = make_base(), batch_of(tokens())
    hyper = make_hyper("added", opened=True, n_passes=3, delta_norm_cap=0.05)
    for delta in (*hyper(base, batch).deltas, hyper.static_delta(base)):
        spectral = torch.stack([base.spectral_norms(name) for name in delta.factors], -1)
        assert (delta.squares().sqrt() / spectral).max() <= 0.05 * (1 + 1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("rule", "scale"), [("sqrt", 3 / 2), ("rank", 3 / 4), ("none", 3.0)])
def test_scale_rules(rule, scale):
    """ΔW = s·BᵀA with s = alpha/√r, alpha/r or alpha, here of alpha 3 and rank 4: the matrices, from the factors."""
    base, hyper = make_base(), make_hyper(lora_rank=4, alpha=3.0, scale_rule=rule, opened=True)
    delta = hyper(base, batch_of(tokens())).deltas[0]
    a, b = (part[:, 1].numpy() for part in delta.factors["v"])
    np.testing.assert_allclose(
        delta.dense(1, "v").numpy(), scale * np.einsum("zrm,zrn->zmn", b, a), rtol=1e-5, atol=1e-7
    )
    lora = StaticLora(StaticLoraConfig(lora_rank=4, alpha=3.0, scale_rule=rule), AdapterShape(CONFIG, SHAPE))
    assert lora.static_delta(base).scale == pytest.approx(scale)
    assert HyperConfig().scale == StaticLoraConfig().scale == 1 / math.sqrt(8)  # as ever, bit for bit


@torch.no_grad()
@pytest.mark.parametrize("variant", [*VARIANTS])
def test_passes_of_the_base_are_counted(variant, monkeypatch):
    base, hyper = make_base(), make_hyper(variant, opened=True)
    made, run = [], base.run
    monkeypatch.setattr(base, "run", lambda *args, **options: made.append(1) or run(*args, **options))
    output, delta = hyper.adapted(base, batch_of(tokens()))
    assert hyper.base_passes == len(made)
    whole = hyper(base, batch_of(tokens()))
    assert torch.equal(output.hidden, whole.final.hidden)
    assert torch.equal(delta.factors["v"][1], whole.deltas[-1].factors["v"][1])


def test_operations_of_what_is_kept_and_read():
    """Changes of three passes, added up, are applied 1 + 2 + 3 times; a gradient is read by a pass there and back."""
    shape = AdapterShape(CONFIG, SHAPE)
    plain, added = (HyperNetwork(HyperConfig(n_passes=3, accumulate=kind), shape) for kind in (False, True))
    more = added.forward_flops(make_base(), 2, 12) - plain.forward_flops(make_base(), 2, 12)
    assert more == 3 * added.config.flops(CONFIG, 2, 12) == added.flops(2)["eval"] - plain.flops(2)["eval"]
    gradient = HyperNetwork(HyperConfig(conditioning="loss_gradient"), shape)
    assert gradient.reading_flops(2, 12) == 2 * make_base().forward_flops(2, 12, head=False)


@pytest.mark.parametrize("kind", [StaticLora, AttentionFineTune])
def test_baselines(kind):
    base = make_base()
    adapter = kind(kind.Config(), AdapterShape(CONFIG, SHAPE))
    batch, head = batch_of(tokens()), MaskedDiffusionLoss()
    output = adapter(base, batch)
    assert torch.equal(output.final.hidden, output.passes[0].hidden)
    head(output, batch).total.backward()
    assert any(p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in base.parameters())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1)
        changed = adapter(base, batch).final.hidden
        tuned = make_base()
        for number in range(3):
            for target in ("q", "k", "v", "o"):
                if kind is StaticLora:
                    tuned.linear(number, target).add_(adapter.static_delta(base).dense(number, target)[0])
                else:
                    tuned.linear(number, target).add_(adapter.differences[target][number])
        torch.testing.assert_close(changed, tuned(batch.inputs, batch.real).hidden, rtol=1e-4, atol=1e-4)
        assert adapter.static_delta(base).norms(base).shape == (1, 3, 4)


def test_what_does_not_fit_is_refused_by_name():
    hyper, batch = make_hyper(), batch_of(tokens())
    with pytest.raises(ValueError, match="for a base of n_layer=3, this one has 2"):
        hyper(make_base(n_layer=2), batch)
    with pytest.raises(ValueError, match="for a base of n_embd=16, this one has 32"):
        hyper(make_base(n_embd=32), batch)
    other = BaseLM(CONFIG, TextShape(words=19, mask_id=20, pad_id=21)).freeze()
    with pytest.raises(ValueError, match=r"words=20.*words=19"):
        hyper(other, batch)
    smaller = make_hyper(lora_rank=3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        smaller.load_state_dict(hyper.state_dict())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditioning": "tokens", "n_passes": 2}, "arch.n_passes=2 needs something that changes"),
        ({"readout": "raw", "targets": ["fc"]}, "leave fc and proj out"),
        ({"targets": ["q", "q"]}, "each once"),
        ({"lora_rank": 0}, "arch.lora_rank=0"),
        ({"scale_rule": "root"}, "arch.scale_rule=root: choose one of sqrt, rank, none"),
        ({"mode": "both"}, "arch.mode=both: choose one of distinct, recurrent"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        HyperConfig(**values)


def test_widths_are_checked_with_the_base():
    with pytest.raises(ValueError, match=r"arch\.hyper_heads=2 gives heads of odd width"):
        make_hyper(hyper_dim=6)
    with pytest.raises(ValueError, match=r"arch\.readout=raw needs arch\.hyper_dim=16"):
        make_hyper(hyper_dim=8, readout="raw")
    assert FineTuneConfig().targets == ["q", "k", "v", "o"]
