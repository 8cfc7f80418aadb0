"""Composes a recipe with Hydra outside of a launch.

Compositions are cached by the content of the config folders: most commands to be examined differ only in values.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from engine.cli.defaults import DefaultsSearchPath

CACHE: dict[tuple[Any, ...], Composed] = {}


@dataclass(frozen=True, eq=False)
class Composed:
    """A composed config without its `hydra` node."""

    config: DictConfig
    choices: dict[str, str | None]
    params: dict[str, str] = field(default_factory=dict)
    """`hydra.sweeper.params`: what a preset in config/sweep sweeps."""


def compose_config(folders: list[Path], name: str, overrides: list[str], stamp: str = "") -> Composed:
    """Compose `name` from `folders` in Hydra's order; `stamp` is their `digest`, if it is known.

    Raises: HydraException, OmegaConfBaseException, YAMLError.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = {path.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*") if path.is_dir()}
    plain = [_is_value(one, groups) for one in parsed]
    others = [one.key_or_group for one, is_value in zip(parsed, plain, strict=True) if not is_value]
    values = [one for one, is_value in zip(parsed, plain, strict=True) if is_value and not _overlaps(one, others)]
    base = [one.input_line or "" for one in parsed if one not in values]
    stamp = stamp or digest(folders)
    full_key, base_key = (stamp, name, *overrides), (stamp, name, *base)
    if full_key in CACHE:
        return CACHE[full_key]
    if base_key not in CACHE:
        CACHE[base_key] = _compose(folders, name, base)
    config = copy.deepcopy(CACHE[base_key].config)
    try:
        OmegaConf.set_struct(config, True)
        for one in values:
            OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
        OmegaConf.set_struct(config, False)
    except OmegaConfBaseException:
        return CACHE.setdefault(full_key, _compose(folders, name, overrides))  # raises Hydra's own error
    return Composed(config, CACHE[base_key].choices, CACHE[base_key].params)


def _is_value(one: Override, groups: set[str]) -> bool:
    """Whether an override only sets an existing key, which Hydra does last."""
    plain = not (one.is_delete() or one.is_add() or one.is_force_add() or one.is_sweep_override())
    own = one.key_or_group not in groups and not one.key_or_group.startswith(("hydra.", "hydra/"))
    return plain and one.package is None and own


def _overlaps(one: Override, others: list[str]) -> bool:
    """Whether another override is of the same key, its block, or a key in it: then their order matters."""
    key = f"{one.key_or_group}."
    return any(key.startswith(f"{other}.") or other.startswith(key) for other in others)


def _compose(folders: list[Path], name: str, overrides: list[str]) -> Composed:
    DefaultsSearchPath.folders = folders[1:]
    try:
        with initialize_config_dir(str(folders[0]), version_base=None):
            config = compose(name, overrides, return_hydra_config=True)
    finally:
        DefaultsSearchPath.folders = []
    choices = {key: value for key, value in config.hydra.runtime.choices.items() if not key.startswith("hydra/")}
    params = {str(key): str(value) for key, value in (config.hydra.sweeper.get("params") or {}).items()}
    OmegaConf.set_readonly(config, False)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_struct(config, False)
    return Composed(config, choices, params)


def digest(folders: Iterable[Path]) -> str:
    """sha256 of all YAML files in `folders` and their subfolders."""
    sha256 = hashlib.sha256()
    for number, folder in enumerate(folders):
        for path in sorted(folder.rglob("*.yaml")):
            sha256.update(f"{number}\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return sha256.hexdigest()


def sweep_jobs(words: list[str], limit: int = 16) -> list[list[str]]:
    """The first `limit` jobs of a sweep, each as plain overrides; one job if nothing is swept."""
    jobs: list[list[str]] = [[]]
    for override in OverridesParser.create().parse_overrides(words):
        values = [override.input_line or ""]
        if override.is_sweep_override():
            key = (override.input_line or "").partition("=")[0]
            swept = override.value()  # an interval, which only a sweeper can sample, counts as its two ends
            items = [swept.start, swept.end] if isinstance(swept, IntervalSweep) else override.sweep_string_iterator()
            values = [f"{key}={value}" for value in items]
        jobs = [[*job, value] for job in jobs for value in values][:limit]
    return jobs
