"""The intrinsic loss: geometry, its part in the total, metrics as (sum, count), and gates that stay open."""

from __future__ import annotations

import math

import pytest
import torch

from losses import ACTLossConfig, ACTLossHead, FeudalLossConfig, FeudalLossHead
from models.recursive_reasoning.act import ACTCarry, ACTOutput
from models.recursive_reasoning.hrm_feudal import HRMFeudal, HRMFeudalConfig
from models.recursive_reasoning.subgoal import SubgoalConfig, alignment
from tests.models.parity import BASE, SHAPE

GOAL = torch.tensor([[0.0, 2.0]])
WAYS = {"along": ((0.0, 3.0), 1.0), "across": ((4.0, 0.0), 0.0), "against": ((0.0, -1e-3), -1.0), "none": ((0, 0), 0.0)}


@pytest.mark.parametrize("name", WAYS)
def test_cosine_of_the_way_and_the_goal(name):
    way, want = WAYS[name]
    displacements = torch.tensor([[way]], dtype=torch.float32).requires_grad_()
    goal = GOAL.clone().requires_grad_()
    cos = alignment(displacements, torch.tensor([[True]]), goal)
    assert cos.item() == pytest.approx(want, abs=1e-6)
    cos.sum().backward()
    assert torch.isfinite(displacements.grad).all()
    assert torch.isfinite(goal.grad).all()
    assert (displacements.grad.abs().max() < 10) == (name != "none" or displacements.grad.abs().max() == 0)


def test_spans_are_averaged_and_invalid_ones_left_out():
    displacements = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, -5.0]]])
    cos = alignment(displacements, torch.tensor([[True, True, False]]), GOAL)
    assert cos.item() == pytest.approx(0.5)
    zero = alignment(displacements, torch.tensor([[True, True, True]]), torch.zeros(1, 2))
    assert float(zero) == 0


def with_goals(**changes):
    """A pass of four rows: three have goals, of which the first follows it, the second goes across, the third against."""
    labels = torch.tensor([[1, 2]] * 4, dtype=torch.int32)
    halted, steps = torch.tensor([True, False, False, True]), torch.tensor([3, 2, 2, 1])
    carry = ACTCarry({}, steps, halted, {"labels": labels})
    aux = {
        "active": torch.tensor([True, True, True, False]),
        "gate": torch.tensor([0.5, 0.9, 0.01, 0.8]),
        "goal": torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 0]]),
        "own": torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 0]]),
        "displacements": torch.tensor([[[2.0, 0]], [[0, 1]], [[0, -1]], [[1, 1]]]),
        "valid": torch.ones(4, 1, dtype=torch.bool),
        "emitted": torch.tensor([True, True, False, True]),
        "dwell": torch.tensor([2, 1, 1, 0]),
        "worker": torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]),
        "change": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "drift": torch.tensor([0.0, 0.1, 0.2, 0.9]),
        "push": torch.tensor([0.1, 0.2, 0.3, 0.0]),
        **changes,
    }
    return ACTOutput(carry, torch.zeros(4, 2, 3), torch.zeros(4), torch.zeros(4), aux=aux)


def means(result):
    return {name: float(total) / float(count) if count else None for name, (total, count) in result.metrics.items()}


def test_total_and_loss_by_hand():
    result = FeudalLossHead(FeudalLossConfig(feudal_loss_weight=0.2))(with_goals())
    metrics = means(result)
    assert metrics["feudal_loss"] == pytest.approx((0.5 * 0 + 0.9 * 1 + 0.01 * 2) / 4)
    parts = metrics["lm_loss"] + 0.5 * metrics["q_halt_loss"] + 0.2 * metrics["feudal_loss"]
    assert metrics["loss"] == pytest.approx(parts, abs=1e-6)
    assert float(result.total) == pytest.approx(4 * metrics["loss"], abs=1e-5)
    assert list(metrics)[:5] == ["loss", "lm_loss", "feudal_loss", "accuracy", "steps"]
    metrics = means(FeudalLossHead(FeudalLossConfig(feudal_gate="none"))(with_goals()))
    assert metrics["feudal_loss"] == pytest.approx(3 / 4)


def test_metrics_by_hand():
    metrics = means(FeudalLossHead(FeudalLossConfig())(with_goals()))
    gates = [0.5, 0.9, 0.01]
    mean = sum(gates) / 3
    want = {
        "feudal_cos": 0.0,
        "feudal_active_frac": 0.75,
        "subgoal_gate_mean": mean,
        "subgoal_gate_std": math.sqrt(sum((g - mean) ** 2 for g in gates) / 2),
        "subgoal_gate_saturated": 1 / 3,
        "subgoal_emissions": 0.25,  # row 0 has halted: its goal is for nobody
        "subgoal_dwell": 1.5,
        "subgoal_goal_pairwise_cos": 1 / 3,
        "subgoal_goal_change_cos": 0.2,
        "subgoal_goal_pr": 1.0,
        "subgoal_goal_drift": 0.1,
        "subgoal_inject_ratio": 0.2,
        "subgoal_worker_pairwise_cos": 1.0,
    }
    assert {name: metrics[name] for name in want} == pytest.approx(want, abs=1e-6)


def test_names_stay_the_same_when_no_row_has_a_goal():
    nobody = with_goals(active=torch.zeros(4, dtype=torch.bool))
    loss = FeudalLossHead(FeudalLossConfig())
    assert list(loss(nobody).metrics) == list(loss(with_goals()).metrics)
    metrics = means(loss(nobody))
    assert metrics["feudal_loss"] == 0
    assert metrics["subgoal_gate_mean"] is None
    displacements = torch.zeros(4, 1, 2, requires_grad=True)
    loss(with_goals(active=torch.zeros(4, dtype=torch.bool), displacements=displacements)).total.backward()
    assert torch.equal(displacements.grad, torch.zeros(4, 1, 2))


def test_without_a_manager_it_is_the_act_loss():
    bare = ACTOutput(with_goals().carry, torch.zeros(4, 2, 3), torch.zeros(4), torch.zeros(4))
    ours, theirs = (head(bare) for head in (FeudalLossHead(FeudalLossConfig()), ACTLossHead(ACTLossConfig())))
    assert torch.equal(ours.total, theirs.total)
    assert list(ours.metrics) == list(theirs.metrics)


@pytest.mark.parametrize("weight", [-0.1, math.inf])
def test_a_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match=r"arch\.loss\.feudal_loss_weight"):
        FeudalLossConfig(feudal_loss_weight=weight)


def last_gate(weight, gate, steps=300):
    """Mean gate over the last steps of training a small model on copying its input."""
    torch.manual_seed(0)
    sizes = {**BASE, "forward_dtype": "float32", "puzzle_emb_ndim": 0, "hidden_size": 8, "no_ACT_continue": True}
    sizes |= {"H_layers": 1, "L_layers": 1, "H_cycles": 1, "L_cycles": 1, "fixed_refinement_steps": 4}
    head = SubgoalConfig(hidden_size=8, goal_dim=8, manager_period=2)
    model = HRMFeudal(HRMFeudalConfig(**sizes, subgoal_head=head), SHAPE).train()
    loss = FeudalLossHead(FeudalLossConfig(feudal_loss_weight=weight, feudal_gate=gate))
    optimizer, carry, gates = torch.optim.AdamW(model.parameters(), lr=5e-3), None, []
    for _ in range(steps):
        inputs = torch.randint(1, SHAPE.vocab_size, (8, SHAPE.seq_len), dtype=torch.int32)
        ids = torch.zeros(8, dtype=torch.int32)
        output = model({"inputs": inputs, "labels": inputs, "puzzle_identifiers": ids}, carry)
        carry, result = output.carry, loss(output)
        optimizer.zero_grad()
        (result.total / 8).backward()
        optimizer.step()
        gates += output.aux["gate"][output.aux["active"]].tolist()
    return sum(gates[-40:]) / 40


@pytest.mark.parametrize("weight", [pytest.param(0.1, marks=pytest.mark.slow), 0.5])
def test_gates_stay_open(weight):
    assert last_gate(weight, "detach") > 0.3


def test_a_live_gate_learns_to_close():
    assert last_gate(0.5, "live") < 0.3
