"""Ranks, collectives and keyed random numbers.

Collectives are the identity in a single process, so callers never branch on the number of ranks.
The batch layout is one rule: row i of the global batch always has slot i, rank r holds the contiguous rows
[r * B / W, (r + 1) * B / W), and its micro-batches are contiguous slices of those. B global rows, W ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from engine.errors import RankLost, RunFailure, UsageError, disk_fault

if TYPE_CHECKING:
    import torch

R = TypeVar("R")
# What gloo and nccl report when a peer process is gone.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Connection refused", "recvValue")


def rank() -> int:
    """This process's number among all ranks (torchrun's RANK; 0 without torchrun)."""
    return int(os.environ.get("RANK") or 0)


def world_size() -> int:
    """How many processes train together (torchrun's WORLD_SIZE; 1 without torchrun)."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """This process's number on its machine, which is its GPU's number."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def is_main() -> bool:
    """True on the one rank that writes files and prints."""
    return rank() == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process: the shell then sees torchrun's exit code 1, whatever ours is."""
    return world_size() > 1 or "TORCHELASTIC_RUN_ID" in os.environ


def initialise(timeout_minutes: float = 30.0) -> None:
    """Join the process group: gloo for CPU tensors, and nccl for CUDA tensors if there is CUDA.

    Does nothing in a single process or when called again; the collectives below call it on first use.
    """
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    store, number, ranks = next(dist.rendezvous("env://", timeout=timeout))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        store = dist.PrefixStore(_agree_on_prefix(store, number, ranks), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=ranks, timeout=timeout)


def _agree_on_prefix(store: Any, number: int, ranks: int) -> str:
    """A key prefix that no earlier start of these ranks has used: torchrun's agents keep one store over all restarts,
    in which a restarted rank would find the addresses of dead processes.

    Every rank writes a fresh name. Rank 0 publishes the list of names until all ranks have signed the same list, so
    that the name of a dead process, which signs nothing, is replaced before any rank proceeds.
    """
    name = uuid.uuid4().hex
    store.set(f"life/{number}", name)
    signed = ""
    while True:
        if number == 0:
            names = ",".join(store.get(f"life/{i}").decode() for i in range(ranks))
            store.set("lives", names)
            if all(
                store.check([f"signed/{i}"]) and store.get(f"signed/{i}").decode() == names for i in range(1, ranks)
            ):
                store.set("begin", names)
                return names
        else:
            names = store.get("lives").decode()
            if name in names and names != signed:
                store.set(f"signed/{number}", names)
                signed = names
            if store.check(["begin"]) and name in (begun := str(store.get("begin").decode())):
                return begun
        time.sleep(0.01)


def lost_rank(error: BaseException) -> RankLost | None:
    """`error` as `RankLost` if it means that another rank is gone, else None."""
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
        return RankLost("another rank stopped, so this one stops too: the other rank's message gives the reason")
    return None


def should_report(error: BaseException, code: int) -> bool:
    """Whether this rank should print its line about `error`; a rank that should not may exit here with `code`.

    Under torchrun all ranks refuse with the same error, and rank 0 prints it: the others wait for torchrun to stop
    them, as it does once rank 0 is gone. If it does not, the error was only theirs.
    """
    if not isinstance(error, Exception):
        return is_main()  # a signal: all ranks stop
    patience_s = 20.0 if isinstance(error, RankLost) else 10.0 if isinstance(error, UsageError) and not is_main() else 0
    if patience_s and "TORCHELASTIC_RUN_ID" in os.environ:
        if is_main():  # print now: the lost rank may itself be waiting here
            sys.stderr.write(f"error: {error}\n")
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
        time.sleep(patience_s)
        return not is_main()
    return True


def report_to_launcher(error: BaseException, line: str | None) -> None:
    """Write `line`, or the traceback if None, to torchrun's error file, which torchrun's final summary shows."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None or not isinstance(error, Exception) or isinstance(error, RankLost):
        return
    shown = f"error: {line}" if line else "".join(traceback.format_exception(error))
    content = {"message": str(error), "extraInfo": {"py_callstack": shown, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": content}), encoding="utf-8")


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Raises: RankLost, instead of the transport's error, if another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        if (lost := lost_rank(error)) is not None:
            raise lost from error
        raise


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _single_process() -> bool:
    if world_size() == 1:
        return True
    initialise()
    return False


@_collective()
def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank (any small picklable object)."""
    if _single_process():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(work: Callable[[], R]) -> R:
    """Call `work` on rank 0; return its result, or raise its error, on every rank, so that none waits for a failed one.

    On ranks other than 0 the error is a plain `UsageError` or `RunFailure` with the same text.
    """
    if world_size() == 1:
        return work()
    failure: BaseException | None = None
    outcome: tuple[type[UsageError | RunFailure] | None, Any] = (None, None)
    if is_main():
        try:
            outcome = (None, work())
        except (UsageError, RunFailure, OSError) as error:
            failure = disk_fault(error) or error
            if isinstance(failure, OSError):
                raise
            outcome = (UsageError if isinstance(failure, UsageError) else RunFailure, str(failure))
    kind, value = broadcast_object(outcome)
    if kind is not None:
        raise failure or kind(value)
    result: R = value
    return result


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. A collective."""
    import torch

    return bool(all_reduce_sum(torch.tensor(float(flag))) > 0)


class Polls:
    """Chooses the steps at which ranks communicate what should not delay every step (whether to stop, e.g.): about one
    per second, from the mean step time over ranks, so that all choose the same; a single process: every step."""

    EVERY_S, MOST = 1.0, 50

    def __init__(self) -> None:
        self._next = self._step = 0
        self._seconds = 0.0

    def due(self, step: int, seconds: float) -> bool:
        """Whether to poll after `step`, when this rank has trained for `seconds`. A collective: all ranks call it at
        the same steps."""
        if world_size() == 1:
            return True
        if step < self._next:
            return False
        import torch

        pace = (seconds - self._seconds) / max(1, step - self._step)  # seconds per step on this rank
        mean = float(all_reduce_sum(torch.tensor(pace, dtype=torch.float64))) / world_size()
        self._next = step + max(1, min(self.MOST, int(self.EVERY_S / max(mean, 1e-9))))
        self._step, self._seconds = step, seconds
        return True


@_collective()
def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over ranks in place and return it."""
    if not _single_process():
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


@_collective()
def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate every rank's rows [n, ...] to [W * n, ...] in rank order (all ranks give the same n)."""
    if _single_process():
        return tensor
    import torch
    import torch.distributed as dist

    # Booleans are sent as bytes: not every backend gathers them.
    wire = tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor.contiguous()
    parts = [torch.empty_like(wire) for _ in range(world_size())]
    dist.all_gather(parts, wire)
    return torch.cat(parts).to(tensor.dtype)


def local_rows(rows: int) -> tuple[int, int]:
    """The half-open range of this rank's rows among the `rows` of the global batch."""
    share = rows // world_size()
    return rank() * share, (rank() + 1) * share


# --- keyed random numbers ---------------------------------------------------------------------------------------------
# Data order, halting, noise and sampling use no generator with hidden state: each draw is keyed by (seed, purpose,
# step), so a resumed run, and any number of ranks, sees the same numbers without storing anything.


def _key(seed: int, purpose: str, step: int) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class _PhiloxKey(int, ISeedSequence):
    """The key of a Philox stream in the place of a seed: `Philox(key=)` takes three times as long, since it first
    gathers entropy of the system, which it then drops."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.array([self, 0], dtype)


def keyed_numpy(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """A fresh numpy generator that depends only on the three keys."""
    return np.random.Generator(np.random.Philox(_PhiloxKey(_key(seed, purpose, step))))


def keyed_generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A fresh torch CPU generator that depends only on the three keys (draw on CPU, then copy: same numbers)."""
    import torch

    return torch.Generator().manual_seed(_key(seed, purpose, step))


def key_global_draws(seed: int, purpose: str, step: int) -> None:
    """Seed torch's global generators, of the processor and the devices in use, by the three keys: for dropout and
    optimizers that draw. The draws are those after `torch.manual_seed`, which takes about a millisecond on a CPU: it
    records the stack for every kind of device that is not in use."""
    import torch

    key = _key(seed, purpose, step)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(key)
