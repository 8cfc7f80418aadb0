"""A grid of jobs: every combination of factors and seeds becomes a line of a job file, with its own run name."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli.translate import quote, render
from engine.errors import UsageError
from engine.io import atomic_write_text, did_you_mean
from engine.reading import Unreadable, read_yaml, reason_of
from launcher.jobs import Job, command_job, fault_of, parse_text
from launcher.ledger import Ledger
from launcher.storage import folder_key, stored_in

KEYS = ("base", "name", "intent", "comment", "factors", "exclude", "seeds")
LIMIT = 10_000  # jobs of one grid: more is a typing error


class WordLoader(get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's YAML (1e-4 is a number, a duplicate key an error) in which on, off, yes and no stay text.

    A grid does not know the types of keys: `compile: [off, block]` means the word, and a bool accepts the word as well.
    """


WordLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":bool") or first in "tTfF"]
    for first, known in WordLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Level:
    """One value of one factor."""

    factor: str
    value: Any
    """as in `exclude`"""
    token: str
    """part of the run name"""
    overrides: tuple[str, ...]


def load(path: Path) -> dict[str, Any]:
    """The grid in `path`, checked for unknown keys. Raises: UsageError."""
    try:
        grid = OmegaConf.to_container(OmegaConf.create(yaml.load(read_yaml(path), Loader=WordLoader)))
    except (OSError, Unreadable) as error:
        raise UsageError(f"grid {path} {reason_of(error)}") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"grid {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(grid, dict) or not isinstance(grid.get("base"), str):
        raise UsageError(f"grid {path}: expected at least base: COMMAND and factors: {{key: [values]}}")
    for key in grid:
        if key not in KEYS:
            raise UsageError(f"grid {path}: unknown key {key!s}: {did_you_mean(str(key), KEYS)}")
    return {str(key): value for key, value in grid.items()}


def levels(factor: str, values: Any) -> list[Level]:
    """The levels of one factor: a list of values of a key, or names that each set several keys.

    Raises: UsageError.
    """
    if not values or not isinstance(values, list | dict):
        raise UsageError(f"factors.{factor}: expected a list of values, or names with keys under them")
    if isinstance(values, list):
        short = factor.rpartition(".")[2]
        return [Level(factor, value, _token(short) + _token(value), _overrides({factor: value})) for value in values]
    named = []
    for name, keys in values.items():
        if not isinstance(keys, dict):
            raise UsageError(f"factors.{factor}.{name}: expected {{key: value}}, found {keys!r}")
        named.append(Level(factor, name, _token(name), _overrides(keys)))
    return named


def combinations(grid: Mapping[str, Any]) -> Iterator[tuple[Level, ...]]:
    """Yield every combination that is not excluded; the first factor varies slowest. Raises: UsageError."""
    factors = grid.get("factors") or {}
    if not isinstance(factors, dict):
        raise UsageError("factors: expected {key: [values]}")
    axes = {str(factor): levels(str(factor), values) for factor, values in factors.items()}
    if seeds := _seeds(grid.get("seeds")):
        if "seed" in axes:
            raise UsageError("factors.seed and seeds both name the seeds: keep one of them")
        axes["seed"] = [Level("seed", seed, f"seed{seed}", (f"seed={seed}",)) for seed in seeds]
    excludes = grid.get("exclude") or []
    for number, rule in enumerate(excludes):
        _check_exclude(f"exclude[{number}]", rule, axes)
    for combination in itertools.product(*axes.values()):
        values = {level.factor: _text(level.value) for level in combination}
        if not any(all(values[str(key)] == _text(value) for key, value in rule.items()) for rule in excludes):
            yield combination


def _seeds(seeds: Any) -> list[int]:
    if seeds is None:
        return []
    if type(seeds) is int and seeds > LIMIT:  # before a list of them fills the memory
        raise UsageError(f"seeds: {seeds} are more than {LIMIT} jobs: a slip of the pen?")
    listed = list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(listed, list) or not listed or not all(type(seed) is int and seed >= 0 for seed in listed):
        raise UsageError(f"seeds: expected a number of seeds or a list of them, found {seeds!r}")
    return listed


def _check_exclude(where: str, rule: Any, axes: Mapping[str, list[Level]]) -> None:
    if not isinstance(rule, dict) or not rule:
        raise UsageError(f"{where}: expected {{factor: value}}")
    for factor, value in rule.items():
        if str(factor) not in axes:
            raise UsageError(f"{where}: there is no factor {factor}: {did_you_mean(str(factor), axes)}")
        known = [_text(level.value) for level in axes[str(factor)]]
        if _text(value) not in known:
            raise UsageError(f"{where}: {factor} is never {_text(value)}: {did_you_mean(_text(value), known)}")


def _token(value: Any) -> str:
    """A value as part of a run name, without characters that are special in a shell, Hydra or a path."""
    return re.sub(r"[^\w.+-]+", "_", _text(value)).strip("_") or "none"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _overrides(values: Mapping[Any, Any]) -> tuple[str, ...]:
    """The `values` as `key=value` in Hydra's grammar."""
    return tuple(f"{key}={render(value)}" for key, value in values.items())


def job_lines(grid: Mapping[str, Any]) -> tuple[list[str], int]:
    """(lines of the job file, number of jobs). Raises: UsageError if two jobs would share a name or a command."""
    base = str(grid["base"]).strip()
    job = command_job(" ".join(base.split("\n")))
    if fault := fault_of(job):
        raise UsageError(f"base: {fault}")
    if job.run_name is not None:
        raise UsageError(f"base: run_name={job.run_name} is made from the factors: use name: {job.run_name}")
    base_keys = {word.lstrip("+-").partition("=")[0] for word in job.argv if "=" in word or word.startswith("--")}
    stated = grid.get("intent") or {}
    if not isinstance(stated, dict):
        raise UsageError(f"intent: expected {{mode: embedding, act: dynamic, ...}}, found {stated!r}")
    intent = " ".join(f"{key}={shlex.quote(_text(value))}" for key, value in stated.items())
    head = [f"# {line}" for line in str(grid.get("comment") or "").strip().splitlines()]
    lines, names, commands = [*head, ""] if head else [], set(), set()
    for combination in combinations(grid):
        overrides = [override for level in combination for override in level.overrides]
        keys = [override.lstrip("+").partition("=")[0] for override in overrides]
        for number, key in enumerate(keys):
            if key in base_keys or key in keys[:number] or key == "run_name":
                raise UsageError(f"factors: {key} is set twice, by the base command or by another factor")
        tokens = [level.token for level in combination]
        name = "-".join([_token(grid["name"]), *tokens] if grid.get("name") else tokens) or "run"
        if name in names or tuple(overrides) in commands:
            raise UsageError(f"two jobs would be called {name}: values that differ must differ in their names")
        names.add(name)
        commands.add(tuple(overrides))
        if len(names) > LIMIT:
            raise UsageError(f"the grid has more than {LIMIT} jobs")
        if intent:
            lines.append(f"#@ intent: {intent}")
        lines.append(f"[ ] {job.command} {shlex.join([*overrides, f'run_name={quote(name)}'])}")
    if not names:
        raise UsageError("the grid is empty: every combination is excluded")
    _check_folders(job, lines)
    return lines, len(names)


def _check_folders(base: Job, lines: list[str]) -> None:
    """Raises: UsageError if two jobs would store their runs in one folder."""
    folders = [folder for job in parse_text("\n".join(lines))[0] if (folder := stored_in(job)) is not None]
    if len(set(folders)) < len(folders):
        key = "run_dir" if base.value("run_dir") else folder_key(base) or "out_dir"
        raise UsageError(
            f"base: its jobs would share one folder for their runs: write {key}=FOLDER/${{run_name}} there"
        )


def write(lines: list[str], out: Path, *, append: bool) -> None:
    """Write the job file.

    Raises: UsageError if it exists (without `append`), has a job of the same name, or cannot be written.
    """
    if not out.exists():
        try:
            atomic_write_text(out, "\n".join(lines) + "\n")
        except OSError as error:
            raise UsageError(f"{out} cannot be written ({error.strerror}): choose another place") from None
        return
    if not out.is_file():
        raise UsageError(f"{out} is not a file: name a job file to write")
    if not append:
        raise UsageError(f"{out} exists: choose another name, or --append to it")
    ledger = Ledger(out)  # locks it: a runner may be using it
    if problems := ledger.read().problems:
        raise UsageError(f"{out} is not a job file (line {problems[0][0]}): --append adds to one, choose another name")
    ledger.append("\n".join(lines) + "\n", {job.id for job in parse_text("\n".join(lines))[0]})
