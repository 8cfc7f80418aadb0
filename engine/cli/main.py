"""The command line of every entry script, in both styles; exit codes 0 done, 1 failed, 2 unusable, 3 stopped.

Nothing here imports torch, so --help and the error for a misspelt key appear at once.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from engine.cli import recipes
from engine.cli.console import as_typed, finish, forget, open_streams, remember
from engine.cli.explain import hydra_folder_fault, one_line
from engine.cli.help import help_text
from engine.cli.recipes import check_presets, check_recipe, config_name_of, find_groups, no_config, search_folders
from engine.cli.resolve import PRESET, is_sweep, read_command
from engine.cli.translate import spelled
from engine.distributed import is_main, rank, report_to_launcher, should_report, under_torchrun
from engine.errors import Interrupted, UsageError, disk_fault
from engine.io import user_path
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
    hydra_args, argv = inspect.getclosurevars(launch).nonlocals, spelled(sys.argv[1:])
    config_dir, argv = _config_path(config_dir, argv)
    name = config_name_of(argv) or str(hydra_args.get("config_name") or "")
    folders = search_folders(argv, config_dir)
    try:
        _check_search(argv, name, folders)
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
        _check_sweep(words, entry, multirun=multirun, can_sweep=sweep is not None)
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
        error = hydra_folder_fault(error) or disk_fault(error) or error
        line = one_line(error, schema, folders, composing=not isinstance(caught, _TaskStopped))
        return _report(error, None if line is None else as_typed(line))
    finally:
        if not is_sweep_job():
            forget()


def _config_path(config_dir: Path, argv: list[str]) -> tuple[Path, list[str]]:
    """The folder of --config-path, relative to the script, and the words with its full path; Hydra would take it
    relative to this file."""
    path = recipes.flag_value(argv, "--config-path", "-cp")
    if not path:
        return config_dir, argv
    folder = config_dir.parent / user_path(path)
    forms = (path, f"--config-path={path}", f"-cp={path}")
    return folder, [f"{word.removesuffix(path)}{folder}" if word in forms else word for word in argv]


def _check_search(argv: list[str], name: str, folders: Sequence[Path]) -> None:
    """Raises: UsageError for words that are no text, a --config-dir that is not there, a config's name that is none."""
    if unreadable := [word for word in argv if NO_TEXT.search(word)]:
        raise UsageError(
            f"{unreadable[0]!r} is not valid UTF-8: check the terminal's encoding, or quote it differently"
        )
    if missing := [one for one in folders[1:] if not one.is_dir()]:
        raise UsageError(f"--config-dir: there is no folder {missing[0]}")
    if config_name_of(argv) == "" or name.startswith("."):  # Hydra would put ./NAME into a package without a name
        raise UsageError(no_config(name if config_name_of(argv) else "''", folders))


def _check_sweep(words: list[str], entry: str, *, multirun: bool, can_sweep: bool) -> None:
    """Raises: UsageError for a sweep that cannot run here, or a preset of sweeps without -m."""
    if multirun and under_torchrun():
        raise UsageError("-m does not run under torchrun: drop torchrun, each job is its own process")
    if not multirun and not is_sweep_job() and any(re.match(r"\+*sweep=(?!null)", word) for word in words):
        raise UsageError(PRESET)
    if multirun and "hydra/launcher=submitit_slurm" in words and shutil.which("srun") is None:
        raise UsageError("hydra/launcher=submitit_slurm: there is no srun here; start it on a cluster")
    if multirun and not can_sweep:
        raise UsageError(f"{Path(entry).stem}.py does not take -m: its main() does not handle sweeps")


def _report(error: BaseException, line: str | None) -> int:
    """Print `error` as `line`, or with its traceback if there is none or HYDRA_FULL_ERROR=1; return the exit code."""
    code = exit_code(error, line)
    if line is None or os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)
    # Errors of Hydra and OmegaConf occur on every rank, as our UsageErrors do.
    if line is not None and should_report(UsageError(line) if code == UsageError.exit_code else error, code):
        kind = "interrupted" if code == Interrupted.exit_code else "error"
        sys.stderr.write(f"{kind}{'' if is_main() else f' [rank {rank()}]'}: {line}\n")
    report_to_launcher(error, line)
    return code


def exit_code(error: BaseException, line: str | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else 1 if line is None else UsageError.exit_code


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
