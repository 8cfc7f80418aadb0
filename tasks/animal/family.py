"""The family record of diversity fine-tuning (imports no torch)."""

from __future__ import annotations

from engine.registry import Family
from tasks.animal.args import ALIASES, AnimalConfig

FAMILY = Family(
    entry="train_animal",
    package="tasks.animal",
    config_name="cfg_train_animal",
    schema=AnimalConfig,
    requires={"FAMILY": "animal", "DATA_MODE": "prompt"},
    aliases=ALIASES,
)
