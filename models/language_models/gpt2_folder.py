"""Read a GPT-2 from a folder in transformers' format: config.json and weights, in one file or in shards with an index.

Imports torch only to read weights, so that commands parse without it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files, and index files that list the shards."""


def gpt2_folder(kind: str) -> Path | None:
    """`kind` as a folder if it has a config.json and weights, else None (e.g. for an unrelated folder named gpt2)."""
    folder = Path(os.path.expanduser(kind))
    complete = (folder / "config.json").is_file() and any((folder / name).is_file() for name in WEIGHTS)
    return folder if complete else None


def read_gpt2(folder: Path) -> dict[str, Tensor]:
    """Read the state dict. Raises: ValueError that names a missing or damaged file."""
    name = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if name is None:
        shards = sorted(path.name for path in folder.glob("*-of-*.*"))
        why = f" ({shards[0]} is a shard: its {WEIGHTS[1]} is missing)" if shards else ""
        raise ValueError(f"{folder} holds no GPT-2 weights: expected {' or '.join(WEIGHTS)}{why}")
    if not name.endswith(".json"):
        return _read(folder / name)
    weights: dict[str, Tensor] = {}
    for shard in _shards(folder / name):
        weights |= _read(folder / shard)
    return weights


def _shards(index: Path) -> list[str]:
    """The shards listed in an index. Raises: ValueError if it is damaged or points outside the folder."""
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        shards = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is not an index of shards: expected a weight_map from tensors to files") from None
    for shard in shards:
        if not isinstance(shard, str) or shard != os.path.basename(shard) or not shard:
            raise ValueError(f"{index} names {shard!r:.80}: expected files beside it")
        if not (index.parent / shard).exists():
            raise ValueError(f"{index.parent / shard} is missing: {index.name} names it as a shard")
    return shards


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if not path.is_file():  # a pipe would block
            raise OSError("not a file")
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type of torch's error depends on where the file is damaged
        raise ValueError(f"{path} is damaged or cut short ({type(error).__name__}): fetch it again") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise ValueError(f"{path} is not a state dict: expected tensors by name")
    return loaded
