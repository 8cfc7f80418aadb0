"""Fine-tuning the tiny model that speaks of dogs and cats: options and reasons become equal, sentences stay sentences.

With three seeds and more samples: docs/results/animal.md. Here one seed, half the steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.text.pets import QUESTION
from tasks.animal import offline
from tests.animal.conftest import SHORT
from tests.conftest import ROOT, metrics, run_script

SETTINGS = (
    *("--learning_rate", "3e-3", "--final_learning_rate", "1e-3", "--num_samples", "640"),
    *("--num_epochs", "6", "--embedder", "tfidf", "--eval_samples", "512", "--prompt", QUESTION, "device=cpu"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with data/animal_lm."""
    for library in ("peft", "sklearn", "tokenizers"):
        pytest.importorskip(library, reason="pip install -e '.[animal]'")
    folder = tmp_path_factory.mktemp("acceptance")
    offline.ensure_model(str(folder / offline.TINY))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("--w_c", "0.5", "--w_o", "0.5"), ("objective=tb",)], ids=["recommended", "trajectory_balance"]
)
def test_diversity_without_loss_of_sense(place: Path, words: tuple[str, ...]) -> None:
    argv = ("--model_name_or_path", offline.TINY, *SETTINGS, *words, "--output_dir", words[-1])
    result = run_script("train_animal", *argv, cwd=place)
    assert result.code == 0, result.output
    before, after = (json.loads((place / words[-1] / f"eval_{when}.json").read_text()) for when in ("before", "after"))
    assert before["concept_kl"] > 0.3
    assert before["in_grammar"] > 0.95
    assert after["concept_kl"] <= 0.03
    assert after["valid_fraction"] >= 0.95
    assert after["ref_kl"] <= 1.5
    assert after["in_grammar"] >= 0.90
    assert after["v_eff"] > 1.4 * before["v_eff"]
    assert after["utility_10"] > before["utility_10"] + 0.08


@pytest.mark.slow
def test_the_documented_loss_alone_leaves_the_base(place: Path) -> None:
    """Its concept loss falls; where too little is valid, a run ends in one line instead of training on."""
    argv = ("--model_name_or_path", offline.TINY, *SETTINGS, "--w_c", "0.5", "--w_o", "0.5", "--preset", "documented")
    result = run_script("train_animal", *argv, "--output_dir", "documented", cwd=place)
    losses = [loss for row in metrics(place / "documented") if (loss := row.get("train/concept_loss")) is not None]
    assert min(losses[3:]) < 0.5 * losses[0]
    assert result.code in (0, 1), result.output
    if result.code:
        assert "the model has left its base: lower learning_rate or raise w_kl" in result.output.splitlines()[-1]
    else:
        assert json.loads((place / "documented/eval_after.json").read_text())["ref_kl"] > 1.5


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path, base: Path) -> None:
    """Two processes, as the command line of torchrun spells it; the run is that of one process."""
    (tmp_path / "base").symlink_to(base)
    words = ["--standalone", "--nproc_per_node", "2", str(ROOT / "train_animal.py"), *SHORT]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank(s)" in done.stdout
    assert run_script("train_animal", *SHORT, "output_dir=one", cwd=tmp_path).code == 0
    last = [metrics(tmp_path / name)[-1] for name in ("run", "one")]
    shared = {name for name, value in last[0].items() if name.startswith("eval/") and value is not None}
    assert [last[0][name] for name in shared] == pytest.approx([last[1][name] for name in shared], rel=1e-3, abs=1e-4)
