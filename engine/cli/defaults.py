"""Gives Hydra the defaults of config dataclasses to compose on, so that YAML files only hold choices.

A YAML file names the dataclass first in its defaults list, as a path through our packages; later entries win:

    defaults:                                            # config/arch/trm.yaml
      - /defaults/models/recursive_reasoning/config/TRMConfig@_here_
      - _self_

So Hydra knows every key (`key=value` without `+`, `--cfg job`, interpolations), and each default is in one place.
Importing this module installs the config source of these entries.
"""

from __future__ import annotations

import importlib
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_origin

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from engine.cli.keys import keys_of
from engine.registry import ROOT, import_ours
from engine.schema import plain

PREFIX = "defaults/"
PACKAGES = ("engine", "tasks", "models", "losses", "evaluators")


def schema_of(entry: str) -> Any:
    """The dataclass that an entry of a defaults list names, such as `/defaults/engine/config/RunConfig`; else None."""
    path = entry.partition("@")[0].strip("/").removesuffix(".yaml")
    *parts, name = path.removeprefix(PREFIX).split("/")
    if not path.startswith(PREFIX) or not parts or parts[0] not in PACKAGES:
        return None
    if not all(part.isidentifier() for part in parts) or not ROOT.joinpath(*parts).with_suffix(".py").is_file():
        return None
    schema = getattr(import_ours(".".join(parts), f"defaults: {entry}"), name, None)
    return schema if isinstance(schema, type) and is_dataclass(schema) else None


def defaults_of(schema: Any) -> dict[str, Any]:
    """Key -> default, as a config file would have it.

    Without required keys, free blocks (a config group fills them), keys that never have an effect, and defaults of a
    base class that is SHARED: base/run comes first, and its values must not be overwritten.
    """
    shared = next((base for base in schema.__mro__[1:] if vars(base).get("SHARED")), None)
    above = defaults_of(shared) if shared else {}
    own = {
        name: plain(key.default)
        for name, key in keys_of(schema).items()
        if "." not in name and key.default is not MISSING and get_origin(key.kind) is not dict and not key.unused
    }
    return {name: value for name, value in own.items() if name not in above or above[name] != value}


def _loaded() -> Any:
    """This module as currently loaded: Hydra keeps the first source registered, even after our code is reloaded."""
    return importlib.import_module(__name__)


class DefaultsSource(ConfigSource):
    """Reads `/defaults/...` from dataclasses; Hydra's other sources read files."""

    @staticmethod
    def scheme() -> str:
        return "defaults"

    def load_config(self, config_path: str) -> ConfigResult:
        content = OmegaConf.create(_loaded().defaults_of(_loaded().schema_of(config_path)))
        return ConfigResult(
            config=content, path=f"{self.scheme()}://{config_path}", provider=self.provider, header={"package": None}
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        return _loaded().schema_of(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class DefaultsSearchPath(SearchPathPlugin):
    """Appends the source after the config folder, so that a file of the same name wins; then those of --config-dir."""

    folders: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for path in [f"{DefaultsSource.scheme()}://", *(f"file://{folder}" for folder in self.folders)]:
            search_path.append(provider="loopforge", path=path)


for plugin in (DefaultsSource, DefaultsSearchPath):
    Plugins.instance().register(plugin)
