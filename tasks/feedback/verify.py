"""The verification of feedback models: tiny runs for probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.feedback.args import NOT_IDENTITY, FeedforwardConfig
from tasks.feedback.family import data_folders
from tasks.text_data import RULES, read_text_data, write_tokens
from verification.data import DataPath
from verification.spec import Settings, Verification, smaller, stated_steps

VOCAB, LENGTH, TOKENS = 11, 16, {"train": 400, "val": 90}
"""Vocabulary size (ten tokens and the end of a document), block size, tokens per split."""
SIZES = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": LENGTH,
    "hyper_heads": 2,
    "hyper_dim": 16,
    "lora_rank": 2,
    "loop_start": 0,
    "loop_layers": 2,
}
BASE_ARCH = {
    "name": "feedback.base@BaseLM",
    **{key: SIZES[key] for key in ("n_layer", "n_head", "n_embd", "block_size")},
    "dropout": 0.0,
    "loss": {"name": "masked_diffusion@MaskedDiffusionLoss"},
}
PINNED: Settings = {
    "active_dataset": "tiny",
    "batch_size": 4,
    "epochs": {"tiny": 8},
    "eval_interval": 64,
    "eval_max_examples": 8,
    "eval_samples": 1,
    "num_samples": 0,
    "offline": "error",
    "early_stop_patience": None,
}
"""Settings of every tiny run: sizes, length and paths, but nothing that changes how it learns."""


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: a small model, a short run, and for an adapter the base next to the data."""
    tiny = smaller(resolved, SIZES, PINNED, without=NOT_IDENTITY)
    tiny["datasets"] = {"tiny": {"name": "tiny", "path": str(data / "text"), "block_size": LENGTH}}
    if "ff_checkpoint_dir" in resolved:
        tiny |= {"ff_checkpoint_dir": str(data / "base"), "ff_checkpoint_name": "step_1", "model": {}}
    return tiny


def write_documents(root: Path, train: int = 0, test: int = 0) -> None:
    """Write short documents of random tokens, and an untrained base with their vocabulary."""
    write_tokens(folder := root / "text", TOKENS, VOCAB, (train, test), eot=10)
    _write_base(root / "base", folder)


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Alternative values for keys whose type gives no suitable one."""
    text, runs = data / "text", [data / f"base_{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, start=1):
        if not run.exists():
            _write_base(run, text, seed=seed, step=seed)
    short = {"name": "tiny", "path": str(text), "block_size": LENGTH // 2}
    two = {"datasets": {"tiny": {**short, "block_size": LENGTH}, "short": short}, "epochs": {"tiny": 8, "short": 8}}
    return {
        "active_dataset": (two, {"active_dataset": "short"}),
        "datasets": ({}, {"datasets": {"tiny": short}}),
        "epochs": ({}, {"epochs": {"tiny": 4}}),
        "ff_checkpoint_dir": ({}, {"ff_checkpoint_dir": str(runs[0])}),
        "ff_checkpoint_name": ({}, {"ff_checkpoint_dir": str(runs[1]), "ff_checkpoint_name": "step_2"}),
        "eval_t_grid": ({}, {"eval_t_grid": [0.3, 0.8]}),
        "arch.targets": ({}, {"arch.targets": ["q", "v"]}),
        "arch.hyper_dim": ({}, {"arch.hyper_dim": SIZES["n_embd"] // 2}),
    }


def _write_base(run: Path, folder: Path, seed: int = 0, step: int = 1) -> None:
    import torch

    from dataset.text.vocabulary import FILE, to_text, vocabularies_of
    from engine.checkpoint.store import CheckpointStore
    from engine.schema import with_defaults
    from models.feedback.base import BaseLM
    from models.feedback.config import BaseConfig
    from tasks.feedback.base import text_shape

    torch.manual_seed(seed)
    sizes = {key: value for key, value in BASE_ARCH.items() if key not in ("name", "loss")}
    model = BaseLM(BaseConfig(**sizes), text_shape(VOCAB))  # type: ignore[arg-type]
    run.mkdir()
    (run / FILE).write_text(to_text(vocabularies_of([folder])), encoding="utf-8")
    datasets = {"tiny": {"name": "tiny", "path": str(folder), "block_size": LENGTH}}
    config = {"script": "feedforward_train.py", "arch": BASE_ARCH, "active_dataset": "tiny", "datasets": datasets}
    CheckpointStore(run, "feedforward_train").save(
        step, model=model.state_dict(), state={}, config=with_defaults(FeedforwardConfig, config)
    )


def full_shape(config: Any) -> Any:
    """The shape for the byte tokenizer; for an adapter, with a base of the published size."""
    from models.feedback.adapter_config import AdapterShape
    from models.feedback.config import BaseConfig
    from tasks.feedback.base import text_shape

    return AdapterShape(BaseConfig(), text_shape(257)) if hasattr(config, "ff_checkpoint_dir") else text_shape(257)


def data(config: Mapping[str, Any], folder: Path, local: bool) -> list[DataPath]:
    """The active data set of a config."""
    stand_ins = config.get("offline") != "error"
    return [read_text_data(path, "active_dataset", folder, local, stand_ins) for path in data_folders(config)]


def others(batch: Any) -> tuple[Any, Any]:
    """Two variants of a micro-batch: one with other masked tokens, one with other visible tokens."""
    hidden = batch.labels >= 0
    labels = batch.labels.where(~hidden, (batch.labels + 1) % VOCAB)
    inputs = batch.inputs.where(hidden | ~batch.real, (batch.inputs + 1) % VOCAB)
    return replace(batch, labels=labels), replace(batch, inputs=inputs)


VERIFICATION = Verification(
    rules=RULES,
    shrink=shrink,
    write_data=write_documents,
    alternatives=alternatives,
    full_shape=full_shape,
    others=others,
    data=data,
    reads="tokens",
    idle="WARN",
    named_values={"hidden": "arch.n_embd", "heads": "arch.n_head", "layers": "arch.n_layer"},
    steps=stated_steps("total_steps"),
    rates=lambda subject: {"adapter" if "ff_checkpoint_dir" in subject.resolved else "network": "learning_rate"},
    sized="with 257 tokens",
    rows=lambda ranks: {"batch_size": PINNED["batch_size"]},
    pinned=(*PINNED, "datasets", "ff_checkpoint_dir", "ff_checkpoint_name", "model"),
)
