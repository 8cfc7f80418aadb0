"""Optimizers against golden numbers, formulas written out, and the called-off step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import UsageError
from engine.optim import build_optimizer
from engine.optim.builtin import AdamATan2, SparseSignSGD
from models.sparse_embedding import SparseEmbedding

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


def adam(kind, values, **options):
    params = [nn.Parameter(torch.as_tensor(v).clone()) for v in values]
    return kind(params, [f"p{i}" for i in range(len(params))], **options), params


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("setting", ["a", "b"])
def test_adam_atan2_golden(golden, name, setting):
    z, dtype = np.load(golden(f"adam_atan2/{name}.npz")), DTYPES[name]
    lr, beta1, beta2, decay = z[f"{setting}_hyper"]
    start = torch.from_numpy(z[f"{setting}_p0"]).to(dtype)
    options = {"lr": float(lr), "beta1": float(beta1), "beta2": float(beta2), "weight_decay": float(decay)}
    optimizer, (p,) = adam(AdamATan2, [start], **options)
    tolerance = {"f32": 2e-7, "f64": 1e-14, "bf16": 0.02}[name]
    for t in range(1, 6):
        p.grad = torch.from_numpy(z[f"{setting}_g{t}"]).to(dtype)
        optimizer.step()
        if t < 5 and name != "bf16":  # the recorder kept views: its float32 and float64 rows all hold the last update
            continue
        for ours, key in ((p, "p"), (optimizer.exp_avg[0], "m"), (optimizer.exp_avg_sq[0], "v")):
            want = z[f"{setting}_{key}{t}"]
            np.testing.assert_allclose(ours.detach().double().numpy(), want, rtol=tolerance, atol=tolerance)


def test_adam_atan2_every_step_by_formula():
    rng = np.random.default_rng(3)
    want = rng.normal(size=(4, 3))
    m, v = np.zeros_like(want), np.zeros_like(want)
    optimizer, (p,) = adam(AdamATan2, [torch.from_numpy(want)], lr=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.3)
    for t in range(1, 101):
        g = rng.normal(size=want.shape)
        p.grad = torch.from_numpy(g)
        optimizer.step(lr_scale=0.5)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        want = want * (1 - 5e-3 * 0.3) - 5e-3 / (1 - 0.9**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - 0.95**t))
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=0, atol=1e-13)


def test_adam_atan2_scalar_check():
    optimizer, (p,) = adam(
        AdamATan2, [torch.ones(1, dtype=torch.float64)], lr=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.1
    )
    for g, want in (
        (0.5, 0.989033134751),
        (-0.25, 0.985362729382),
        (0.1, 0.981172597863),
        (0.0, 0.977532766260),
    ):
        p.grad = torch.full_like(p, g)
        optimizer.step()
        assert p.item() == pytest.approx(want, abs=1e-11)


def test_step_called_off_changes_nothing():
    torch.manual_seed(1)
    values = [torch.randn(3, 2), torch.randn(4)]
    good, params = adam(AdamATan2, values, lr=1e-2, weight_decay=0.1)
    twin, twins = adam(AdamATan2, values, lr=1e-2, weight_decay=0.1)
    yes, no = torch.tensor(1.0), torch.tensor(0.0)
    for step in range(6):
        if step in (0, 3):  # a first step that fails must not divide by 1 - beta^0
            for p in params:
                p.grad = torch.full_like(p, math.inf if step else math.nan)
            good.step(0.5, no)
        for p, q in zip(params, twins, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        good.step(0.5, yes)
        twin.step(0.5)
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
    assert good.count.item() == 6
    for mine, other in zip(good.exp_avg + good.exp_avg_sq, twin.exp_avg + twin.exp_avg_sq, strict=True):
        assert torch.equal(mine, other)


def test_resume_is_exact():
    torch.manual_seed(2)
    first, params = adam(AdamATan2, [torch.randn(3, 2)], lr=1e-2)
    grads = [torch.randn(3, 2) for _ in range(6)]
    for g in grads[:3]:
        params[0].grad = g
        first.step()
    second, others = adam(AdamATan2, [params[0].detach()], lr=1e-2)
    state = first.state_dict()
    second.load_state_dict(
        {"step": state["step"].clone(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    )
    for g in grads[3:]:
        params[0].grad, others[0].grad = g, g.clone()
        first.step()
        second.step()
    assert torch.equal(params[0], others[0])
    assert set(state["exp_avg"]) == {"p0"}
    with pytest.raises(ValueError, match="p0"):
        second.load_state_dict({"step": state["step"], "exp_avg": {}, "exp_avg_sq": {}})


def test_learning_rate_zero_and_missing_gradients():
    optimizer, params = adam(AdamATan2, [torch.ones(2), torch.ones(2)], lr=0.0, weight_decay=1.0)
    params[0].grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(params[0], torch.ones(2))
    optimizer.lr = 0.1
    optimizer.step()
    assert torch.equal(params[1], torch.ones(2))  # no gradient: not even decay
    assert (params[0] < 1).all()
    frozen, (param,) = adam(AdamATan2, [torch.zeros(2)], lr=0.1)
    frozen.step()
    assert float(frozen.state_dict()["step"]) == 0
    param.grad = torch.ones(2)
    frozen.step()
    torch.testing.assert_close(
        param.detach(), torch.full((2,), -math.atan(0.1))
    )  # lr / (1 - beta1) of atan2(1 - beta1, 1)


def touched(table, ids, grads):
    rows = table(torch.tensor(ids, dtype=torch.int32))
    (rows * torch.tensor(grads).unsqueeze(-1)).sum().backward()


def test_sparse_sign_against_a_loop():
    rng = np.random.default_rng(0)
    table = SparseEmbedding(7, 3)
    table.weights.copy_(torch.from_numpy(rng.normal(size=(7, 3))).float())
    want = table.weights.numpy().copy()
    optimizer = SparseSignSGD(table, lr=0.05, weight_decay=0.2)
    for _ in range(5):
        ids = rng.integers(0, 6, size=8)
        grads = rng.normal(size=(8, 3)).astype(np.float32)
        for part in (slice(0, 3), slice(3, 8)):  # two micro-batches of unequal size
            (table(torch.from_numpy(ids[part])) * torch.from_numpy(grads[part])).sum().backward()
        optimizer.step(lr_scale=0.5)
        for row in set(ids.tolist()):
            total = grads[ids == row].sum(0)
            want[row] = want[row] * (1 - 0.025 * 0.2) - 0.025 * np.sign(total)
    np.testing.assert_allclose(table.weights, want, rtol=0, atol=1e-6)


def test_sparse_sign_cancelling_duplicates_only_decay():
    table = SparseEmbedding(4, 2)
    table.weights.fill_(1.0)
    touched(table, [2, 2, 1], [0.75, -0.75, 0.0])
    SparseSignSGD(table, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(table.weights[:, 0], torch.tensor([1.0, 0.95, 0.95, 1.0]))


def test_sparse_sign_called_off():
    table = SparseEmbedding(4, 2)
    table.weights.fill_(1.0)
    optimizer = SparseSignSGD(table, lr=0.1, weight_decay=0.5)
    touched(table, [2, 3], [math.nan, 1.0])
    optimizer.step(1.0, torch.tensor(0.0))
    assert torch.equal(table.weights, torch.ones(4, 2))
    optimizer.step(1.0, torch.tensor(1.0))  # the bad gradients were dropped, nothing is pending
    assert torch.equal(table.weights, torch.ones(4, 2))


def test_door_names_the_nearest_choice():
    params = {"p": nn.Parameter(torch.ones(2))}
    with pytest.raises(UsageError, match="adam_atan2"):
        build_optimizer("adam_atan", params, 1e-3)
    with pytest.raises(UsageError, match="weight_decay"):
        build_optimizer("adamw", params, 1e-3, {"weight_decy": 0.1})
    with pytest.raises(UsageError, match=r"beta1=1\.5"):
        build_optimizer("adam_atan2", params, 1e-3, {"beta1": 1.5})
    assert build_optimizer("adamw", params, 1e-3, {"eps": 1e-6}).lr == 1e-3
