"""An ordered parallel map over processes for builders."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from engine.io import RunFailure, leave_to_parent

J = TypeVar("J")
R = TypeVar("R")


def _work(function: Callable[[Any], Any], jobs: Sequence[Any], out: Connection, others: list[Connection]) -> None:
    # A forked child inherits the reading ends; while it holds them, no sibling notices that the parent has died.
    for connection in others:
        connection.close()
    leave_to_parent()
    try:
        for job in jobs:
            out.send((None, function(job)))
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        out.send((error, None))


def ordered_map(function: Callable[[J], R], jobs: Sequence[J], *, workers: int) -> Iterator[R]:
    """`map(function, jobs)` over `workers` processes, results in the order of the jobs.

    Worker w takes jobs w, w + workers, …. Each has its own pipe, so that a killed parent ends them all (their next send
    fails); workers of a shared pool would wait forever. An exception in `function` is raised here.

    Raises: RunFailure if a worker dies without a message (killed, out of memory).
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # fork spares each worker the imports of the launching script; the children use neither torch nor CUDA
    context: Any = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    forked = context.get_start_method() == "fork"
    readers: list[Connection] = []
    processes = []
    try:
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            inherited = list(readers) if forked else []
            process = context.Process(
                target=_work, args=(function, jobs[worker::workers], writer, inherited), daemon=True
            )
            process.start()
            writer.close()
            processes.append(process)
        for number in range(len(jobs)):
            try:
                error, result = readers[number % workers].recv()
            except EOFError:
                raise RunFailure("a build worker died without a message: out of memory? try --workers 1") from None
            if error is not None:
                raise error
            yield result
    finally:
        for process in processes:
            # not terminate: a forked child may have inherited a SIGTERM handler that only sets a flag
            process.kill()
        for process in processes:
            process.join()
        for reader in readers:
            reader.close()
