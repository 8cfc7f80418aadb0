"""Learning rates that optimizers want, as far as they differ from AdamW's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.errors import UsageError
from engine.io import print_rank0
from engine.optim import build_optimizer

RATE_FINDERS = ("prodigy", "dadapt")
"""How the names of optimizers begin that estimate the learning rate."""
USUAL_RATES = {"sgd": 5e-2, "adagrad": 1e-2, "adafactor": 1e-2, "shampoo": 1e-2}
"""Of optimizers that hardly move at AdamW's."""


def check_optimizer(name: str, options: Mapping[str, Any], learning_rate: float) -> None:
    """Build it over a toy, and say where the learning rate is far below what it wants.

    Raises:
        UsageError: an optimizer, or an option of it, that there is not; one that learns nothing at this rate.
    """
    build_optimizer(name, {"toy": nn.Parameter(torch.zeros(4, 3))}, learning_rate, options)
    inner = str(options.get("inner", "adamw")) if name == "lookahead" else name
    if inner.startswith(RATE_FINDERS) and learning_rate < 0.1:
        raise UsageError(
            f"optimizer {inner} finds the learning rate itself and takes learning_rate as a factor on it: set "
            f"learning_rate=1 (it is {learning_rate:g})"
        )
    usual = USUAL_RATES.get(inner, 0.0)
    if learning_rate < usual / 3:
        print_rank0(f"note: {inner} usually wants a learning_rate near {usual:g}; it is {learning_rate:g}")
