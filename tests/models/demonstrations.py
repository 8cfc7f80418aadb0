"""Small few-shot tasks for the tests of encoders: each recolours a 4x4 grid by its own permutation."""

from __future__ import annotations

import torch

from models.recursive_reasoning.act import PuzzleShape

SIDE, COLOURS, PLACES = 4, 4, 4
SHAPE = PuzzleShape(SIDE * SIDE, 2 + COLOURS, 3)
SMALL = {
    "hidden_size": 64,
    "num_heads": 4,
    "expansion": 1.0,
    "L_layers": 1,
    "H_cycles": 2,
    "L_cycles": 2,
    "context_len": 4,
    "pos_encodings": "rope_2d",
    "halt_max_steps": 4,
}


def tasks(
    rows: int, seed: int, *, demonstrations: int = 3, table: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """`rows` queries with demonstrations, the last place of every row empty; `table` [n, COLOURS] gives the rules."""
    g = torch.Generator().manual_seed(seed)
    if table is None:
        table = torch.rand(rows, COLOURS, generator=g).argsort(1)
    rule = table[torch.randint(len(table), (rows,), generator=g)] if len(table) != rows else table
    grids = torch.randint(COLOURS, (rows, PLACES, SIDE * SIDE), generator=g)
    answers = rule.gather(1, grids.flatten(1)).view(grids.shape)
    shown = torch.arange(PLACES - 1) < demonstrations
    hide = shown[None, :, None]
    return {
        "inputs": (2 + grids[:, -1]).int(),
        "labels": (2 + answers[:, -1]).int(),
        "puzzle_identifiers": torch.arange(rows, dtype=torch.int32),
        "demo_inputs": torch.where(hide, 2 + grids[:, :-1], 0).int(),
        "demo_labels": torch.where(hide, 2 + answers[:, :-1], 0).int(),
        "demo_mask": shown.expand(rows, -1).clone(),
    }
