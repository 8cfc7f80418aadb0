"""torch.compile for a task, in place: names in checkpoints and references to modules stay the same."""

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
VARIANTS = 64  # a block is compiled for each combination of grad mode, kind of inputs and batch rows
MIN_STEPS = {"block": 1_000, "full": 10_000}
"""Steps left from which `auto` compiles. Measured on one H100: warm-up 13 s (block) and 58 to 83 s (full); a step of
models of width 512 gains 30 to 90 ms, of small models 3 to 4 ms."""
MIN_SECONDS = {"block": 60, "full": 350}
"""Seconds left of `max_seconds`, which includes the warm-up, from which `auto` compiles: warm-up x r / (r - 1) if steps
become r times as fast. By the same measurements 22 to 100 s (r from 2.4 down to 1.15), and 350 s (r 1.31)."""


def choose_mode(setting: str, *, device: str, suits: str | None, steps: int, seconds: float | None) -> tuple[str, str]:
    """Resolve `compile=setting` for a run with `steps` and a budget of `seconds` left: (mode, the reason why it is off,
    "" where none is needed). `suits` is the mode that the task declares (engine/task.py), None if it declares none."""
    if setting != "auto":
        return setting, ""
    if device != "cuda":
        return "off", ""
    if os.environ.get("DISABLE_COMPILE"):
        return "off", "DISABLE_COMPILE is set"
    if suits is None:
        return "off", "auto compiles only what has the same shapes at every step"
    if steps < MIN_STEPS[suits]:
        return "off", f"{steps:,} steps do not repay the warm-up ({MIN_STEPS[suits]:,} would); compile={suits} compiles"
    if seconds is not None and seconds < (least := MIN_SECONDS[suits]):
        left = f"{seconds:.4g} s left of max_seconds"
        return "off", f"{left} do not repay the warm-up ({least} would); compile={suits} compiles"
    return suits, ""


class _CompileInLoss:
    """Compiled functions run only inside the loss of a training step, and until compilation fails once. Elsewhere the
    same functions run eagerly: sampling (every token has another length) and evaluation (other batch sizes) would
    recompile again and again and exhaust dynamo's recompile limit, which training needs."""

    def __init__(self, task: Any, mode: str, options: dict[str, Any]) -> None:
        self.task = task
        self.task.compiled = mode  # the mode that runs, for reports
        self.mode, self.options = mode, options
        self.in_loss, self.working, self.warm = False, True, False

    def wrap_loss(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            start, self.in_loss = time.perf_counter(), True
            try:
                return loss(*inputs)
            finally:
                self.in_loss = False
                if not self.warm and self.working:
                    seconds = time.perf_counter() - start
                    print_rank0(
                        f"compile     {self.mode}: the first loss took {seconds:.0f} s; gradients compile after that"
                    )
                self.warm = True

        return call

    def compile(self, eager: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(eager, **self.options)

        def call(*inputs: Any, **named: Any) -> Any:
            if self.in_loss and self.working:
                try:
                    return compiled(*inputs, **named)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self.working, self.task.compiled = False, "off"
                    print_rank0(
                        f"warning: compile={self.mode} failed ({_reason(error)}), training continues uncompiled"
                    )
            return eager(*inputs, **named)

        return call


def compile_task(task: Task, config: RunConfig, device: torch.device, *, steps: int, spent: float = 0.0) -> str:
    """Compile as `config.compile` says, for a run with `steps` left: off, block (each of `task.module.blocks()`), full
    (`task.loss`). `spent`: seconds of `max_seconds` that earlier processes of the run took. Returns the mode that runs.

    It changes only speed and rounding, so without a working compiler training runs uncompiled, with a warning.

    Raises:
        UsageError: compile=block, and the model names no blocks.
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
    # different blocks share one limit, that of their common code
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS * max(1, len(blocks)))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    wrapper = _CompileInLoss(task, mode, options)
    if mode == "full":
        task.loss = wrapper.wrap_loss(wrapper.compile(task.loss))  # type: ignore[method-assign]
        print_rank0("compile     the whole loss; the first step takes a minute or two")
        return mode
    for block in blocks:
        block.forward = wrapper.compile(block.forward)
    task.loss = wrapper.wrap_loss(task.loss)  # type: ignore[method-assign]
    print_rank0(f"compile     {len(blocks)} block(s); the first step takes some seconds more for each")
    return mode


def compiler_fault(device: torch.device, options: dict[str, Any]) -> str | None:
    """Compile one small function; return why that fails here, or None."""
    try:
        torch.compile(lambda x: torch.nn.functional.silu(x) + 1, **options)(torch.ones(8, device=device))
    except Exception as error:  # backends raise errors of many types
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:160]}"
