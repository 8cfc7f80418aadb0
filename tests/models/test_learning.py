"""Every architecture learns: boards of a rule that one cell alone does not tell, through carries and resets of ACT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.transformers_baseline import TransformerBaseline, TransformerBaselineConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from models.recursive_reasoning.trm_hier6 import TRMHier6, TRMHier6Config
from models.recursive_reasoning.trm_singlez import TRMSingleZ

WORDS, CELLS, BLANK = 5, 4, 0
STEPS = 150
SMALL = {"hidden_size": 32, "num_heads": 4, "expansion": 1.0, "halt_max_steps": 4, "puzzle_emb_ndim": 0}
TWO = {"H_cycles": 2, "L_cycles": 2, "L_layers": 1}
TRM_CONFIG = TRMConfig(**SMALL, **TWO)
ARCHS = {
    "trm": (TRM, TRM_CONFIG),
    "trm_mlp_t": (TRM, replace(TRM_CONFIG, mlp_t=True, pos_encodings="none")),
    "trm_rope_2d": (TRM, replace(TRM_CONFIG, pos_encodings="rope_2d")),
    "trm_singlez": (TRMSingleZ, TRM_CONFIG),
    "trm_hier6": (TRMHier6, TRMHier6Config(**SMALL, **TWO)),
    "hrm": (HRM, HRMConfig(**SMALL, H_layers=1, L_layers=1)),
    "transformers_baseline": (TransformerBaseline, TransformerBaselineConfig(**SMALL, H_layers=2)),
}


def boards(count, seed):
    """2x2 boards that hold each of the words 1..4 once; one cell is blank and follows from the other three."""
    g = torch.Generator().manual_seed(seed)
    answers = torch.rand(count, CELLS, generator=g).argsort(1).int() + 1
    hole = torch.randint(CELLS, (count, 1), generator=g)
    ids = torch.zeros(count, dtype=torch.int32)
    return {"inputs": answers.scatter(1, hole, BLANK), "labels": answers, "puzzle_identifiers": ids}


ALIKE = ("trm_mlp_t", "trm_rope_2d", "trm_singlez")
"""TRM but for one part."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in ARCHS])
def test_an_architecture_learns(name):
    model_class, config = ARCHS[name]
    torch.manual_seed(0)
    model, head = model_class(config, PuzzleShape(CELLS, WORDS, 1)), ACTLossHead(ACTLossConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    test, carry = boards(96, seed=10**6), None

    def exact():
        with torch.no_grad():
            total, rows = head(model.eval()(test)).metrics["exact_accuracy"]
        return (total / rows).item()

    before = exact()
    for step in range(STEPS):
        output = model.train()(boards(32, seed=step), carry)
        carry = output.carry
        optimizer.zero_grad()
        (head(output).total / 32).backward()
        optimizer.step()
        decay.step()
    assert before < 0.3
    assert exact() > 0.9
