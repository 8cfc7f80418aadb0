"""From a command to the code that it runs: every link with the file and line that it was read from.

    launcher -> script -> @hydra.main -> config -> defaults -> arch file -> module@Class -> loss, evaluators -> data

A link that cannot be followed is None, and `problems` says why; checks judge, the chain only follows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli.keys import keys_of
from engine.cli.main import one_line
from engine.cli.recipes import find_groups
from engine.cli.resolve import PLUGINS
from engine.cli.translate import HYDRA_SWITCHES, HYDRA_VALUED, translate
from engine.errors import UsageError
from engine.io import user_path
from engine.run.parent import SUFFIX
from engine.schema import structure, with_defaults
from verification import compose as composing
from verification.command import Command, parse
from verification.compose import Composed
from verification.data import DataPath, read_data, total_steps
from verification.schemas import UNREADABLE, dataclass_of
from verification.script import Script, read_script
from verification.source import ClassInfo, Repo
from verification.stored import go_on
from verification.text_data import read_texts
from verification.yaml_lines import line_of

Kind = Literal["job", "recipe", "command", "launch"]
_PLUGIN = re.compile(rf"hydra/(launcher|sweeper)=({'|'.join(PLUGINS)})$")
_PLUGIN_KEY = re.compile(r"\+*hydra\.(launcher|sweeper)\.")
INFORMATIVE = frozenset(("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"))


@dataclass
class Named:
    """A `module@Class` of the config, with what it leads to."""

    key: str
    """The dotted key: arch.name."""
    text: str
    slot: str
    module: str = ""
    cls_name: str = ""
    cls: ClassInfo | None = None
    problem: str = ""
    form: bool = True
    """Whether the text has the form module@Class."""


@dataclass
class Chain:
    """Everything that checks look at. Paths are relative to `repo.root`."""

    repo: Repo
    kind: Kind
    command: Command
    job: str = ""
    where: str = ""
    line: int = 0
    intent: dict[str, str] | None = None
    script: Script | None = None
    config_dir: Path | None = None
    folders: list[Path] = field(default_factory=list)
    """Where Hydra looks for configs, in its order: config_dir, then --config-dir."""
    cwd: Path | None = None
    """What relative data paths are relative to; None: the repository's root."""
    config_name: str = ""
    overrides: list[str] = field(default_factory=list)
    """In Hydra's form, without Hydra's own flags."""
    jobs: list[list[str]] = field(default_factory=list)
    """Overrides of each job of a sweep, of which this chain follows the first."""
    composed: Composed | None = None
    choices: dict[str, str | None] = field(default_factory=dict)
    resolved: dict[str, Any] | None = None
    config: Any = None
    """The checked instance of the script's schema."""
    schema: type | None = None
    model: Named | None = None
    loss: Named | None = None
    evaluators: list[Named] = field(default_factory=list)
    data: list[DataPath] = field(default_factory=list)
    steps: int | None = None
    """Optimizer steps of the whole run, None where the data do not say."""
    problems: dict[str, str] = field(default_factory=dict)
    """link -> why it could not be followed: script, config, compose, schema, resolve."""
    with_data: bool = False
    checkpoint: Path | None = None
    """The run that is examined; then `resolved` is its stored config, and `today` what its command composes to."""
    today: dict[str, Any] | None = None
    no_today: str = ""

    @property
    def arch(self) -> dict[str, Any]:
        """The resolved arch block, empty where there is none."""
        block = (self.resolved or {}).get("arch")
        return block if isinstance(block, dict) else {}

    @property
    def informative(self) -> bool:
        """The command only prints (--help, --cfg job)."""
        return any(word.partition("=")[0] in INFORMATIVE for word in self.command.arguments)

    @property
    def resumes(self) -> bool:
        """The command goes on from a stored config, of which the composed one is not the base."""
        return str((self.resolved or {}).get("resume", "")).lower() == "true"

    @property
    def config_file(self) -> str:
        """The primary config, relative to the root."""
        return self.locate(self.config_name)

    @property
    def arch_file(self) -> str:
        """The chosen file of the group `arch`, "" where no choice is known."""
        choice = self.choices.get("arch")
        return self.locate(f"arch/{choice}") if choice else ""

    @property
    def files(self) -> list[str]:
        """The YAML files of the chain, in merge order."""
        return (
            [self.locate(name.removesuffix(".yaml")) for _, _, name in self.composed.defaults] if self.composed else []
        )

    def locate(self, name: str) -> str:
        """The file of a config by its name below Hydra's search path; where there is none, the place for it."""
        folders = self.folders or [self.config_dir or self.repo.root]
        key = ("locate", *folders, name)
        if key not in self.repo.memo:
            places = [folder / f"{name}.yaml" for folder in folders]
            self.repo.memo[key] = self.relative(next((place for place in places if place.is_file()), places[0]))
        return self.repo.memo[key]

    def options(self, pattern: str) -> list[str]:
        """Names of the configs that match: `cfg_*`, `arch/*`."""
        folders = self.folders or [self.config_dir or self.repo.root]
        return sorted({path.stem for folder in folders for path in folder.glob(f"{pattern}.yaml")})

    def relative(self, path: Path) -> str:
        """`path` below the root, else as it stands."""
        root = self.repo.root
        for base, below in ((root, path), (root.resolve(), path.resolve())):
            if below.is_relative_to(base):
                return below.relative_to(base).as_posix()
        return str(path)

    def key_line(self, key: str) -> tuple[str, int]:
        """(file, line) of the last file of the chain that sets a dotted key; ("", 0) where none does."""
        for (_, package, _), file in reversed(
            list(zip(self.composed.defaults, self.files, strict=True) if self.composed else [])
        ):
            inner = key.removeprefix(f"{package}.") if package and key.startswith(f"{package}.") else key
            line = line_of(self.repo.text(file) or "", inner if package else key)
            if line and (not package or key.startswith(f"{package}.")):
                return file, line
        return "", 0


def build_chain(
    argv: list[str] | tuple[str, ...], repo: Repo, *, kind: Kind = "command", job: str = "", where: str = "",
    line: int = 0, intent: dict[str, str] | None = None,
) -> Chain:  # fmt: skip
    """Follow a command as far as it leads."""
    command = parse(argv)
    if command.script is not None:
        command = replace(command, script=script_file(command.script, repo))
    chain = Chain(repo, kind, command, job=job, where=where, line=line, intent=intent)
    if command.script is None:
        chain.problems["script"] = "the command names no script"
        return chain
    try:
        read = ("script", command.script)
        if read not in repo.memo:
            repo.memo[read] = read_script(repo, command.script)
        chain.script = repo.memo[read]
    except (LookupError, SyntaxError) as error:
        chain.problems["script"] = f"{command.script}: {error}" if isinstance(error, SyntaxError) else str(error)
        return chain
    if chain.script.decorators:
        _follow_config(chain)
        follow_classes(chain)
    return chain


def script_file(script: str, repo: Repo) -> str:
    """A script of the command relative to the root, where it lies below it by its path from there or from here."""
    root = repo.root.resolve()
    for base in (root, Path.cwd()):
        place = base / user_path(script)
        place = place.parent.resolve() / place.name
        if place.is_file() and place.is_relative_to(root):
            return place.relative_to(root).as_posix()
    return script


def _follow_config(chain: Chain) -> None:
    script = chain.script
    assert script is not None
    # the words only: a config/ that is a link stays the repository's own
    chain.config_dir = Path(os.path.normpath(chain.repo.root / Path(script.file).parent / script.config_path))
    read_schema(chain)
    flags = hydra_flags(chain.command.arguments)
    folders = [chain.config_dir]
    for name in ("--config-path", "-cp"):
        folders = [chain.repo.root / user_path(flags[name])] if name in flags else folders
    for name in ("--config-dir", "-cd"):
        bases = (chain.cwd or chain.repo.root, Path.cwd())  # of a job file, or of a command that is typed here
        places = [base / user_path(flags[name]) for base in bases] if name in flags else []
        folders += [next((place for place in places if place.is_dir()), places[0])] if places else []
    chain.config_dir, chain.folders = folders[0], folders
    given = flags.get("--config-name", flags.get("-cn"))
    chain.config_name = (given if given is not None else script.config_name).removesuffix(".yaml")
    if not any((folder / f"{chain.config_name}.yaml").is_file() for folder in folders):
        chain.problems["config"] = f"there is no {chain.config_name}.yaml in {chain.relative(folders[0])}/"
        return
    try:
        where = ("groups", *folders, chain.config_name)
        if where not in chain.repo.memo:
            chain.repo.memo[where] = find_groups(folders[0], chain.config_name, *folders[1:])
        groups = chain.repo.memo[where]
        words = [w for w in chain.command.arguments if w not in ("-h", "--help")]
        schema = chain.schema or type("Nothing", (), {"__dataclass_fields__": {}})
        translated = translate(words, schema, groups=groups, aliases=script.aliases)
        translated = script.rewrite(translated, groups) if script.rewrite else translated
        chain.overrides = without_flags(translated)
        stamped = ("stamp", *folders)
        if stamped not in chain.repo.memo:
            chain.repo.memo[stamped] = composing.digest(folders)
        stamp = chain.repo.memo[stamped]
        sweep = bool({"-m", "--multirun"} & set(translated))
        chain.jobs = _jobs(chain, folders, stamp) if sweep else [chain.overrides]
        chain.composed = composing.compose(folders, chain.config_name, chain.jobs[0], stamp)
        chain.choices = chain.composed.choices
        chain.resolved = chain.composed.resolved()
        chain.resolved = with_defaults(chain.schema, chain.resolved) if chain.schema else chain.resolved
        chain.config = structure(chain.schema, chain.resolved) if chain.schema else None
        if chain.composed.params and not sweep and SUFFIX not in chain.command.env:
            raise UsageError("a preset of config/sweep describes several jobs: add -m to run them")
        if chain.resumes:
            go_on(chain)
    except UsageError as error:
        chain.problems["schema" if chain.composed else "compose"] = str(error)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        text = one_line(error, chain.schema or dict, chain.config_dir, composing=True)  # type: ignore[arg-type]
        chain.problems["resolve" if chain.composed else "compose"] = text or str(error)


def _jobs(chain: Chain, folders: list[Path], stamp: str) -> list[list[str]]:
    """The jobs of a sweep, those of a preset (hydra.sweeper.params) too. Plugins of Hydra need not be installed."""
    words = [word for word in chain.overrides if not _PLUGIN.match(word)]
    if len(words) < len(chain.overrides):  # then these are the plugin's keys
        words = [word for word in words if not _PLUGIN_KEY.match(word)]
    params = composing.compose(folders, chain.config_name, composing.sweep_jobs(words)[0], stamp).params
    given = {word.lstrip("+").partition("=")[0] for word in words}
    preset = [f"{key}={value}" for key, value in params.items() if key not in given]
    return composing.sweep_jobs([*preset, *words])


def read_schema(chain: Chain) -> None:
    """The schema class that the script names, made without importing it."""
    assert chain.script is not None
    if chain.script.schema is None:
        chain.problems["schema_class"] = f"{chain.script.file} names no SCHEMA"
        return
    try:
        chain.schema = dataclass_of(chain.repo, *chain.script.schema)
        keys_of(chain.schema)
    except UNREADABLE as error:
        chain.schema = None
        chain.problems["schema_class"] = f"{'.'.join(chain.script.schema)} cannot be read: {error!r}"


def hydra_flags(words: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Hydra's flags that take a value, by the spelling used."""
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in HYDRA_VALUED:
            found[name] = value if equals else words[number + 1] if number + 1 < len(words) else ""
    return found


def without_flags(words: list[str]) -> list[str]:
    """Only the overrides of a translated command."""
    rest, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name in HYDRA_VALUED:
            skip = not equals
        elif word not in HYDRA_SWITCHES and not word.startswith("--info"):
            rest.append(word)
    return rest


def follow_classes(chain: Chain) -> None:
    """Model, loss, evaluators and data of the resolved config."""
    if chain.resolved is None:
        return
    chain.evaluators, chain.data = [], []
    chain.model = named(chain, "arch.name", chain.arch.get("name"), "models")
    loss = chain.arch.get("loss")
    chain.loss = named(chain, "arch.loss.name", loss.get("name") if isinstance(loss, dict) else None, "losses")
    for number, entry in enumerate(chain.resolved.get("evaluators") or []):
        text = entry.get("name") if isinstance(entry, dict) else entry
        chain.evaluators.append(named(chain, f"evaluators[{number}].name", text, "evaluators"))
    for key in ("data_paths", "data_paths_test"):
        for path in chain.resolved.get(key) or []:
            chain.data.append(read_data(chain.repo, str(path), key, chain.cwd or chain.repo.root))
    chain.data += read_texts(chain.repo, chain.resolved, chain.cwd or chain.repo.root)
    chain.steps = total_steps([entry for entry in chain.data if entry.key == "data_paths"], chain.resolved)


def named(chain: Chain, key: str, text: Any, slot: str) -> Named:
    """Follow one `module@Class`."""
    found = Named(key, "" if text is None else str(text), slot)
    try:
        found.module, found.cls_name = chain.repo.resolve(found.text, slot)
    except ValueError as error:
        found.form, found.problem = False, str(error)
        return found
    try:
        cls = chain.repo.find_class(found.module, found.cls_name)
    except SyntaxError as error:
        cls = f"{error.filename or found.module} line {error.lineno}: {error.msg}"
    if isinstance(cls, ClassInfo):
        found.cls = cls
    else:
        found.problem = cls
    return found
