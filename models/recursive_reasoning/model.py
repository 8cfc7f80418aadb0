"""A model of the family: a config, an order of updates, and the ACT wrapper around what they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from models.recursive_reasoning.act import ACTModel, PuzzleShape
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.inner import RecursiveInner
from models.recursive_reasoning.pretrained import Pretrained
from models.recursive_reasoning.recursion import Update


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
        if dtype == torch.float64:
            self.double()

    @staticmethod
    def cycles(config: Any) -> tuple[Sequence[Update], int]:
        """(the updates of one ACT step in order, how many of the last ones carry a gradient)."""
        raise TypeError("a model of this family defines cycles(config)")
