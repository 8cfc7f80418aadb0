"""torch's optimizers and torch.manual_seed without torch._dynamo.

At their first call they import it, which takes seconds, to keep torch.compile out of what is never compiled here. These
two call what lies under those wrappers; where a future torch has other wrappers, it is imported as ever.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


def keep_dynamo_out() -> None:
    """Let torch.manual_seed and what all optimizers share run as they are: torch asks for this attribute first."""
    for function in (torch.manual_seed, *vars(torch.optim.Optimizer).values()):
        if (bare := getattr(function, "__wrapped__", None)) is not None:
            bare.__dict__.setdefault("__dynamo_disable", bare)


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """`optimizer.step`, of torch's own classes the function under the wrappers: call it without gradients."""
    own = type(optimizer).__module__.startswith("torch.optim.")
    return inspect.unwrap(type(optimizer).step).__get__(optimizer) if own else optimizer.step
