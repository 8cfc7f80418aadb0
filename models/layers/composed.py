"""Whether layers are made of torch's own operations alone, or may use their hand-written CPU kernels.

A compiler that traces, and the transforms of torch.func, know no hand-written backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_asked = False


@contextmanager
def composed() -> Iterator[None]:
    """Block in which every layer is made of torch's own operations: for `torch.func.vmap`."""
    global _asked
    before, _asked = _asked, True
    try:
        yield
    finally:
        _asked = before


def is_composed() -> bool:
    """Inside such a block, or where a compiler traces."""
    return _asked or torch.compiler.is_compiling()


def is_transformed() -> bool:
    """Inside such a block: not even functions with their own backward, which a compiler can trace."""
    return _asked
