"""A tiny base for runs of train_animal.py, made once, and the shortest command that trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.animal import tiny
from tests.conftest import Result, run_script

SHORT = (
    *("--model_name_or_path", "base", "--prompt", " the animal", "--max_new_tokens", "8", "--batch_size", "8"),
    *("--num_samples", "40", "--n_clusters", "2", "--min_samples_for_clustering", "4", "--update_clusters_every", "6"),
    *("--buffer_size", "16", "--num_epochs", "2", "--num_steps_per_epoch", "3", "--learning_rate", "0.01"),
    *("--final_learning_rate", "0.001", "--min_valid_fraction", "0.05", "--eval_samples", "16", "--output_dir", "run"),
    *("--embedder", "tfidf", "device=cpu"),
)
"""Two epochs of three steps."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers with random weights."""
    pytest.importorskip("peft", reason="pip install -e '.[animal]'")
    pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")
    import sklearn.cluster  # noqa: F401  before the forks

    return tiny.write(tmp_path_factory.mktemp("animal") / "base", "gpt2")


@pytest.fixture
def place(tmp_path: Path, base: Path) -> Path:
    """A working directory with that base in it."""
    (tmp_path / "base").symlink_to(base)
    return tmp_path


def attempt(folder: Path, *argv: str, env: dict[str, str] | None = None) -> Result:
    """The short command with further arguments."""
    return run_script("train_animal", *SHORT, *argv, cwd=folder, env=env)
