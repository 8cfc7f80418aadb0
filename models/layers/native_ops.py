"""Switch between hand-written CPU kernels and native torch operations.

Hand-written backward passes do not work with the transforms of torch.func, and are pointless under torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forced = False


@contextmanager
def native_ops() -> Iterator[None]:
    """Context in which all layers use native torch operations, as `torch.func.vmap` requires."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def native_ops_only() -> bool:
    """Whether to avoid the CPU kernels: in a `native_ops` context, or under torch.compile."""
    return _forced or torch.compiler.is_compiling()


def no_custom_autograd() -> bool:
    """Whether to avoid every autograd.Function: in a `native_ops` context (torch.compile can trace them)."""
    return _forced
