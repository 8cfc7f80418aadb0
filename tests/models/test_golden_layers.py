"""Layers and the sparse table against the published code's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from engine.optim.builtin import SparseSignSGD
from models.layers import (
    Attention,
    RotaryTables,
    SwiGLU,
    apply_rotary,
    line_positions,
    rms_norm,
    swiglu_inner_size,
    trunc_normal_,
)
from models.sparse_embedding import SparseEmbedding


@pytest.fixture
def layers(golden):
    return {key: torch.from_numpy(value) for key, value in np.load(golden("layers/layers.npz")).items()}


def close(ours, theirs, atol=2e-6):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol)


def test_rms_norm(layers):
    name = next(key for key in layers if key.startswith("rms_norm") and not key.endswith("bf16"))
    close(rms_norm(layers["x"], 1e-5), layers[name])
    assert torch.equal(rms_norm(layers["x"].bfloat16(), 1e-5).float(), layers["rms_norm_bf16"])


def test_swiglu(layers):
    layer = SwiGLU(32, 4.0)
    layer.load_state_dict({"gate_up_proj.weight": layers["swiglu_gate_up"], "down_proj.weight": layers["swiglu_down"]})
    close(layer(layers["x"]), layers["swiglu_out"])
    with torch.no_grad():
        close(layer(layers["x"]), layers["swiglu_out"])


def test_rope(layers):
    cos, sin = RotaryTables(8, line_positions(5), theta=10000.0)()
    close(cos[:, 0], layers["rope_cos"])
    close(sin[:, 0].abs(), layers["rope_sin"].abs())
    for name in ("rope_q", "rope_k"):
        close(apply_rotary(layers[name], cos, sin), layers[f"{name}_out"])


@pytest.mark.parametrize("kind", ["auto", "sdpa", "math"])
def test_attention(layers, kind):
    layer = Attention(32, 4, head_dim=8, kind=kind)
    layer.load_state_dict({"qkv_proj.weight": layers["attn_qkv"], "o_proj.weight": layers["attn_o"]})
    close(layer(layers["x"], RotaryTables(8, line_positions(5), theta=10000.0)()), layers["attn_out_rope"])
    close(layer(layers["x"]), layers["attn_out_norope"])


def test_initialiser_and_inner_sizes(golden):
    stats = json.loads(golden("layers/init_stats.json").read_text())
    for key, inner in stats.pop("swiglu_inter").items():
        size, expansion = key.split("x")
        assert swiglu_inner_size(int(size), float(expansion)) == inner
    torch.manual_seed(0)
    for std, want in stats.items():
        drawn = trunc_normal_(torch.empty(400_000), float(std))
        assert drawn.std().item() == pytest.approx(want["std"], rel=0.01)
        assert drawn.max().item() == pytest.approx(want["max"], rel=1e-3)
        assert drawn.min().item() == pytest.approx(want["min"], rel=1e-3)


@pytest.mark.parametrize("name", ["dup_ids", "unique_ids"])
def test_sparse_embedding(golden, name):
    z = {key: value for key, value in np.load(golden(f"sparse_embedding/{name}.npz")).items()}
    table = SparseEmbedding(*z["weights0"].shape)
    table.weights.copy_(torch.from_numpy(z["weights0"]))
    assert list(table.state_dict()) == list(z["state_dict_keys"])
    assert sum(p.numel() for p in table.parameters()) == z["n_parameters"]
    optimizer = SparseSignSGD(table, lr=float(z["lr"]), weight_decay=float(z["weight_decay"]))
    ids = torch.from_numpy(z["ids"])
    for t in (1, 2):
        rows = table(ids)
        np.testing.assert_array_equal(rows.detach(), z[f"fwd{t}"])
        (rows * torch.from_numpy(z[f"grad{t}"])).sum().backward()
        optimizer.step()
        np.testing.assert_allclose(table.weights, z[f"weights{t}"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(table.eval()(ids), z["eval_fwd"], rtol=0, atol=1e-7)
