"""The family record of recursive reasoning over demonstrations (imports no torch)."""

from __future__ import annotations

from engine.registry import Family
from tasks.etrm.args import ETRMConfig
from tasks.recursive_reasoning.family import data_folders

FAMILY = Family(
    entry="pretrain_etrm",
    package="tasks.etrm",
    config_name="cfg_pretrain_etrm_arc_agi_1",
    schema=ETRMConfig,
    requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "encoder"},
    aliases={"checkpoint_path": "run_dir", "data_path": "data_paths"},
    data_folders=data_folders,
)
