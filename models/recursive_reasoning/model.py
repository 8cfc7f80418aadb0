"""Base class of the recursive models: a config, a plan of updates, and the ACT wrapper around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch

from models.dtypes import compute_dtype
from models.recursive_reasoning.act import ACTModel, PuzzleShape
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import RecursiveInner
from models.recursive_reasoning.pretrained import Pretrained
from models.recursive_reasoning.recursion import Depth


class RecursiveModel(ACTModel, Pretrained):
    """`Model(config, shape)`; can be built under `torch.device("meta")`. A subclass defines `Config` and `cycles`.

    `auto_dtype` is the compute dtype for forward_dtype=auto, `attention` one of auto, sdpa, math, flash. With float64
    compute the parameters are float64 too. Raises ValueError if the config does not fit the shape.
    """

    Config: ClassVar[type[RecursiveConfig]]
    Inner: ClassVar[type[RecursiveInner]] = RecursiveInner
    readout: ClassVar[str] = "z_H"
    """Name of the latent that the output heads read."""

    def __init__(
        self,
        config: Any,
        shape: PuzzleShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        plan, window = self.cycles(config)
        dtype = compute_dtype(config.forward_dtype, auto_dtype)
        inner = self.Inner(
            config, shape, plan=plan, window=window, dtype=dtype, attention=attention, readout=self.readout
        )
        super().__init__(
            inner,
            halt_max_steps=config.halt_max_steps,
            halt_exploration_prob=config.halt_exploration_prob,
            no_ACT_continue=config.no_ACT_continue,
            eval_halting=config.eval_halting,
        )
        self.config, self.shape = config, shape
        stages = [(float(s[0]), int(s[1]), int(s[2])) for s in config.cycles_schedule or ()]
        self._stages = [
            (start, self.cycles(replace(config, L_cycles=low, H_cycles=high, cycles_schedule=None)))
            for start, low, high in stages
        ]
        self._full_depth, self._progress = (inner.plan, inner.window), 0.0
        if dtype == torch.float64:
            self.double()

    def set_progress(self, share: float) -> None:
        """Set the depth that `cycles_schedule` has at this share of the run, 0 to 1."""
        self._progress = share
        self._update_depth()

    def train(self, mode: bool = True) -> Self:
        """As nn.Module. Evaluation always runs at full depth."""
        super().train(mode)
        self._update_depth()
        return self

    def _update_depth(self) -> None:
        started = [stage for stage in self._stages if self.training and stage[0] <= self._progress]
        self.inner.plan, self.inner.window = started[-1][1] if started else self._full_depth

    @property
    def depth(self) -> Depth:
        """The full depth, whatever the current stage of training."""
        return self._full_depth

    @property
    def stages(self) -> list[tuple[float, Depth]]:
        """The stages of `cycles_schedule`, or one stage at full depth."""
        return self._stages or super().stages

    @property
    def late_states(self) -> tuple[float, list[int]]:
        """(probability that a training step has late states, numbers of extra ACT steps to draw from)."""
        return self.config.late_states, self.config.late_steps

    @staticmethod
    def cycles(config: Any) -> Depth:
        """The plan of one ACT step, and how many of its last updates carry a gradient."""
        raise TypeError("a model of this family defines cycles(config)")
