"""Late states: in some training steps, fresh rows first take extra ACT steps without gradient. B rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.recursive_reasoning.recursion import where_rows


@torch.no_grad()
def burn_in(inner: Any, latents: Mapping[str, Tensor], x: Tensor, fresh: Tensor, steps: int) -> dict[str, Tensor]:
    """Advance the `fresh` rows [B] by `steps` ACT steps over x [B, S, D], without gradient; returns all latents.

    On a CPU only those rows are computed. Elsewhere all are, since selecting rows would synchronise with the device.
    """
    on_cpu = x.device.type == "cpu"
    rows: Any = fresh.nonzero()[:, 0] if on_cpu else slice(None)
    if on_cpu and not len(rows):
        return dict(latents)
    advanced = {name: latent[rows] for name, latent in latents.items()}
    for _ in range(steps):
        advanced, _ = inner.recur(advanced, x[rows])
    if on_cpu:
        return {name: latent.index_copy(0, rows, advanced[name]) for name, latent in latents.items()}
    return {name: where_rows(fresh, advanced[name], latent) for name, latent in latents.items()}
