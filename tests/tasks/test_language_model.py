"""What train.py's task hands to the optimizers."""

from __future__ import annotations

from typing import Any

import pytest

from models.language_models.gpt import GPT, GPTConfig, LMShape
from tasks.language_model.args import TrainConfig
from tasks.language_model.task import param_groups

SIZES = {"n_layer": 2, "n_head": 4, "n_kv_group": 2, "n_embd": 16, "block_size": 8, "mlp_variant": "swiglu"}


def test_muon_takes_stacked_matrices_one_by_one() -> None:
    model = GPT(GPTConfig(**SIZES, share_mlp="repeat", share_size=2), LMShape((7,)))
    muon = {"name": "muon", "options": {"weight_decay": 0.1}, "rest": {"name": "adamw"}}
    groups = {group.name: group for group in param_groups(model, lr=1.0, optimizer=muon)}
    inner = model.h[0].mlp.fc.weight.shape[0] // 2
    qkv = (16, 8, 8)
    assert groups["matrix"].fused_rows == {
        "h.0.attn.qkv.weight": qkv,
        "h.1.attn.qkv.weight": qkv,
        "h.0.mlp.fc.weight": (inner, inner),
    }
    assert groups["matrix"].fused_rows.keys() <= groups["matrix"].params.keys()
    assert groups["matrix"].optimizer == "muon"
    assert {group.optimizer for group in groups.values() if group.name != "matrix"} == {"adamw"}
    assert not any(group.fused_rows for group in groups.values() if group.name != "matrix")
    assert not any(group.fused_rows for group in param_groups(model, lr=1.0, optimizer={"name": "adamw"}))


def test_only_matrices_decay() -> None:
    """Norm gains, biases, gates and scalars are not pulled towards zero; nor are they by what Lookahead wraps."""
    fast = {"residual_scalars": True, "value_embeddings": True, "wte_weight_tying": False, "bias": True}
    model = GPT(GPTConfig(**SIZES, **fast), LMShape((7,)))
    decay = {"name": "adamw", "options": {"weight_decay": 0.1, "eps": 1e-9}}
    inner = {"name": "lookahead", "options": {"inner": "adamw", "inner_options": {"weight_decay": 0.1}, "k": 2}}
    for optimizer in (decay, {"name": "muon", "options": {"weight_decay": 0.1}, "rest": decay}, inner):
        groups = {group.name: group for group in param_groups(model, lr=1.0, optimizer=optimizer)}
        assert groups.keys() == {"matrix", "embedding", "head", "vector", "scalar"}
        for name, group in groups.items():
            options = group.options.get("inner_options", group.options)
            assert options["weight_decay"] == (0.0 if name in ("vector", "scalar") else 0.1), name
            assert options["weight_decay"] == 0.0 or all(param.dim() == 2 for param in group.params.values())


def test_every_stream_needs_its_weight() -> None:
    """Refused before data and model are built."""
    streams: dict[str, Any] = {"training_mode": "multicontext", "multicontext_datasets": ["a", "b"]}
    assert TrainConfig(arch={"loss": {"stream_weights": [1.0, 2.0]}}, **streams).arch
    with pytest.raises(ValueError, match=r"arch\.loss\.stream_weights=\[1\.0\]: expected 2 numbers, one per stream"):
        TrainConfig(arch={"loss": {"stream_weights": [1.0]}}, **streams)
