"""Nested state as tensors plus JSON, and reading and writing of tensor files, all without pickle.

A tree is dicts, lists, tuples, scalars, None, tensors and `RowSharded` leaves. `split_tree` puts the tensors into one
flat dict (a safetensors file) and the rest into JSON, where `{"$tensor": name}` stands for a tensor, `{"$rows": name}`
for a row-sharded one, `{"$tuple": [...]}` for a tuple and `{"$dict": [[key, value], ...]}` for a dict that JSON cannot
represent (integer keys, keys that begin with "$").
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import UsageError
from engine.reading import Unreadable, check_regular


@dataclass(frozen=True)
class RowSharded:
    """A leaf of a state tree whose rows are sharded over the ranks: `tensor` [rows of this rank, ...].

    Saved in global row order (rank 0's rows first) and sliced into equal contiguous parts at load, so a checkpoint does
    not depend on the number of ranks.
    """

    tensor: Tensor


def clean_name(name: str) -> str:
    """Strip the prefixes of DDP and torch.compile: `module._orig_mod.inner.w` -> `inner.w`."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts.pop(0)
    return ".".join(parts)


def clean_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by `clean_name`. Raises: ValueError if two names become one."""
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if cleaned.setdefault(clean_name(name), tensor) is not tensor:
            raise ValueError(f"two tensors are called '{clean_name(name)}' once cleaned, '{name}' is the second")
    return cleaned


def gather_tree(
    tree: Any, gather_rows: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> Any:
    """Replace every `RowSharded(tensor)` by `RowSharded(gather_rows(tensor))`, in tree order, other tensors by `other`.

    A collective: all ranks call it with trees of the same structure, so that the n-th call of `gather_rows` is for the
    same leaf on each. `gather_rows` maps [rows of this rank, ...] to [all rows, ...] on rank 0; its results on other
    ranks are not used.
    """
    if isinstance(tree, RowSharded):
        return RowSharded(gather_rows(tree.tensor))
    if isinstance(tree, Mapping):
        return {key: gather_tree(value, gather_rows, other) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [gather_tree(value, gather_rows, other) for value in tree]
        return values if isinstance(tree, list) else tuple(values)
    return other(tree) if isinstance(tree, Tensor) else tree


def copied(tree: Any) -> Any:
    """The tree with every tensor copied to the CPU, so that later steps do not change it. Tied tensors stay tied."""
    copies: dict[Any, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        place = _place(tensor)
        if place not in copies:
            copies[place] = tensor.detach().to("cpu", copy=True)
        return copies[place]

    return gather_tree(tree, copy, copy)


def _place(tensor: Tensor) -> Any:
    """A key that is equal for tensors in the same memory."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def split_tree(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split `tree` into {dotted path: tensor} and a JSON value that refers to them, without copies.

    Raises: TypeError, naming the path, for a leaf that is neither tensor nor JSON: nothing is ever pickled.
    """
    tensors: dict[str, Tensor] = {}

    def add(tensor: Tensor, path: str) -> str:
        name, number = path or "tensor", 1
        while name in tensors:  # {"a.b": x, "a": {"b": y}} have the same dotted path
            number += 1
            name = f"{path}#{number}"
        tensors[name] = tensor
        return name

    def walk(node: Any, path: str) -> Any:
        def inner(key: Any, value: Any) -> Any:
            return walk(value, f"{path}.{key}" if path else str(key))

        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, Tensor):
            return {"$tensor": add(node, path)}
        if isinstance(node, RowSharded):
            return {"$rows": add(node.tensor, path)}
        if isinstance(node, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: inner(key, value) for key, value in node.items()}
            if all(isinstance(key, str | int) for key in node):
                return {"$dict": [[key, inner(key, value)] for key, value in node.items()]}
            raise TypeError(f"state '{path}' has keys that are neither text nor integers: {list(node)[:3]}")
        if isinstance(node, tuple | list):
            values = [inner(index, value) for index, value in enumerate(node)]
            return values if isinstance(node, list) else {"$tuple": values}
        raise TypeError(
            f"state '{path}' is a {type(node).__name__}: a checkpoint holds tensors, numbers, text, None, "
            "dicts, lists and tuples"
        )

    return tensors, walk(tree, "")


def join_tree(json_tree: Any, tensors: Mapping[str, Tensor], *, rank: int = 0, world_size: int = 1) -> Any:
    """The inverse of `split_tree`. A row-sharded leaf becomes a plain tensor: the rows of `rank` out of `world_size`.

    Raises: UsageError if its number of rows is not divisible by `world_size`.
    """
    if isinstance(json_tree, list):
        return [join_tree(value, tensors, rank=rank, world_size=world_size) for value in json_tree]
    if not isinstance(json_tree, dict):
        return json_tree
    if len(json_tree) == 1:
        ((mark, content),) = json_tree.items()
        if mark == "$tensor":
            return tensors[content]
        if mark == "$rows":
            return _rows_of(tensors[content], content, rank, world_size)
        if mark == "$tuple":
            return tuple(join_tree(content, tensors, rank=rank, world_size=world_size))
        if mark == "$dict":
            return {k: join_tree(v, tensors, rank=rank, world_size=world_size) for k, v in content}
    return {k: join_tree(v, tensors, rank=rank, world_size=world_size) for k, v in json_tree.items()}


def _rows_of(tensor: Tensor, name: str, rank: int, world_size: int) -> Tensor:
    if tensor.ndim == 0 or tensor.shape[0] % world_size:
        raise UsageError(
            f"the checkpoint's '{name}' has shape {list(tensor.shape)}: its rows cannot be shared equally by "
            f"{world_size} processes, start a number of processes that divides them"
        )
    size = tensor.shape[0] // world_size
    return tensor[rank * size : (rank + 1) * size]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: bit-exact in every dtype, from any device, strides or storage.

    Tensors that share memory (tied weights) are stored once; the file's metadata has `{other name: stored name}`, as
    the safetensors library writes it.

    Raises: OSError if the file cannot be written, TypeError for a value that is not a tensor.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"'{name}' is a {type(tensor).__name__}, not a tensor")
        tensor = tensor.detach()
        place = _place(tensor)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        stored[name] = _contiguous_cpu(tensor)
    try:
        save_file(stored, path, metadata={"format": "pt", **aliases})
    except SafetensorError as error:  # the library has the operating system's error only in its text
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def _contiguous_cpu(tensor: Tensor) -> Tensor:
    """Contiguous, on the CPU, alone in its storage: safetensors refuses views into one storage as shared memory."""
    copy = tensor.cpu().contiguous()
    if copy.data_ptr() == tensor.data_ptr() and copy.untyped_storage().nbytes() != copy.nbytes:
        copy = copy.clone()
    return copy


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU; tied tensors share memory again.

    Raises: OSError or SafetensorError for a file that is not one (`tensor_file_fault` describes it).
    """
    check_regular(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata() or {}
    for name, target in metadata.items():
        if target in tensors and name not in tensors:
            tensors[name] = tensors[target]
    return tensors


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by name of the tensors in a valid safetensors file; reads only the header."""
    with safe_open(path, framework="pt") as stream:
        return {name: stream.get_slice(name).get_shape() for name in stream.keys()}  # noqa: SIM118 (no mapping)


def tensor_file_fault(path: Path) -> str | None:
    """Why `path` is not a safetensors file, None if its header and size are valid. Reads only the header."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as stream:
            list(stream.keys())
    except Unreadable as error:
        return str(error)
    except (OSError, SafetensorError) as error:
        with open(path, "rb") as raw:
            start = raw.read(4)
        looks = "a pickle or zip file" if start[:1] == b"\x80" or start[:2] == b"PK" else "not a safetensors file"
        return f"is {looks} and was not opened ({error})"
    return None


class WeightsMisfit(UsageError):
    """Weights that do not fit the model. `engine.run.identity.what_changed` names the key if both configs are known."""


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the parameters and buffers of `module`, if all of them fit.

    Values are converted to the module's dtype and device. A name may be missing from `tensors` if it is tied to one
    that is present. Raises: WeightsMisfit, listing all mismatches with shapes; then nothing is copied.
    """
    fill(module.state_dict(), tensors)


def fill(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """`load_weights` for a module's state dict, `state`."""
    ours = {clean_name(name): value for name, value in state.items() if isinstance(value, Tensor)}
    theirs = {clean_name(name): value for name, value in tensors.items()}
    both = [name for name in ours if name in theirs]
    fitting = [name for name in both if ours[name].shape == theirs[name].shape]
    memory = {(ours[name].data_ptr(), ours[name].shape) for name in fitting}
    missing = [name for name in ours if name not in theirs]
    missing = [n for n in missing if not ours[n].numel() or (ours[n].data_ptr(), ours[n].shape) not in memory]
    faults = {
        "missing": [f"{name} {list(ours[name].shape)}" for name in missing],
        "unexpected": [f"{name} {list(theirs[name].shape)}" for name in theirs if name not in ours],
        "mismatching": [
            f"{name} (file {list(theirs[name].shape)}, model {list(ours[name].shape)})"
            for name in both
            if name not in fitting
        ],
    }
    if words := [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]:
        raise WeightsMisfit("the weights do not fit the model: " + "; ".join(words))
    with torch.no_grad():
        for name in fitting:
            ours[name].copy_(theirs[name])


def _some(names: list[str], limit: int = 8) -> str:
    more = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
