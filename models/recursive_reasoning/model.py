"""A model of the family: a config, an order of updates, and the ACT wrapper around what they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch

from models.recursive_reasoning.act import ACTModel, PuzzleShape
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import RecursiveInner
from models.recursive_reasoning.pretrained import Pretrained
from models.recursive_reasoning.recursion import Depth


class RecursiveModel(ACTModel, Pretrained):
    """`Model(config, shape)`; builds under `torch.device("meta")`. Raises ValueError for a shape that the config
    does not fit.

    `auto_dtype` is the compute dtype of forward_dtype=auto, `attention` one of auto, sdpa, math, flash. A subclass
    gives `Config` and `cycles`; float64 compute makes the parameters float64 too.
    """

    Config: ClassVar[type[RecursiveConfig]]
    Inner: ClassVar[type[RecursiveInner]] = RecursiveInner
    readout: ClassVar[str] = "z_H"
    """The latent that the output heads read."""

    def __init__(
        self,
        config: Any,
        shape: PuzzleShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        updates, window = self.cycles(config)
        dtype = config.compute_dtype(auto_dtype)
        inner = self.Inner(
            config, shape, plan=updates, window=window, dtype=dtype, attention=attention, readout=self.readout
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
            (begins, self.cycles(replace(config, L_cycles=low, H_cycles=high, cycles_schedule=None)))
            for begins, low, high in stages
        ]
        self._full, self._progress = (inner.plan, inner.window), 0.0
        if dtype == torch.float64:
            self.double()

    def set_progress(self, share: float) -> None:
        """Training has come to this share of the run, 0 to 1: it goes as deep as `cycles_schedule` has it there."""
        self._progress = share
        self._choose_depth()

    def train(self, mode: bool = True) -> Self:
        """As nn.Module; evaluations are always at full depth."""
        super().train(mode)
        self._choose_depth()
        return self

    def _choose_depth(self) -> None:
        begun = [stage for stage in self._stages if self.training and stage[0] <= self._progress]
        self.inner.plan, self.inner.window = begun[-1][1] if begun else self._full

    @property
    def depth(self) -> Depth:
        """As ACTModel; whatever the depth of training is at present."""
        return self._full

    @property
    def stages(self) -> list[tuple[float, Depth]]:
        """As ACTModel: those of `cycles_schedule`, or the whole run at full depth."""
        return self._stages or super().stages

    @property
    def late_states(self) -> tuple[float, list[int]]:
        """Probability that a training step has `late_steps`, and the numbers that are drawn from."""
        return self.config.late_states, self.config.late_steps

    @staticmethod
    def cycles(config: Any) -> Depth:
        """(the updates of one ACT step in order, how many of the last ones carry a gradient)."""
        raise TypeError("a model of this family defines cycles(config)")
