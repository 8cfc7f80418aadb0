"""Configs refuse what cannot be built, and say which override to change."""

from __future__ import annotations

import pytest
import torch

from models.dtypes import compute_dtype
from models.recursive_reasoning.hrm import HRMConfig
from models.recursive_reasoning.trm import TRMConfig

WRONG = [
    ({"num_heads": 5}, r"arch\.num_heads=5 does not divide arch\.hidden_size=512: choose one of 1, 2, 4, 8"),
    (
        {"hidden_size": 12, "num_heads": 4, "puzzle_emb_ndim": 12},
        r"arch\.num_heads=4 .* choose one of 1, 2, 3, 6",
    ),
    ({"puzzle_emb_ndim": 1024, "puzzle_emb_len": 1}, r"arch\.puzzle_emb_len=1 .* at least 2"),
    ({"H_cycles": 0}, r"arch\.H_cycles=0"),
    ({"L_cycles": -1}, r"arch\.L_cycles=-1"),
    ({"halt_exploration_prob": 1.5}, r"arch\.halt_exploration_prob=1\.5"),
    ({"halt_max_steps": 0}, r"arch\.halt_max_steps=0"),
    ({"pos_encodings": "rop"}, r"arch\.pos_encodings=rop: choose one of rope, rope_2d, learned, none"),
    ({"forward_dtype": "fp8"}, r"arch\.forward_dtype=fp8: choose one of auto, bfloat16"),
    ({"rms_norm_eps": 0.0}, r"arch\.rms_norm_eps=0\.0"),
    ({"cycles_schedule": [[0, 1, 1], [0.5, 2]]}, r"arch\.cycles_schedule has \[0\.5, 2\]: expected \[share of the run"),
    ({"cycles_schedule": [[0, 0, 1]]}, r"arch\.cycles_schedule has \[0, 0, 1\]"),
    ({"cycles_schedule": [[0.1, 1, 1]]}, r"arch\.cycles_schedule begins its stages at \[0\.1\]: expected ascending"),
    ({"expansion": float("nan")}, r"arch\.expansion=nan"),
]


@pytest.mark.parametrize("kind", [TRMConfig, HRMConfig])
@pytest.mark.parametrize(("values", "message"), WRONG)
def test_nonsense_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_layers_of_each_family():
    with pytest.raises(ValueError, match=r"arch\.H_layers=4: TRM has one stack"):
        TRMConfig(H_layers=4)
    with pytest.raises(ValueError, match=r"arch\.H_layers=0"):
        HRMConfig(H_layers=0)


def test_prefix_length_and_dtypes():
    assert TRMConfig().prefix_len == 16
    assert TRMConfig(puzzle_emb_ndim=0).prefix_len == 0
    assert HRMConfig().prefix_len == 1
    assert HRMConfig(puzzle_emb_ndim=513).prefix_len == 2
    assert TRMConfig(num_heads=5, mlp_t=True).mlp_t  # heads play no part
    assert compute_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert compute_dtype("float32", torch.bfloat16) == torch.float32
