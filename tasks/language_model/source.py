"""The architecture of a `train.py` run that begins with other weights: GPT-2's, or those of an earlier run.

Read with the command, before torch is loaded (but for a nanoGPT ckpt.pt, which torch alone can open).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.cli.translate import render
from engine.errors import UsageError
from engine.io import read_object, user_path
from models.language_models.config import GPTConfig
from models.language_models.gpt2_config import GPT2_SIZES, gpt2_arch
from models.language_models.gpt2_folder import gpt2_folder

RECIPES_SET = ("n_layer", "n_head", "n_embd", "block_size")
"""Keys that a recipe may have changed below its arch: given even where the source has the default."""


def start_arch(words: Sequence[str]) -> list[str]:
    """Overrides for the architecture that init_from=gpt2 or prev_run loads into; what the command gives stays."""
    given = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    begin = _plain(given.get("init_from", ""))
    if begin == "gpt2":
        values = gpt2_sizes(_plain(given.get("gpt2_type", "gpt2")))
        return [*([] if "arch" in given else ["arch=gpt2"]), *_not_given(values, given)]
    if begin == "prev_run" and "arch" not in given:
        values = previous_arch(_plain(given.get("prev_run_ckpt", "")))
        return ["arch=gpt", *_not_given(values, given)] if values else []
    return []


def _not_given(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[str]:
    return (f"arch.{key}={render(value)}" for key, value in values.items() if f"arch.{key}" not in given)


def _plain(value: str) -> str:
    """A value of a command without its quotes."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def gpt2_sizes(kind: str) -> dict[str, Any]:
    """arch.* values for a released size, or for a folder in transformers' format (from its config.json).

    Raises: UsageError when it is neither, or of a kind that arch=gpt2 cannot hold.
    """
    folder = gpt2_folder(kind)
    if folder is None and kind in GPT2_SIZES:
        return dict(zip(("n_layer", "n_head", "n_embd"), GPT2_SIZES[kind], strict=True))
    try:
        return gpt2_arch(read_object((folder or user_path(kind)) / "config.json"))
    except (UsageError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"gpt2_type={kind}: expected {', '.join(GPT2_SIZES)}, or a folder with a GPT-2's config.json ({error})"
        ) from None


def previous_arch(source: str) -> dict[str, Any]:
    """arch.* values of an earlier run, of one of its checkpoints, or of a nanoGPT ckpt.pt; empty where there is none.

    What is wrong with the source is reported when its weights are loaded.
    """
    path = user_path(source)
    try:
        stored = _nanogpt(path) if path.is_file() else _manifest(path)
    except (UsageError, ValueError):
        return {}
    known = {field.name: field.default for field in fields(GPTConfig) if field.name not in GPTConfig.NOT_SHAPE}
    values = {key: value for key, value in stored.items() if key in known}
    return {key: value for key, value in values.items() if key in RECIPES_SET or value != known[key]}


def _manifest(path: Path) -> dict[str, Any]:
    """The `arch` block that a run's checkpoints were written with."""
    files = [path / "manifest.json", *path.glob("checkpoints/*/manifest.json")]
    steps = {file: re.fullmatch(r"step_(\d+)", file.parent.name) for file in files if file.is_file()}
    newest = max(steps, key=lambda file: int(match[1]) if (match := steps[file]) else 0, default=None)
    config = read_object(newest).get("config") if newest else None
    arch = config.get("arch") if isinstance(config, dict) else None
    return arch if isinstance(arch, dict) else {}


def _nanogpt(path: Path) -> dict[str, Any]:
    from models.language_models.nanogpt import read_nanogpt

    sizes = read_nanogpt(path)["model_args"]
    return {key: sizes[key] for key in RECIPES_SET} | {"bias": sizes.get("bias", True)}
