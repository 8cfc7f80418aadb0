"""The architecture of a `train.py` run that starts from existing weights: GPT-2's, or those of an earlier run.

It is read while the command is parsed, before torch is imported (except for a nanoGPT ckpt.pt, which needs torch).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.cli.translate import render
from engine.errors import UsageError
from engine.io import did_you_mean, read_object, user_path
from models.language_models.config import GPTConfig
from models.language_models.gpt2_config import GPT2_SIZES, gpt2_arch
from models.language_models.gpt2_folder import gpt2_folder

RECIPE_KEYS = ("n_layer", "n_head", "n_embd", "block_size")
"""Keys that a recipe may override in its arch: always set, even where the source has the default."""


def start_arch(words: Sequence[str]) -> list[str]:
    """Overrides for the architecture of the weights of init_from=gpt2 or prev_run; keys that the command sets win."""
    overrides = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    init_from = _unquoted(overrides.get("init_from", ""))
    if init_from == "gpt2":
        values = gpt2_sizes(_unquoted(overrides.get("gpt2_type", "gpt2")))
        return [*([] if "arch" in overrides else ["arch=gpt2"]), *_missing(values, overrides)]
    if init_from == "prev_run" and "arch" not in overrides:
        values = previous_arch(_unquoted(overrides.get("prev_run_ckpt", "")))
        return ["arch=gpt", *_missing(values, overrides)] if values else []
    return []


def _missing(values: Mapping[str, Any], overrides: Mapping[str, str]) -> Iterator[str]:
    return (f"arch.{key}={render(value)}" for key, value in values.items() if f"arch.{key}" not in overrides)


def _unquoted(value: str) -> str:
    """A value of the command line without its quotes."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def gpt2_sizes(kind: str) -> dict[str, Any]:
    """arch.* values of a released size, or of a folder in transformers' format (from its config.json).

    Raises: UsageError if it is neither, or a model that arch=gpt2 cannot represent.
    """
    folder = gpt2_folder(kind)
    if folder is None and kind in GPT2_SIZES:
        return dict(zip(("n_layer", "n_head", "n_embd"), GPT2_SIZES[kind], strict=True))
    try:
        return gpt2_arch(read_object((folder or user_path(kind)) / "config.json"))
    except (UsageError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"gpt2_type={kind}: expected {', '.join(GPT2_SIZES)}, or a folder with a GPT-2's config.json ({error})"
            f"{_near_gpt2(kind)}"
        ) from None


def _near_gpt2(kind: str) -> str:
    """The end of an error line on a `kind` that is neither a size nor a folder: the nearest one of either, or ""."""
    from tasks.loading import near_path  # numpy, which a command without this error does not need

    if user_path(kind).exists():
        return ""
    hint = did_you_mean(kind, GPT2_SIZES)
    return f": {hint}" if hint.startswith("did") else near_path(kind, lambda entry: gpt2_folder(str(entry)) is not None)


def previous_arch(source: str) -> dict[str, Any]:
    """arch.* values of an earlier run, one of its checkpoints, or a nanoGPT ckpt.pt; empty if it cannot be read.

    Errors of the source are reported when its weights are loaded.
    """
    path = user_path(source)
    try:
        stored = _nanogpt(path) if path.is_file() else _manifest(path)
    except (UsageError, ValueError):
        return {}
    known = {field.name: field.default for field in fields(GPTConfig) if field.name not in GPTConfig.NOT_SHAPE}
    values = {key: value for key, value in stored.items() if key in known}
    return {key: value for key, value in values.items() if key in RECIPE_KEYS or value != known[key]}


def _manifest(path: Path) -> dict[str, Any]:
    """The `arch` block of a run's newest checkpoint; empty if there is none."""
    files = [path / "manifest.json", *path.glob("checkpoints/*/manifest.json")]
    steps = {file: re.fullmatch(r"step_(\d+)", file.parent.name) for file in files if file.is_file()}
    newest = max(steps, key=lambda file: int(match[1]) if (match := steps[file]) else 0, default=None)
    config = read_object(newest).get("config") if newest else None
    arch = config.get("arch") if isinstance(config, dict) else None
    return arch if isinstance(arch, dict) else {}


def _nanogpt(path: Path) -> dict[str, Any]:
    from models.language_models.nanogpt import read_nanogpt

    sizes = read_nanogpt(path)["model_args"]
    return {key: sizes[key] for key in RECIPE_KEYS} | {"bias": sizes.get("bias", True)}
