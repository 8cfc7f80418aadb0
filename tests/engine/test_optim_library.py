"""Every shipped optimizer: learns, can be called off, resumes bit for bit through a checkpoint's own form, and its errors."""

from __future__ import annotations

import inspect
import math
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from engine.checkpoint.state_tree import join_tree, split_tree
from engine.errors import UsageError
from engine.loop.evaluations import averages
from engine.optim import build_optimizer, build_optimizers, load_optimizers
from engine.optim.builtin import AdamATan2, Lookahead
from engine.optim.library import TORCH, find_class
from engine.task import ParamGroup

FROM_LIBRARY = {
    "lion": {},
    "ademamix": {},
    "soap": {},
    "sophiah": {"update_period": 2},
    "shampoo": {"matrix_eps": 1e-4},
    "schedulefreeadamw": {},
    "prodigy": {},
    "normuon": {},
    "adan": {},
    "lamb": {},
    "apollo": {},
}
SHIPPED = {
    "adamw": {"betas": [0.9, 0.95], "weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "muon": {"adjust_lr_fn": "match_rms_adamw"},
    "lookahead": {"inner": "adamw", "k": 2},
    **{name: {} for name in TORCH if name not in ("adamw", "sgd", "muon")},
    **FROM_LIBRARY,
}
LR = {"prodigy": 1.0, "adadelta": 1.0, "sgd": 1e-2, "asgd": 1e-2, "lamb": 1e-2}
MATRICES = ("muon", "normuon")


def skip_without_library(name: str) -> None:
    if name in FROM_LIBRARY:
        pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")


def problem(name: str, options: dict) -> tuple:
    skip_without_library(name)
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 4)] if name in MATRICES else [(6, 4), (4,)]
    params = {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    return params, build_optimizer(name, params, LR.get(name, 3e-2), options)


def slope(params: dict, step: int) -> float:
    """Gradients of a quadratic with its minimum off zero, into the same buffers as in training; returns its value."""
    loss = sum(((p - 0.1 * (i + 1)) ** 2 * (1 + step % 2)).sum() for i, p in enumerate(params.values()))
    grads = torch.autograd.grad(loss, list(params.values()))
    for param, grad in zip(params.values(), grads, strict=True):
        param.grad = grad
    return loss.item()


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_learns_and_resumes_bit_for_bit(name: str) -> None:
    params, optimizer = problem(name, SHIPPED[name])
    first = slope(params, 0)
    for step in range(5):
        slope(params, step)
        optimizer.step(0.5 + 0.1 * step, torch.tensor(1.0))
    tensors, tree = split_tree(optimizer.state_dict())
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    held = {key: param.detach().clone() for key, param in params.items()}

    others, second = problem(name, SHIPPED[name])
    with torch.no_grad():
        for key, param in others.items():
            param.copy_(held[key])
    second.load_state_dict(join_tree(tree, tensors))
    for step in range(5, 12):
        for own, instance in ((params, optimizer), (others, second)):
            slope(own, step)
            instance.step(1.0, torch.tensor(1.0))
    for key, param in params.items():
        assert torch.equal(param, others[key])
    assert slope(params, 0) < first


def changed(name: str) -> dict:
    """Another value for every number and every pair of numbers among the options of a library's class."""
    values = {}
    for key, parameter in inspect.signature(find_class(name).__init__).parameters.items():
        default = parameter.default
        if key in ("lr", "foreach", "fused", "capturable", "differentiable", "maximize") or isinstance(default, bool):
            continue
        if key == "weight_decay":
            values[key] = 0.07
        elif isinstance(default, float):
            values[key] = default * (0.9 if default < 1 else 1.1)
        elif isinstance(default, tuple) and all(isinstance(each, float) for each in default):
            values[key] = [each * 0.9 for each in default]
    return values


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - {"lookahead"}))
def test_a_changed_option_holds_after_a_resume(name: str) -> None:
    params, optimizer = problem(name, SHIPPED[name])
    for step in range(5):
        slope(params, step)
        optimizer.step()
    tensors, tree = split_tree(optimizer.state_dict())
    options = {**SHIPPED[name], **changed(name)}
    others, second = problem(name, options)
    fresh = [dict(group) for group in second.optimizer.param_groups]
    settings = set(inspect.signature(find_class(name).__init__).parameters) & fresh[0].keys() - {"lr"}
    assert settings, name
    second.load_state_dict(join_tree(tree, tensors))
    for group, was in zip(second.optimizer.param_groups, fresh, strict=True):
        assert {key: group[key] for key in settings} == {key: was[key] for key in settings}
    moved = {key for key in second.optimizer.param_groups[0].keys() - settings - {"params", "lr"}}
    theirs = optimizer.optimizer.param_groups[0]
    for key in moved & theirs.keys():  # what it counts by itself continues
        assert second.optimizer.param_groups[0][key] == theirs[key], key
    slope(others, 5)
    second.step()


def test_changed_options_of_an_inner_optimizer_hold_too() -> None:
    params, optimizer = problem("lookahead", {"inner": "adamw", "k": 2, "inner_options": {"weight_decay": 0.5}})
    slope(params, 0)
    optimizer.step()
    _, second = problem("lookahead", {"inner": "adamw", "k": 2, "inner_options": {"weight_decay": 0.0, "eps": 1e-3}})
    second.load_state_dict(optimizer.state_dict())
    group = second.inner.optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.0, 1e-3)


def test_options_in_an_older_checkpoint_do_not_come_back() -> None:
    params, optimizer = problem("adamw", {"weight_decay": 0.1})
    slope(params, 0)
    optimizer.step()
    state = optimizer.state_dict() | {"groups": [{"weight_decay": 0.1, "eps": 1e-8, "amsgrad": False}]}
    _, second = problem("adamw", {"weight_decay": 0.0, "eps": 1e-5})
    second.load_state_dict(state)
    group = second.optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.0, 1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"amsgrad": True}, "max_exp_avg_sq"),
        ("rmsprop", {"centered": True}, "grad_avg"),
        ("rmsprop", {"momentum": 0.9}, "momentum_buffer"),
    ],
)
def test_an_option_that_needs_more_state_than_there_is_is_refused(name: str, options: dict, message: str) -> None:
    params, optimizer = problem(name, {})
    slope(params, 0)
    optimizer.step()
    _, second = problem(name, options)
    with pytest.raises(UsageError, match=message) as caught:
        load_optimizers({"all": second}, {"all": optimizer.state_dict()})
    assert "\n" not in str(caught.value)


def groups_of(name: str, options: dict, lr: float) -> list[ParamGroup]:
    torch.manual_seed(0)
    sizes = {"matrix": (6, 4), "vector": (4,), "scalar": (1,)}
    return [
        ParamGroup(
            name=each,
            optimizer=name,
            lr=lr,
            params={each: nn.Parameter(torch.randn(size))},
            options={**options, "weight_decay": 0.1 if each == "matrix" else 0.0},
        )
        for each, size in sizes.items()
    ]


def test_groups_that_differ_in_decay_alone_share_one_optimizer() -> None:
    groups = groups_of("adamw", {"eps": 1e-7}, 1e-2)
    built = build_optimizers(groups)
    assert list(built) == ["matrix+vector+scalar"]
    assert [g["weight_decay"] for g in built["matrix+vector+scalar"].optimizer.param_groups] == [0.1, 0.0, 0.0]
    twins = groups_of("adamw", {"eps": 1e-7}, 1e-2)
    apart = {g.name: build_optimizer(g.optimizer, g.params, g.lr, g.options) for g in twins}
    for step in range(4):
        for side in (groups, twins):
            torch.manual_seed(step)
            for group in side:
                for param in group.params.values():
                    param.grad = torch.randn_like(param)
        for optimizer in (*built.values(), *apart.values()):
            optimizer.step()
    for ours, theirs in zip(groups, twins, strict=True):
        assert torch.equal(ours.params[ours.name], theirs.params[theirs.name])

    again = build_optimizers(groups_of("adamw", {"eps": 1e-7}, 1e-2))  # states kept apart by an earlier version
    load_optimizers(again, {name: optimizer.state_dict() for name, optimizer in apart.items()})
    ours, theirs = (each["matrix+vector+scalar"].state_dict() for each in (again, built))
    assert ours["steps"] == theirs["steps"]
    assert torch.equal(ours["state"]["vector"]["exp_avg"], theirs["state"]["vector"]["exp_avg"])


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam", "dadaptsgd", "dadaptlion", "dadaptadan", "dadaptadagrad"])
@pytest.mark.parametrize("outer", [None, "lookahead"])
def test_one_scale_is_estimated_over_all_groups(name: str, outer: str | None) -> None:
    pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")
    groups = groups_of(name, {}, 1.0)
    if outer:
        groups = [
            ParamGroup(
                name=g.name,
                optimizer=outer,
                lr=1.0,
                params=g.params,
                options={"inner": name, "inner_options": g.options},
            )
            for g in groups
        ]
    built = build_optimizers(groups)
    assert len(built) == 1
    optimizer = next(iter(built.values()))
    for step in range(30):
        torch.manual_seed(step)
        for group in groups:
            for param in group.params.values():
                param.grad = param.detach() + 0.1 * torch.randn_like(param)
        optimizer.step()
    scales = {float(group["d"]) for group in (optimizer.inner if outer else optimizer).optimizer.param_groups}
    assert len(scales) == 1
    again = build_optimizers(groups)
    load_optimizers(again, {name: optimizer.state_dict() for name, optimizer in built.items()})


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_called_off_step_changes_nothing(name: str) -> None:
    params, optimizer = problem(name, SHIPPED[name])
    twins, twin = problem(name, SHIPPED[name])
    for step in range(4):
        for param in params.values():
            param.grad = torch.full_like(param, math.nan)
        optimizer.step(1.0, torch.tensor(0.0))
        slope(params, step)
        slope(twins, step)
        optimizer.step(1.0, torch.tensor(1.0))
        twin.step(1.0)
    for key, param in params.items():
        assert torch.equal(param, twins[key]), key


@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False, "momentum": 0.6}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "weight_decay": 0.3}],
)
@pytest.mark.parametrize("float32", [True, False])
def test_muon_has_torchs_numbers(options: dict, float32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, though ours asks nothing of the host, if torch's iteration also runs in float32."""
    if float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda matrix: matrix.to(torch.float32, copy=True))
    torch.manual_seed(0)
    params = {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate([(6, 4), (4, 6), (4, 4)])}
    others = {key: nn.Parameter(param.detach().clone()) for key, param in params.items()}
    optimizer, theirs = (
        build_optimizer("muon", params, 0.02, options),
        torch.optim.Muon(others.values(), 0.02, **options),
    )
    for step in range(6):
        slope(params, step)
        slope(others, step)
        optimizer.step(1.0, torch.tensor(1.0))
        theirs.step()
    close = {"rtol": 0, "atol": 0}
    if not float32:  # in bfloat16 each of six updates of about 0.02 differs by up to 2 %
        close = {"rtol": 1e-3, "atol": 6 * 0.02 * 0.02}
    for key, param in params.items():
        torch.testing.assert_close(param, others[key], **close)
        stored = optimizer.state_dict()["state"][key]["momentum_buffer"]
        torch.testing.assert_close(stored, theirs.state[others[key]]["momentum_buffer"], **close)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ns_steps": 0}, "ns_steps=0: expected at least 1"),
        ({"ns_steps": 100}, "ns_steps=100: expected at most 99"),
        ({"ns_steps": 2.5}, "ns_steps=2.5: expected a whole number"),
        ({"ns_steps": "five"}, "ns_steps=five: expected a number from 1 to 99"),
        ({"momentum": 2}, "momentum=2: expected less than 1"),
        ({"momentum": -0.5}, "momentum=-0.5: expected 0 <= momentum < 1"),
        ({"eps": 0}, "eps=0: expected a positive number"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected 0 or more"),
        ({"ns_coefficients": [3.4, -4.8]}, "ns_coefficients=(3.4, -4.8): expected three numbers"),
    ],
)
def test_muon_refuses_what_trains_nothing(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"optimizer muon: {message}")):
        build_optimizer("muon", {"w": nn.Parameter(torch.zeros(4, 3))}, 0.02, options)


def test_adamw_is_torchs_formula() -> None:
    params, optimizer = problem("adamw", {"betas": [0.8, 0.97], "eps": 1e-6, "weight_decay": 0.3})
    reference = {key: param.detach().double().clone() for key, param in params.items()}
    m = {key: torch.zeros_like(value) for key, value in reference.items()}
    v = {key: torch.zeros_like(value) for key, value in reference.items()}
    for t in range(1, 11):
        slope(params, t)
        for key, value in reference.items():
            g = params[key].grad.double()
            m[key] = 0.8 * m[key] + 0.2 * g
            v[key] = 0.97 * v[key] + 0.03 * g * g
            value.mul_(1 - 3e-2 * 0.3)
            value.sub_(3e-2 * (m[key] / (1 - 0.8**t)) / ((v[key] / (1 - 0.97**t)).sqrt() + 1e-6))
        optimizer.step()
    for key, param in params.items():
        torch.testing.assert_close(param.double(), reference[key], rtol=1e-5, atol=1e-6)


def test_lookahead_evaluates_what_its_inner_optimizer_evaluates() -> None:
    """Schedule-free optimizers keep the weights to evaluate apart: the trained ones were evaluated."""

    class Apart:
        lr, has_eval_weights = 0.1, True

        def evaluating(self) -> Any:
            return swap

    swap, params = nullcontext(), [nn.Parameter(torch.ones(2))]
    ahead = Lookahead(Apart(), params, ["w"], k=2, alpha=0.5)
    assert averages(None, {"all": ahead}) == [swap]
    plain = Lookahead(AdamATan2(params, ["w"]), params, ["w"], k=2, alpha=0.5)
    assert averages(None, {"all": plain}) == []


def test_lookahead_formula() -> None:
    params, optimizer = problem("lookahead", {"inner": "sgd", "k": 3, "alpha": 0.25})
    fast = {key: param.detach().clone() for key, param in params.items()}
    slow = {key: value.clone() for key, value in fast.items()}
    for step in range(7):
        slope(params, 0)
        for key in fast:
            fast[key] = fast[key] - 3e-2 * params[key].grad
        if step % 3 == 2:
            slow = {key: slow[key] + 0.25 * (fast[key] - slow[key]) for key in slow}
            fast = {key: value.clone() for key, value in slow.items()}
        optimizer.step()
        for key, param in params.items():
            torch.testing.assert_close(param.detach(), fast[key])


@pytest.mark.parametrize("name", MATRICES)
def test_stacked_matrices_are_taken_one_by_one(name: str) -> None:
    """q over k over v in one parameter: the update of each is that of its own parameter, state included."""
    skip_without_library(name)
    options = SHIPPED[name]
    torch.manual_seed(0)
    stacked, other = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4, 4))
    sizes = (4, 2, 2)
    apart = {f"m{i}": nn.Parameter(part.clone()) for i, part in enumerate(stacked.detach().split(sizes))}
    apart["other"] = nn.Parameter(other.detach().clone())
    joint = nn.Parameter(stacked.detach().clone())
    cut = build_optimizer(name, {"qkv": stacked, "other": other}, 0.1, options, fused_rows={"qkv": sizes})
    single, whole = build_optimizer(name, apart, 0.1, options), build_optimizer(name, {"qkv": joint}, 0.1, options)
    for step in range(5):
        grads = torch.randn(8, 4), torch.randn(4, 4)
        stacked.grad, other.grad, joint.grad = grads[0], grads[1], grads[0].clone()
        for param, grad in zip(apart.values(), (*grads[0].split(sizes), grads[1]), strict=True):
            param.grad = grad.clone()
        for optimizer in (cut, single, whole):
            optimizer.step(0.5, torch.tensor(float(step != 2)))
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in list(apart.values())[:3]]))
    torch.testing.assert_close(other, apart["other"])
    assert not torch.allclose(stacked, joint, atol=1e-3)
    names = set(cut.state_dict()["state"])
    assert names == {"qkv.rows_0", "qkv.rows_4", "qkv.rows_6", "other"}
    with pytest.raises(RuntimeError, match="split"):
        build_optimizer(name, {"qkv": stacked}, 0.1, options, fused_rows={"qkv": (4, 2)})


def test_schedule_free_evaluates_other_weights_and_comes_back_exactly() -> None:
    params, optimizer = problem("schedulefreeadamw", {})
    for step in range(4):
        slope(params, step)
        optimizer.step()
    before = {key: param.detach().clone() for key, param in params.items()}
    with optimizer.evaluating():
        assert any(not torch.equal(params[key], before[key]) for key in params)
    assert all(torch.equal(params[key], before[key]) for key in params)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamww", {}, "did you mean 'adamw'"),
        ("adamw", {"weight_decy": 0.1}, "weight_decay"),
        ("adamw", {"betas": [1.5, 0.9]}, "Invalid beta"),
        ("alig", {}, "closure"),
        ("adashift", {}, "deque"),
        ("lookahead", {"k": 0}, "k of at least 1"),
        ("lookahead", {"inner": "adamww"}, "did you mean 'adamw'"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(name: str, options: dict, message: str) -> None:
    pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")
    with pytest.raises(UsageError, match=message) as caught:
        build_optimizer(name, {"p": nn.Parameter(torch.ones(2, 2))}, 1e-3, options)
    assert "\n" not in str(caught.value)


def test_trying_an_optimizer_out_draws_nothing_from_the_run() -> None:
    pytest.importorskip("pytorch_optimizer", reason="pip install -e '.[optim]'")
    before = torch.random.get_rng_state()
    build_optimizer("kron", {"p": nn.Parameter(torch.ones(2, 2))}, 1e-3, {})
    assert torch.equal(before, torch.random.get_rng_state())
