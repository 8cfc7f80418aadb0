"""The rows of the table: published recipes, and the ARC shape with a batch that fits one GPU."""

from __future__ import annotations

from tasks.gpu_benchmark.case import Case
from tasks.gpu_benchmark.puzzles import PuzzleCase
from tasks.gpu_benchmark.text import TextCase

CASES: tuple[Case, ...] = (
    PuzzleCase(
        name="TRM mlp_t, B 256, S 97, D 512, H3 L6",
        recipe=("--config-name=cfg_pretrain_sudoku_extreme_mlp",),
        rows=256,
        tokens=81,
        vocab_size=11,
    ),
    PuzzleCase(
        name="TRM attention, B 256, S 97, D 512, H3 L6",
        recipe=("--config-name=cfg_pretrain_sudoku_extreme_att",),
        rows=256,
        tokens=81,
        vocab_size=11,
    ),
    PuzzleCase(
        name="TRM attention, ARC shape, B 32, S 916, H3 L4",
        recipe=("--config-name=cfg_pretrain_arc_agi_1", "evaluators=[]"),
        rows=32,
        tokens=900,
        vocab_size=12,
    ),
    TextCase(
        name="GPT, shakespeare_char, B 64, T 256",
        recipe=("--config-name=cfg_train_shakespeare",),
        rows=64,
        tokens=256,
        vocab_size=65,
        small=True,
    ),
    PuzzleCase(
        name="TRM mlp_t, 4x4 Sudoku recipe, B 64, D 64",
        recipe=("--config-name=cfg_pretrain_sudoku_4x4",),
        rows=64,
        tokens=16,
        vocab_size=6,
        small=True,
    ),
)
