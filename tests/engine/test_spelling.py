"""What a command says names keys as its user typed them, and a key that changed rather than tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.cli.console import VARIABLE, as_typed, forget, remember
from tests.conftest import run_script

CPU = ("--config-name=cfg_train_cpu", "device=cpu")
SMALL = (
    *CPU,
    "n_embd=32",
    "n_head=2",
    "block_size=16",
    "batch_size=2",
    "eval_iters=1",
    "max_iters=2",
    "warmup_iters=1",
)
PUZZLE = ("--config-name=cfg_pretrain_sudoku_4x4", "device=cpu", "+debug=tiny", "max_steps=2")


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("arch.n_layer=0: expected", "n_layer=0: expected"),
        ("choose another run_dir", "choose another out_dir"),
        ("run_dir=/a/run_dir/b is", "out_dir=/a/run_dir/b is"),
        ("arch.n_layers and my.run_dir, run_dirs", "arch.n_layers and my.run_dir, run_dirs"),
        ("accumulation is high: accumulation=4", "accumulation is high: gradient_accumulation_steps=4"),
        ("--max_iters=0, max_iters: no", "--max-iters=0, --max-iters: no"),
        ("with resume=true, not resume=false", "with init_from=resume, not resume=false"),
        ("the end: run_dir.", "the end: out_dir."),
    ],
)
def test_words_are_put_back_where_the_key_is_meant(text: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "{}")
    remember({"arch.n_layer": "n_layer", "run_dir": "out_dir", "accumulation": "gradient_accumulation_steps"})
    remember({"max_iters": "--max-iters", "resume=true": "init_from=resume"})
    assert as_typed(text) == typed
    forget()
    assert as_typed(text) == text


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train", "--n_layer=0", "error: n_layer=0:"),
        ("train", "--n_layer=0 arch.n_layer=0", "error: arch.n_layer=0:"),
        ("train", "dtype=foo", "error: dtype: 'foo'"),
        ("train", "--max-iters=0", "error: --max-iters=0:"),
        ("train", "--learning_rate=-1", "error: learning_rate=-1.0:"),
        ("train", "--out_dir=/dev/null/x", "error: out_dir=/dev/null/x cannot be used"),
        ("train", "lr=1", "did you mean 'learning_rate'?"),
        ("pretrain", "lr=abc", "error: lr: expected number"),
        ("pretrain", "--learning_rate=1", "did you mean 'lr'?"),
        ("pretrain", "--checkpoint_path=/dev/null/x", "error: checkpoint_path=/dev/null/x cannot be used"),
    ],
)
def test_a_refusal_names_the_key_as_it_was_typed(workplace: Path, script: str, words: str, message: str) -> None:
    base = SMALL if script == "train" else PUZZLE
    done = run_script(script, *base, *words.split(), cwd=workplace)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_keys_of_a_json_file_and_of_a_job_of_a_sweep_too(workplace: Path, capfd: pytest.CaptureFixture) -> None:
    (workplace / "mine.json").write_text(json.dumps({"n_layer": 0}))
    done = run_script("train", *SMALL, "--config", "mine.json", cwd=workplace)
    assert "error: n_layer=0" in done.output
    done = run_script("train", "-m", *SMALL, "--out_dir=swept", "n_layer=0", cwd=workplace)
    assert done.code == 2
    assert "error: n_layer=0: expected at least 1" in capfd.readouterr().err  # the job's own process


def test_a_resumed_run_of_another_shape_names_the_key(workplace: Path) -> None:
    begun = run_script("train", *SMALL, "n_layer=1", "out_dir=run", cwd=workplace)
    assert begun.code == 0, begun.output
    again = ("--init_from=resume", "--out_dir=run", "device=cpu", "max_iters=4")
    cases = {
        ("--n_layer=2", "dropout=0.1"): "(n_layer: 1 in the checkpoint, 2 now)",
        ("arch.n_embd=64",): "(arch.n_embd: 32 in the checkpoint, 64 now)",
    }
    for words, message in cases.items():
        done = run_script("train", *again, *words, cwd=workplace)
        assert message in done.output, done.output
        assert "weight" not in done.output.splitlines()[-1]
    done = run_script("train", *SMALL, "n_layer=2", "init_from=prev_run", "prev_run_ckpt=run", cwd=workplace)
    assert "n_layer: 1 in the checkpoint, 2 now" in done.output, done.output
    manifest = workplace / "run/checkpoints/step_2/manifest.json"
    assert json.loads(manifest.read_text())["config"]["arch"]["n_layer"] == 1


def test_a_puzzle_run_of_another_shape_names_the_key(workplace: Path) -> None:
    begun = run_script("pretrain", *PUZZLE, "run_dir=run", cwd=workplace)
    assert begun.code == 0, begun.output
    done = run_script("pretrain", "run_dir=run", "resume=true", "arch.hidden_size=64", "max_steps=4", cwd=workplace)
    assert "(arch.hidden_size: 32 in the checkpoint, 64 now)" in done.output, done.output
    done = run_script("pretrain", *PUZZLE, "run_dir=new", "resume_from=run", "arch.L_layers=2", cwd=workplace)
    assert "(arch.L_layers: 1 in the checkpoint, 2 now)" in done.output, done.output
    assert not (workplace / "new").exists()


def test_a_reopened_checkpoint_of_another_shape_names_the_key(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.errors import UsageError
    from engine.run.load_run import find_checkpoint, open_checkpoint

    begun = run_script("pretrain", *PUZZLE, "run_dir=run", cwd=workplace)
    assert begun.code == 0, begun.output
    monkeypatch.chdir(workplace)
    arch = {**find_checkpoint("run").config["arch"], "hidden_size": 64}
    with pytest.raises(UsageError, match=r"arch\.hidden_size: 32 in the checkpoint, 64 now"):
        open_checkpoint("run", device="cpu", overrides={"arch": arch})
