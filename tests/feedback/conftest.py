"""Two small data sets of documents and a base of each, built once; the shortest runs of the feedback scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.text.build import TextBuild, build
from dataset.text.generated import word_problem
from engine.distributed import keyed_numpy
from tests.conftest import Result, run_script

CONFIG = {
    "datasets": {name: {"name": name, "block_size": 48} for name in ("gsm8k", "wikitext")},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0},
    "diffusion": {"generation_steps": 4, "eps": 0.001},
    "training": {
        "epochs": {"gsm8k": 2, "wikitext": 2},
        "batch_size": 8,
        "learning_rate": 0.003,
        "min_lr": 0.0003,
        "eval_max_examples": 12,
        "device": "cpu",
        "log_interval": 1,
    },
}
"""A config.json: 2 epochs of 4 (gsm8k) and 5 (wikitext) steps."""
BASES = {"gsm8k": "ff_model_2025-08-17_10-00-00", "wikitext": "ff_model_2025-08-17_12-00-00"}
"""The folders that the guide's commands name."""


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_documents(tmp_path_factory.mktemp("feedback"))


def make_documents(root: Path) -> Path:
    """`root`/data: gsm8k_byte, word problems cut short, and wikitext_byte, lines of text."""
    random = keyed_numpy(0, "test")
    for split, count in (("train", 33), ("valid", 12)):
        problems = [word_problem(random) for _ in range(count)]
        short = [{"question": each["question"][-9:], "answer": each["answer"][-9:]} for each in problems]
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, short)))
        (root / "text").mkdir(exist_ok=True)
        lines = [f"line {number} of {split} text" for number in range(count + 9)]
        (root / f"text/{split}.txt").write_text("\n".join(lines))
    problems = tuple(root / f"{split}.jsonl" for split in ("train", "valid"))
    plan = TextBuild(output_dir=root / "data/gsm8k_byte", inputs=problems, source="test", tokenizer="byte")
    build(replace(plan, keys=("question", "answer"), template="Question: {question}\nAnswer: {answer}"))
    build(
        TextBuild(
            output_dir=root / "data/wikitext_byte", inputs=(root / "text",), source="test", tokenizer="byte", lines=True
        )
    )
    return root / "data"


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Path:
    """A working directory with a finished base of each data set: to look at, not to write into."""
    folder = empty(tmp_path_factory.mktemp("bases"), documents)
    for name, run in BASES.items():
        result = attempt(folder, "feedforward_train", "--active_dataset", name)
        assert result.code == 0, result.output
        (made,) = (folder / ".out" / name).iterdir()
        made.rename(made.with_name(run))
    return folder


@pytest.fixture
def place(tmp_path: Path, documents: Path, bases: Path) -> Path:
    """A working directory beside the data, with links to the bases."""
    empty(tmp_path, documents)
    for name, run in BASES.items():
        (tmp_path / ".out" / name).mkdir(parents=True)
        (tmp_path / ".out" / name / run).symlink_to(bases / ".out" / name / run)
    return tmp_path


def empty(folder: Path, documents: Path) -> Path:
    (folder / "data").symlink_to(documents)
    (folder / "small.json").write_text(json.dumps(CONFIG))
    return folder


def attempt(folder: Path, script: str, *argv: str) -> Result:
    """A run with small.json in the place of the root's config.json."""
    return run_script(script, "--config", "small.json", *argv, cwd=folder)


def adapter(folder: Path, *argv: str, script: str = "feedbackward_alt_train", dataset: str = "gsm8k") -> Result:
    """A run of a hypernetwork of rank 2 on the base of `dataset`."""
    base = ("--ff_checkpoint_dir", f".out/{dataset}/{BASES[dataset]}", "--ff_checkpoint_name")
    words = ("--active_dataset", dataset, *base, f"epoch_ckpt_{dataset}.pt", "--lora_rank", "2")
    return attempt(folder, script, *words, *argv)


def runs(folder: Path, dataset: str, name: str) -> list[Path]:
    """The runs called so, oldest first."""
    return sorted((folder / ".out" / dataset).glob(f"{name}_2*"))
