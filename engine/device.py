"""Which device, dtype and attention kernel a run uses, and the reason, in words."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from engine.distributed import local_rank, world_size
from engine.errors import UsageError


@dataclass(frozen=True)
class DeviceChoice:
    """A device with the dtype that `auto` means on it; `reason` is what the run prints."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(wanted: str) -> DeviceChoice:
    """Resolve `device=auto|cpu|cuda|cuda:N|mps`. An unavailable device falls back to the CPU and says so.

    Raises:
        UsageError: the word is no device at all, or cuda:N has no such N.
    """
    kind, _, index = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise UsageError(f"device={wanted}: expected auto, cpu, cuda, cuda:N or mps")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind, why = (
            ("cuda", "auto: CUDA found") if has_cuda
            else ("mps", "auto: Apple GPU found") if has_mps
            else ("cpu", "auto: no GPU found")
        )  # fmt: skip
    elif (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        kind, index, why = "cpu", "", f"device={wanted} is not available here, so the CPU is used"
    else:
        why = f"device={wanted} was asked for"
    if kind == "cuda":
        return _cuda(index, why)
    # float32 on CPU and mps: bfloat16 is emulated or slow on many of them, and float32 is what results are checked in.
    return DeviceChoice(torch.device(kind), torch.float32, f"{why}; dtype auto is float32 on {kind}")


def _cuda(index: str, why: str) -> DeviceChoice:
    number = int(index) if index else local_rank()
    if number >= torch.cuda.device_count():
        raise UsageError(f"device=cuda:{number}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    if index and world_size() > 1:
        raise UsageError(f"device=cuda:{index} under torchrun would put all ranks on one GPU: use device=cuda")
    torch.cuda.set_device(number)
    capable = torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if capable else torch.float32
    note = "has bfloat16" if capable else "lacks bfloat16"
    name = torch.cuda.get_device_name(number)
    return DeviceChoice(torch.device("cuda", number), dtype, f"{why}; {name} {note}, so dtype auto is {dtype}")


def check_attention(wanted: str, device: torch.device) -> str:
    """Return the attention backend to hand to models; `flash` is refused where it cannot run.

    Raises:
        UsageError: attention=flash without CUDA or without the flash-attn package.
    """
    if wanted == "flash":
        if device.type != "cuda":
            raise UsageError("attention=flash needs a CUDA device: use attention=auto")
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"attention=flash needs flash-attn ({error}): pip install -e '.[flash]', or attention=auto"
            ) from None
    return wanted


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
    # TF32 for what stays float32 on a GPU; master weights and reductions are not affected.
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
