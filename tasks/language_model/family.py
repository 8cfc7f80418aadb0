"""The family record of GPT-style language models (imports no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.registry import Family
from tasks.language_model.args import ALIASES, TrainConfig, rewrite


def data_folders(config: Mapping[str, Any]) -> list[str]:
    """The data folders of a stored config."""
    from dataset.text.loading import folder_of

    listed = [config.get(key) or [] for key in ("dataset_list", "multicontext_datasets")]
    names = [name for block in listed if isinstance(block, list) for name in block if isinstance(name, str)]
    if not names and isinstance(config.get("dataset"), str):
        names = [config["dataset"]]
    return [str(folder_of(name)) for name in names]


FAMILY = Family(
    entry="train",
    package="tasks.language_model",
    config_name="cfg_train",
    schema=TrainConfig,
    requires={"FAMILY": "language_models", "DATA_MODE": "tokens"},
    aliases=ALIASES,
    rewrite=rewrite,
    data_folders=data_folders,
)
