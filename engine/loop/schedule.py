"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from engine.fields import Range

SHARE = Range(above=0, high=1)


def warmup_cosine(step: int, *, base: float, warmup: int, total: int, min_ratio: float) -> float:
    """Learning rate at `step` (the first step of a run is 1).

    Linear from 0 to `base` over `warmup` steps, then half a cosine down to `base * min_ratio` at `total`;
    min_ratio 1 is constant. After `total` it stays at that floor. Check (1e-4, warmup 2000, total 10000, 0.1): 1 ->
    5e-8, 6000 -> 5.5e-5.
    """
    if step < warmup:
        return base * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * (min_ratio + max(0.0, (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))))


# --- warm-up times decay: the schedules of language-model training ----------------------------------------------------


@dataclass(kw_only=True)
class Decay:
    """How the learning rate decays after warm-up; `name` selects the curve, `options` are that curve's own.

    Steps count from 0 here (t = step - 1). With w warm-up steps, horizon h and floor r (a share of the peak), and
    p = (t - w) / (h - w) clamped to 0..1:

        none          1
        cosine        r + (1 - r)(1 + cos pi p) / 2                          (nanoGPT's)
        linear        1 - (1 - r) p
        exponential   gamma^(t - w), by default gamma = r^(1 / (h - w))
        step          gamma^(t // size)
        wsd           1, then over the last `share` of the horizon linearly to r (warm-up, stable, decay)
        inverse_sqrt  sqrt(max(w, 1) / max(t + 1, w, 1))
        plateau       factor^(times that `patience` evaluations brought no improvement): see `Plateau`

    No curve goes below r; `none` has no floor to reach.
    """

    name: Literal["none", "cosine", "linear", "exponential", "step", "wsd", "inverse_sqrt", "plateau"] = "none"
    """Name of the schedule."""
    options: dict[str, float | None] = field(default_factory=dict)
    """Options of the schedule: gamma, size, share, factor, patience, threshold (config/lr_scheduler/)."""

    OPTIONS: ClassVar[dict[str, dict[str, tuple[float | None, Range]]]] = {
        "exponential": {"gamma": (None, SHARE)},
        "step": {"size": (1000, Range(1)), "gamma": (0.1, SHARE)},
        "wsd": {"share": (0.5, SHARE)},
        "plateau": {"factor": (0.1, SHARE), "patience": (10, Range(1)), "threshold": (1e-4, Range())},
    }
    """Curve -> option -> (default, range), of the curves that have options."""

    def __post_init__(self) -> None:
        known = self.OPTIONS.get(self.name, {})
        for key, value in self.options.items():
            if key not in known:
                what = f"one of {', '.join(known)}" if known else "no options"
                raise ValueError(f"lr_scheduler.options.{key}: lr_scheduler={self.name} has {what}")
            if not (bounds := known[key][1]).fits(value):
                raise ValueError(f"lr_scheduler.options.{key}={value}: expected {bounds.describe(key, value)}")

    def option(self, key: str) -> float | None:
        """The value of `options`, else the curve's default."""
        return self.options.get(key, self.OPTIONS[self.name][key][0])


def lr_factor(step: int, decay: Decay, *, warmup: int, horizon: int, floor: float, drops: int = 0) -> float:
    """Share of the peak learning rate at `step` (the first is 1): warm-up (t+1)/(w+1), times the decay's curve.

    `floor` is min_lr / learning_rate; `drops` is how often a plateau lowered the rate. Check (cosine, w 100, h 3500,
    floor 0.1): step 1 -> 1/101, 101 -> 1, 1801 -> 0.55, 3501 -> 0.1.
    """
    t = step - 1
    if t < warmup:
        return (t + 1) / (warmup + 1)
    progress = min(1.0, (t - warmup) / max(1, horizon - warmup))
    curve = 1.0
    match decay.name:
        case "cosine":
            curve = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            curve = 1.0 - (1.0 - floor) * progress
        case "exponential":
            gamma = decay.option("gamma")
            curve = floor**progress if gamma is None else gamma ** (t - warmup)
        case "step":
            curve = (decay.option("gamma") or 0.0) ** (t // int(decay.option("size") or 1))
        case "wsd":
            share = decay.option("share") or 1.0
            curve = 1.0 - (1.0 - floor) * max(0.0, t / max(1, horizon) - (1.0 - share)) / share
        case "inverse_sqrt":
            curve = math.sqrt(max(warmup, 1) / max(t + 1, warmup, 1))
        case "plateau":
            curve = (decay.option("factor") or 0.0) ** drops
        case "none":
            return 1.0
    return max(curve, floor)


class Plateau:
    """Counts evaluations without improvement (lower is better); its state is part of the checkpoint."""

    def __init__(self, *, patience: int, threshold: float) -> None:
        self.patience, self.threshold = patience, threshold
        self.best: float | None = None
        self.waited = self.drops = 0

    @classmethod
    def of(cls, decay: Decay) -> Plateau | None:
        """The counter for a plateau `decay`; None for every other curve."""
        if decay.name != "plateau":
            return None
        return cls(patience=int(decay.option("patience") or 1), threshold=decay.option("threshold") or 0.0)

    def observe(self, value: float | None) -> None:
        """Record one evaluation. Only a decrease by more than `threshold` is an improvement; None or a non-finite value
        is not."""
        self.waited += 1
        if value is not None and math.isfinite(value) and (self.best is None or value < self.best - self.threshold):
            self.best, self.waited = value, 0
        elif self.waited >= self.patience:
            self.waited, self.drops = 0, self.drops + 1

    def state_dict(self) -> dict[str, float | None]:
        """Best value (null before the first), evaluations waited, drops."""
        return {"best": self.best, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best, self.waited, self.drops = state["best"], state["waited"], state["drops"]
