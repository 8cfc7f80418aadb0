"""Splits a command line into environment, launcher, script and arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

VARIABLE = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
PYTHON = re.compile(r"(python|pypy)[\d.]*|\$\(PY\)")
DISTRIBUTED = ("torch.distributed.run", "torch.distributed.launch")
# torchrun's flags without a value; all others take one
SWITCHES = frozenset(("standalone", "no-python", "module", "m", "run-path", "help", "h"))
NAMES = {"nproc": "nproc-per-node", "n": "nproc-per-node"}
BEFORE = frozenset(("env", "exec", "nice", "nohup", "srun", "time"))  # wrappers that run the following words unchanged


@dataclass(frozen=True)
class Command:
    """One command. `script` is None if it names none; `python -m package.module` has `module` instead."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    launcher: str = ""
    """python, torchrun, or the first word unchanged."""
    flags: dict[str, str] = field(default_factory=dict)
    """The launcher's own flags with dashes: {"nproc-per-node": "4"}."""
    script: str | None = None
    module: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def processes(self) -> int | None:
        """Number of ranks on all nodes; None if it depends on the machine."""
        if self.launcher != "torchrun":
            return 1
        counts = [self.flags.get("nproc-per-node", "1"), self.flags.get("nnodes", "1").rpartition(":")[2]]
        return int(counts[0]) * int(counts[1]) if all(count.isdigit() for count in counts) else None


def parse(argv: list[str] | tuple[str, ...]) -> Command:
    """Split a command into its parts; reads no files."""
    words = list(argv)
    env: dict[str, str] = {}
    while words and (VARIABLE.fullmatch(words[0]) or words[0] in BEFORE):
        name, equals, value = words.pop(0).partition("=")
        env |= {name: value} if equals else {}
    if not words:
        return Command(tuple(argv), env)
    program = words.pop(0)
    base = program.rpartition("/")[2]
    if base in ("uv", "poetry") and words[:1] == ["run"]:
        base = words[1].rpartition("/")[2] if len(words) > 1 else ""
        words = words[2:]
    if base.endswith(".py"):
        return Command(tuple(argv), env, "python", {}, program.removeprefix("./"), None, tuple(words))
    launcher = "torchrun" if base == "torchrun" else "python" if PYTHON.fullmatch(base) else base
    flags: dict[str, str] = {}
    if launcher == "python":
        while words and words[0].startswith("-") and words[0] != "-m":
            flags[words.pop(0)] = ""
        if words[:1] == ["-m"]:
            module, words = (words[1] if len(words) > 1 else ""), words[2:]
            if module not in DISTRIBUTED:
                return Command(tuple(argv), env, launcher, flags, None, module, tuple(words))
            launcher = "torchrun"
    if launcher == "torchrun":
        flags, words = _torchrun(words)
    script = words.pop(0).removeprefix("./") if words and words[0].endswith(".py") else None
    return Command(tuple(argv), env, launcher, flags, script, None, tuple(words))


def _torchrun(words: list[str]) -> tuple[dict[str, str], list[str]]:
    flags: dict[str, str] = {}
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        name = name.replace("_", "-")
        name = NAMES.get(name, name)
        if not equals and name not in SWITCHES and words:
            value = words.pop(0)
        flags[name] = value
    return flags, words
