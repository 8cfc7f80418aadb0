"""How many processes a command has, and on which machines: its words for torchrun."""

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
"""torchrun's flags for the number and place of processes; its other ones stay."""


@dataclass(frozen=True)
class Ranks:
    """Processes on each machine, the machines, and which of them this is."""

    per_node: str
    """a number, or torchrun's `gpu`, `cpu`, `auto`"""
    nodes: int = 1
    node: int = 0
    """which machine this is; that of number 0 has rank 0, which writes"""
    head: str = "HOST"
    """HOST or HOST:PORT of machine 0, as the others reach it; an IPv6 address in brackets"""

    def words(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command with these ranks. Raises: UsageError for one that neither python nor torchrun starts."""
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
        meet = [f"--master-addr={host.strip('[]')}", f"--master-port={port}"]
        return [f"--nnodes={self.nodes}", f"--node-rank={self.node}", each, *meet]


def ranks_of(argv: Sequence[str]) -> str:
    """Processes on each machine that the command itself asks for: `1` without torchrun."""
    command = parse(tuple(argv))
    return command.flags.get("nproc-per-node", "1") if command.launcher == "torchrun" else "1"


def _flag(name: str, value: str) -> str:
    dashes = "-" if len(name) == 1 else "--"
    return f"{dashes}{name}" if name in SWITCHES else f"{dashes}{name}={value}"
