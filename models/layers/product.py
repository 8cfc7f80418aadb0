"""Matrix product of float32 CPU tensors through oneDNN, where torch's default BLAS (MKL) is slow.

MKL does not use AVX-512 on processors of other makers: on an AMD EPYC oneDNN halves the time of every product of a
small model. On an Intel Xeon MKL is the faster one, 1.0 to 3.6 times (docs/results/bench.md). The choice goes by the
processor, not by a trial, so that a run resumes with the same numbers. Both agree to float32 rounding.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.composed import is_composed


def _is_intel() -> bool:
    """Whether this machine's processor is Intel's."""
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
    except AttributeError:  # a torch built without it
        return None


_ONEDNN = _find_onednn()


def by_onednn(x: Tensor) -> bool:
    """Whether products of x, [..., k], take the path that records no gradient."""
    return _ONEDNN is not None and x.dtype == torch.float32 and x.device.type == "cpu" and not is_composed()


def linear(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x [..., k] times weight [n, k] transposed -> [..., n], into `out` where given (x of two axes).

    No gradient is recorded where `by_onednn(x)`, or with `out`.
    """
    if by_onednn(x):
        product: Tensor = _ONEDNN(x, weight, None, "none", [], "")
        return product if out is None else out.copy_(product)
    return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)


def add_linear(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """total [m, n] + linear(x, weight), in place, x of two axes; no gradient is recorded."""
    return total.add_(linear(x, weight)) if by_onednn(x) else total.addmm_(x, weight.t())
