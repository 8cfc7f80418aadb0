"""Aliases of the feedback scripts' keys: sections of a config file, documented flags, the published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_TRAINING = (
    *("epochs", "batch_size", "learning_rate", "decay_lr", "warmup_ratio", "min_lr", "grad_clip", "device", "compile"),
    *(
        "eval_interval",
        "eval_max_examples",
        "select_on",
        "save_epoch_interval",
        "log_interval",
        "max_steps",
        "max_seconds",
    ),
    *(
        "total_steps",
        "resume",
        "out_dir",
        "checkpoint_dir",
        "checkpoint_name",
        "ff_run_name",
        "fb_run_name",
        "fb_rec_run_name",
    ),
)
"""Keys of a config file's section `training`."""
ALIASES = {
    **{f"training.{key}": key for key in IN_TRAINING},
    "training.dtype": "arch.forward_dtype",
    "diffusion.generation_steps": "generation_steps",
    "diffusion.eps": "eps",
    "diffusion.stratified": "stratified",
    "eval.t_grid": "eval_t_grid",
    "eval.mc_samples": "eval_samples",
    "eval.seed": "eval_seed",
}
BASE_ALIASES = {**ALIASES, "model": "arch"}
ADAPTER_ALIASES = {
    **ALIASES,
    **dict.fromkeys(("lora_rank", "model.lora_rank"), "arch.lora_rank"),
    **dict.fromkeys(("feedback_reverse", "model.feedback_reverse"), "arch.feedback_reverse"),
    "feedback": "arch",
    "feedback.input": "arch.conditioning",
    "feedforward.checkpoint_dir": "ff_checkpoint_dir",
    "feedforward.checkpoint_name": "ff_checkpoint_name",
    "fb_checkpoint_dir": "checkpoint_dir",
    "fb_checkpoint_name": "checkpoint_name",
}
_KEPT = "the best and the newest checkpoint are always kept; save_epoch_interval, keep_last and keep_every keep more"
_FILES = "the files are called log.txt and metrics.csv"
_PUBLISHED = {
    **dict.fromkeys(("save_best_ckpt", "save_epoch", "save_multiple_eval_interval", "eval_save_multiple"), _KEPT),
    **dict.fromkeys(("log_file_name", "csv_file_name"), _FILES),
    "ft_run_name": "arch=attn_finetune of feedbackward_alt_train.py fine-tunes, and its runs are called fb_run_name",
}
FOREIGN_KEYS = {
    **_PUBLISHED,
    **{f"training.{key}": hint for key, hint in _PUBLISHED.items()},
    "eval": "eval.t_grid, eval.mc_samples and eval.seed are eval_t_grid, eval_samples and eval_seed; eval_max_examples "
    "limits what is evaluated",
    "eval.max_batches": "eval_max_examples counts the pieces of documents",
}
"""Keys of the published config.json, and of similar files, without a counterpart here."""
DONE_ANYWAY: Mapping[str, tuple[Any, ...]] = {
    "datasets.*.config_name": ("main", "wikitext-2-raw-v1"),
    "datasets.*.max_seq_length": (4096,),
    **dict.fromkeys(("model.lora_rank", "model.feedback_reverse"), (None,)),
    **dict.fromkeys(("training.save_best_ckpt", "training.save_epoch"), (True,)),
    "training.log_file_name": ("log.txt",),
    "training.csv_file_name": ("metrics.csv",),
    "training.ft_run_name": ("ft_model",),
    "training.eval_save_multiple": (5,),  # no published script reads these two
    "training.save_multiple_eval_interval": (True, False),
}
"""Such keys with their published values, which a config file may contain: they describe the fixed behaviour here."""
