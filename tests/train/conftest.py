"""Small texts, built once, and the shortest run of train.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataset.text.build import TextBuild, build
from tests.conftest import Result, metrics, run_script

TINY = (
    "--config-name=cfg_train_cpu",
    "device=cpu",
    "out_dir=out/r",
    "dataset=plain",
    "max_iters=6",
    "lr_decay_iters=6",
    "warmup_iters=2",
    "eval_interval=3",
    "eval_iters=2",
    "batch_size=4",
    "log_interval=1",
    "arch.n_layer=1",
    "arch.n_head=2",
    "arch.n_embd=16",
    "arch.block_size=8",
    "learning_rate=1e-3",
)
WORDS = 50257


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/: plain (characters), classes (aligned with it), other (other characters), bpe (GPT-2's rule: no meta)."""
    root = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = ["to", "be", "or", "not", "Loop", "forge,", "and", "so", "on.\n"]
    (root / "plain.txt").write_text(" ".join(rng.choice(words, 700)))
    (root / "other.txt").write_text("".join(rng.choice(list("0123456789+= \n"), 2500)))
    for name, source, tokenizer in (
        ("plain", "plain", "char"),
        ("classes", "plain", "char_class"),
        ("other", "other", "char"),
    ):
        inputs = (root / f"{source}.txt",)
        build(TextBuild(output_dir=root / "data" / name, inputs=inputs, source=source, tokenizer=tokenizer))
    (root / "data/bpe").mkdir()
    for split, count in (("train", 3000), ("val", 400)):
        rng.integers(0, WORDS, count).astype("<u2").tofile(root / f"data/bpe/{split}.bin")
    return root / "data"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A working directory with one run, out/r: to look at, not to write into."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").symlink_to(texts)
    tables = ("enable_csv=true", "enable_tensorboard=true")
    train(folder, *tables, "max_sample_tokens=5", "sample_start_tokens=to be", "top_k=[1,3]", "num_samples=2")
    return folder


@pytest.fixture
def place(tmp_path: Path, texts: Path) -> Path:
    """An empty working directory beside the texts."""
    (tmp_path / "data").symlink_to(texts)
    return tmp_path


def train(folder: Path, *argv: str, run: str = "out/r") -> list[dict]:
    """Run TINY with `argv`; the metric lines of the run."""
    result = attempt(folder, *argv)
    assert result.code == 0, result.output
    return metrics(folder / run)


def attempt(folder: Path, *argv: str) -> Result:
    return run_script("train", *TINY, *argv, cwd=folder)
