"""`--help` of an entry script: both styles, every key with type, default and meaning, config groups."""

from __future__ import annotations

import json
import textwrap
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.keys import describe, keys_of
from engine.translate import Groups

WIDTH = 110


def help_text(entry: str, schema: type, groups: Groups, config_dir: Path, config_name: str) -> str:
    """The whole help. Defaults are those of `config_name` where it composes, else the schema's."""
    script = f"{Path(entry).stem}.py"
    configs = sorted(path.stem for path in config_dir.glob("cfg_*.yaml"))
    lines = [
        f"usage: python {script} [key=value ...] [--key value ...] [--config-name CFG]",
        *textwrap.wrap((schema.__doc__ or "").strip().partition("\n")[0], WIDTH),
        "",
        "Both styles work, also mixed:",
        "  key=value  +key=value  ++key=value  ~key  group=choice  -m key=a,b (sweep, one process per job)",
        "  --key value  --key=value  --flag  --no-flag  --list a b c  --config file.json (nested JSON)",
        "Hydra's own: --config-name --cfg job [--resolve] --info defaults --multirun --hydra-help",
        "Exit codes: 0 done, 1 failure, 2 unusable command or config, 3 stopped (repeat to go on).",
        "",
        f"Config (--config-name, now {config_name}):",
        *textwrap.wrap(", ".join(configs), WIDTH, initial_indent="  ", subsequent_indent="  "),
        "",
        "Groups:",
    ]
    lines += [f"  {name}={'|'.join(options)}" for name, options in groups.options.items() if name != "base"]
    lines += ["", "Keys:"]
    defaults = _defaults(config_dir, config_name)
    for name, key in keys_of(schema).items():
        kind = describe(key.kind) + (" or null" if key.optional else "")
        value = defaults.get(name, "required" if key.default is MISSING else _shown(key.default))
        if kind == "block of keys":
            value = f"see config/{name}/" if name in groups.options else "a block"
        head = f"  {name}  [{kind}]  {value}"
        lines += textwrap.wrap(head, WIDTH, subsequent_indent="    ", break_long_words=False)
        lines += textwrap.wrap(key.doc, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _defaults(config_dir: Path, config_name: str) -> dict[str, str]:
    """Top-level values of the composed config, interpolations as written; empty where it does not compose."""
    try:
        with initialize_config_dir(str(config_dir), version_base=None):
            config = OmegaConf.to_container(compose(config_name), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return {}
    return {str(key): _shown(value) for key, value in config.items()} if isinstance(config, dict) else {}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
