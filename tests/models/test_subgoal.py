"""The manager of HRM: what it leaves alone, when it gives goals, what reaches its weights, the controls."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from losses import ACTLossConfig, ACTLossHead, FeudalLossConfig, FeudalLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.hrm_feudal import HRMFeudal, HRMFeudalConfig
from models.recursive_reasoning.subgoal import SubgoalConfig
from tests.models.parity import BASE, SHAPE, batch

SIZES = {**BASE, "forward_dtype": "float32", "H_layers": 1, "L_layers": 1, "halt_max_steps": 8}
HEAD = SubgoalConfig(hidden_size=16, goal_dim=16, manager_period=2)
ROWS = 6


def build(head=HEAD, seed=0, **config):
    torch.manual_seed(seed)
    return HRMFeudal(HRMFeudalConfig(**{**SIZES, **config}, subgoal_head=head), SHAPE).train()


def plain(seed=0):
    torch.manual_seed(seed)
    return HRM(HRMConfig(**SIZES), SHAPE).train()


def lively(head=None, **config):
    """A model in which goals, gates and injection matter and no row halts before the last pass."""
    model = build(replace(HEAD, inject_init="normal", **(head or {})), **config)
    torch.manual_seed(5)
    if model.inner.subgoal_head.gate_proj is not None:
        torch.nn.init.normal_(model.inner.subgoal_head.gate_proj.weight)
    return model


def passes(model, count, loss=None, seed=1):
    """`count` passes over one batch: outputs (and results of the loss)."""
    carry, outputs = None, []
    for _ in range(count):
        output = model(batch(seed, ROWS), carry)
        carry = output.carry
        outputs.append(output if loss is None else (output, loss(output)))
    return outputs


def trace(model, loss, count=4):
    """Losses of `count` steps of plain gradient descent, and the trained weights."""
    optimizer, carry, totals = torch.optim.SGD(model.parameters(), lr=0.01), None, []
    for number in range(count):
        output = model(batch(number, ROWS), carry)
        carry, result = output.carry, loss(output)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        totals.append(result.total.item())
    return totals, model.state_dict()


def grads(model):
    return {name: 0.0 if p.grad is None else float(p.grad.abs().sum()) for name, p in model.named_parameters()}


FEUDAL = FeudalLossHead(FeudalLossConfig())


# --- what it leaves alone ---------------------------------------------------------------------------------------------


def test_without_a_head_it_is_plain_hrm():
    ours, theirs = build(head=None), plain()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    (a, weights), (b, others) = trace(ours, FEUDAL), trace(theirs, ACTLossHead(ACTLossConfig()))
    assert a == b
    assert all(torch.equal(weights[name], others[name]) for name in others)
    result = FEUDAL(passes(build(head=None), 1)[0])
    assert not any("feudal" in name or "subgoal" in name for name in result.metrics)


def test_a_fresh_head_changes_neither_the_network_nor_its_answers():
    ours = build()
    rng = torch.get_rng_state()
    theirs = plain()
    assert torch.equal(rng, torch.get_rng_state())  # building with and without a head draws the same numbers
    state = ours.state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert {name.split(".")[1] for name in state.keys() - theirs.state_dict().keys()} == {"subgoal_head"}
    for a, b in zip(passes(ours, 5), passes(theirs, 5), strict=True):  # consuming passes, too
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.q_halt_logits, b.q_halt_logits)


def test_a_head_that_neither_injects_nor_weighs_is_plain_hrm_step_by_step():
    idle = FeudalLossHead(FeudalLossConfig(feudal_loss_weight=0.0))
    totals, weights = trace(build(replace(HEAD, inject_subgoal=False)), idle)
    others, theirs = trace(plain(), ACTLossHead(ACTLossConfig()))
    assert totals == others
    assert all(torch.equal(weights[name], value) for name, value in theirs.items())


def test_parameters_by_option():
    def names(**head):
        model = build(replace(HEAD, **head))
        return {n.removeprefix("inner.subgoal_head.") for n, _ in model.named_parameters() if "subgoal_head" in n}

    every = {"goal_proj.weight", "goal_proj.bias", "gate_proj.weight", "gate_proj.bias", "inject_L.weight"}
    assert names() == every
    assert names(gating=False) == {"goal_proj.weight", "goal_proj.bias", "inject_L.weight"}
    assert names(inject_at="LH") == every | {"inject_H.weight"}
    assert names(projection_bias=False) == {"goal_proj.weight", "gate_proj.weight", "inject_L.weight"}
    with torch.device("meta"):
        model = HRMFeudal(HRMFeudalConfig(subgoal_head=SubgoalConfig()), PuzzleShape(81, 11, 1))
    assert model.num_parameters() == 27_275_266 + 525_313  # 1.9 % more
    groups = model.param_groups()
    assert list(groups) == ["trunk", "goal_proj", "gate_proj", "inject_L"]
    assert sum(p.numel() for params in groups.values() for p in params) == model.num_parameters()


@pytest.mark.parametrize("dim", [8, 24])
def test_the_projection_of_worker_states_is_fixed_and_orthonormal(dim):
    model = build(replace(HEAD, goal_dim=dim))
    matrix = model.inner.subgoal_head.state_proj
    small = matrix @ matrix.T if dim < 16 else matrix.T @ matrix
    torch.testing.assert_close(small, torch.eye(min(dim, 16)))
    assert torch.equal(matrix, build(replace(HEAD, goal_dim=dim)).inner.subgoal_head.state_proj)
    assert not torch.equal(matrix, build(replace(HEAD, goal_dim=dim), seed=1).inner.subgoal_head.state_proj)
    assert "state_proj" not in dict(model.inner.subgoal_head.named_parameters())


# --- when goals are given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "emissions"),
    [
        ({"manager_period": 1}, [1, 2, 3, 4, 5, 6, 7]),
        ({"manager_period": 2}, [1, 3, 5, 7]),
        ({"manager_period": 3}, [1, 4, 7]),
        ({"manager_period": 4}, [1, 5]),
        ({"manager_period": 8}, [1]),
        ({"manager_period": 100}, [1]),
        ({"schedule": [1, 4]}, [1, 4]),
        ({"schedule": [3, 8]}, [3]),
    ],
)
def test_goals_are_given_after_these_passes(head, emissions):
    model = lively(head, halt_exploration_prob=0.0)
    given, dwells = [], []
    for k, (output, result) in enumerate(passes(model, 8, FEUDAL), start=1):
        given += [k] if output.aux["emitted"].all() else []
        assert output.aux["emitted"].any() == output.aux["emitted"].all()
        total, count = result.metrics["subgoal_dwell"]
        dwells += [float(total / count)] if count else []
        assert result.metrics["feudal_active_frac"][0] == (ROWS if given and k > given[0] else 0)
    assert given == emissions
    assert output.carry.halted.all()
    assert dwells == [b - a for a, b in zip(emissions, [*emissions[1:], 8], strict=True)]


def test_a_mask_takes_the_place_of_the_schedule():
    head = lively().inner.subgoal_head
    state, ones, mask = head.initial(4), torch.ones(4, 16), torch.tensor([True, False, True, False])
    steering = head.steer(state, torch.ones(4, dtype=torch.bool))
    after, _ = head.advance(state, steering, ones, ones, noise=None, update=mask)
    assert torch.equal(after["subgoal_active"], mask)


# --- rows are apart ---------------------------------------------------------------------------------------------------


def test_a_reset_row_is_unsteered_and_the_others_keep_their_goals():
    model = lively({"manager_period": 4})
    carry = passes(model, 3)[-1].carry
    carry.halted = torch.arange(ROWS) == 0
    after = model(batch(9, ROWS), carry)
    fresh = model(batch(9, ROWS))
    torch.testing.assert_close(after.logits[0], fresh.logits[0])
    assert not after.aux["active"][0]
    assert after.aux["active"][1:].all()
    opened = model._reset_halted(batch(9, ROWS), carry)[0]
    for name, value in opened.items():
        if name.startswith("subgoal_"):
            assert not value[0].any(), name
            assert torch.equal(value[1:], carry.latents[name][1:]), name


def test_a_row_depends_neither_on_its_past_nor_on_its_neighbours():
    model, many = lively(), batch(3, ROWS)
    carry = passes(model, 4)[-1].carry
    carry.halted = torch.ones(ROWS, dtype=torch.bool)
    mixed = {name: torch.cat((value[:1], batch(8, ROWS)[name][1:])) for name, value in many.items()}
    streams = [(carry, many), (None, many), (None, mixed)]
    answers = []
    for state, offered in streams:
        logits = []
        for _ in range(4):
            output = model(offered, state)
            state = replace(output.carry, halted=torch.zeros(ROWS, dtype=torch.bool))
            logits.append(output.logits[0])
        answers.append(torch.stack(logits))
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[1], answers[2])


def test_the_carry_holds_no_graph_and_steps_follow_each_other():
    model = lively({"displacement": "fun"})
    for output in passes(model, 4):
        assert not any(value.requires_grad for value in output.carry.latents.values())
        assert not any("aux" in name for name in output.carry.latents)
    trace(lively(), FEUDAL, count=5)  # two backward passes with an update between them raise nothing


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(2, 9))
def test_the_task_reaches_the_manager_on_every_consuming_pass(number):
    model, task = lively({"manager_period": 3}), ACTLossHead(ACTLossConfig())
    output = passes(model, number)[-1]
    task(output).total.backward()
    norms = grads(model.inner.subgoal_head)
    assert all(norms[f"{name}.weight"] > 0 for name in ("goal_proj", "gate_proj", "inject_L"))
    assert grads(model.inner.L_level)["layers.0.mlp.down_proj.weight"] > 0


def intrinsic(model, **loss):
    """Gradients of the intrinsic loss alone on a consuming pass."""
    output = passes(model, 3)[-1]
    with_weight = FeudalLossHead(FeudalLossConfig(feudal_loss_weight=1.0, **loss))(output).total
    (with_weight - ACTLossHead(ACTLossConfig())(output).total).backward()
    norms = grads(model)
    level = sum(value for name, value in norms.items() if "L_level" in name)
    return level, {n.split(".")[2]: v for n, v in norms.items() if "subgoal_head" in n and "weight" in n}


def test_whom_the_intrinsic_loss_moves():
    level, head = intrinsic(lively())
    assert level > 0
    assert head["inject_L"] > 0
    level, head = intrinsic(lively({"inject_subgoal": False}))
    assert level > 0
    assert head == {"goal_proj": 0, "gate_proj": 0, "inject_L": 0}
    _, head = intrinsic(lively({"inject_subgoal": False}), feudal_grad="both")
    assert head["goal_proj"] > 0
    _, head = intrinsic(lively({"inject_subgoal": False}), feudal_gate="live")
    assert head["gate_proj"] > 0
    level, head = intrinsic(lively({"inject_subgoal": False}), feudal_grad="manager")
    assert level == 0
    assert head["goal_proj"] > 0


def test_without_credit_the_task_does_not_reach_the_manager():
    model = lively({"goal_credit": "none"})
    ACTLossHead(ACTLossConfig())(passes(model, 3)[-1]).total.backward()
    norms = grads(model.inner.subgoal_head)
    assert norms["goal_proj.weight"] == norms["gate_proj.weight"] == 0
    assert norms["inject_L.weight"] > 0


def test_an_objective_of_its_own_takes_the_place_of_the_task():
    """Deep in the second window of four rows that no pass halts; the gate still learns from the task."""
    for mode, reached in (("fun", False), ("both", True)):
        model = lively({"manager_mode": mode})
        ACTLossHead(ACTLossConfig())(passes(model, 3)[-1]).total.backward()
        norms = grads(model.inner.subgoal_head)
        assert (norms["goal_proj.weight"] > 0) == reached
        assert norms["gate_proj.weight"] > 0
    silent = FeudalLossHead(FeudalLossConfig(use_alignment_loss=False, manager_loss_weight=1.0))
    model = lively({"manager_mode": "fun"})
    results = passes(model, 3, silent)
    assert [float(result.metrics["manager_loss"][0]) != 0 for _, result in results] == [False, False, True]
    results[-1][1].total.backward()
    assert grads(model.inner.subgoal_head)["goal_proj.weight"] > 0


def test_one_row_has_no_advantage_over_others():
    model = lively({"manager_mode": "fun"})
    carry = None
    for _ in range(3):
        output = model(batch(1, 1), carry)
        carry, result = output.carry, FEUDAL(output)
    result.total.backward()
    assert result.metrics["manager_loss"][0] == 0
    assert result.metrics["subgoal_progress"][1] == 1
    assert grads(model.inner.subgoal_head)["goal_proj.weight"] == 0


def test_weight_0_gives_the_gradients_of_the_task_and_still_reports():
    gradients = []
    for loss in (ACTLossHead(ACTLossConfig()), FeudalLossHead(FeudalLossConfig(feudal_loss_weight=0.0))):
        model = lively()
        result = loss(passes(model, 3)[-1])
        result.total.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert result.metrics["feudal_loss"][0] > 0


@pytest.mark.parametrize("dim", [8, 16, 32, 48])
@pytest.mark.parametrize("rows", [1, 3])
def test_any_goal_size_and_batch_trains(dim, rows):
    model = lively({"goal_dim": dim})
    carry = None
    for number in range(3):
        output = model(batch(number, rows), carry)
        carry, result = output.carry, FEUDAL(output)
    result.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.isfinite(total) and torch.isfinite(count) for total, count in result.metrics.values())


# --- controls ---------------------------------------------------------------------------------------------------------

CONTROLS = ("learned", "random", "zero", "mean", "shuffle", "stale")


def controlled(model, source):
    model.inner.subgoal_head.eval_source = source
    return model.eval()(batch(2, ROWS))


def test_controls_of_an_evaluation():
    answers = {source: controlled(lively(), source) for source in CONTROLS}
    for source in CONTROLS[1:]:
        assert not torch.equal(answers[source].logits, answers["learned"].logits), source
    episode = {source: output.aux["episode"].sum(0) for source, output in answers.items()}
    assert torch.equal(episode["learned"][1], episode["learned"][2])  # given is own
    assert not torch.equal(episode["shuffle"][1], episode["shuffle"][2])
    assert episode["zero"][1] == 0
    assert torch.equal(controlled(lively(), "random").logits, answers["random"].logits)
    lone = lively({"schedule": [1]}).eval()(batch(2, ROWS))
    torch.testing.assert_close(lone.logits, answers["stale"].logits)
    unsteered = plain().eval()
    unsteered.load_state_dict(lively().state_dict(), strict=False)
    torch.testing.assert_close(unsteered(batch(2, ROWS)).logits, answers["zero"].logits)


def test_shuffled_goals_are_those_of_another_example():
    head = lively({"eval_goal_source": "shuffle"}).eval().inner.subgoal_head
    state = head.initial(6) | {"subgoal_h": torch.randn(6, 16), "subgoal_active": torch.ones(6, dtype=torch.bool)}
    real = torch.arange(6) < 5  # the last row is padding: it must lend its goal to nobody
    steering = head.steer(state, real)
    assert torch.equal(steering["goal"], steering["own"][[2, 3, 4, 0, 1, 5]])


def test_controls_of_random_training_change_the_random_goals():
    head = lively({"goal_source": "random"}).eval().inner.subgoal_head
    drawn = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    state = head.initial(6) | {
        "subgoal_h": torch.randn(6, 16),
        "subgoal_active": torch.ones(6, dtype=torch.bool),
        "subgoal_goal": drawn,
    }
    expected = {
        "same": drawn,
        "shuffle": drawn[[3, 4, 5, 0, 1, 2]],
        "stale": drawn,
        "zero": torch.zeros(6, 16),
        "mean": torch.nn.functional.normalize(drawn.sum(0), dim=0).expand(6, 16),
        "learned": head.goals(state["subgoal_h"]),
    }
    for head.eval_source, goals in expected.items():
        steering = head.steer(state, torch.ones(6, dtype=torch.bool))
        torch.testing.assert_close(steering["goal"], goals)
        assert torch.equal(steering["own"], head.goals(state["subgoal_h"]) if head.source == "learned" else drawn)
        advanced = head.advance(
            dict(state), steering, torch.randn(6, 16), torch.randn(6, 16), noise=torch.randn(6, 16)
        )[0]
        assert not torch.equal(advanced["subgoal_goal"], drawn) or head.source == "stale"


def test_an_idle_injection_makes_all_controls_one():
    outputs = [controlled(build(), source) for source in CONTROLS]
    assert all(torch.equal(output.logits, outputs[0].logits) for output in outputs)


def test_random_goals_are_held_for_a_window_and_differ_between_rows_and_windows():
    model = lively({"goal_source": "random", "manager_period": 3})
    assert model.noise_width == 16
    noise, carry, goals = torch.randn(ROWS, 16), None, []
    for _ in range(6):
        output = model({**batch(1, ROWS), "noise": noise}, carry)
        carry = output.carry
        goals.append(output.aux["goal"])
    assert torch.equal(goals[1], goals[3])  # passes 2 to 4
    assert not torch.allclose(goals[3], goals[4])
    assert len({tuple(row.tolist()) for row in goals[1]}) == ROWS
    torch.testing.assert_close(goals[1].norm(dim=1), torch.ones(ROWS))
    with pytest.raises(ValueError, match="noise"):
        lively({"goal_source": "random"}).inner.subgoal_head._random_goals(None, torch.ones(1))


def test_evaluation_sums_every_pass_of_the_episode():
    model = lively().eval()
    steps = list(model.think(batch(2, ROWS)))
    sums = [step.aux["episode"] for step in steps]
    assert [float(s[0, 0]) for s in sums] == list(range(8))
    metrics = FEUDAL(steps[-1]).metrics
    total, count = metrics["feudal_cos"]
    torch.testing.assert_close(total / count, sums[-1][:, 1].sum() / (7 * ROWS))
    assert [float(v) for v in metrics["feudal_active_frac"]] == [7 * ROWS, 8 * ROWS]


# --- config -----------------------------------------------------------------------------------------------------------


def test_fixed_passes_ignore_the_halting_head():
    model = lively(fixed_refinement_steps=3)
    with torch.no_grad():
        model.inner.q_head.bias.copy_(torch.tensor([5.0, -5.0]))  # every row wants to halt at once
    assert [output.carry.halted.all().item() for output in passes(model, 3)] == [False, False, True]
    assert model.eval()(batch(1, ROWS)).carry.steps.tolist() == [3] * ROWS
    free = lively(halt_exploration_prob=0.0)
    with torch.no_grad():
        free.inner.q_head.bias.copy_(torch.tensor([5.0, -5.0]))
    assert passes(free, 1)[0].carry.halted.all()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"manager_period": 0}, "manager_period=0"),
        ({"goal_dim": 0}, "goal_dim=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"schedule": []}, "schedule"),
        ({"schedule": [4, 1]}, "schedule"),
    ],
)
def test_what_cannot_be_built_is_refused(head, words):
    with pytest.raises(ValueError, match=f"arch.subgoal_head.{words}"):
        SubgoalConfig(**{**asdict(HEAD), **head})


def test_sizes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"arch\.subgoal_head\.hidden_size=32: expected arch\.hidden_size=16"):
        HRMFeudalConfig(**SIZES, subgoal_head=replace(HEAD, hidden_size=32))
    with pytest.raises(ValueError, match="fixed_refinement_steps=0"):
        HRMFeudalConfig(**SIZES, fixed_refinement_steps=0)
