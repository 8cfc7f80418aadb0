"""The five dataclasses have the documented fields and defaults."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from tasks.animal import settings

REQUIRED = object()
TABLES = {
    "ModelConfig": {"model": REQUIRED, "tokenizer": REQUIRED, "text_processor": REQUIRED, "sentence_transformer": None},
    "TextGenerationConfig": {"prompt": REQUIRED, "max_new_tokens": 40, "batch_size": 16, "generation_config": None},
    "DiversityConfig": {
        "concept_name": REQUIRED,
        "n_clusters": 5,
        "w_c": 0.5,
        "w_o": 0.5,
        "num_samples": 100,
        "buffer_size": 500,
        "update_clusters_every": 20,
        "min_samples_for_clustering": 10,
    },
    "TrainingConfig": {
        "num_epochs": 10,
        "num_steps_per_epoch": 10,
        "learning_rate": 5e-5,
        "final_learning_rate": 1e-6,
        "warmup_steps": 0,
        "lr_scheduler_type": "cosine",
        "output_dir": "diversity_model",
    },
    "WandbConfig": {"use_wandb": False, "wandb_project": "gfn-diversity", "wandb_name": None},
}


@pytest.mark.parametrize("name", TABLES)
def test_fields_and_defaults(name: str) -> None:
    own = fields(getattr(settings, name))
    assert {f.name: REQUIRED if f.default is MISSING else f.default for f in own} == TABLES[name]
