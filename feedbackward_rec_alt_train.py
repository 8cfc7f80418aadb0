"""Train a hypernetwork that adapts a frozen base: one recurrent block for all blocks of the base.

    python feedbackward_rec_alt_train.py --active_dataset wikitext --lora_rank 8 \\
        --ff_checkpoint_dir .out/gsm8k/ff_model_2026-01-31_12-00-00 --ff_checkpoint_name epoch_ckpt_gsm8k.pt
    torchrun --standalone --nproc-per-node=4 feedbackward_rec_alt_train.py active_dataset=wikitext ...
    python feedbackward_rec_alt_train.py --help                                         # every key, both styles

This file only wires: config -> data -> base, model and loss -> task -> the shared trainer (tasks/feedback/).
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
from tasks.feedback.family import FEEDBACKWARD_REC as FAMILY
from verification.preflight import check_launch, compare_signatures

RANK, WORLD_SIZE = rank(), world_size()


@hydra.main(config_path="config", config_name="cfg_feedbackward_rec_alt_train", version_base=None)
def launch(hydra_config: DictConfig) -> Any:
    """Compose -> strict config -> run. In a sweep, start the job as a process and give its metric to the sweeper."""
    if job := run_child_if_multirun(hydra_config, __file__):
        return job.metric
    config = load_synced_config(
        hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
    )

    from engine.run.launch import run  # these import torch: only once the config is known to be good
    from tasks.feedback.build import build, create_model

    make = partial(build, create_model=create_model)
    run(config, make, entry=FAMILY.entry, check=partial(check_launch, FAMILY), compare=compare_signatures)


if __name__ == "__main__":
    main(launch, FAMILY, sweep=sweep)
