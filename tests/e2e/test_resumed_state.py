"""Before the first step after a resume everything is what it was in the run that was not interrupted, bit for bit: batch,
learning rates, keyed numbers, weights, averages, optimizers, and the task's own state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.distributed import key_global_draws
from engine.loop.trainer import Trainer
from tests.conftest import _entry, run_forked
from tests.train import conftest as small_texts

texts = small_texts.texts  # a fixture
AT = 5
RUNS = {
    "pretrain": (
        "--config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu epochs=4 arch.halt_max_steps=4 ema=true "
        "arch.halt_exploration_prob=0.5 arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=2 puzzle_emb_lr=0.01 accumulation=2"
    ),
    "train": "--config-name=cfg_train_cpu +debug=tiny_text device=cpu max_iters=8 arch.dropout=0.2 ema=true run_name=r",
}


def digest(value: Any) -> str:
    """Of a nest of tensors and plain values, numbers in full."""
    sums = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            node = (str(node.dtype), tuple(node.shape), node.detach().cpu().contiguous().reshape(-1).tolist())
        if isinstance(node, dict):
            for key in sorted(node, key=str):
                add(key)
                add(node[key])
        elif isinstance(node, list | tuple):
            sums.update(f"[{len(node)}".encode())
            for item in node:
                add(item)
        elif hasattr(node, "__dataclass_fields__"):
            add(vars(node))
        else:
            sums.update(f"{type(node).__name__} {node!r};".encode())

    add(value)
    return sums.hexdigest()[:16]


def recorded(script: str, argv: list[str], file: str) -> None:
    """Run a command; the state before step AT is written to `file`."""
    plain = Trainer._train_step

    def train_step(self: Trainer) -> None:
        if self.step != AT:
            return plain(self)
        key_global_draws(self.config.seed, f"forward/{self.runtime.rank}", AT)
        state = self.state_dict()
        taken = {
            "keyed numbers": torch.rand(8),
            "learning rates": {n: group.lr * self.plan.schedule(AT) for n, group in self.groups.items()},
            "weights": dict(self.module.state_dict()),
            "averages": self.ema.state_dict() if self.ema else {},
            "optimizers": state["optimizers"],
            "task": state["task"],
        }
        draw = self.task.micro_batches

        def drawn(step: int) -> list[Any]:
            taken["batch"] = list(draw(step))
            Path(file).write_text(json.dumps({name: digest(value) for name, value in taken.items()}))
            return taken["batch"]

        self.task.micro_batches = drawn
        plain(self)

    Trainer._train_step = train_step
    _entry(script, argv)


@pytest.mark.parametrize("script", RUNS)
def test_the_state_before_the_first_resumed_update(workplace: Path, texts: Path, script: str) -> None:
    argv = [*RUNS[script].split(), *([f"dataset={texts}/plain"] if script == "train" else [])]
    where = "run_dir=" if script == "pretrain" else "out_dir="
    for folder, words in (("whole", [f"max_steps={AT + 1}"]), ("broken", [f"max_steps={AT - 1}"])):
        done = run_forked(recorded, script, [*argv, f"{where}{folder}", *words], f"{folder}.json", cwd=workplace)
        assert done.code == 0, done.output
    assert not (workplace / "broken.json").exists()
    words = [*argv, f"{where}broken", "resume=true", f"max_steps={AT + 1}"]
    done = run_forked(recorded, script, words, "broken.json", cwd=workplace)
    assert done.code == 0, done.output
    whole, resumed = (json.loads((workplace / f"{name}.json").read_text()) for name in ("whole", "broken"))
    assert len(whole) == 7
    assert resumed == whole
