"""Names of a sweep's jobs: no two of them may write to one run directory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from engine.cli.translate import quote

NAMES = ("run_name", "run_dir")
"""Keys whose values two jobs must not share."""
LABEL_LENGTH = 80


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Raises: Hydra's error on one that it cannot read."""
    return OverridesParser.create().parse_overrides(list(words))


def value_text(override: Override) -> str:
    """What is behind the `=`."""
    return str(override.input_line).partition("=")[2]


def swept_keys(words: Sequence[str]) -> list[str]:
    """The keys that the overrides among the words of a command line sweep."""
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    return [override.key_or_group for override in parse_overrides(overrides) if override.is_sweep_override()]


def names_of(config: DictConfig) -> dict[str, str]:
    """The config's own names, which all jobs would share; a run_dir that contains the run's name follows that."""
    names = {key: OmegaConf.select(config, key) for key in NAMES}
    written = OmegaConf.to_container(config)  # interpolations as they are
    if isinstance(written, dict) and "run_name" in str(written.get("run_dir")):
        del names["run_dir"]
    return {key: str(value) for key, value in names.items() if value is not None}


def suffixed(overrides: list[str], label: str, names: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Append the job's label to explicit values of NAMES: of the command line, else `names` of the config."""
    result, seen = [], set()
    for override in parse_overrides(overrides):
        key, line = override.key_or_group, str(override.input_line)
        if key in NAMES and not override.is_delete() and override.value() is not None:
            line = f"++{key}={quote(f'{override.value()}_{label}')}"
        seen.add(key)
        result.append(line)
    return result + [f"++{key}={quote(f'{name}_{label}')}" for key, name in names.items() if key not in seen]


def label_of(overrides: list[str], swept: Collection[str], number: int, *, repeats: bool = False) -> str:
    """What a job's name ends in: the swept values, as in `lr-0.001_seed-0`.

    The job's number is added where another job could have that name, too: values that a folder's name cannot
    hold, very long ones, none at all, or a sweeper that `repeats` itself.
    """
    parts, exact = [], not repeats
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if key in swept and key not in (*NAMES, "project_name"):
            text = value_text(override)
            clean = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)
            exact = exact and clean == text
            parts.append(f"{re.split('[./]', key)[-1]}-{clean}")
    label = "_".join(parts)
    if exact and 0 < len(label) <= LABEL_LENGTH:
        return label
    return f"{label[:LABEL_LENGTH]}_{number}" if label else str(number)
