"""GPT-style language models, as the rest of the project knows them (no torch)."""

from __future__ import annotations

from engine.registry import Family
from tasks.language_model.args import ALIASES, TrainConfig, rewrite

FAMILY = Family(
    entry="train",
    package="tasks.language_model",
    config_name="cfg_train",
    schema=TrainConfig,
    requires={"FAMILY": "language_models", "DATA_MODE": "tokens"},
    aliases=ALIASES,
    rewrite=rewrite,
)
