"""Reads the recipe that a command names before Hydra does: where it is, what is wrong with it, what it selects.

Hydra looks in the script's config/ (or --config-path) first, then in --config-dir.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from engine.cli.defaults import defaults_of, schema_of
from engine.cli.files import WHOLE, locate
from engine.cli.keys import keys_of
from engine.cli.translate import Groups
from engine.errors import UsageError
from engine.fields import flatten
from engine.io import did_you_mean, user_path
from engine.reading import YAML_LIMIT, Unreadable, check_yaml, read_text, reason_of

BASE = "base/run"  # first entry of every recipe of ours
GROUPS = ("base", "arch", "optimizer", "lr_scheduler", "debug", "sweep")


def flag_value(argv: Sequence[str], *names: str) -> str | None:
    """The value of the first of Hydra's flags `names` in `argv`, as `--flag=value` or `--flag value`."""
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else (argv[number + 1] if number + 1 < len(argv) else None)
    return None


def config_name_of(argv: Sequence[str]) -> str | None:
    """The value of --config-name, None if it is not given."""
    return flag_value(argv, "--config-name", "-cn")


def search_folders(argv: Sequence[str], config_dir: Path, *bases: Path) -> list[Path]:
    """Hydra's search path for configs, in order. A relative --config-dir is resolved in `bases`, then in the cwd."""
    more = flag_value(argv, "--config-dir", "-cd")
    if not more:
        return [config_dir]
    places = [base / user_path(more) for base in (*bases, Path.cwd())]
    return [config_dir, next((place for place in places if place.is_dir()), places[0])]


@dataclass
class Recipe:
    """What a recipe's files contain, as far as it is known without composing them."""

    defaults: list[Any] = field(default_factory=list)
    """Entries of the defaults lists, including those of the files that they name."""
    set_keys: set[str] = field(default_factory=set)
    """Dotted keys that its files set."""
    script: str | None = None
    """The entry script that it declares."""


def read_recipe(folders: Sequence[Path], config_name: str) -> Recipe:
    """Follow the defaults list of a recipe through the files in `folders`.

    Raises: UsageError that names file and line, for a file that is not a mapping, and for an entry that does not exist.
    """
    if (path := locate(folders, config_name)) is None:
        return Recipe()
    entries: list[Any] = []
    keys = _merged(folders, path, entries)
    script = keys.get("script")
    return Recipe(entries, set(dict(flatten(keys))), script if isinstance(script, str) else None)


def read_file(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file, interpolations as written. Raises: UsageError that names file and line."""
    try:
        content = deepcopy(_parsed(read_text(path, YAML_LIMIT)))
    except (OSError, Unreadable, YAMLError, OmegaConfBaseException, ValueError) as error:
        marked = error if isinstance(error, MarkedYAMLError) else error.__context__
        if isinstance(marked, MarkedYAMLError) and (mark := marked.problem_mark or marked.context_mark):
            reason = marked.problem or marked.context
            raise UsageError(f"{path} line {mark.line + 1} column {mark.column + 1}: {reason}") from error
        reason = reason_of(error) if isinstance(error, OSError | Unreadable) else " ".join(str(error).split())[:200]
        raise UsageError(f"{path} {reason}") from error
    if not isinstance(content, dict) or (len(content) == 1 and next(iter(content.values())) is None):
        raise UsageError(f"{path}: expected keys with values, e.g. `seed: 1`")
    return content


@lru_cache(maxsize=256)  # a launch reads a recipe twice
def _parsed(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(check_yaml(text)), resolve=False)


def read_option(path: Path) -> dict[Any, Any]:
    """The keys that a group's file sets or inherits, from the root of the config. Raises: UsageError."""
    content = _merged([path.parent], path)
    return content if read_text(path).startswith(WHOLE) else {path.parent.name: content}


def _merged(
    folders: Sequence[Path], path: Path, entries: list[Any] | None = None, above: tuple[Path, ...] = ()
) -> dict[Any, Any]:
    """The keys of a file, merged over those of the files, groups and dataclasses in its defaults list.

    `entries` collects the entries of a recipe's lists, each of which must then exist. Unknown entries in a group's file
    are left to Hydra.
    """
    if path in above:
        raise UsageError(f"{path}: its defaults form a cycle: {' -> '.join(one.stem for one in (*above, path))}")
    content = read_file(path)
    defaults = content.pop("defaults", None) or []
    if not isinstance(defaults, list):
        raise UsageError(f"{path}: defaults: expected a list, found {defaults!r}")
    keys: dict[Any, Any] = {}
    for entry in defaults:
        if entries is not None:
            entries.append(entry)
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            name = str(group).removeprefix("optional ").removeprefix("override ").lstrip("/")
            _merge(keys, read_option(file) if (file := locate(folders, f"{name}/{option}")) else {})
        if isinstance(entry, Mapping) or entry == "_self_":
            continue
        name, _, package = str(entry).partition("@")
        inner: dict[Any, Any] = {}
        if file := locate(folders, name.lstrip("/")):
            inner = _merged(folders, file, entries, (*above, path))
        elif schema := schema_of(name):
            inner = defaults_of(schema)
        elif entries is not None and not any(mark in str(entry) for mark in "@$ :"):
            names = [one.stem for folder in folders for one in folder.glob("*.yaml")]
            raise UsageError(f"{path}: defaults: there is no config {entry}: {did_you_mean(str(entry), names)}")
        _merge(keys, inner if package.startswith("_") or not package else {package: inner})
    _merge(keys, content)
    return keys


def _merge(into: dict[Any, Any], other: Mapping[Any, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def find_groups(folders: Sequence[Path], config_name: str) -> Groups:
    """The groups in `folders` (in others than the first only GROUPS) with their options, and what the recipe selects
    and sets."""
    options: dict[str, set[str]] = {}
    for top in folders:
        for folder in sorted(top.rglob("*")) if top == folders[0] else [top / name for name in GROUPS]:
            if folder.is_dir() and (names := {path.stem for path in folder.glob("*.yaml")}):
                options.setdefault(folder.relative_to(top).as_posix(), set()).update(names)
    recipe = read_recipe(folders, config_name)
    keys = (str(key) for entry in recipe.defaults if isinstance(entry, Mapping) for key in entry)
    chosen = (key.removeprefix("optional ").lstrip("/").partition("@")[0] for key in keys if key[:9] != "override ")
    set_keys = frozenset(recipe.set_keys) if recipe.defaults or recipe.set_keys else None
    return Groups({group: sorted(names) for group, names in sorted(options.items())}, frozenset(chosen), set_keys)


def check_recipe(folders: Sequence[Path], config_name: str, entry: str) -> bool:
    """Whether the recipe builds on base/run; without it Hydra would make an outputs/ folder.

    Raises: UsageError for a file of ours without it, which is a fragment of recipes; for a recipe of another script,
    not `entry`, whose keys would be reported as unknown one by one.
    """
    recipe, path = read_recipe(folders, config_name), locate(folders, config_name)
    if path is not None and not recipe.defaults and not recipe.set_keys:
        raise UsageError(f"{path} is empty: start with `defaults: [{BASE}, ...]`, or with the name of another recipe")
    if recipe.script and Path(recipe.script).stem != Path(entry).stem:
        raise UsageError(
            f"config {config_name} is for {recipe.script}, not for {Path(entry).stem}.py: "
            f"run python {recipe.script}, or choose another --config-name"
        )
    based = any(entry in (BASE, f"/{BASE}") for entry in recipe.defaults)
    if path is not None and not based and path.is_relative_to(folders[0]):
        names = sorted(one.stem for one in folders[0].glob("cfg_*.yaml"))
        raise UsageError(
            f"--config-name={config_name} is a fragment of recipes, not a recipe: {did_you_mean(config_name, names)}"
        )
    return based or path is None


def no_config(name: str, folders: Sequence[Path]) -> str:
    """The error line for a recipe that does not exist."""
    path = Path(name if name.endswith(".yaml") else f"{name}.yaml")
    if path.is_file():
        return f"--config-name takes no path: write --config-dir {path.parent} --config-name {path.stem}"
    removed = folders[0] / "REMOVED.txt"
    if removed.is_file() and path.stem in (reasons := retired(removed.read_text(encoding="utf-8"))):
        return f"config {path.stem} was retired: {reasons[path.stem]}"
    files = [*folders[0].glob("cfg_*.yaml"), *(one for folder in folders[1:] for one in folder.glob("*.yaml"))]
    hint = did_you_mean(name.removesuffix(".yaml"), {one.stem for one in files if one.is_file()})
    return f"there is no config {name} in {' or '.join(map(str, folders))}: {hint}"


def retired(text: str) -> dict[str, str]:
    """Name -> reason, from the lines `NAME: reason` of config/REMOVED.txt."""
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        name, *reason = re.split(r"[\s:|]+", line.strip(), maxsplit=1)
        if name and not name.startswith("#"):
            reasons[name.removesuffix(".yaml").removeprefix("config/")] = "".join(reason) or "see config/REMOVED.txt"
    return reasons


# --- the options of config groups that fit a script: those whose keys its schema has ----------------------------------


def options_for(schema: Any, groups: Groups, *folders: Path) -> dict[str, list[str]]:
    """Group -> the options that fit the script of `schema`; groups without any are left out."""
    fitting = {}
    for group, options in groups.options.items():
        files = {option: locate(folders, f"{group}/{option}") for option in options if group != "base"}
        fitting[group] = [option for option, path in files.items() if path and not foreign_key(schema, path)]
    return {group: options for group, options in fitting.items() if options}


def foreign_key(schema: Any, path: Path) -> str:
    """The first key that a group's file sets and the script lacks; "" if it has them all.

    A block with a name (arch) is foreign if its class is of another family than the one in `schema.NESTED_SCHEMAS`.
    """
    content: dict[str, Any] = read_option(path)
    jobs = content.pop("hydra", {}).get("sweeper", {}).get("params", {})  # a preset of config/sweep
    merged: dict[str, Any] = content | jobs
    for key, value in merged.items():
        root, _, inner = key.partition(".")
        block = schema.NESTED_SCHEMAS.get(root)
        if root != "defaults" and root not in keys_of(schema):
            return key
        if block is not None and isinstance(value, Mapping) and "name" in value:
            if value["name"].partition(".")[0] != block.__module__.split(".")[1]:
                return f"{key}.name"
        elif block is not None:
            unknown = [name for name in ([inner] if inner else value) if name not in {*keys_of(block), "loss"}]
            if unknown:
                return f"{root}.{unknown[0]}"
    return ""


def check_presets(words: Sequence[str], schema: Any, groups: Groups, folders: Sequence[Path], script: str) -> None:
    """Raises: UsageError for a preset (+debug=tiny, +sweep=depth) with keys that the script lacks: another script's."""
    for word in words:
        group, _, option = word.lstrip("+").partition("=")
        preset = group not in keys_of(schema) and option in groups.options.get(group, [])
        path = locate(folders, f"{group}/{option}") if preset else None
        if path is not None and (key := foreign_key(schema, path)):
            fitting = " or ".join(options_for(schema, groups, *folders).get(group, []))
            hint = f"choose {fitting}" if fitting else f"drop {word}"
            raise UsageError(f"{group}={option} is not for {script}.py, which has no {key}: {hint}")
