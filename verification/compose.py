"""Hydra's composition without Hydra's globals: the same loader that @hydra.main uses, memoised by file contents."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import engine.cli.defaults  # noqa: F401 (the source of /defaults/...)

_memo: dict[tuple[Any, ...], Composed] = {}


@dataclass(frozen=True, eq=False)
class Composed:
    """A composed config without its `hydra` node."""

    config: DictConfig
    choices: dict[str, str | None]
    defaults: list[tuple[str, str, str]]
    """(config path, package, file relative to the config folder or the folder's own path), in merge order."""
    params: dict[str, str] = field(default_factory=dict)
    """What `hydra.sweeper.params` sweeps: the jobs of a preset in config/sweep."""

    def resolved(self) -> dict[str, Any]:
        """Plain values. Raises OmegaConfBaseException for missing and unresolvable ones."""
        return OmegaConf.to_container(self.config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def digest(folders: Iterable[Path]) -> str:
    """sha256 over all YAML files below some folders."""
    made = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            made.update(f"{folder}\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return made.hexdigest()


def compose(folders: list[Path], name: str, overrides: list[str], stamp: str) -> Composed:
    """Compose `name` from the first folder that has it; `stamp` is `digest(folders)`.

    Hydra composes once for each choice of groups, the values of a command are then set as Hydra sets them.
    Raises: HydraException, OmegaConfBaseException, YAMLError as Hydra does.
    """
    parsed = parse_overrides(overrides)
    groups = {p.relative_to(folder).as_posix() for folder in folders for p in folder.rglob("*") if p.is_dir()}
    choosing = [o for o in parsed if o.key_or_group in groups or o.is_delete() or _of_hydra(o)]
    chosen = tuple(o.input_line or "" for o in choosing)
    key = (stamp, tuple(folders), name, chosen)
    if key not in _memo:
        _memo[key] = _compose(folders, name, list(chosen))
    base = _memo[key]
    values = [o for o in parsed if o not in choosing]
    if not values:
        return base
    config = copy.deepcopy(base.config)
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    OmegaConf.set_struct(config, False)
    return replace(base, config=config)


class _Loader(ConfigLoaderImpl):
    """Hydra's loader; `merged` is the list of files that it merged last."""

    merged: list[ResultDefault]

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self.merged = defaults
        return super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)


def _of_hydra(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _compose(folders: list[Path], name: str, overrides: list[str]) -> Composed:
    Plugins.instance()  # registers the kinds of config sources
    setup_globals()
    search = ConfigSearchPathImpl()
    search.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        search.append("main", f"file://{folder}")
    search.append("loopforge", "defaults://")
    search.append("schema", "structured://")
    loader = _Loader(search)
    config = loader.load_configuration(name, overrides, run_mode=RunMode.RUN, from_shell=False)
    choices = {k: v for k, v in dict(config.hydra.runtime.choices).items() if not k.startswith("hydra/")}
    defaults = [
        (str(item.config_path), str(item.package or ""), f"{item.config_path}.yaml")
        for item in loader.merged
        if item.config_path and not str(item.config_path).startswith(("hydra/", "_dummy"))
    ]
    params = {str(key): str(value) for key, value in (config.hydra.sweeper.get("params") or {}).items()}
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_struct(config, False)
    return Composed(config, choices, defaults, params)


def parse_overrides(words: list[str]) -> list[Override]:
    """Raises: HydraException for a word that is no override."""
    return OverridesParser.create().parse_overrides(words)


def sweep_jobs(words: list[str], limit: int = 16) -> list[list[str]]:
    """The first `limit` jobs of a sweep, each as plain overrides; one job where nothing is swept."""
    jobs: list[list[str]] = [[]]
    for override in parse_overrides(words):
        values = [override.input_line or ""]
        if override.is_sweep_override():
            key = (override.input_line or "").partition("=")[0]
            swept = override.value()  # of an interval, which only a sweeper can enumerate, both ends
            ends = [swept.start, swept.end] if isinstance(swept, IntervalSweep) else override.sweep_string_iterator()
            values = [f"{key}={value}" for value in ends]
        jobs = [[*job, value] for job in jobs for value in values][:limit]
    return jobs


def plain(value: Any) -> Any:
    """An override's value without Hydra's quotes."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value
