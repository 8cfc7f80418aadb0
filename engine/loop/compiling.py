"""torch.compile for a task: in place, so that names in checkpoints and the modules that others hold stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.config import RunConfig
from engine.errors import UsageError
from engine.io import print_rank0
from engine.task import Task

BACKEND = "inductor"
VARIANTS = 64  # a block is compiled for each of: gradients or none, kind of inputs, rows of a batch


class _Scope:
    """Compiled blocks are for training steps and evaluations. Sampling, where every token has a length of its own,
    would compile for each and use up what dynamo allows, so it calls the same blocks as they are."""

    def __init__(self) -> None:
        self.inside = False

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            before, self.inside = self.inside, True
            try:
                return function(*args, **named)
            finally:
                self.inside = before

        return call

    def choose(self, fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs, **named: (fast if self.inside else plain)(*inputs, **named)


def compile_task(task: Task, config: RunConfig, device: torch.device) -> None:
    """Compile by `config.compile`: off, block (each of `task.module.blocks()`), full (`task.loss`).

    Only rounding and speed depend on it, so without a compiler there is a warning, and training runs uncompiled.

    Raises:
        UsageError: the model names no blocks.
    """
    if config.compile == "off":
        return
    model: Any = task.module
    blocks = model.blocks() if hasattr(model, "blocks") else []
    if config.compile == "block" and not blocks:
        raise UsageError("compile=block: this model names no blocks to compile, use compile=full or compile=off")
    options: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    if (reason := compiler_fault(device, options)) is not None:
        print_rank0(
            f"warning: compile={config.compile} found no working compiler ({reason}), so nothing is compiled; install "
            "g++ and the Python headers (CUDA: Triton)"
        )
        return
    limits = torch._dynamo.config
    # blocks that are not alike share one limit, that of their common code
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS * max(1, len(blocks)))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    if config.compile == "full":
        task.loss = torch.compile(task.loss, **options)  # type: ignore[method-assign]
        print_rank0("compile     the whole loss; the first steps take longer")
        return
    scope = _Scope()
    for block in blocks:
        block.forward = scope.choose(torch.compile(block.forward, **options), block.forward)
    task.loss = scope.within(task.loss)  # type: ignore[method-assign]
    task.evaluate = scope.within(task.evaluate)  # type: ignore[method-assign]
    print_rank0(f"compile     {len(blocks)} block(s); the first steps and the first evaluation take longer")


def compiler_fault(device: torch.device, options: dict[str, Any]) -> str | None:
    """Compile one small function: why it cannot be done here, or None."""
    try:
        torch.compile(lambda x: torch.nn.functional.silu(x) + 1, **options)(torch.ones(8, device=device))
    except Exception as error:  # what a backend raises is its own affair, and of many types
        cause = getattr(error, "inner_exception", error)
        return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
    return None
