"""Matmuls on the CPU in the fastest form that its processor has. The choice depends on the processor, not on a timing,
so that a resumed run gives the same numbers. Timings: docs/results/bench.md.

float32: torch's default BLAS, MKL, does not use AVX-512 on non-Intel processors: on an AMD EPYC that has it, oneDNN
halves the time of every matmul of a small model. Elsewhere MKL is as fast or faster, up to 3.6 times on an Intel Xeon.

bfloat16 and float16: without units for them, torch's kernels take 3 to 40 times as long as those for float32. So the
operands are converted, which is exact, and the float32 result is rounded, as those kernels do.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.native_ops import native_ops_only


def _describe_processor() -> str:
    """Vendor and instruction sets of the processor, as text."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor()


_PROCESSOR = _describe_processor()


def _find_onednn() -> Any:
    mkl_suffices = "GenuineIntel" in _PROCESSOR or torch.backends.cpu.get_cpu_capability() == "AVX2"
    if not torch.backends.mkldnn.is_available() or (torch.backends.mkl.is_available() and mkl_suffices):
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise
    except AttributeError:  # torch built without oneDNN
        return None


def _without_units() -> frozenset[torch.dtype]:
    """Dtypes of 16 bits that an x86 processor lacks units for; none on other processors, which were not timed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    units = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}
    return frozenset(dtype for dtype, flags in units.items() if not any(flag in _PROCESSOR for flag in flags))


_ONEDNN = _find_onednn()
_WITHOUT_UNITS = _without_units()


def uses_onednn(x: Tensor) -> bool:
    """Whether matmuls of x go through oneDNN, which records no gradient."""
    return _ONEDNN is not None and x.dtype == torch.float32 and x.device.type == "cpu" and not native_ops_only()


def in_float32(x: Tensor) -> bool:
    """Whether matmuls of x, of 16 bits, are faster in float32."""
    return x.device.type == "cpu" and x.dtype in _WITHOUT_UNITS


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, batched as torch's, with gradients."""
    if in_float32(x):
        return matmul(x.float(), y.float()).to(x.dtype)
    return torch.bmm(x, y) if x.dim() == y.dim() == 3 else x @ y  # `@` of three axes keeps a copy for its gradient


def linear(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x [..., k] @ weight [n, k] transposed -> [..., n], written to `out` if given (x must be 2-D).

    No gradient is recorded if `uses_onednn(x)`, or with `out`.
    """
    if in_float32(x):
        rounded = linear(x.float(), weight.float()).to(x.dtype)
        return rounded if out is None else out.copy_(rounded)
    if uses_onednn(x):
        product: Tensor = _ONEDNN(x, weight, None, "none", [], "")
        return product if out is None else out.copy_(product)
    return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)


def add_linear(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """total [m, n] += linear(x, weight), in place, for 2-D x; no gradient is recorded."""
    if in_float32(x):
        return total.copy_(add_linear(total.float(), x.float(), weight.float()))
    return total.add_(linear(x, weight)) if uses_onednn(x) else total.addmm_(x, weight.t())
