"""EMA: golden shadows, closed form, exact exchange."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.loop.evaluations import EMA


def test_golden(golden):
    z = np.load(golden("schedule_ema/ema.npz"))
    params = {name: nn.Parameter(torch.from_numpy(z[f"{name}0"])) for name in ("w", "b")}
    ema = EMA(params, float(z["mu"]))
    for t in (1, 2, 3):
        for name, param in params.items():
            param.data.copy_(torch.from_numpy(z[f"{name}{t}"]))
        ema.update(torch.ones(()))
        for name in params:
            np.testing.assert_allclose(ema.shadow[name], z[f"shadow_{name}{t}"], rtol=1e-6, atol=1e-7)


def test_closed_form_and_frozen_parameters():
    param, frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2), requires_grad=False)
    ema = EMA({"p": param, "frozen": frozen}, 0.9)
    param.data.fill_(1.0)
    for _ in range(5):
        ema.update(torch.ones(()))
    torch.testing.assert_close(ema.shadow["p"], torch.full((3,), 1 - 0.9**5))
    assert set(ema.state_dict()) == {"p"}


def test_swapped_restores_bit_for_bit():
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(50))
    before, pointer = param.detach().clone(), param.data_ptr()
    ema = EMA({"p": param}, 0.5)
    ema.shadow["p"].fill_(7.0)
    seen = []

    def evaluate():
        with ema.swapped():
            seen.append(param.detach().clone())
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        evaluate()
    assert (seen[0] == 7.0).all()
    assert torch.equal(param, before)
    assert param.data_ptr() == pointer


def test_state_round_trip_and_refusals():
    param = nn.Parameter(torch.randn(4))
    ema, other = EMA({"p": param}, 0.9), EMA({"p": param}, 0.9)
    ema.shadow["p"].fill_(2.0)
    other.restart(ema.state_dict())
    assert torch.equal(other.shadow["p"], ema.shadow["p"])
    with pytest.raises(ValueError, match="shape"):
        ema.restart({"p": torch.zeros(5)})


def test_a_parameter_without_an_average_begins_with_its_present_value():
    old, new = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    ema = EMA({"old": old, "new": new}, 0.9)
    new.data.fill_(3.0)  # weights that were loaded after the average was made
    ema.restart({"old": torch.full((2,), 7.0), "gone": torch.ones(1)})
    assert ema.shadow["old"].tolist() == [7.0, 7.0]
    assert ema.shadow["new"].tolist() == [3.0, 3.0]
