"""Read and write public checkpoints: `all_config.yaml` and a state dict whose names carry prefixes of its writer.

    FOLDER/all_config.yaml     the config that trained it
    FOLDER/step_518071         a state dict as torch.save writes it (HRM: FOLDER/checkpoint), or a .safetensors file

Names are `_orig_mod.model.inner.NAME` for a compiled run, else `model.inner.NAME`. Files are only unpickled by torch's
restricted loader, and the puzzle table (1.8 GB on ARC-AGI-1) is memory-mapped.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from engine.checkpoint.state_tree import read_tensors, tensor_file_fault
from engine.errors import RunFailure, UsageError
from engine.io import atomic_directory
from engine.reading import Unreadable, check_regular, read_yaml, reason_of
from reports.model_card import CARD

CONFIG = "all_config.yaml"
LOADING = """
# a model of the public code, made from all_config.yaml and compiled
model.load_state_dict(torch.load("{file}", weights_only=True))
"""
"""Code for the model card: how the public code loads the file."""
MARKS = ("_orig_mod.", "module.", "model.")
"""Prefixes of torch.compile, of DDP, and of the loss head that holds the model."""
STANDARD = "_orig_mod.model."
"""Prefix before `inner.` that the public code expects when it loads a checkpoint."""
NOT_STORED = re.compile(r"inner\.(puzzle_emb\.local_(weights|ids)|rotary_emb\.(cos|sin)_cached)")
"""Scratch buffers that some forks store; they can be derived from the rest."""
_SUFFIXES = ("", ".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class PublicCheckpoint:
    """A public checkpoint in memory."""

    path: Path
    """The state dict."""
    config: dict[str, Any] | None
    """all_config.yaml; None if there is none."""
    tensors: dict[str, Tensor]
    """By name without prefixes: `inner.NAME`. Memory-mapped if the file allows it."""
    keys: dict[str, str]
    """`inner.NAME` -> key in the file, in file order."""
    step: int
    """From the file name; 0 if it has none."""
    left_out: tuple[str, ...] = ()
    """Scratch buffers in the file, which were not read."""


def read_public(path: Path) -> PublicCheckpoint:
    """Read the checkpoint at `path`: a state dict, or a folder that contains one.

    Raises: UsageError for no state dict, several, one that contains more than tensors, or names that collide.
    """
    file = _state_file(path)
    tensors, keys, left_out = _without_marks(_read_state(file), file)
    number = re.search(r"step_(\d+)", file.name)
    return PublicCheckpoint(
        path=file,
        config=read_public_config(file.parent / CONFIG),
        tensors=tensors,
        keys=keys,
        step=int(number[1]) if number else 0,
        left_out=left_out,
    )


def read_public_config(path: Path) -> dict[str, Any] | None:
    """Read the plain values of an all_config.yaml; None if there is none. Raises: UsageError for a damaged one."""
    try:
        config = OmegaConf.create(read_yaml(path))
    except FileNotFoundError:
        return None
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        words = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path} is not plain YAML ({words}): replace whatever is not a number, text, list or block"
        ) from None
    values = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a block of keys")
    return {str(key): value for key, value in values.items()}


def write_public(
    folder: Path, *, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, card: str
) -> None:
    """Write config, state dict and model card, atomically. `tensors` have the names and dtypes of the file.

    The state dict is written by torch.save, the only format that the public code loads, and contains nothing but
    tensors, so it opens with weights_only=True.

    Raises: UsageError if `folder` exists; RunFailure if it cannot be written.
    """
    try:
        with atomic_directory(folder) as temporary:
            (temporary / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "utf-8")
            torch.save(dict(tensors), temporary / name)
            (temporary / CARD).write_text(card, "utf-8")
    except FileExistsError:
        raise UsageError(f"{folder} exists already: remove it or choose another folder") from None
    except RuntimeError as error:  # torch's writer does not say why
        raise RunFailure(f"{folder} cannot be written: is its disk full? ({str(error).splitlines()[0]:.80})") from None


def _state_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} does not exist: expected a state dict, or a folder with one and {CONFIG}")
    if (path / "manifest.json").exists() or (path / "checkpoints").is_dir():
        raise UsageError(f"{path} is a run of this project, not a public checkpoint: `convert.py export` writes one")
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix in _SUFFIXES]
    named = [file for file in files if re.fullmatch(r"(step_\d+|checkpoint|model|pytorch_model)(\.\w+)?", file.name)]
    if not named:
        raise UsageError(f"{path} holds no state dict: expected a file step_N or checkpoint beside {CONFIG}")
    if len(named) > 1:
        raise UsageError(f"{path} holds several state dicts: name one of them, {', '.join(map(str, named[:6]))}")
    return named[0]


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises: UsageError."""
    if path.suffix == ".safetensors":
        if fault := tensor_file_fault(path):
            raise UsageError(f"{path} {fault}")
        return read_tensors(path)
    try:
        check_regular(path)
        state: Any = _load(path)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path} is damaged, or holds more than tensors and plain values, which may run code: it was not opened"
        ) from None
    except Exception:  # the type of torch's error depends on where the file is damaged
        raise UsageError(f"{path} is damaged, cut short, or not a file of torch.save") from None
    if not isinstance(state, dict) or not state:
        raise UsageError(f"{path} is not a state dict: expected tensors by name")
    other = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    other += [key for key, value in state.items() if key not in other and not value.is_floating_point()]
    if other:
        raise UsageError(f"{path} is not a state dict: expected tensors by name, {str(other[0])[:80]!r} is not one")
    return dict(state)


def _load(path: Path) -> Any:
    """Memory-map the file; one from before torch 1.6 is read instead."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"PK"
    with warnings.catch_warnings():  # torch warns about unusual pickles: all that matters is whether it opens
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)


def _without_marks(
    state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """(tensors by `inner.NAME`, the key of each in the file, scratch buffers that were left out)."""
    tensors: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    left_out = []
    for key, tensor in state.items():
        name = key
        while mark := next((mark for mark in MARKS if name.startswith(mark)), None):
            name = name.removeprefix(mark)
        name = "inner." + name.removeprefix("inner.").replace("._orig_mod.", ".")
        if NOT_STORED.fullmatch(name):
            left_out.append(key)
            continue
        if name in tensors:
            raise UsageError(f"{path}: {keys[name]} and {key} are both {name} without their prefixes")
        tensors[name], keys[name] = tensor, key
    return tensors, keys, tuple(left_out)
