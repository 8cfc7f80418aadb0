"""The command line of every entry script, in both styles; exit codes 0 done, 1 failed, 2 unusable, 3 stopped.

Nothing here imports torch, so --help and the error for a misspelt key appear at once.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli import recipes
from engine.cli.console import as_typed, finish, forget, open_streams, remember
from engine.cli.files import locate
from engine.cli.help import help_text
from engine.cli.keys import hint_for, keys_of
from engine.cli.recipes import check_presets, check_recipe, config_name_of, find_groups, no_config, search_folders
from engine.cli.resolve import PLUGINS, PRESET, is_sweep, read_command
from engine.cli.translate import spelled
from engine.config import cause_of
from engine.distributed import is_main, rank, report_to_launcher, should_report, under_torchrun
from engine.errors import Interrupted, RunFailure, UsageError, disk_fault
from engine.fields import flatten
from engine.io import did_you_mean, user_path
from engine.registry import Family
from engine.run.environment import FULL_ERROR, SET_FULL_ERROR, SWEEP, is_sweep_job
from engine.schema import NO_TEXT

# Every rank composes by itself; without these overrides each would make its own output folder.
QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")

Sweep = Callable[[Sequence[str]], AbstractContextManager[list[int]]]


class _TaskStopped(BaseException):
    """Carries an exception of the task through Hydra, which would print a line of its own for an Exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def main(
    launch: Callable[..., Any], family: Family, *, config_dir: str | Path = "config", sweep: Sweep | None = None
) -> NoReturn:
    """Translate sys.argv by the keys of `family`, run `launch` (decorated with @hydra.main), exit with the documented
    code. `config_dir` is the folder that @hydra.main names (relative to the script). `sweep(words)` is the context of a
    sweep (-m); the list that it yields holds the exit codes of the jobs at the end.

    Raises: SystemExit always.
    """
    folder = Path(inspect.getfile(inspect.unwrap(launch))).resolve().parent / config_dir
    open_streams()
    finish(run(launch, family, config_dir=folder, sweep=sweep))


def run(launch: Callable[..., Any], family: Family, *, config_dir: Path, sweep: Sweep | None = None) -> int:
    """`main` without the exit: returns the code. sys.argv is the translated command meanwhile."""
    schema, entry = family.schema, family.entry
    full_error = os.environ.get(FULL_ERROR) == "1"
    hydra_args, argv = inspect.getclosurevars(launch).nonlocals, spelled(sys.argv[1:])
    if path := recipes.flag_value(argv, "--config-path", "-cp"):
        config_dir = config_dir.parent / user_path(path)  # relative to the script; Hydra would take this file
        forms = (path, f"--config-path={path}", f"-cp={path}")
        argv = [f"{word.removesuffix(path)}{config_dir}" if word in forms else word for word in argv]
    name = config_name_of(argv) or str(hydra_args.get("config_name") or "")
    folders = search_folders(argv, config_dir)
    try:
        if unreadable := [word for word in argv if NO_TEXT.search(word)]:
            raise UsageError(
                f"{unreadable[0]!r} is not valid UTF-8: check the terminal's encoding, or quote it differently"
            )
        if missing := [one for one in folders[1:] if not one.is_dir()]:
            raise UsageError(f"--config-dir: there is no folder {missing[0]}")
        if config_name_of(argv) == "" or name.startswith("."):  # Hydra would put ./NAME into a package without a name
            raise UsageError(no_config(name if config_name_of(argv) else "''", folders))
        based = check_recipe(folders, name, entry)
        groups = find_groups(folders, name)
        if {"-h", "--help"} & set(argv):
            chosen = [w for w in argv if w.startswith("~") or w.partition("=")[0].lstrip("+") in groups.options]
            sys.stdout.write(help_text(family, groups, folders, name, chosen) + "\n")
            return 0
        typed: dict[str, str] = {}
        flags, words = read_command(
            argv, family, groups, typed, lambda words: remember(_followed_keys(schema, words, typed) | typed)
        )
        remember(typed)
        multirun = is_sweep(flags)
        check_presets(words, schema, groups, folders, Path(entry).stem)
        if multirun and under_torchrun():
            raise UsageError("-m does not run under torchrun: drop torchrun, each job is its own process")
        if not multirun and not is_sweep_job() and any(re.match(r"\+*sweep=(?!null)", word) for word in words):
            raise UsageError(PRESET)
        if multirun and "hydra/launcher=submitit_slurm" in words and shutil.which("srun") is None:
            raise UsageError("hydra/launcher=submitit_slurm: there is no srun here; start it on a cluster")
        if multirun and sweep is None:
            raise UsageError(f"{Path(entry).stem}.py does not take -m: its main() does not handle sweeps")
        if not is_main() or not based:
            words += QUIET
        if not {"-sc", "--shell-completion"} & set(flags) and not any("hydra.job.name=" in word for word in words):
            words.append(f"++hydra.job.name={Path(entry).stem}")
        words = [*flags, *words]
        with _environment(words), sweep(words) if multirun and sweep else nullcontext([]) as codes:
            _guarded(launch, config_dir, hydra_args.get("config_name"))()
        return max(codes, default=0)
    except SystemExit as stop:  # Hydra's own, after it has printed what is wrong, e.g. with -p PACKAGE
        return UsageError.exit_code if stop.code == 1 else int(stop.code or 0)
    except (_TaskStopped, Exception, Interrupted, KeyboardInterrupt) as caught:
        error = caught.error if isinstance(caught, _TaskStopped) else caught
        error = disk_fault(error) or error
        line = one_line(error, schema, folders, composing=not isinstance(caught, _TaskStopped))
        line = None if line is None else as_typed(line)
        code = exit_code(error, line)
        if full_error or line is None:
            traceback.print_exception(error)
        # Errors of Hydra and OmegaConf occur on every rank, as our UsageErrors do.
        if line is not None and should_report(UsageError(line) if code == UsageError.exit_code else error, code):
            kind = "interrupted" if code == Interrupted.exit_code else "error"
            sys.stderr.write(f"{kind}{'' if is_main() else f' [rank {rank()}]'}: {line}\n")
        report_to_launcher(error, line)
        return code
    finally:
        if not is_sweep_job():
            forget()


def exit_code(error: BaseException, line: str | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else 1 if line is None else UsageError.exit_code


def one_line(error: BaseException, schema: type, folders: Sequence[Path], *, composing: bool) -> str | None:
    """The error in one line, or None for one that needs its traceback (a bug, a broken machine).

    `folders`: Hydra's search path for configs. `composing`: the error occurred before the task ran, so one of OmegaConf
    is the user's, not a bug of ours.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, UsageError | RunFailure | Interrupted):
        return _flat(str(error))
    if not composing or not isinstance(error, HydraException | OmegaConfBaseException | YAMLError | ValueError):
        return None
    if isinstance(error, MissingConfigException):
        return _missing_config(error, schema, folders)
    if refused := cause_of(error, UsageError):  # raised by one of our resolvers
        return _flat(str(refused))
    cause: Any = cause_of(error, OmegaConfBaseException)
    if cause is not None and cause.key is not None and "not in struct" in str(cause):
        parent = str(cause.full_key)[: -len(str(cause.key))]
        siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
        known = {f"{parent}{key}" for key in siblings if key != "hydra"}
        known |= set() if parent else {key for key in keys_of(schema) if "." not in key}
        foreign = hint_for(schema, str(cause.full_key))
        if str(cause.full_key) in known and (folders[0] / str(cause.full_key)).is_dir():
            group = cause.full_key
            return f"{group} is a group of keys that nothing has chosen yet: {group}=NAME, of config/{group}/"
        tree: Any = OmegaConf.to_container(siblings) if siblings else {}
        inside = _with_leaf(tree, str(cause.key), parent)
        hint = f"did you mean '{inside}'?" if inside else did_you_mean(str(cause.full_key), known)
        return f"unknown key '{cause.full_key}': {foreign or hint}"
    if cause is None and isinstance(error, OverrideParseException):
        lines = [line for line in str(error).splitlines() if line.strip(" ^") and "https://" not in line]
        why = " ".join(line for line in lines if "LexerNoViableAlt" not in line)
        key, _, value = str(error.override).lstrip("+").partition("=")
        plain = re.fullmatch(r"[A-Za-z_][\w.]*", key) and value and value[0] not in "[{"
        how = f"write --{key} {shlex.quote(value)}" if plain else "quote a value with special characters"
        return _flat(f"cannot read '{error.override}': {f'{why}; ' if why else ''}{how}")
    if twice := re.match(r"(?:Multiple values for )?(\S+?)(?:\. To override| appears more than once)", str(error)):
        return f"{twice[1]} is chosen twice: keep one {twice[1]}=NAME"
    if several := re.match(r"Ambiguous value for argument '\+*([\w.]+)=(.*)'\n", str(error)):
        key, value = several.groups()
        return f"{key}={value} is several values: -m for a sweep, {key}=[{value}] for a list, --{key} {value} for text"
    if gone := re.match(r"Could not delete from config\. '(.+)' does not exist", str(error)):
        key, folder = gone[1], folders[0] / gone[1].partition(".")[0]
        options = (flatten(recipes.read_option(path)) for path in folder.glob("*.yaml"))
        known = {*keys_of(schema), *(name for option in options for name, _ in option)}
        return f"~{key}: unknown key '{key}': {did_you_mean(key, known)}"
    text = re.sub(r"\n?See https?://\S+ for details", "", str(error))
    if isinstance(error, ConfigCompositionException) and cause is not None:
        text += f" ({str(cause).splitlines()[0]})"
    return _flat(text)


def _with_leaf(block: Mapping[Any, Any], leaf: str, prefix: str = "") -> str | None:
    """The first dotted key of `block` that ends in `.leaf`, for a key given without its block."""
    for key, inner in block.items():
        if isinstance(inner, Mapping) and key != "hydra":
            path = f"{prefix}{key}."
            if dotted := path + leaf if leaf in inner else _with_leaf(inner, leaf, path):
                return dotted
    return None


def _missing_config(error: MissingConfigException, schema: type, folders: Sequence[Path]) -> str:
    missing = str(error.missing_cfg_file or "")
    if error.options is not None:
        group, _, option = missing.rpartition("/")
        if group.startswith("hydra/") and option in PLUGINS:
            return f"{group}={option} needs a plugin: pip install -e '.[{PLUGINS[option]}]'"
        files = {name: locate(folders, f"{group}/{name}") for name in error.options}
        fitting = [name for name, path in files.items() if path is None or not recipes.foreign_key(schema, path)]
        return f"there is no {group}={option}: {did_you_mean(option, fitting)}"
    if "primary config" in str(error) and missing:
        return no_config(missing, folders)
    return _flat(str(error).partition("Config search path")[0])


def _flat(text: str) -> str:
    return " ".join(text.split())


def _followed_keys(schema: type, words: list[str], typed: Mapping[str, str]) -> dict[str, str]:
    """Keys not given that take their value from another key -> that key, which messages name instead."""
    follows: Mapping[str, str] = getattr(schema, "FOLLOWS", {})
    given = {word.lstrip("+").partition("=")[0] for word in words}
    return {key: typed.get(other, other) for key, other in follows.items() if key not in given}


def allow_lazy_help() -> None:
    """Since Python 3.14 argparse checks the help of an argument when it is added, and fails on Hydra's, an object that
    is converted to text only when shown (facebookresearch/hydra#3121). Help that is text is checked as before.
    """
    owner: Any = argparse._ActionsContainer
    if (check := getattr(owner, "_check_help", None)) is not None:
        owner._check_help = lambda self, action: check(self, action) if isinstance(action.help, str) else None


allow_lazy_help()


def _guarded(launch: Callable[..., Any], config_dir: Path, config_name: str | None) -> Callable[[], Any]:
    """`launch` with its @hydra.main around a task whose exceptions reach us before Hydra prints them."""
    task = inspect.unwrap(launch)

    def guarded(hydra_config: DictConfig) -> Any:
        try:
            return task(hydra_config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN and SWEEP in os.environ:
                raise  # a job of a sweep must not end the others
            raise _TaskStopped(error) from error

    guarded.__module__, guarded.__qualname__ = task.__module__, task.__qualname__
    decorated: Callable[[], Any] = hydra.main(str(config_dir), config_name, version_base=None)(guarded)
    return decorated


@contextmanager
def _environment(words: list[str]) -> Iterator[None]:
    """sys.argv for Hydra, and its full errors, for the duration of the run."""
    argv, before = sys.argv, dict(os.environ)
    if before.get(FULL_ERROR) != "1":
        os.environ.update({FULL_ERROR: "1", SET_FULL_ERROR: "1"})
    sys.argv = [argv[0], *words]
    try:
        yield
    finally:
        sys.argv = argv
        for name in (FULL_ERROR, SET_FULL_ERROR):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
