"""Sizes and config.json of GPT-2, in Hugging Face's names and ours. Needs no torch: command parsing imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPT2_SIZES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
"""n_layer, n_head, n_embd of the released models."""

ACTIVATIONS = {  # ours -> transformers'
    "gelu_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "squared_relu": "relu2",
}


def gpt2_arch(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """arch.* values for a GPT-2 with this config.json (`n_layer`, `n_head`, `n_embd`, `n_positions`, ...).

    Raises ValueError that names a missing or unusable key, or an unsupported variant.
    """
    for name in ("n_layer", "n_head", "n_embd"):
        if name not in hf_config:
            raise ValueError(f"{name} is missing: expected a positive integer")
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activations |= {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
    activation = hf_config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in activations:
        raise ValueError(f"activation_function={activation}: expected one of {', '.join(activations)}")
    for name, plain in (
        ("model_type", "gpt2"),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        if hf_config.get(name, plain) != plain:
            raise ValueError(f"{name}={hf_config[name]}: only {name}={plain} is supported")
    width, inner = hf_config["n_embd"], hf_config.get("n_inner")
    for name, value in (("n_embd", width), *([] if inner is None else [("n_inner", inner)])):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    return {
        "n_layer": hf_config["n_layer"],
        "n_head": hf_config["n_head"],
        "n_embd": width,
        "block_size": hf_config.get("n_positions", 1024),
        "bias": True,
        "activation_variant": activations[activation],
        "mlp_expansion_factor": (inner or 4 * width) / width,
        "norm_eps": hf_config.get("layer_norm_epsilon", 1e-5),
    }
