"""What evaluations of feedback models measure: sums over batches, controls, and the size of the deltas."""

from __future__ import annotations

import math

import pytest
import torch

from losses.masked_diffusion import MaskedDiffusionLoss
from models.feedback.adapter_config import AdapterShape, StaticLoraConfig
from models.feedback.static_lora import StaticLora
from tasks.feedback.health import delta_health, delta_sources, layer_health, layer_table
from tasks.feedback.measure import controls, finish, measure
from tests.models.test_feedback_base import SHAPE
from tests.models.test_feedback_hyper import CONFIG, batch_of, make_base, make_hyper, tokens

HEAD = MaskedDiffusionLoss()


def means(pairs):
    return {name: (total / count).item() if count else None for name, (total, count) in pairs.items()}


@pytest.fixture(scope="module")
def parts():
    base, hyper = make_base(), make_hyper("passes", opened=True)
    batch = batch_of(tokens(rows=6, length=12))
    with torch.no_grad():
        return base, hyper, batch, hyper(base, batch)


def test_parts_add_up_to_the_whole(parts):
    base, hyper, batch, output = parts
    whole = measure(output, batch, HEAD)
    with torch.no_grad():
        pieces = [
            measure(hyper(base, part), part, HEAD)
            for part in (batch.rows(slice(0, 2)), batch.rows(slice(2, 6)), batch.rows(slice(0, 0)))
        ]
    for name, (total, count) in whole.items():
        assert sum(piece[name][0] for piece in pieces).item() == pytest.approx(total.item(), rel=1e-4, abs=1e-4)
        assert sum(piece[name][1] for piece in pieces).item() == count.item()
    loss, weight = HEAD(output, batch).metrics["loss"]
    assert whole["nll_pass3"][0].item() == pytest.approx(loss.item(), rel=1e-6)
    assert sum(whole[f"nll_t{n}"][0] for n in range(5)).item() == pytest.approx(loss.item(), rel=1e-5)
    assert sum(whole[f"nll_t{n}"][1] for n in range(5)) == weight
    assert set(measure(output.passes[0], batch, HEAD)) == {"nll_pass0", *(f"nll_t{n}" for n in range(5))}


def test_controls(parts):
    base, hyper, batch, output = parts
    figures = means(controls(output, batch, HEAD, base=base, adapter=hyper))
    plain = means(measure(output, batch, HEAD))
    assert figures["zero_nll"] == plain["nll_pass0"]
    assert len({*(figures[f"{n}_nll"] for n in ("shuffled", "mean", "static", "zero")), plain["nll_pass3"]}) == 5
    assert figures["zero_accuracy"] == plain["base_accuracy"]
    halves = [controls(output, batch, HEAD, base=base, adapter=hyper, rows=slice(part, None, 2)) for part in range(2)]
    for name, (total, count) in controls(output, batch, HEAD, base=base, adapter=hyper).items():
        assert sum(half[name][0] for half in halves).item() == pytest.approx(total.item(), rel=1e-5)
        assert sum(half[name][1] for half in halves) == count
    lora = StaticLora(StaticLoraConfig(), AdapterShape(CONFIG, SHAPE))
    assert controls(lora(base, batch), batch, HEAD, base=base, adapter=lora) == {}


def test_paired_error_by_hand():
    differences = [0.5, -0.1, 0.3, 0.1]
    mean, square = sum(differences) / 4, sum(d * d for d in differences) / 4
    derived = finish(
        {"delta_nll": mean, "delta_nll_sq": square, "nll_pass2": 1.0, "nll_pass10": 2.0, "shuffled_nll": 2.5},
        {"delta_nll": 4},
    )
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    assert derived["delta_nll_se"] == pytest.approx(spread / 2)
    assert derived["input_dependence"] == pytest.approx(0.5)
    assert finish({"nll_pass0": 1.0, "delta_nll": None}, {}) == {}
    losses = {"nll_pass1": 2.5, "loss": 2.5, "base_loss": 4.0}
    assert finish({**losses, "indomain_loss": 1.0}, {}) == {"gap_closed": pytest.approx(0.5)}
    assert finish({**losses, "indomain_loss": 4.0}, {}) == {"gap_closed": None}


def test_health_by_dense_matrices(parts):
    base, hyper, _, output = parts
    delta = output.deltas[-1]
    health = delta_health(delta, base)
    targets = list(delta.factors)
    dense = {(t, n): delta.dense(n, t) for t in targets for n in range(3)}
    ratio = torch.stack([dense["q", n].flatten(1).norm(dim=1) / base.linear(n, "q").norm() for n in range(3)]).mean()
    assert health["ratio_q"] == pytest.approx(ratio.item(), rel=1e-4)
    flat = torch.cat([matrix.flatten(1) for matrix in dense.values()], 1)
    cosine = torch.nn.functional.cosine_similarity(flat, flat.roll(1, 0)).mean()
    assert health["cosine"] == pytest.approx(cosine.item(), rel=1e-3)
    spectral = max(
        (torch.linalg.matrix_norm(m[:4], 2) / torch.linalg.matrix_norm(base.linear(n, t), 2)).max()
        for (t, n), m in dense.items()
    )
    assert health["spectral"] == pytest.approx(spectral.item(), rel=1e-4)
    assert 1 <= health["stable_rank"] <= 2 + 1e-4
    table = layer_table(layer_health(delta, base), hyper.gates()).splitlines()
    assert table[0] == "block,target,ratio,spectral,stable_rank,gate"
    block, target, *values = table[1 + len(targets) * 2 + 1].split(",")  # the second target of block 2
    assert (block, target) == ("2", targets[1])
    size = torch.linalg.matrix_norm(dense[target, 2][:4], 2)
    expected = (
        dense[target, 2].flatten(1).norm(dim=1).mean() / base.linear(2, target).norm(),
        size.max() / torch.linalg.matrix_norm(base.linear(2, target), 2),
        (dense[target, 2][:4].flatten(1).norm(dim=1) / size).square().mean(),
        hyper.readout.gates[1, 2],
    )
    assert [float(value) for value in values] == pytest.approx([each.item() for each in expected], rel=1e-3)
    assert len(table) == 1 + 3 * len(targets)
    zero = delta_health(delta.zeros_like(), base)
    assert zero["ratio_max"] == zero["spectral"] == zero["stable_rank"] == zero["cosine"] == 0


def test_sources_by_dense_matrices(parts):
    base, hyper, _, output = parts
    delta, static = output.deltas[-1], hyper.static_delta(base)
    with torch.no_grad():
        pairs = [(delta.dense(n, t), static.dense(n, t)) for t in delta.factors for n in range(3)]
        moved = sum((own - kept).square().sum((1, 2)) for own, kept in pairs)
        still = sum(kept.square().sum() for _, kept in pairs)
    sources = delta_sources(delta, hyper, base)
    assert sources["dynamic"] == pytest.approx((moved / (moved + still)).mean().item(), rel=1e-3)
    assert 0 < sources["dynamic"] < 1
    assert sources["gate"] == pytest.approx(hyper.readout.gates.abs().mean().item())
    assert delta_sources(delta, make_hyper(readout="raw"), base) == {"dynamic": pytest.approx(1.0)}
    assert delta_sources(static, hyper, base) == {}
