"""torch.compile for a task: in place, so that names in checkpoints and the modules that others hold stay the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from engine.config import RunConfig
from engine.errors import UsageError
from engine.io import print_rank0
from engine.task import Task

BACKEND = "inductor"
VARIANTS = 64  # a block is compiled for each of: gradients or none, kind of inputs, rows of a batch
REPAID = {"block": 1_000, "full": 10_000}
"""Steps from which `auto` compiles. Measured on one H100: warm-up 13 s (block) and 58 to 83 s (full); a step of 512
wide models gains 30 to 90 ms, one of small models 3 to 4 ms."""
REPAID_SECONDS = {"block": 60, "full": 350}
"""Seconds of `max_seconds`, to which the warm-up counts, from which `auto` compiles: warm-up x r / (r - 1) where steps
become r times as fast. By the same measurements 22 to 100 s (r from 2.4 down to 1.15), and 350 s (r 1.31)."""


def choose_mode(asked: str, *, device: str, suits: str | None, steps: int, seconds: float | None) -> tuple[str, str]:
    """What `compile=asked` stands for in a run with `steps` and a budget of `seconds` left, and why it is off in words
    ("" where that goes without saying). `suits` is what the task declares (engine/task.py), None where it declares
    nothing."""
    if asked != "auto":
        return asked, ""
    if device != "cuda":
        return "off", ""
    if os.environ.get("DISABLE_COMPILE"):
        return "off", "DISABLE_COMPILE is set"
    if suits is None:
        return "off", "auto compiles only what has the same shapes at every step"
    if steps < REPAID[suits]:
        return "off", f"{steps:,} steps do not repay the warm-up ({REPAID[suits]:,} would); compile={suits} compiles"
    if seconds is not None and seconds < (least := REPAID_SECONDS[suits]):
        left = f"{seconds:.4g} s left of max_seconds"
        return "off", f"{left} do not repay the warm-up ({least} would); compile={suits} compiles"
    return suits, ""


class _Switch:
    """Compiled functions run inside the loss of a training step, and only as long as the compiler can cope. Elsewhere
    the same functions run as they are written: sampling, where every token has a length of its own, and evaluation,
    whose batches have other sizes, would compile again and again and use up what dynamo allows to training."""

    def __init__(self, task: Any, mode: str, options: dict[str, Any]) -> None:
        self.task = task
        self.task.compiled = mode  # what runs, for those who report it
        self.mode, self.options = mode, options
        self.inside, self.working, self.warm = False, True, False

    def within(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            began, self.inside = time.perf_counter(), True
            try:
                return loss(*inputs)
            finally:
                self.inside = False
                if not self.warm and self.working:
                    seconds = time.perf_counter() - began
                    print_rank0(
                        f"compile     {self.mode}: the first loss took {seconds:.0f} s; gradients compile after that"
                    )
                self.warm = True

        return call

    def choose(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        fast = torch.compile(plain, **self.options)

        def call(*inputs: Any, **named: Any) -> Any:
            if self.inside and self.working:
                try:
                    return fast(*inputs, **named)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self.working, self.task.compiled = False, "off"
                    print_rank0(
                        f"warning: compile={self.mode} failed ({_reason(error)}), training continues uncompiled"
                    )
            return plain(*inputs, **named)

        return call


def compile_task(task: Task, config: RunConfig, device: torch.device, *, steps: int, spent: float = 0.0) -> str:
    """Compile by `config.compile` for a run with `steps` left: off, block (each of `task.module.blocks()`), full
    (`task.loss`). `spent` are the seconds of `max_seconds` that earlier processes of the run took. Returns the mode
    that runs.

    Only rounding and speed depend on it, so without a compiler there is a warning, and training runs uncompiled.

    Raises:
        UsageError: the model names no blocks.
    """
    model: Any = task.module
    blocks = model.blocks() if hasattr(model, "blocks") else []
    suits = getattr(task, "compiles", None)
    if suits is not None and config.parallel == "fsdp":
        suits = "block"
    left = None if config.max_seconds is None else max(0.0, config.max_seconds - spent)
    mode, why = choose_mode(config.compile, device=device.type, suits=suits, steps=steps, seconds=left)
    if mode == "block" and not blocks:
        if config.compile == "block":
            raise UsageError("compile=block: this model names no blocks to compile, use compile=full or compile=off")
        mode, why = "off", "this model names no blocks to compile"
    if mode == "off":
        if why:
            print_rank0(f"compile     off: {why}")
        return mode
    options: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    if (reason := compiler_fault(device, options)) is not None:
        print_rank0(
            f"warning: compile={config.compile} found no working compiler ({reason}), so nothing is compiled; install "
            "g++ and the Python headers (CUDA: Triton)"
        )
        return "off"
    limits = torch._dynamo.config
    # blocks that are not alike share one limit, that of their common code
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS * max(1, len(blocks)))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    switch = _Switch(task, mode, options)
    if mode == "full":
        task.loss = switch.within(switch.choose(task.loss))  # type: ignore[method-assign]
        print_rank0("compile     the whole loss; the first step takes a minute or two")
        return mode
    for block in blocks:
        block.forward = switch.choose(block.forward)
    task.loss = switch.within(task.loss)  # type: ignore[method-assign]
    print_rank0(f"compile     {len(blocks)} block(s); the first step takes some seconds more for each")
    return mode


def compiler_fault(device: torch.device, options: dict[str, Any]) -> str | None:
    """Compile one small function: why it cannot be done here, or None."""
    try:
        torch.compile(lambda x: torch.nn.functional.silu(x) + 1, **options)(torch.ones(8, device=device))
    except Exception as error:  # what a backend raises is its own affair, and of many types
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
