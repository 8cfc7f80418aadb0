"""Recursive reasoning over demonstrations, as the rest of the project knows it (no torch)."""

from __future__ import annotations

from engine.cli.translate import Groups
from engine.registry import Family
from tasks.etrm.args import ETRMConfig
from tasks.recursive_reasoning.family import data_folders

_TABLE = ("arch.encoder_num_layers", "arch.aggregation")
"""What the arch file says for `standard`."""


def table_of_encoder(words: list[str], groups: Groups, typed: dict[str, str]) -> list[str]:
    """A command that names another encoder takes that one's layers and aggregation from the table, unless it gives
    them, too."""
    given = {word.lstrip("+").partition("=")[0] for word in words}
    if "arch.encoder_type" not in given:
        return words
    return [*words, *(f"{key}=null" for key in _TABLE if key not in given)]


FAMILY = Family(
    entry="pretrain_etrm",
    package="tasks.etrm",
    config_name="cfg_pretrain_etrm_arc_agi_1",
    schema=ETRMConfig,
    requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "encoder"},
    aliases={"checkpoint_path": "run_dir", "data_path": "data_paths"},
    rewrite=table_of_encoder,
    data_folders=data_folders,
)
