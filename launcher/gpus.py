"""GPUs: how many a command needs, which are visible, and which ones a job of a sweep gets."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from engine.cli.resolve import resolve
from engine.errors import UsageError
from engine.io import file_lock
from engine.registry import FAMILIES, ROOT
from launcher.command import Command, parse

NO_DEVICE = ("device=cpu", "--device=cpu", "--use_cpu")


@functools.cache
def gpus_needed(words: tuple[str, ...], pool: int, cwd: Path) -> int:
    """GPUs that a command needs: none on the CPU, torchrun's --nproc-per-node (`gpu`, `auto`: `pool`), else one."""
    command = parse(words)
    if _on_cpu(command, cwd):
        return 0
    ranks = command.flags.get("nproc-per-node", "1")
    return int(ranks) if ranks.isdigit() else pool


def _on_cpu(command: Command, cwd: Path) -> bool:
    """Whether an entry script of ours runs with device=cpu, by the command or its recipe; for another program, whether
    its words request it.
    """
    script = (cwd / (command.script or "")).resolve()
    if script in (ROOT / f"{entry}.py" for entry in FAMILIES):
        return (resolve(script, command.arguments, root=ROOT, cwd=cwd).resolved or {}).get("device") == "cpu"
    words = command.arguments
    return any(word in NO_DEVICE for word in words) or ("--device", "cpu") in itertools.pairwise(words)


def gpu_names(text: str) -> tuple[str, ...]:
    """An argparse type: `0,1,2,3`."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different GPUs such as 0,1,2,3")
    return names


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by number or as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [str(number) for number, _ in enumerate(line for line in listed if line.startswith("GPU "))]


def hold_gpus(gpus: Sequence[str], number: int, count: int, folder: Path, stack: ExitStack) -> list[str]:
    """`count` of `gpus` for job `number`: first those that no other job holds, in turn from the job's number on, then
    shared ones.

    They are held by locks in `folder` until `stack` exits.
    """
    order = [gpus[(number * count + i) % len(gpus)] for i in range(len(gpus))]
    held: list[str] = []
    for gpu in order:
        if len(held) < count:
            try:
                stack.enter_context(file_lock(folder / f".gpu-{gpu}" / "lock", wait=False))
            except UsageError:  # another job holds it
                continue
            held.append(gpu)
    return sorted([*held, *(gpu for gpu in order if gpu not in held)][:count], key=order.index)
