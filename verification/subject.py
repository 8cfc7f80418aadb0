"""The subject of a judgement: a traced command with the classes, data and length of its config.

Classes are described by `verification.link`; torch is imported only if one of them is not in its cache.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.types import QuotedString

from engine.cli.resolve import Trace
from engine.registry import Family
from launcher.command import Command
from launcher.naming import parse_overrides
from verification.data import DataPath
from verification.link import Link, follow
from verification.recall import recall
from verification.spec import Verification, specification

Kind = Literal["job", "recipe", "command", "launch"]


def text_of(path: Path) -> str | None:
    """The content of a file; None if there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


@functools.cache
def optimizer_keys(root: Path) -> frozenset[str]:
    """Run keys that reach an optimizer through its file: those that a file of config/optimizer uses as `${key}`."""
    files = sorted((root / "config" / "optimizer").glob("*.yaml"))
    return frozenset(re.findall(r"\$\{(\w+)\}", "".join(path.read_text(encoding="utf-8") for path in files)))


def plain(value: Any) -> Any:
    """An override's value without Hydra's quotes."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {plain(key): plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@dataclass(kw_only=True)
class Request:
    """A command to judge, and its intent; `run`: the folder of a run to judge in place of its command."""

    argv: tuple[str, ...] = ()
    intent: Mapping[str, str] | None = None
    where: str = ""
    """The file that has the command; its line is `line`."""
    line: int = 0
    kind: Kind = "command"
    """A job or a recipe is judged more strictly: for a command, a max_steps below the warm-up is only a warning."""
    job: str = ""
    run: str = ""
    with_data: bool = False
    """Whether the contents of data sets are read."""
    local_data: bool = True
    """Whether data sets on this machine are read at all; else their entries in the catalog are used."""
    probes: bool = True
    """Whether a tiny instance is observed; else only the rules judge."""
    dynamic: bool = False
    """Whether the deeper probes (DYN7xx) run, and a run's tensors are compared."""
    overlay: Mapping[str, str] = field(default_factory=dict)
    """Text of modules, by file, that exist for this command only."""


@dataclass(kw_only=True)
class Subject(Request):
    """A request whose command has been traced."""

    trace: Trace
    command: Command
    checkpoint: Path | None = None
    """The judged run; the trace then has its stored config, and `today` what its command composes to now."""
    today: dict[str, Any] | None = None
    no_today: str = ""
    """Why `today` is None."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Results that a rule leaves for the report."""

    # --- shortcuts into the trace -------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        return self.trace.root

    @property
    def resolved(self) -> dict[str, Any] | None:
        return self.trace.resolved

    @property
    def problems(self) -> dict[str, str]:
        return self.trace.problems

    @property
    def choices(self) -> dict[str, str | None]:
        return self.trace.choices

    @property
    def schema(self) -> type | None:
        return self.trace.script.schema if self.trace.script else None

    @property
    def script_file(self) -> str:
        """The script, relative to the root."""
        return self.trace.relative(self.trace.script.path) if self.trace.script else ""

    @property
    def script_stem(self) -> str:
        return self.trace.script.path.stem if self.trace.script else ""

    @property
    def registered(self) -> Family | None:
        """The family that the script declares; None if it declares none."""
        return self.trace.script.declared if self.trace.script else None

    @property
    def requires(self) -> Mapping[str, str]:
        """FAMILY and DATA_MODE that the script's family requires."""
        return self.registered.requires if self.registered else {}

    @property
    def misdeclared(self) -> dict[str, str]:
        """Key -> required value for what the model class declares otherwise, or not at all."""
        return {key: value for key, value in self.requires.items() if self.model.declared.get(key) != value}

    @property
    def arch(self) -> dict[str, Any]:
        """The resolved arch block; empty if there is none."""
        block = (self.resolved or {}).get("arch")
        return block if isinstance(block, dict) else {}

    @property
    def config_file(self) -> str:
        return self.trace.locate(self.trace.config_name)

    @property
    def arch_file(self) -> str:
        """The chosen file of the group `arch`; "" if no choice is known."""
        choice = self.choices.get("arch")
        return self.trace.locate(f"arch/{choice}") if choice else ""

    def arch_place(self, key: str = "arch.name") -> tuple[str, int]:
        """File and line that set a key of the arch block; else the arch file."""
        place = self.trace.key_line(key)
        return place if place[0] else (self.arch_file, 0)

    @property
    def files(self) -> list[str]:
        """The YAML files, in merge order."""
        return [self.trace.relative(file.path) for file in self.trace.files]

    @property
    def place(self) -> tuple[str, int]:
        """File and line of the command."""
        return self.where, self.line

    def text(self, file: str) -> str | None:
        """The content of a file below the root; None if there is none."""
        return text_of(self.root / file) if file else None

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """Dotted keys that the command sets, with their values; without group choices and deletions."""
        words = [word for word in self.trace.overrides if not word.startswith("~")]
        if len(self.trace.jobs) > 1 or not self.trace.composed:
            words = [word for word in words if "," not in word]
        return {
            str(one.key_or_group): plain(one.value())
            for one in parse_overrides(words)
            if one.key_or_group not in self.choices and not str(one.key_or_group).startswith("hydra")
        }

    # --- classes ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def model(self) -> Link:
        return follow("arch.name", self.arch, "models")

    @functools.cached_property
    def loss(self) -> Link:
        return follow("arch.loss.name", self.arch.get("loss"), "losses")

    @functools.cached_property
    def evaluators(self) -> list[Link]:
        entries = (self.resolved or {}).get("evaluators") or []
        return [follow(f"evaluators[{n}].name", entry, "evaluators") for n, entry in enumerate(entries)]

    def declares(self, name: str) -> Any:
        """A class variable of the model (FAMILY, DATA_MODE, ACT_MODE); None if it does not declare it."""
        return self.model.declared.get(name)

    # --- data ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def family(self) -> Verification | None:
        """The `Verification` of the script's family (tasks/<family>/verify.py); None if it has none."""
        return specification(self.registered) if self.registered else None

    @property
    def package(self) -> str:
        """The family's package, tasks.<family>; "" if the script has no family."""
        return self.registered.package if self.registered else ""

    @functools.cached_property
    def task(self) -> str | None:
        """package@Class of the task of the script's family; None unless it has exactly one."""
        tasks = recall(["tasks", self.package], self._tasks) or [] if self.package else []
        return f"{self.package}@{tasks[0]}" if len(tasks) == 1 else None

    def _tasks(self) -> list[str]:
        module = self.registered.part("task") if self.registered else None
        classes = [one for one in vars(module).values() if isinstance(one, type)] if module else []
        own = [one for one in classes if one.__module__ == f"{self.package}.task"]
        return [one.__name__ for one in own if hasattr(one, "micro_batches")]

    @functools.cached_property
    def data(self) -> list[DataPath]:
        """The data sets of the config."""
        if not (self.family and self.resolved):
            return []
        return list(self.family.data(self.resolved, self.trace.cwd, self.local_data))

    @functools.cached_property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run, as the family counts them; None if unknown."""
        return self.family.steps(self) if self.family and self.resolved else None
