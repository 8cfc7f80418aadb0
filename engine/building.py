"""Builds a model only if its weights fit in memory; and the message for a step that runs out of memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from engine.errors import OutOfMemory, UsageError
from engine.registry import Arch
from engine.task import Runtime, TrainingPlan

M = TypeVar("M", bound=nn.Module)
BYTES = 4  # per element: parameters are float32
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange)
CGROUP = Path("/sys/fs/cgroup/memory.max")


class _TooLarge(Exception):
    """More bytes were requested than the budget allows."""


class _Budget(TorchFunctionMode):
    """Counts the bytes requested from torch's factories, and raises before they exceed `limit` in total."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.taken = limit, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES and args:
            sizes = args[0] if isinstance(args[0], list | tuple) else args
            self.taken += BYTES * math.prod(size for size in sizes if isinstance(size, int))
            if self.taken > self.limit:
                raise _TooLarge
        return func(*args, **(kwargs or {}))


def create_model(arch: Arch, shape: Any, runtime: Runtime) -> tuple[Any, Any]:
    """(model, loss head) of an `arch` block, on the device; `shape` is what the data determine about the model.

    Raises: UsageError like `build_module`.
    """
    make = partial(arch.model_class, arch.model_config, shape, auto_dtype=runtime.dtype, attention=runtime.attention)
    return build_module(make, runtime.device, arch.model_config), arch.loss_class(arch.loss_config)


def build_module(make: Callable[[], M], device: torch.device, config: Any, where: str = "arch") -> M:
    """The module that `make` builds, on `device`; `config` is the dataclass with its sizes, `where` its dotted key.

    Raises:
        UsageError: weights that exceed the memory of machine or device (names the key), or invalid values.
    """
    limit = memory_of(device)
    try:
        with _Budget(limit):
            module = make()
        return module.to(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except ArithmeticError as error:
        raise UsageError(f"cannot build the model with {_largest(config, where)} ({error})") from None
    except (_TooLarge, MemoryError, RuntimeError) as error:
        if not isinstance(error, _TooLarge) and not _is_out_of_memory(error):
            raise
        raise UsageError(
            f"the weights of this model take more than the {limit / 1e9:.0f} GB of memory here: "
            f"lower {_largest(config, where)}"
        ) from None


def out_of_memory(error: BaseException, plan: TrainingPlan, runtime: Runtime, step: int) -> OutOfMemory | None:
    """The error that names what to change, if a step's `error` means out of memory (GPU or CPU); else None."""
    if not _is_out_of_memory(error):
        return None
    key, rows, pieces = plan.batch_key, plan.batch_rows, runtime.accumulation
    return OutOfMemory(
        f"out of memory at step {step}: lower {key} (now {rows}) or set accumulation={2 * pieces} (now {pieces}), "
        "same batch, half the rows held at once",
        key,
        rows,
    )


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(each in str(error).lower() for each in words)


def memory_of(device: torch.device) -> int:
    """The most bytes that weights on `device` can take; they are created in the machine's own memory first."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if CGROUP.is_file() and (text := CGROUP.read_text().strip()).isdigit():
        limits.append(int(text))
    if device.type == "cuda":
        limits.append(torch.cuda.get_device_properties(device).total_memory)
    return min(limits)


def _largest(config: Any, where: str) -> str:
    """`key=value` of the number that is the largest multiple of its default, likely a typing error; if none is much
    larger, text that also names the data."""
    sizes = {value: (multiple, key) for multiple, value, key in reversed([*_sizes(config, where)])}
    multiple, key = max(sizes.values(), default=(0, where))  # of equal numbers the outermost: inner keys may follow it
    return key if multiple > 2 else f"{where}'s sizes, or the vocabulary and length of the data (dataset.json)"


def _sizes(config: Any, where: str) -> Iterator[tuple[float, float, str]]:
    """Yield (multiple of the default, value, `key=value`), a dataclass's own numbers before those of nested ones."""
    inner = []
    for field in fields(config) if is_dataclass(config) else ():
        value, default = getattr(config, field.name), field.default
        if isinstance(value, int | float) and not isinstance(value, bool):
            multiple = value / max(default if isinstance(default, int | float) else 1, 1)
            yield multiple, value, f"{where}.{field.name}={value}"
        elif is_dataclass(value):
            inner.append((value, f"{where}.{field.name}"))
    for config, where in inner:
        yield from _sizes(config, where)
