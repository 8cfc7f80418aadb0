"""Recursive reasoning with puzzle embeddings: TRM and HRM on Sudoku, mazes and ARC-AGI.

    python pretrain.py device=cpu max_steps=10                                      # smoke test, under a minute
    python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu             # learns 4x4 Sudoku on a laptop
    torchrun --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp
    python pretrain.py --help                                                       # every key, both styles

This file only wires: config -> data -> model and loss -> task -> the shared trainer (tasks/recursive_reasoning/).
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli.console import begin

    begin(run=True)  # a signal during the slow imports below ends the command in one line

from functools import partial
from typing import Any

import hydra
from omegaconf import DictConfig

from engine.cli.main import main
from engine.config import load_synced_config
from engine.distributed import rank, world_size
from launcher.sweep import run_child_if_multirun, sweep
from tasks.recursive_reasoning.family import FAMILY
from verification.preflight import check_launch, compare_signatures

RANK, WORLD_SIZE = rank(), world_size()


@hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
def launch(hydra_config: DictConfig) -> Any:
    """Compose -> strict config -> run. In a sweep, start the job as a process and give its metric to the sweeper."""
    if job := run_child_if_multirun(hydra_config, __file__):
        return job.metric
    config = load_synced_config(
        hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
    )

    from engine.run.launch import run  # these import torch: only once the config is known to be good
    from tasks.recursive_reasoning.build import build, create_model

    make = partial(build, create_model=create_model)
    run(config, make, entry=FAMILY.entry, check=partial(check_launch, FAMILY), compare=compare_signatures)


if __name__ == "__main__":
    main(launch, FAMILY, sweep=sweep)
