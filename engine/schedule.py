"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, base: float, warmup: int, total: int, min_ratio: float) -> float:
    """Learning rate at `step` (the first step of a run is 1).

    Linear from 0 to `base` over `warmup` steps, then half a cosine down to `base * min_ratio` at `total`;
    min_ratio 1 is constant. Past `total` the floor holds. Check (1e-4, warmup 2000, total 10000, 0.1): 1 ->
    5e-8, 6000 -> 5.5e-5.
    """
    if step < warmup:
        return base * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * (min_ratio + max(0.0, (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))))
