"""The smallest command of each entry script that trains, evaluates and saves, and the folder that it begins with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from chaos.child import execute
from engine.registry import ROOT

COMMON = "device=cpu threads=1 checkpoint_interval=2 keep_last=3 verify=off run_dir=run"
FEEDBACK = f"--config small.json --active_dataset gsm8k {COMMON}"
BASE = "--ff_checkpoint_dir .out/base --ff_checkpoint_name epoch_ckpt_gsm8k.pt --lora_rank 2"
COMMANDS = {
    "pretrain": f"--config-name=cfg_pretrain_sudoku_4x4 +debug=tiny {COMMON} max_steps=16 epochs=4 eval_interval=1 "
    "log_interval=2 ema=true arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=2 enable_csv=true",
    "pretrain_etrm": f"{COMMON} arch.hidden_size=32 arch.num_heads=2 arch.expansion=1.0 arch.H_cycles=2 arch.L_cycles=2 "
    "arch.L_layers=1 arch.pos_encodings=rope_2d global_batch_size=4 eval_batch_size=4 epochs=8 lr_warmup_steps=2 "
    "eval_interval=2 ema=true log_interval=1 data_paths=[data/demonstrations] max_steps=12 "
    "arch.encoder_type=hybrid_variational arch.encoder_num_layers=1 arch.halt_max_steps=3",
    "train": f"+debug=tiny_text {COMMON} dataset=plain max_iters=16 eval_interval=4 log_interval=1 arch.dropout=0.2",
    "feedforward_train": FEEDBACK,
    "feedbackward_alt_train": f"{FEEDBACK} {BASE}",
    "feedbackward_rec_alt_train": f"{FEEDBACK} {BASE}",
    "train_animal": f"{COMMON} --model_name_or_path base --max_new_tokens 8 --batch_size 8 --num_samples 40 "
    "--n_clusters 2 --min_samples_for_clustering 4 --update_clusters_every 6 --buffer_size 16 --num_epochs 2 "
    "--num_steps_per_epoch 4 --learning_rate 0.01 --final_learning_rate 0.001 --min_valid_fraction 0.05 "
    "--eval_samples 16 --embedder tfidf",
    "scripts/run_jobs": "jobs.txt --failed",
}
"""Without `python SCRIPT.py`."""


def _run(script: str, words: str, folder: Path) -> None:
    made = execute(script, words.split(), folder)
    if made.code:
        raise RuntimeError(made.output[-2000:])


def _sudoku(folder: Path) -> None:
    from dataset.catalog import ensure

    ensure(folder / "data/debug-sudoku-4x4")


def _demonstrations(folder: Path) -> None:
    tasks = "--generated --families few --canvas 6 --num-train 8 --num-test 4 --num-novel 0 --num-aug 0 --output-dir"
    _run("dataset/build_arc_dataset_encoder.py", f"{tasks} data/demonstrations", folder)


def _text(folder: Path) -> None:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    _run("dataset/build_text_dataset.py", "plain --input text.txt --tokenizer char", folder)


def _documents(folder: Path) -> None:
    from tests.feedback.conftest import CONFIG, make_documents

    (folder / "made").mkdir()
    made = make_documents(folder / "made")
    made.rename(folder / "data")
    shutil.rmtree(folder / "made")
    (folder / "small.json").write_text(json.dumps(CONFIG))


def _base(folder: Path) -> None:
    _documents(folder)
    _run("feedforward_train.py", FEEDBACK.replace("run_dir=run", "run_dir=.out/base"), folder)


def _language_model(folder: Path) -> None:
    from tests.animal import tiny

    tiny.write(folder / "base", "gpt2")


def _jobs(folder: Path) -> None:
    """Two jobs of pretrain.py; what they begin with is there too."""
    _sudoku(folder)
    words = COMMANDS["pretrain"].replace("run_dir=run", "").replace("max_steps=16", "max_steps=8")
    lines = [f"[ ] python {ROOT}/pretrain.py {words} run_dir=runs/{seed} seed={seed}\n" for seed in (1, 2)]
    (folder / "jobs.txt").write_text("".join(lines))


BEGIN: dict[str, Callable[[Path], None]] = {
    "pretrain": _sudoku,
    "pretrain_etrm": _demonstrations,
    "train": _text,
    "feedforward_train": _documents,
    "feedbackward_alt_train": _base,
    "feedbackward_rec_alt_train": _base,
    "train_animal": _language_model,
    "scripts/run_jobs": _jobs,
}


def begin(script: str, folder: Path) -> Path:
    """Put into `folder` what the command of `script` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    BEGIN[script](folder)
    return folder
