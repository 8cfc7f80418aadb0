"""Chooses a run's device, dtype and attention kernel, with a printed reason; and copies data to the device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from engine.config import RunConfig
from engine.distributed import local_rank, rank, world_size
from engine.errors import UsageError
from engine.io import print_rank0
from engine.signals import StopSignal
from engine.task import Runtime

ALIGNMENT = 16  # bytes, of each tensor in a buffer


@dataclass(frozen=True)
class DeviceChoice:
    """A device with the dtype that `auto` resolves to there; `reason` is printed."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(name: str) -> DeviceChoice:
    """Resolve `device=auto|cpu|cuda|cuda:N|mps`: `auto` takes the best one available, a named one must exist.

    Raises:
        UsageError: not the name of a device, or of one that this machine lacks.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise UsageError(f"device={name}: expected auto, cpu, cuda, cuda:N or mps")
    kind, _, index = name.partition(":")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
        why = {"cuda": "auto: CUDA found", "mps": "auto: Apple GPU found", "cpu": "auto: no GPU found"}[kind]
    elif (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        # no silent fallback: a user who asks for a GPU does not want a week of training on the CPU
        raise UsageError(f"device={name}: {_why_absent(kind)}: device=auto takes what is available, device=cpu the CPU")
    else:
        why = f"device={name} was asked for"
    if kind == "cuda":
        return _cuda(index, why)
    # float32 on CPU and mps: bfloat16 is emulated or slow on many of them, and results are checked in float32.
    return DeviceChoice(torch.device(kind), torch.float32, f"{why}; dtype auto is float32 on {kind}")


def _why_absent(kind: str) -> str:
    if kind == "mps":
        return "there is no Apple GPU that this torch can use"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"no CUDA GPU was found (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"


def _cuda(index: str, why: str) -> DeviceChoice:
    gpus = torch.cuda.device_count()
    if not index and (processes := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > gpus:
        raise UsageError(f"{processes} processes on a machine with {gpus} GPU(s): start {gpus}, or set device=cpu")
    number = int(index) if index else local_rank()
    if number >= gpus:
        raise UsageError(f"device=cuda:{number}: this machine has {gpus} GPU(s), numbered from 0")
    if index and world_size() > 1:
        raise UsageError(f"device=cuda:{index} under torchrun would put all ranks on one GPU: use device=cuda")
    torch.cuda.set_device(number)
    has, lacks = (torch.bfloat16, "has bfloat16"), (torch.float32, "lacks bfloat16")
    dtype, note = has if torch.cuda.is_bf16_supported() else lacks
    name = torch.cuda.get_device_name(number)
    return DeviceChoice(torch.device("cuda", number), dtype, f"{why}; {name} {note}, so dtype auto is {dtype}")


def check_attention(attention: str, device: torch.device) -> None:
    """Raises: UsageError for attention=flash without CUDA or without the flash-attn package."""
    if attention == "flash":
        if device.type != "cuda":
            raise UsageError("attention=flash needs a CUDA device: use attention=auto")
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"attention=flash needs flash-attn ({error}): pip install -e '.[flash]', or attention=auto"
            ) from None


def staged(arrays: Mapping[str, np.ndarray | Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy host arrays, by name, to `device`: to CUDA as one asynchronous copy from pinned memory."""
    tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return _packed(tensors, device)


def _packed(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies on `device` by name, as views of one buffer; to CUDA it is copied while the device computes."""
    pin = device.type == "cuda"
    starts = [0, *accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors.values())]
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)

    def views(of: Tensor) -> Iterator[Tensor]:
        for tensor, start in zip(tensors.values(), starts, strict=False):
            yield of[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    for view, tensor in zip(views(buffer), tensors.values(), strict=True):
        view.copy_(tensor)
    return dict(zip(tensors, views(_copy_async(buffer, device) if pin else buffer.to(device)), strict=True))


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _copy_async(buffer: Tensor, device: torch.device) -> Tensor:
    """Copy pinned memory [bytes] to `device` on a side stream, for which the current stream waits.

    The allocators know both streams: the pinned memory is reused only after the copy, and the copy's memory only after
    the current stream has finished with it.
    """
    current, side = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(side):
        copy = buffer.to(device, non_blocking=True)
    current.wait_stream(side)
    copy.record_stream(current)
    return copy


def prepare_process(*, seed: int, threads: int | None, deterministic: bool) -> None:
    """Seed torch's global generator (weight initialisation, dropout), set threads and determinism."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif world_size() > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size()))
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # TF32 for matmuls that stay float32 on a GPU; master weights and reductions are not affected.
    torch.set_float32_matmul_precision("highest" if deterministic else "high")


def print_device(config: RunConfig) -> None:
    """Print device, attention kernel and threads of this process."""
    choice, threads = choose_device(config.device), torch.get_num_threads()
    print_rank0(f"device      {choice.device} ({choice.reason}); attention {config.attention}; {threads} CPU thread(s)")


def make_runtime(config: RunConfig, *, stop: StopSignal | None = None, silent: bool = False) -> Runtime:
    """Device, dtype and attention kernel of `config`, printed with the reason if not `silent`; seeds the process."""
    choice = choose_device(config.device)
    check_attention(config.attention, choice.device)
    prepare_process(seed=config.seed, threads=config.threads, deterministic=config.deterministic)
    if not silent:
        print_device(config)
    return Runtime(
        device=choice.device,
        dtype=choice.dtype,
        attention=config.attention,
        seed=config.seed,
        accumulation=config.accumulation,
        rank=rank(),
        world_size=world_size(),
        stop_requested=stop.agreed if stop is not None else lambda: False,
    )
