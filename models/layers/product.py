"""float32 matmuls on the CPU through oneDNN where torch's default BLAS (MKL) is slow.

MKL does not use AVX-512 on non-Intel processors: on an AMD EPYC oneDNN halves the time of every matmul of a small
model. On an Intel Xeon MKL is 1.0 to 3.6 times faster (docs/results/bench.md). The choice depends on the processor, not
on a timing, so that a resumed run gives the same numbers. Both agree to float32 rounding.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.native_ops import native_ops_only


def _is_intel() -> bool:
    """Whether the processor is an Intel one."""
    try:
        about = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        about = platform.processor()
    return "GenuineIntel" in about


def _find_onednn() -> Any:
    if not torch.backends.mkldnn.is_available() or (torch.backends.mkl.is_available() and _is_intel()):
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise
    except AttributeError:  # torch built without oneDNN
        return None


_ONEDNN = _find_onednn()


def uses_onednn(x: Tensor) -> bool:
    """Whether matmuls of x go through oneDNN, which records no gradient."""
    return _ONEDNN is not None and x.dtype == torch.float32 and x.device.type == "cpu" and not native_ops_only()


def linear(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x [..., k] @ weight [n, k] transposed -> [..., n], written to `out` if given (x must be 2-D).

    No gradient is recorded if `uses_onednn(x)`, or with `out`.
    """
    if uses_onednn(x):
        product: Tensor = _ONEDNN(x, weight, None, "none", [], "")
        return product if out is None else out.copy_(product)
    return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)


def add_linear(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """total [m, n] += linear(x, weight), in place, for 2-D x; no gradient is recorded."""
    return total.add_(linear(x, weight)) if uses_onednn(x) else total.addmm_(x, weight.t())
