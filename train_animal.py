"""Fine-tune a language model with LoRA so that its samples are diverse: all options of a concept, different reasons.

    python train_animal.py --model_name_or_path data/animal_lm                # a tiny model, built on first use
    python train_animal.py --model_name_or_path /path/to/model --w_c 0.7 --w_o 0.3 --output_dir output/animal
    python train_animal.py --model_name_or_path data/animal_lm --preset documented     # the published loss alone
    torchrun --standalone --nproc-per-node=4 train_animal.py --model_name_or_path /path/to/model
    python train_animal.py --help                                             # every key, both styles

This file only wires: config -> base and adapters -> task -> the shared trainer (tasks/animal/).
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
from tasks.animal.blocks import RawTextProcessor as RawTextProcessor
from tasks.animal.family import FAMILY
from tasks.animal.settings import (
    DiversityConfig as DiversityConfig,
    ModelConfig as ModelConfig,
    TextGenerationConfig as TextGenerationConfig,
    TrainingConfig as TrainingConfig,
    WandbConfig as WandbConfig,
)
from verification.preflight import check_launch, compare_signatures

RANK, WORLD_SIZE = rank(), world_size()


@hydra.main(config_path="config", config_name="cfg_train_animal", version_base=None)
def launch(hydra_config: DictConfig) -> Any:
    """Compose -> strict config -> run. In a sweep, start the job as a process and give its metric to the sweeper."""
    if job := run_child_if_multirun(hydra_config, __file__):
        return job.metric
    config = load_synced_config(
        hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
    )

    from engine.run.launch import run  # these import torch: only once the config is known to be good
    from tasks.animal.build import build, create_model

    make = partial(build, create_model=create_model)
    run(config, make, entry=FAMILY.entry, check=partial(check_launch, FAMILY), compare=compare_signatures)


if __name__ == "__main__":
    main(launch, FAMILY, sweep=sweep)
