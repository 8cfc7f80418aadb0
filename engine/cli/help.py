"""`--help` of an entry script: both styles, every key with type, default and meaning, config groups."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.cli.compose import compose_config
from engine.cli.keys import Key, keys_of, source_keys
from engine.cli.recipes import options_for
from engine.cli.translate import Groups
from engine.fields import flatten
from engine.registry import FAMILIES, Family

WIDTH = 110


def help_text(
    family: Family, groups: Groups, folders: Sequence[Path], config_name: str, choices: Sequence[str] = ()
) -> str:
    """The full help text of a script. Defaults are those of `config_name` in Hydra's search path `folders`, with
    `choices` (group=option, ~key), if it composes, else the schema's."""
    schema, stem = family.schema, family.entry
    longer = tuple(f"cfg_{other}" for other in FAMILIES if other.startswith(stem) and other != stem)
    names = sorted(path.stem for path in folders[0].glob(f"cfg_{stem}*.yaml"))
    configs = [name for name in names if not name.startswith(longer)]
    lines = [
        f"usage: python {stem}.py [key=value ...] [--key value ...] [--config-name CFG]",
        *textwrap.wrap((schema.__doc__ or "").strip().partition("\n")[0], WIDTH),
        "",
        "Both styles work, also mixed:",
        "  key=value  +key=value  ++key=value  ~key  group=choice  -m key=a,b (sweep, one process per job)",
        "  --key value  --key=value  --flag  --no-flag  --list a b c  --config file.json (nested JSON)",
        "Hydra's own: --config-name --cfg job [--resolve] --info defaults --multirun --hydra-help",
        "Exit codes: 0 done, 1 failure, 2 unusable command or config, 3 stopped (the same command resumes).",
        "",
        f"Config (--config-name, now {config_name}):",
        *_wrapped(", ".join(configs), "  "),
        "",
        "Groups:",
    ]
    for name, options in options_for(schema, groups, *folders).items():
        lines += _wrapped(f"{name}={'|'.join(options)}", "  ", "  ")
    lines += ["", "Keys:"]
    defaults = _defaults(list(folders), config_name, choices)
    for name, key in _keys(schema, defaults):
        kind = "" if key is None else key.type_text
        value = defaults.get(name, "required" if key is None or key.default is MISSING else _shown(key.default))
        if kind == "block of keys":
            value = f"see config/{name}/" if name in groups.options else "a block"
        head = f"{name}  [{kind}]  {value}" if kind else f"{name}  {value}"
        lines += _wrapped(head, "  ", "  ")
        others = ", ".join(f"--{old}" for old, new in family.aliases.items() if new == name)
        lines += _wrapped(" ".join([*([f"Also {others}."] if others else []), key.meaning if key else ""]), "      ")
    return "\n".join(lines)


def _wrapped(text: str, indent: str, more: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + more, break_long_words=False)


def _keys(schema: Any, defaults: Mapping[str, str]) -> Iterator[tuple[str, Key | None]]:
    """Yield the declared keys; after an open block (arch) those of its class, of its loss, and its remaining keys."""
    for name, key in keys_of(schema).items():
        yield name, key
        if name in schema.NESTED_SCHEMAS:
            known = {f"{name}.{inner}": key for inner, key in keys_of(schema.NESTED_SCHEMAS[name]).items()}
            for place, slot in ((f"{name}.name", "models"), (f"{name}.loss.name", "losses")):
                known[place] = Key(place, "module@Class", False, "required", f"A class under {slot}/.")
            known |= source_keys(str(defaults.get(f"{name}.name", "")), "models", f"{name}.")
            known |= source_keys(str(defaults.get(f"{name}.loss.name", "")), "losses", f"{name}.loss.")
            others = [other for other in defaults if other.startswith(f"{name}.")]
            yield from ((other, known.get(other)) for other in dict.fromkeys([*others, *known]))


def _defaults(folders: list[Path], config_name: str, choices: Sequence[str]) -> dict[str, str]:
    """Values of the composed config by dotted name, interpolations as written; empty if it does not compose."""
    try:
        config: Any = OmegaConf.to_container(compose_config(folders, config_name, list(choices)).config, resolve=False)
    except (HydraException, OmegaConfBaseException):
        return {}
    return {
        key: _shown(value)
        for key, value in flatten(config)
        if "." not in key or not value or not isinstance(value, Mapping)
    }


def _shown(value: Any) -> str:
    """A default value on one line; empty or blank text is quoted."""
    plain = isinstance(value, str) and value.strip() == value != "" and value.isprintable()
    return value if plain else json.dumps(value, default=str)
