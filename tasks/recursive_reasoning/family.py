"""Recursive reasoning with puzzle embeddings, as the rest of the project knows it (no torch)."""

from __future__ import annotations

from engine.registry import Family
from tasks.recursive_reasoning.args import PretrainConfig

FAMILY = Family(
    entry="pretrain",
    package="tasks.recursive_reasoning",
    config_name="cfg_pretrain",
    schema=PretrainConfig,
    requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "embedding"},
    aliases={"checkpoint_path": "run_dir", "data_path": "data_paths"},
)
