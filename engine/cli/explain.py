"""Errors of a command as one line: ours, and those of Hydra and OmegaConf with the nearest valid choice added."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.cli import recipes
from engine.cli.files import locate
from engine.cli.keys import hint_for, keys_of
from engine.cli.recipes import no_config
from engine.config import cause_of
from engine.errors import Interrupted, RunFailure, UsageError
from engine.fields import flatten
from engine.io import did_you_mean

PLUGINS = {"joblib": "sweep", "optuna": "optuna", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Launchers and sweepers that are Hydra plugins -> the extra that installs them."""


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
    if cause is not None and cause.key is not None and re.search(r"not in (struct|')", str(cause)):
        return _unknown_key(cause, schema, folders[0])
    if cause is None and isinstance(error, OverrideParseException):
        return _unreadable(error)
    text = str(error)
    if twice := re.match(r"(?:Multiple values for )?(\S+?)(?:\. To override| appears more than once)", text):
        return f"{twice[1]} is chosen twice: keep one {twice[1]}=NAME"
    if several := re.match(r"Ambiguous value for argument '\+*([\w.]+)=(.*)'\n", text):
        key, value = several.groups()
        return f"{key}={value} is several values: -m for a sweep, {key}=[{value}] for a list, --{key} {value} for text"
    if gone := re.match(r"Could not delete from config\. '(.+)' does not exist", text):
        return _nothing_to_delete(gone[1], schema, folders[0])
    text = re.sub(r"\n?See https?://\S+ for details", "", text)
    if isinstance(error, ConfigCompositionException) and cause is not None:
        text += f" ({str(cause).splitlines()[0]})"
    return _flat(text)


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


def _unknown_key(cause: Any, schema: type, config_dir: Path) -> str:
    full, parent = str(cause.full_key), str(cause.full_key)[: -len(str(cause.key))]
    siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
    known = {f"{parent}{key}" for key in siblings if key not in ("hydra", "_target_")}
    known |= set() if parent else {key for key in keys_of(schema) if "." not in key}
    if full in known and (config_dir / full).is_dir():
        return f"{full} is a group of keys that nothing has chosen yet: {full}=NAME, of config/{full}/"
    tree: Any = OmegaConf.to_container(siblings) if siblings else {}
    inside = _with_leaf(tree, str(cause.key), parent)
    hint = f"did you mean '{inside}'?" if inside else did_you_mean(full, known)
    return f"unknown key '{full}': {hint_for(schema, full) or hint}"


def _with_leaf(block: Mapping[Any, Any], leaf: str, prefix: str = "") -> str | None:
    """The first dotted key of `block` that ends in `.leaf`, for a key given without its block."""
    for key, inner in block.items():
        if isinstance(inner, Mapping) and key != "hydra":
            path = f"{prefix}{key}."
            if dotted := path + leaf if leaf in inner else _with_leaf(inner, leaf, path):
                return dotted
    return None


def _unreadable(error: OverrideParseException) -> str:
    """For an override that is not in Hydra's grammar."""
    lines = [line for line in str(error).splitlines() if line.strip(" ^") and "https://" not in line]
    why = " ".join(line for line in lines if "LexerNoViableAlt" not in line)
    key, _, value = str(error.override).lstrip("+").partition("=")
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", key) and value and value[0] not in "[{"
    how = f"write --{key} {shlex.quote(value)}" if plain else "quote a value with special characters"
    return _flat(f"cannot read '{error.override}': {f'{why}; ' if why else ''}{how}")


def _nothing_to_delete(key: str, schema: type, config_dir: Path) -> str:
    folder = config_dir / key.partition(".")[0]
    options = (flatten(recipes.read_option(path)) for path in folder.glob("*.yaml"))
    known = {*keys_of(schema), *(name for option in options for name, _ in option)}
    return f"~{key}: unknown key '{key}': {did_you_mean(key, known)}"


def hydra_folder_fault(error: BaseException) -> UsageError | None:
    """`error` in one line, with its key, if Hydra itself could not make or write a folder; None for any other."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    if next((name for name in reversed(modules) if name not in sys.stdlib_module_names), "") != "hydra":
        return None
    key = "hydra.sweep.dir" if any(frame.f_code.co_name == "multirun" for frame in frames) else "hydra.run.dir"
    return UsageError(f"{key}: {error.filename} cannot be written ({error.strerror}): name another folder")


def _flat(text: str) -> str:
    return " ".join(text.split())
