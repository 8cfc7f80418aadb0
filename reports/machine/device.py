"""Tests what torch can do here: device and dtype of a run, attention kernels, torch.compile."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from engine.device import check_attention, choose_device
from engine.errors import UsageError
from engine.loop import compiling

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def device_facts(*, compiler: bool) -> dict[str, Any]:
    """Device and dtype of `device=auto`, threads, GPUs and attention kernels; with `compiler`, which takes seconds,
    also whether torch.compile works ("fault": None) or why it does not."""
    choice = choose_device("auto")
    options = {"backend": compiling.BACKEND, "dynamic": False}
    return {
        "device": str(choice.device),
        "dtype": str(choice.dtype).removeprefix("torch."),
        "reason": choice.reason,
        "threads": torch.get_num_threads(),
        "built_for": (torch.version.cuda and f"CUDA {torch.version.cuda}") or torch.version.hip or "CPU",
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
        "attention": _attention(choice.device, choice.dtype),
        "compiler": {"fault": compiling.compiler_fault(choice.device, options)} if compiler else None,
    }


def _gpu(number: int) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(number)
    return {"name": facts.name, "memory": facts.total_memory, "capability": f"{facts.major}.{facts.minor}"}


def _attention(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Kernels of attention=auto that run at the shape [1, 4, 16, 32], and why attention=flash cannot be used (None if
    it can)."""
    query = torch.zeros(1, 4, 16, 32, device=device, dtype=dtype)
    run = []
    for name, backend in KERNELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains at length why a kernel was not chosen
            try:
                with sdpa_kernel(backend):
                    scaled_dot_product_attention(query, query, query)
            except RuntimeError:
                continue
        run.append(name)
    try:
        check_attention("flash", device)
    except UsageError as error:
        return {"sdpa": run, "flash": str(error)}
    return {"sdpa": run, "flash": None}
