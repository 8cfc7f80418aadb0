"""The family record of recursive reasoning with puzzle embeddings (imports no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.io import user_path
from engine.registry import Family
from tasks.recursive_reasoning.args import PretrainConfig


def data_folders(config: Mapping[str, Any]) -> list[str]:
    """The data folders of a stored config."""
    paths = config.get("data_paths")
    return [str(user_path(path)) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


FAMILY = Family(
    entry="pretrain",
    package="tasks.recursive_reasoning",
    config_name="cfg_pretrain",
    schema=PretrainConfig,
    requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "embedding"},
    aliases={"checkpoint_path": "run_dir", "data_path": "data_paths"},
    data_folders=data_folders,
)
