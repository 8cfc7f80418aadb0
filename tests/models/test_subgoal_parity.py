"""HRM with a manager beside the naive double: outputs, loss, decisions and all gradients over several passes."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest
import torch

from losses import FeudalLossConfig, FeudalLossHead
from models.recursive_reasoning.hrm_feudal import HRMFeudal, HRMFeudalConfig
from models.recursive_reasoning.subgoal import SubgoalConfig
from tests.models import naive
from tests.models.naive_feudal import Manager, step, token_losses
from tests.models.parity import BASE, assert_same, batch, fresh_latents, make, weights_of

HEAD = SubgoalConfig(hidden_size=16, goal_dim=16, manager_period=2, inject_init="normal")
CONFIG = HRMFeudalConfig(**{**BASE, "halt_max_steps": 5}, H_layers=1, L_layers=1, subgoal_head=HEAD)
LOSS = FeudalLossConfig(feudal_loss_weight=0.3)
CASES = {
    "default": ({}, {}),
    "narrow": ({"goal_dim": 5}, {}),
    "wide": ({"goal_dim": 24}, {}),
    "period_1": ({"manager_period": 1}, {}),
    "schedule": ({"schedule": [1, 3]}, {}),
    "no_gate": ({"gating": False}, {}),
    "no_bias": ({"projection_bias": False}, {}),
    "both_levels": ({"inject_at": "LH"}, {}),
    "temperature": ({"temperature": 0.5, "goal_scale": 2.0}, {}),
    "raw_goals": ({"normalize_goal": False}, {}),
    "pool_mean": ({"worker_pool": "mean"}, {}),
    "pool_first": ({"worker_pool": "first"}, {}),
    "way_step": ({"displacement": "step", "manager_period": 3}, {}),
    "way_fun": ({"displacement": "fun", "manager_period": 3}, {}),
    "way_absolute": ({"displacement": "absolute"}, {}),
    "no_credit": ({"goal_credit": "none"}, {}),
    "loss_alone": ({"inject_subgoal": False}, {}),
    "grad_both": ({}, {"feudal_grad": "both"}),
    "grad_manager": ({}, {"feudal_grad": "manager"}),
    "gate_live": ({}, {"feudal_gate": "live"}),
    "gate_none": ({}, {"feudal_gate": "none"}),
    "weight_0": ({}, {"feudal_loss_weight": 0.0}),
    "not_aligned": ({}, {"use_alignment_loss": False}),
    "mean_goal": ({"goal_source": "mean"}, {"feudal_grad": "both"}),
    "own_objective": ({"manager_mode": "fun"}, {"manager_loss_weight": 0.7}),
    "own_objective_and_task": ({"manager_mode": "both", "displacement": "fun", "manager_period": 1}, {}),
    "own_objective_alone": ({"manager_mode": "fun", "goal_credit": "none"}, {"use_alignment_loss": False}),
}


def build(head=None, **config):
    """A float64 model whose gate, too, depends on the manager's state."""
    made = replace(CONFIG, subgoal_head=replace(HEAD, **(head or {})), **config)
    model = make(HRMFeudal, made)
    if model.inner.subgoal_head.gate_proj is not None:
        torch.manual_seed(7)
        torch.nn.init.normal_(model.inner.subgoal_head.gate_proj.weight)
    return model, made


@pytest.mark.parametrize("name", sorted(CASES))
def test_passes_equal_the_naive_double(name):
    head, loss = CASES[name]
    compare(*build(head), replace(LOSS, **loss))


@pytest.mark.parametrize("halting", [{"puzzle_emb_ndim": 0}, {"no_ACT_continue": True}], ids=str)
def test_other_shapes_equal_the_naive_double(halting):
    compare(*build(**halting), LOSS)


def compare(model, config, loss_config, count=6):
    head, w = FeudalLossHead(loss_config), weights_of(model.train())
    start = fresh_latents("hrm", w, config)
    z, halted, data, carry = {k: v.clone() for k, v in start.items()}, [True] * 4, batch(0), None
    manager, steered, resets, aimed = Manager(config, w, 4), 0, 0, 0
    aims, weight = config.subgoal_head.manager_mode != "task", loss_config.feudal_loss_weight
    weight *= loss_config.use_alignment_loss
    for number in range(count):
        offered = batch(number)
        for row in range(4):
            if halted[row]:
                resets += number > 0
                manager.reset(row)
                for name in z:
                    z[name][row] = start[name][row]
                data = {k: torch.cat((v[:row], offered[k][row : row + 1], v[row + 1 :])) for k, v in data.items()}
        rows = None
        if config.puzzle_emb_ndim:
            rows = w["inner.puzzle_emb.weights"].detach()[data["puzzle_identifiers"].long()].requires_grad_()
        z, logits, q_halt, q_continue = step(manager, z, data, w, config, rows)
        feudal = manager.loss(z, data["inputs"], loss_config.feudal_grad, loss_config.feudal_gate)
        steered += feudal.item() > 0
        z = {name: value.detach().clone() for name, value in z.items()}
        inputs, before = data["inputs"], copy(manager)
        before.rows, before.passes = list(manager.rows), list(manager.passes)
        losses = token_losses(logits.detach(), data["labels"])
        manager.end(z, inputs, losses)
        last, target = torch.tensor(manager.passes) >= config.halt_max_steps, None
        if not config.no_ACT_continue:
            with torch.no_grad():
                _, _, next_halt, next_continue = step(manager, z, data, w, config, rows)
            target = torch.sigmoid(torch.where(last, next_halt, torch.maximum(next_halt, next_continue)))
        halted = (last | (q_halt > (0.0 if config.no_ACT_continue else q_continue))).tolist()
        plain = naive.loss(logits, data["labels"], q_halt, q_continue, target)
        want = plain + weight * feudal
        if aims:
            own, ending = before.aim(z, inputs, losses, halted)
            want, aimed = want + loss_config.manager_loss_weight * own, aimed + (ending >= 2)

        output = model(offered, carry)
        carry, result = output.carry, head(output)
        assert_same(output.logits, logits)
        assert_same(result.metrics["feudal_loss"][0], feudal.detach())
        assert_same(result.total, want)
        assert carry.halted.tolist() == halted
        model.zero_grad(set_to_none=True)
        result.total.backward()
        model.puzzle_emb and model.puzzle_emb.take_pending()
        leaves = [w[name] for name, _ in model.named_parameters()]
        expected = torch.autograd.grad(want, leaves, allow_unused=True)
        for (name, param), grad in zip(model.named_parameters(), expected, strict=True):
            grad = torch.zeros_like(param) if grad is None else grad
            got = torch.zeros_like(param) if param.grad is None else param.grad
            torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert resets
    assert aimed >= 2 * aims
    assert steered >= 2
