"""What is judged: a traced command with the classes, data and length that its config leads to.

Classes are imported through their modules when a rule first asks for one, which loads torch where a model does.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from engine.cli.resolve import Trace
from engine.errors import UsageError
from engine.io import did_you_mean
from engine.registry import classes_of, import_ours, modules_of, split_name
from launcher.command import Command
from verification.data import DataPath

Kind = Literal["job", "recipe", "command", "launch"]


@dataclass
class Link:
    """A `module@Class` of the config, followed to the class. `problem` is why it could not be."""

    key: str
    """The dotted key: arch.name."""
    text: str
    module: str = ""
    cls_name: str = ""
    namespace: ModuleType | None = None
    cls: type | None = None
    problem: str = ""


def follow(key: str, text: Any, slot: str) -> Link:
    """Import what a name of the config means in a slot. Raises nothing: `problem` of the link says what is amiss."""
    link = Link(key, "" if text is None else str(text))
    if (split := split_name(link.text, slot)) is None:
        link.problem = f"{link.text!r} is not of the form module@Class"
        return link
    link.module, link.cls_name = ".".join(split[0]), split[1]
    try:
        link.namespace = import_ours(link.module, key)
    except UsageError as error:  # a package of the same name that is not ours
        link.problem = str(error)
        return link
    except ModuleNotFoundError as error:
        ours = error.name is not None and f"{link.module}.".startswith(f"{error.name}.")
        hint = did_you_mean(link.module.partition(".")[2], modules_of(slot))
        link.problem = f"there is no {link.module.replace('.', '/')}.py: {hint}" if ours else f"{link.module}: {error}"
        return link
    except (ImportError, SyntaxError, AttributeError, TypeError, NameError, ValueError) as error:
        link.problem = f"{link.module} cannot be imported: {type(error).__name__}: {error}"
        return link
    cls = getattr(link.namespace, link.cls_name, None)
    if isinstance(cls, type):
        link.cls = cls
    else:
        hint = did_you_mean(link.cls_name, classes_of(link.namespace))
        link.problem = f"{link.module} has no class {link.cls_name}: {hint}"
    return link


@dataclass
class Subject:
    """One command, or one run, with what is meant by it."""

    trace: Trace
    command: Command
    kind: Kind = "command"
    job: str = ""
    where: str = ""
    """The file that holds the command, and its line."""
    line: int = 0
    intent: Mapping[str, str] | None = None
    with_data: bool = False
    """Whether the contents of data sets are read."""
    local_data: bool = True
    """Whether data sets on this machine are read at all; else each is what the catalogue says of it."""
    checkpoint: Path | None = None
    """The run that is judged; then the trace has its stored config, and `today` what its command composes to."""
    today: dict[str, Any] | None = None
    no_today: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    """What one rule leaves for the report."""

    # --- the trace, by short names ------------------------------------------------------------------------------------

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
    def requires(self) -> Mapping[str, str]:
        """FAMILY, DATA_MODE: what the script's family works with."""
        script = self.trace.script
        return script.declared.requires if script and script.declared else {}

    @property
    def arch(self) -> dict[str, Any]:
        """The resolved arch block, empty where there is none."""
        block = (self.resolved or {}).get("arch")
        return block if isinstance(block, dict) else {}

    @property
    def config_file(self) -> str:
        return self.trace.locate(self.trace.config_name)

    @property
    def arch_file(self) -> str:
        """The chosen file of the group `arch`, "" where no choice is known."""
        choice = self.choices.get("arch")
        return self.trace.locate(f"arch/{choice}") if choice else ""

    @property
    def files(self) -> list[str]:
        """The YAML files, in merge order."""
        return [self.trace.relative(file.path) for file in self.trace.files]

    def text(self, file: str) -> str | None:
        """The content of a file below the root, None where there is none."""
        path = self.root / file
        return path.read_text(encoding="utf-8") if file and path.is_file() else None

    # --- classes ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def model(self) -> Link:
        return follow("arch.name", self.arch.get("name"), "models")

    @functools.cached_property
    def loss(self) -> Link:
        block = self.arch.get("loss")
        return follow("arch.loss.name", block.get("name") if isinstance(block, dict) else None, "losses")

    @functools.cached_property
    def evaluators(self) -> list[Link]:
        entries = (self.resolved or {}).get("evaluators") or []
        names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
        return [follow(f"evaluators[{n}].name", name, "evaluators") for n, name in enumerate(names)]

    def declares(self, name: str) -> Any:
        """A class variable of the model (FAMILY, DATA_MODE, ACT_MODE), None where it declares none."""
        return getattr(self.model.cls, name, None)

    def place(self, value: Any) -> tuple[str, int]:
        """(file, line) of a class or function, relative to the root."""
        if isinstance(value, type):
            file = getattr(sys.modules.get(value.__module__), "__file__", None) or ""
            return (self.trace.relative(Path(file)) if file else ""), class_line(file, value.__name__)
        code = getattr(value, "__code__", None)
        return (self.trace.relative(Path(code.co_filename)), code.co_firstlineno) if code else ("", 0)

    # --- data ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def family(self) -> Any:
        """What the script's family says for its rules (tasks/<family>/rules.py), None where it has none."""
        return getattr(self.part("rules"), "FAMILY_RULES", None)

    def part(self, name: str) -> ModuleType | None:
        """A module of the family's folder, None where there is none."""
        script = self.trace.script
        return script.declared.part(name) if script and script.declared else None

    @property
    def package(self) -> str:
        """The family's folder as a package, tasks.<family>; "" where the script has no family."""
        script = self.trace.script
        return script.declared.package if script and script.declared else ""

    @functools.cached_property
    def data(self) -> list[DataPath]:
        """The data sets that the config names."""
        return list(self.family.data(self)) if self.family and self.resolved else []

    @functools.cached_property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run, as the family counts them; None where the data do not say."""
        return self.family.steps(self) if self.family and self.resolved else None


@functools.lru_cache(maxsize=1024)
def class_line(file: str, name: str) -> int:
    """The line of a class statement, 0 where the file has none."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError:
        return 0
    match = re.search(rf"^[ \t]*class {re.escape(name)}\b", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 0
