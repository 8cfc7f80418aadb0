"""Probe of several ranks (DYN717): a pair of gloo ranks on this machine is compared with one process.

The ranks are forked, so that they run the code that this process has imported; they use torch with one thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from engine.distributed import shutdown, world_size
from engine.signals import leave_to_parent
from verification.probes.instance import Tiny, Unobservable, fit, set_halting
from verification.probes.registry import probe

RANKS = 2
STEPS = 3
TOLERANCE = 1e-5
"""Largest difference of a gradient, relative to the largest entry of the parameter's gradient."""
TIME_LIMIT_S = 60


@dataclass
class Seen:
    """The observations of one process, in numpy: torch would send tensors in files that end with their process."""

    gradients: list[dict[str, np.ndarray]]
    """The gradients that the optimizers get, for each step, without updates."""
    after: dict[str, np.ndarray]
    """Parameters and buffers after STEPS optimizer steps."""


@probe("DYN717")
def ranks(tiny: Tiny) -> Iterator[str]:
    """Compare the gradients of three steps without updates, and the weights after three steps with updates."""
    if sys.platform != "linux":
        raise Unobservable("ranks are forked, which torch allows on Linux only")
    alone, pair = watch(tiny), _fork(tiny)
    if stopped := [f"rank {number} stopped with {seen}" for number, seen in pair.items() if isinstance(seen, str)]:
        yield "; ".join(stopped)
        return
    for number, seen in pair.items():
        for step, (mine, theirs) in enumerate(zip(alone.gradients, seen.gradients, strict=True), 1):
            if far := {name: apart for name in mine if (apart := _distance(mine[name], theirs.get(name))) > TOLERANCE}:
                name = max(far, key=lambda key: far[key])
                yield (
                    f"step {step}: rank {number} of two has another gradient than one process for {len(far)} of "
                    f"{len(mine)} parameters, most of all {name} (by {far[name]:.1g} of its largest entry)"
                )
                break
    if differ := [name for name, value in pair[0].after.items() if not np.array_equal(value, pair[1].after[name])]:
        yield f"after {STEPS} steps the two ranks hold different {', '.join(differ[:4])}"


def _distance(one: np.ndarray, other: np.ndarray | None) -> float:
    if other is None:
        return float("inf")
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12)) if one.size else 0.0


def watch(tiny: Tiny) -> Seen:
    """Run the steps in this process, as the rank that it is."""
    gradients: list[dict[str, np.ndarray]] = []
    _fit(tiny, gradients, still=True)
    module = _fit(tiny, [], still=False)
    return Seen(gradients, {name: value.numpy() for name, value in module.state_dict().items()})


def _fit(tiny: Tiny, gradients: list[dict[str, np.ndarray]], *, still: bool) -> Any:
    """Run STEPS steps of the real trainer, with updates scaled to 0 if `still`. Returns the model."""
    run = {"accumulation": 1, "max_steps": STEPS, **tiny.spec.rows(world_size())}
    # no dropout: its masks depend on the rows of each process
    no_dropout: dict[str, Any] = {key: 0.0 for key in tiny.arch if key.endswith("dropout")}
    plan = replace(tiny.build(run=run, **no_dropout), final_eval=False, eval_steps=frozenset())
    module = plan.task.module
    if still:
        plan = replace(plan, schedule=lambda step: 0.0)
        with contextlib.suppress(Unobservable):  # a model without a halting head
            set_halting(module, halt=True)  # so that exploration decides who gets a fresh example

    def watch() -> None:
        grads = {name: param.grad for name, param in module.named_parameters()}
        gradients.append({name: grad.numpy().copy() for name, grad in grads.items() if grad is not None})

    fit(plan, tiny.config(run), watch)
    return module


# --- the pair ---------------------------------------------------------------------------------------------------------


def _fork(tiny: Tiny) -> dict[int, Any]:
    """Rank -> its observations, or why it stopped; the other ranks, which would wait for it, are then killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []
    pending: dict[Any, int] = {}
    answers: dict[int, Any] = {}
    for number in range(RANKS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(tiny, number, port, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pending[ours] = number
    while pending:
        ready = wait(list(pending), TIME_LIMIT_S)
        for answer in ready:
            number = pending.pop(answer)
            try:
                answers[number] = answer.recv()  # type: ignore[union-attr,call-arg]
            except EOFError:
                answers[number] = "no answer"
        if not ready:
            answers |= {number: f"no answer within {TIME_LIMIT_S} s" for number in pending.values()}
        if any(isinstance(seen, str) for seen in answers.values()):
            break
    for process in processes:
        process.join(0 if pending else 5)
        process.kill()
        process.join()
    return dict(sorted(answers.items()))


def _rank(tiny: Tiny, number: int, port: int, answer: Connection) -> None:
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    leave_to_parent()
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        seen: Any = watch(tiny)
    except Exception as error:
        seen = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    answer.send(seen)
    answer.close()
    with contextlib.suppress(RuntimeError):  # the other rank may have exited already
        shutdown()
