"""Read nanoGPT checkpoints (`ckpt.pt`) without running code, check them against our config, and rename the weights.

The file is a dict with `model_args` (sizes) and `model` (GPT-2's names, [out, in] layout, prefixed with `_orig_mod.` if
the run was compiled). Everything else in it (optimizer, iteration, config) is ignored.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.language_models.config import GPTConfig, LMShape
from models.language_models.gpt2_weights import from_gpt2

__all__ = ["from_nanogpt", "read_nanogpt"]

_SIZES = ("n_layer", "n_head", "n_embd", "block_size")
_PADDING = 64  # nanoGPT rounds a vocabulary up to a multiple of it (50257 -> 50304)


def read_nanogpt(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, a dict with `model_args` and `model`, to the CPU.

    Raises ValueError, in one line, for a file that cannot be read, that contains more than tensors and plain values
    (which could run code), or that is not a nanoGPT checkpoint.
    """
    if not Path(path).is_file():  # a pipe would block
        raise ValueError("it is not there" if not Path(path).exists() else "it is not a regular file")
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it is damaged, or holds more than tensors and plain values, which may run code") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    except Exception:  # the type of torch's error depends on where the file is damaged
        raise ValueError("it is damaged or cut short") from None
    parts = [loaded.get(key) if isinstance(loaded, dict) else None for key in ("model_args", "model")]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError("it is not a nanoGPT checkpoint, which has model_args and model")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded["model"].items()):
        raise ValueError("it is not a nanoGPT checkpoint, whose model is tensors by name")
    wrong = next((name for name in _SIZES if type(loaded["model_args"].get(name)) is not int), None)
    if wrong is not None:
        value = loaded["model_args"].get(wrong)
        raise ValueError(f"its model_args have {wrong}={value!r:.60}, expected a whole number")
    return loaded


def from_nanogpt(checkpoint: dict[str, Any], config: GPTConfig, shape: LMShape) -> dict[str, Tensor]:
    """Convert the weights to our state dict. Rows that pad the vocabulary to a multiple of 64 are cut off.

    Raises ValueError with the arch.* values of the checkpoint that differ from `config`.
    """
    args, weights = checkpoint["model_args"], dict(checkpoint["model"])
    trained = {name: args.get(name) for name in ("n_layer", "n_head", "n_embd")} | {"bias": args.get("bias", True)}
    others = [f"arch.{name}={value}" for name, value in trained.items() if getattr(config, name) != value]
    if config.block_size > args["block_size"]:  # a longer position table is cut
        others.append(f"arch.block_size={args['block_size']}")
    if others:
        raise ValueError(f"it was trained with {' '.join(others)}: set the same")
    rows = [len(tensor) for name, tensor in weights.items() if name.endswith("wte.weight") and tensor.dim()]
    padded = -(-shape.vocab_sizes[0] // _PADDING) * _PADDING
    if rows and rows[0] not in (shape.vocab_sizes[0], padded):
        raise ValueError(f"it has {rows[0]} tokens, the data have {shape.vocab_sizes[0]}: another vocabulary")
    return from_gpt2(weights, config, shape, conv1d=False)
