"""The mark that a task puts on a state tensor whose rows are spread over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RowSharded:
    """A leaf of a state tree: `tensor` [rows of this rank, ...].

    Saved in global row order (rank 0's rows first) and sliced into equal contiguous parts at load, so a
    checkpoint does not know how many ranks wrote it.
    """

    tensor: Tensor
