"""Interprets a command: its script's declarations, its words as overrides, the composed config, the line of each key.

A launch itself uses `read_command` before Hydra composes; `resolve` also composes, or takes what a launch has composed,
and records what a reader wants to know: files in merge order, choices, problems in the words of a launch. Nothing is
started.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli.compose import compose_config, digest, sweep_jobs
from engine.cli.explain import PLUGINS, one_line
from engine.cli.files import ConfigFile, config_files, locate, set_in
from engine.cli.keys import known_keys
from engine.cli.recipes import check_presets, config_name_of, find_groups, flag_value, search_folders
from engine.cli.translate import HYDRA_VALUED, Groups, spelled, translate
from engine.config import RunConfig, hydra_folders, source_of
from engine.errors import UsageError
from engine.registry import Family
from engine.schema import structure, with_defaults

CODE = Path(__file__).resolve().parents[2]
ANSWERS = frozenset(("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"))
"""Flags with which a command only prints."""


@dataclass(frozen=True)
class HydraMain:
    """A function decorated with @hydra.main."""

    config_path: str
    config_name: str
    line: int


@dataclass
class Script:
    """An entry script, as seen by importing it."""

    path: Path
    module: ModuleType | None = None
    mains: list[HydraMain] = field(default_factory=list)

    @property
    def declared(self) -> Family | None:
        """Its family."""
        return getattr(self.module, "FAMILY", None)

    @property
    def schema(self) -> type | None:
        return self.declared.schema if self.declared else None

    @property
    def config_dir(self) -> Path:
        """The folder that @hydra.main names."""
        return self.path.parent / (self.mains[0].config_path if self.mains else "config")

    @property
    def config_name(self) -> str:
        return self.mains[0].config_name if self.mains else ""


@dataclass
class Trace:
    """A command, interpreted as far as possible. What is missing is None or empty, and `problems` says why."""

    root: Path
    cwd: Path
    """Working directory: relative data and run paths start here."""
    argv: tuple[str, ...]
    """The words after the script."""
    script: Script | None = None
    config_name: str = ""
    folders: list[Path] = field(default_factory=list)
    """Hydra's search path for configs, in order."""
    groups: Groups = field(default_factory=Groups)
    typed: dict[str, str] = field(default_factory=dict)
    """Key -> its spelling in the command."""
    overrides: list[str] = field(default_factory=list)
    """In Hydra's form, without Hydra's own flags."""
    jobs: list[list[str]] = field(default_factory=list)
    """Overrides of each job of a sweep; the first job is interpreted here."""
    choices: dict[str, str | None] = field(default_factory=dict)
    files: list[ConfigFile] = field(default_factory=list)
    """In merge order."""
    composed: bool = False
    resolved: dict[str, Any] | None = None
    """Plain values, including the schema's defaults."""
    config: Any = None
    """The checked instance of the script's schema."""
    problems: dict[str, str] = field(default_factory=dict)
    """Stage (script, config, compose, resolve, schema) -> why it failed."""

    @property
    def answers(self) -> bool:
        """Whether the command only prints (--help, --cfg job)."""
        return any(word.partition("=")[0] in ANSWERS for word in self.argv)

    @property
    def resumes(self) -> bool:
        """Whether the command uses a stored config, not the composed one."""
        return str((self.resolved or {}).get("resume", "")).lower() == "true"

    def relative(self, path: Path) -> str:
        """`path` relative to the root if it is inside, else unchanged."""
        return _relative(self.root, path)

    def locate(self, name: str) -> str:
        """The file of the config `name` in the search path; if there is none, where it would be."""
        return self.relative(locate(self.folders, name) or self.folders[0] / f"{name}.yaml") if self.folders else ""

    def options(self, pattern: str) -> list[str]:
        """Names of the configs that match `pattern`: `cfg_*`, `arch/*`."""
        return sorted({path.stem for folder in self.folders for path in folder.glob(f"{pattern}.yaml")})

    def key_line(self, key: str) -> tuple[str, int]:
        """(file, line) of the last file that sets a dotted key, else of the field with its default; ("", 0) if neither
        is known."""
        if found := set_in(self.files, key):
            return self.relative(found[0]), found[1]
        known = known_keys(self.script.schema, self.resolved or {}) if self.script and self.script.schema else {}
        file_of, line = known[key].place if key in known else ("", 0)
        return (self.relative(Path(file_of)), line) if line else ("", 0)


@functools.lru_cache(maxsize=4096)
def _relative(root: Path, path: Path) -> str:
    for base, below in ((root, path), (root.resolve(), path.resolve()), (CODE, path.resolve())):
        if below.is_relative_to(base):
            return below.relative_to(base).as_posix()
    return str(path)


def read_command(
    argv: Sequence[str],
    family: Family,
    groups: Groups,
    typed: dict[str, str],
    translated: Callable[[list[str]], None] = lambda words: None,
) -> tuple[list[str], list[str]]:
    """(Hydra's own flags, overrides in Hydra's form) of a command; `typed` collects the user's spelling of each key.

    `groups` are those of the recipe that the command names; `translated` is called with the overrides before the
    family's own `rewrite`, which may refuse one. Raises: UsageError.
    """
    flags, words = translate(list(argv), family.schema, groups=groups, aliases=family.aliases, typed=typed)
    translated(words)
    words = family.rewrite(words, groups, typed) if family.rewrite is not None else words
    if any(word.lstrip("+").lower() == "resume=true" for word in words):
        words = [_force_foreign(word, groups) for word in words]
    return flags, words


def _force_foreign(word: str, groups: Groups) -> str:
    """Add `++` to a key in a group's block that the recipe's choice lacks: the resumed run may have another choice."""
    key, equals, _ = word.partition("=")
    root, dot, _ = key.partition(".")
    foreign = equals and dot and root in groups.options and groups.set_keys is not None and key not in groups.set_keys
    return f"++{word}" if foreign else word


def is_sweep(flags: Sequence[str]) -> bool:
    """Whether Hydra runs a command with these flags as several jobs."""
    return bool({"-m", "--multirun"} & set(flags))


# --- scripts ----------------------------------------------------------------------------------------------------------


@functools.cache
def observe_script(path: Path) -> Script:
    """An entry script, imported under another name than __main__; not imported if it does not import hydra.

    Raises: OSError, and whatever importing the script raises.
    """
    if not re.search(r"^\s*(import|from) hydra\b", path.read_text(encoding="utf-8"), re.MULTILINE):
        return Script(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Script(path, module, _mains_of(module))


def _running(path: Path) -> Script | None:
    """The script that this process runs, if it is the one at `path`, which then need not be executed again."""
    module = sys.modules["__main__"]
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        return None
    mains = _mains_of(module)
    return Script(path, module, mains) if mains else None


def _mains_of(module: ModuleType) -> list[HydraMain]:
    """The functions of a module that @hydra.main decorates, from the variables of its wrapper."""
    mains = []
    for value in vars(module).values():
        if inspect.isfunction(value) and hasattr(value, "__wrapped__"):
            given, line = inspect.getclosurevars(value).nonlocals, inspect.unwrap(value).__code__.co_firstlineno
            if {"config_path", "config_name"} <= given.keys():
                name = (given["config_name"] or "").removesuffix(".yaml")
                mains.append(HydraMain(given["config_path"] or ".", name, line))
    return mains


# --- commands ---------------------------------------------------------------------------------------------------------


def resolve(
    script: Path,
    argv: Sequence[str],
    *,
    root: Path,
    cwd: Path | None = None,
    sweep_job: bool = False,
    launched: RunConfig | None = None,
) -> Trace:
    """Interpret `python SCRIPT ARGV...`, run in the folder `cwd` (None: the root), up to its checked config.

    `sweep_job`: the command is one job of a sweep, whose preset another process reads. `launched`: the config that
    `load_synced_config` made of these words in this process, so that nothing is composed or checked again. A wrong
    command raises nothing: see the trace's `problems`.
    """
    trace = Trace(root, cwd or root, tuple(spelled(argv)))
    try:
        trace.script = _running(script) or observe_script(script)
    except (OSError, SyntaxError, ImportError, AttributeError, TypeError, ValueError, NameError) as error:
        trace.problems["script"] = f"{trace.relative(script)} cannot be imported: {type(error).__name__}: {error}"
        return trace
    if not trace.script.mains:
        return trace
    try:
        _compose(trace, sweep_job) if launched is None else _use_launched(trace, launched)
    except UsageError as error:
        trace.problems["schema" if trace.composed else "compose"] = str(error)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        line = one_line(error, trace.script.schema or dict, trace.folders, composing=True)
        trace.problems["resolve" if trace.composed else "compose"] = line or " ".join(str(error).split())
    return trace


def _compose(trace: Trace, sweep_job: bool) -> None:
    script = trace.script
    assert script is not None
    replaced = flag_value(trace.argv, "--config-path", "-cp")
    folder = Path(trace.root / replaced) if replaced else script.config_dir
    trace.folders = search_folders(trace.argv, folder, trace.cwd)
    trace.config_name = (config_name_of(trace.argv) or script.config_name).removesuffix(".yaml")
    if locate(trace.folders, trace.config_name) is None:
        trace.problems["config"] = f"there is no {trace.config_name}.yaml in {trace.relative(trace.folders[0])}/"
        return
    words = [word for word in trace.argv if word not in ("-h", "--help")]
    trace.groups = _groups(tuple(trace.folders), trace.config_name, stamp := digest(trace.folders))
    empty: Any = type("Empty", (), {"__dataclass_fields__": {}})
    unknown = Family(entry="", package="", config_name="", schema=empty, requires={})
    flags, trace.overrides = read_command(words, script.declared or unknown, trace.groups, trace.typed)
    if script.schema:
        check_presets(trace.overrides, script.schema, trace.groups, trace.folders, script.path.stem)
    trace.jobs = sweep_of(trace) if is_sweep(flags) else [trace.overrides]
    composed = compose_config(trace.folders, trace.config_name, trace.jobs[0], stamp)
    trace.composed, trace.choices = True, composed.choices
    trace.files = config_files(trace.folders, trace.config_name, trace.choices)
    resolved: Any = OmegaConf.to_container(composed.config, resolve=True, throw_on_missing=True)
    trace.resolved = with_defaults(script.schema, resolved) if script.schema else resolved
    trace.config = structure(script.schema, trace.resolved) if script.schema else None
    if composed.params and not is_sweep(flags) and not sweep_job:
        raise UsageError(PRESET)


def _use_launched(trace: Trace, config: RunConfig) -> None:
    """Fill the trace from what Hydra has composed in this process."""
    script, source = trace.script, source_of(config)
    assert script is not None
    trace.folders = hydra_folders() or [script.config_dir]
    trace.config_name = source.config_name or script.config_name
    trace.overrides, trace.jobs = list(source.overrides), [list(source.overrides)]
    trace.choices = dict(source.choices)
    trace.files = config_files(trace.folders, trace.config_name, trace.choices)
    trace.composed, trace.resolved, trace.config = True, source.resolved, config


PRESET = "a preset of config/sweep describes several jobs: add -m to run them"


@functools.lru_cache(maxsize=64)
def _groups(folders: tuple[Path, ...], name: str, stamp: str) -> Groups:
    """`find_groups`, cached by the content of the files."""
    return find_groups(folders, name)


_PLUGIN = re.compile(rf"hydra/(launcher|sweeper)=({'|'.join(PLUGINS)})$")
_PLUGIN_KEY = re.compile(r"\+*hydra\.(launcher|sweeper)\.")


def sweep_of(trace: Trace) -> list[list[str]]:
    """The jobs of a sweep, including those of a preset (hydra.sweeper.params). Hydra plugins need not be installed."""
    words = [word for word in trace.overrides if not _PLUGIN.match(word)]
    if len(words) < len(trace.overrides):  # also drop the plugin's keys
        words = [word for word in words if not _PLUGIN_KEY.match(word)]
    params = compose_config(trace.folders, trace.config_name, sweep_jobs(words)[0]).params
    given = {word.lstrip("+").partition("=")[0] for word in words}
    return sweep_jobs([*(f"{key}={value}" for key, value in params.items() if key not in given), *words])


def hydra_flags(words: Sequence[str]) -> list[str]:
    """Hydra's flags that take a value, with their values."""
    return [part for name in sorted(HYDRA_VALUED) if (value := flag_value(words, name)) for part in (name, value)]
