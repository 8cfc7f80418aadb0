"""Convert GPT-2 weights between Hugging Face's or nanoGPT's names and layouts and ours. Pure functions on state dicts.

Hugging Face stores four matrices per block transposed (`Conv1D`, [in, out]); nanoGPT uses the same names with [out,
in]. Both store the tied head a second time as `lm_head.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.language_models.config import GPTConfig, LMShape
from models.language_models.gpt2_config import ACTIVATIONS, GPT2_SIZES, gpt2_arch

__all__ = ["GPT2_SIZES", "from_gpt2", "gpt2_arch", "gpt2_config", "to_gpt2"]

_WTE, _WPE = "wte.tables.0.embedding_weight", "wpe.embedding_weight"
_BLOCK = {  # theirs -> ours, within a block
    "ln_1": "norms_in.0",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "ln_2": "norms_in.1",
    "mlp.c_fc": "mlp.fc",
    "mlp.c_proj": "mlp.proj",
}
_WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAX_PADDING = 1024  # Megatron pads 50,257 rows to 51,200; more extra rows mean another vocabulary
_MATRICES = {ours for theirs, ours in _BLOCK.items() if ".c_" in theirs}
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")  # causal masks in old files, not weights
_PREFIXES = re.compile(r"^((_orig_mod|module|transformer)\.)+")  # of torch.compile, DataParallel, and the HF class


def from_gpt2(
    theirs: Mapping[str, Tensor], config: GPTConfig, shape: LMShape, *, conv1d: bool = True
) -> dict[str, Tensor]:
    """Convert a GPT-2 state dict to ours, for `load_state_dict`; `conv1d=False` reads nanoGPT's layout.

    A position table longer than block_size is cut to its first rows, and so is a token table with extra rows (padding,
    added tokens). Biases are expected only with `config.bias` (nanoGPT's bias=False). Raises ValueError that lists
    missing, unexpected or misshapen tensors.
    """
    _check_mappable(config, shape)
    bare: dict[str, Tensor] = {}
    mapped, problems = {}, []
    for name, numbers in theirs.items():
        if _MASKS.search(name):
            continue
        if fault := "is there twice" if _bare(name) in bare else _unusable(numbers):
            problems.append(f"{name} {fault}")
        bare[_bare(name)] = numbers
    if problems:
        raise ValueError(f"not the weights of a GPT-2: {_first(problems)}")
    tokens = bare.get("wte.weight")
    head = bare.pop("lm_head.weight") if "lm_head.weight" in bare else None
    if head is not None and tokens is not None and not head.equal(tokens):
        problems.append("lm_head.weight differs from wte.weight, but GPT-2's head is tied")
    for name, (source, expected) in _expected(config, shape, biases=config.bias).items():
        tensor = bare.pop(source, None)
        if tensor is None:
            problems.append(f"{source} is missing")
            continue
        transposed = conv1d and _is_matrix(name)
        stored = expected[::-1] if transposed else expected
        if tensor.dim() == len(stored) and (name == _WPE or (name == _WTE and len(tensor) - stored[0] <= _MAX_PADDING)):
            tensor = tensor[: stored[0]]
        if tuple(tensor.shape) != stored:
            problems.append(f"{source} is {list(tensor.shape)}, expected {list(stored)}")
            continue
        mapped[name] = (tensor.t() if transposed else tensor).contiguous()
    problems += [f"{name} is not known" for name in bare]
    if problems:
        raise ValueError(f"not the weights of this GPT-2: {_first(problems)}")
    return mapped


def _unusable(tensor: Tensor) -> str:
    """Why this tensor cannot be a weight, or "". `copy_` would silently accept quantised tensors without their scale
    and complex ones without their imaginary part.
    """
    if tensor.dtype not in _WEIGHT_TYPES or tensor.layout != torch.strided or tensor.is_meta:
        kind = "empty" if tensor.is_meta else str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
        return f"is {kind.removeprefix('torch.')}, expected a dense {' or '.join(map(_type_name, _WEIGHT_TYPES))}"
    return "" if bool(torch.isfinite(tensor).all()) else "holds numbers that are not finite"


def _type_name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _first(problems: list[str]) -> str:
    if len(problems) > 3:
        problems = [*problems[:2], f"{len(problems) - 3} more", problems[-1]]
    return "; ".join(problems)


def gpt2_config(config: GPTConfig, shape: LMShape, *, eot: int | None = None) -> dict[str, Any]:
    """The inverse of `gpt2_arch`: a config.json for transformers' GPT2LMHeadModel. `eot` is the end-of-text token.

    Raises ValueError for an architecture, or a number of streams, that GPT-2 cannot hold.
    """
    _check_mappable(config, shape)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.vocab_sizes[0],
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.inner_size,
        "activation_function": ACTIVATIONS[config.activation_variant],
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": config.init_std or 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": eot,
        "eos_token_id": eot,
    }


def to_gpt2(ours: Mapping[str, Tensor], config: GPTConfig, shape: LMShape) -> dict[str, Tensor]:
    """The inverse of `from_gpt2`: model.safetensors for transformers' GPT2LMHeadModel, float32.

    Missing biases become zeros; the tied head is left out, as transformers does. Raises ValueError as `gpt2_config`.
    """
    _check_mappable(config, shape)
    theirs = {}
    for name, (target, _) in _expected(config, shape, biases=True).items():
        tensor = ours.get(name)
        if tensor is None:  # GPT-2 has biases everywhere
            weight = ours[name.removesuffix("bias") + "weight"]
            tensor = weight.new_zeros(weight.shape[0])
        tensor = tensor.t() if _is_matrix(name) else tensor
        theirs[f"transformer.{target}"] = tensor.detach().to("cpu", torch.float32).contiguous()
    return theirs


def _check_mappable(config: GPTConfig, shape: LMShape) -> None:
    """Raises ValueError that names the first arch.* value that GPT-2 does not support, or several streams."""
    if len(shape.vocab_sizes) > 1:
        raise ValueError(f"{len(shape.vocab_sizes)} vocabularies (multicontext, multidataset_wte): GPT-2 has one")
    free = {
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "dropout",
        "bias",
        "activation_variant",
        "mlp_expansion_factor",
        "norm_eps",
        "init_std",
        "embd_init_std",
        "zero_init_proj",
        "forward_dtype",
        "use_gradient_checkpointing",
        "rope_theta",
    }
    plain = GPTConfig()
    for name, published in vars(plain).items():
        value = getattr(config, name)
        if name == "n_kv_group":
            value, published = config.kv_heads, config.n_head
        if name not in free and value != published:
            raise ValueError(f"arch.{name}={value} is not GPT-2's: it has {published}")


def _expected(config: GPTConfig, shape: LMShape, *, biases: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name -> (their name without prefix, our shape)."""
    size, inner = config.n_embd, config.inner_size
    outs = {"attn.qkv": (3 * size, size), "attn.proj": (size, size), "mlp.fc": (inner, size), "mlp.proj": (size, inner)}
    table: dict[str, tuple[str, tuple[int, ...]]] = {
        _WTE: ("wte.weight", (shape.vocab_sizes[0], size)),
        _WPE: ("wpe.weight", (config.block_size, size)),
    }
    for layer in range(config.n_layer):
        for theirs, ours in _BLOCK.items():
            dims = outs.get(ours, (size,))
            table[f"h.{layer}.{ours}.weight"] = (f"h.{layer}.{theirs}.weight", dims)
            if biases:
                table[f"h.{layer}.{ours}.bias"] = (f"h.{layer}.{theirs}.bias", dims[:1])
    for part in ("weight", "bias") if biases else ("weight",):
        table[f"ln_f.{part}"] = (f"ln_f.{part}", (size,))
    return table


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and any(f".{part}." in name for part in _MATRICES)


def _bare(name: str) -> str:
    return _PREFIXES.sub("", name)
