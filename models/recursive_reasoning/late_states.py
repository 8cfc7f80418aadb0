"""Late states: in some training steps the rows that begin an example are as deep as no episode is (B rows)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.recursive_reasoning.recursion import where_rows


@torch.no_grad()
def rolled_on(inner: Any, latents: Mapping[str, Tensor], x: Tensor, fresh: Tensor, steps: int) -> dict[str, Tensor]:
    """Latents of which the `fresh` rows [B] have taken `steps` ACT steps over x [B, S, D], without gradient.

    On a CPU only those rows are computed; elsewhere all, so that nothing waits for their number.
    """
    some = x.device.type == "cpu"
    rows: Any = fresh.nonzero()[:, 0] if some else slice(None)
    if some and not len(rows):
        return dict(latents)
    moved = {name: latent[rows] for name, latent in latents.items()}
    for _ in range(steps):
        moved, _ = inner.recur(moved, x[rows])
    if some:
        return {name: latent.index_copy(0, rows, moved[name]) for name, latent in latents.items()}
    return {name: where_rows(fresh, moved[name], latent) for name, latent in latents.items()}
