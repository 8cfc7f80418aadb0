"""Names for the jobs of a sweep: no two may write to the same run directory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from engine.cli.translate import quote
from engine.errors import UsageError

NAMES = ("run_name", "run_dir")
"""Keys whose values must differ between jobs."""
LABEL_LENGTH = 80


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Parse overrides. Raises: Hydra's error for one that it cannot read."""
    return OverridesParser.create().parse_overrides(list(words))


def value_text(override: Override) -> str:
    """The text after the `=`."""
    return str(override.input_line).partition("=")[2]


def swept_keys(words: Sequence[str]) -> list[str]:
    """The keys that the overrides among the words of a command line sweep. Raises: UsageError for an empty range."""
    overrides = parse_overrides([word for word in words if "=" in word and not word.startswith("-")])
    for override in overrides:
        value = override.value()
        if isinstance(value, RangeSweep) and next(iter(value.range()), None) is None:
            raise UsageError(f"{override.input_line} holds no number, so there is no job: expected e.g. range(0,3)")
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


def names_of(config: DictConfig) -> dict[str, str]:
    """The names set in the config, which all jobs would share; without a run_dir that contains run_name."""
    names = {key: OmegaConf.select(config, key) for key in NAMES}
    unresolved = OmegaConf.to_container(config)
    if isinstance(unresolved, dict) and "run_name" in str(unresolved.get("run_dir")):
        del names["run_dir"]
    return {key: str(value) for key, value in names.items() if value is not None}


def suffixed(overrides: list[str], label: str, names: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Append the job's label to explicit values of NAMES: those of the command line, else the config's `names`."""
    result, seen = [], set()
    for override in parse_overrides(overrides):
        key, line = override.key_or_group, str(override.input_line)
        if key in NAMES and not override.is_delete() and override.value() is not None:
            line = f"++{key}={quote(f'{override.value()}_{label}')}"
        seen.add(key)
        result.append(line)
    return result + [f"++{key}={quote(f'{name}_{label}')}" for key, name in names.items() if key not in seen]


def label_of(overrides: list[str], swept: Collection[str], number: int, *, repeats: bool = False) -> str:
    """The suffix of a job's name: the swept values, as in `lr-0.001_seed-0`.

    The job's number is added if another job could have the same label: values that a folder's name cannot contain, very
    long ones, none at all, or a sweeper that `repeats` values.
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
