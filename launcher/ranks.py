"""The number and placement of a command's processes, as torchrun arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UsageError
from launcher.command import SWITCHES, parse

PORT = 29400
PLACEMENT = frozenset(("nproc-per-node", "nnodes", "node-rank", "standalone", "master-addr", "master-port")) | {
    "rdzv-backend",
    "rdzv-endpoint",
    "rdzv-id",
}
"""torchrun's flags for number and placement of processes, which are replaced; others are kept."""


@dataclass(frozen=True)
class Ranks:
    """Processes per node, number of nodes, and which node this is."""

    per_node: str
    """a number, or torchrun's `gpu`, `cpu`, `auto`"""
    nodes: int = 1
    node: int = 0
    """this node's number; node 0 has rank 0, which writes"""
    head: str = "HOST"
    """HOST or HOST:PORT of node 0, as the others reach it; an IPv6 address in brackets"""

    def words(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command with these ranks. Raises: UsageError for one not started by python or torchrun."""
        command = parse(tuple(argv))
        target = [command.script] if command.script else ["-m", command.module] if command.module else []
        if command.launcher not in ("python", "torchrun") or not (target or command.arguments):
            raise UsageError(
                f"{shlex.join(argv)[:80]}: ranks are for one program: expected python SCRIPT.py ... or torchrun ..."
            )
        own = command.flags if command.launcher == "torchrun" else {}
        kept = [_flag(name, value) for name, value in own.items() if name not in PLACEMENT]
        return ("torchrun", *self._flags(), *kept, *map(str, target), *command.arguments)

    def _flags(self) -> list[str]:
        each = f"--nproc-per-node={self.per_node}"
        if self.nodes == 1:
            return ["--standalone", each]
        host, colon, port = self.head.rpartition(":")
        if not colon or "]" in port:
            host, port = self.head, str(PORT)
        rendezvous = [f"--master-addr={host.strip('[]')}", f"--master-port={port}"]
        return [f"--nnodes={self.nodes}", f"--node-rank={self.node}", each, *rendezvous]


def ranks_of(argv: Sequence[str]) -> str:
    """Processes per node according to the command itself: `1` without torchrun."""
    command = parse(tuple(argv))
    return command.flags.get("nproc-per-node", "1") if command.launcher == "torchrun" else "1"


def _flag(name: str, value: str) -> str:
    dashes = "-" if len(name) == 1 else "--"
    return f"{dashes}{name}" if name in SWITCHES else f"{dashes}{name}={value}"
