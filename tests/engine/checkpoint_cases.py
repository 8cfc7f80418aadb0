"""Small checkpoints for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint.store import CheckpointStore

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"lr": 1e-4, "arch": {"name": "a@B", "depth": 2}}
FILES = ["manifest.json", "model.safetensors", "ema.safetensors", "state.safetensors", "state.json"]


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"inner.w": torch.randn(3, 4, generator=generator), "inner.b": torch.ones(4)}


def metric(value, mode="max", name="eval/exact"):
    return {"name": name, "value": value, "goal": mode}


def save(store: CheckpointStore, step: int, value=None, **changes) -> Path:
    options = {
        "model": weights(step),
        "ema": weights(step + 100),
        "state": {"step": step, "m": torch.arange(step)},
        "config": CONFIG,
        "metric": metric(value) if value is not None else None,
        "extra": {"bytes": {"metrics.jsonl": 12}},
    }
    return store.save(step, **{**options, **changes})


def store_at(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "run", "pretrain")


def equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    same = one.dtype == two.dtype and one.shape == two.shape
    as_bytes = [t.contiguous().flatten().view(torch.uint8) if t.numel() else t.flatten() for t in (one, two)]
    return same and torch.equal(*as_bytes)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
