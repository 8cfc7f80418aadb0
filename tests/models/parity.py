"""Training steps of a model beside those of the naive double, on a tiny float64 model; shared by the tests of all
variants."""

from __future__ import annotations

from typing import Any

import torch

from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from tests.models import naive

SHAPE = PuzzleShape(seq_len=4, vocab_size=7, num_puzzle_identifiers=4)
BASE: dict[str, Any] = {
    "hidden_size": 16,
    "num_heads": 2,
    "expansion": 1.0,
    "halt_max_steps": 3,
    "halt_exploration_prob": 0.0,
    "forward_dtype": "float64",
    "puzzle_emb_ndim": 16,
}


def make(model_class, config, seed=0, **kwargs):
    """A model whose halting head and puzzle table matter."""
    torch.manual_seed(seed)
    model = model_class(config, SHAPE, **kwargs)
    with torch.no_grad():
        model.inner.q_head.weight.normal_(std=0.4)
        model.inner.q_head.bias.copy_(torch.tensor([-0.1, 0.1]))
        if model.puzzle_emb is not None:
            model.puzzle_emb.weights.normal_()
    return model


def batch(seed, rows=4):
    g = torch.Generator().manual_seed(seed)
    draw = lambda high, *size: torch.randint(0, high, size, generator=g, dtype=torch.int32)  # noqa: E731
    labels = draw(SHAPE.vocab_size, rows, SHAPE.seq_len)
    labels[0, 1:3] = -100
    return {
        "inputs": draw(SHAPE.vocab_size, rows, SHAPE.seq_len),
        "labels": labels,
        "puzzle_identifiers": draw(SHAPE.num_puzzle_identifiers, rows),
    }


def assert_same(ours, theirs, atol=1e-11):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def weights_of(model):
    """The model's tensors by state-dict name, as leaves of their own."""
    state = model.state_dict(keep_vars=True)
    return {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in state.items()}


def fresh_latents(kind, w, config, rows=4):
    length = config.prefix_len + SHAPE.seq_len
    starts = {name: w[f"inner.{name.removeprefix('z_')}_init"].detach() for name in naive.latents(kind)}
    return {name: start.expand(rows, length, -1).clone() for name, start in starts.items()}


def compare_training(model, kind, config, count=4):
    """`count` consecutive ACT steps with carry resets: outputs, loss, decisions, latents and all gradients agree."""
    head, w = ACTLossHead(ACTLossConfig()), weights_of(model.train())
    start = fresh_latents(kind, w, config)
    z, steps, halted, data, carry = {k: v.clone() for k, v in start.items()}, [0] * 4, [True] * 4, batch(0), None
    resets = 0
    for i in range(count):
        offered = batch(i)
        for row in range(4):
            if halted[row]:
                resets += i > 0
                steps[row] = 0
                for name in z:
                    z[name][row] = start[name][row]
                data = {k: torch.cat((v[:row], offered[k][row : row + 1], v[row + 1 :])) for k, v in data.items()}
        rows = None
        if config.puzzle_emb_ndim:
            rows = w["inner.puzzle_emb.weights"].detach()[data["puzzle_identifiers"].long()].requires_grad_()
        z, logits, q_halt, q_continue = naive.step(kind, z, data, w, config, rows)
        z, target = {name: value.detach().clone() for name, value in z.items()}, None
        steps = [s + 1 for s in steps]
        last = torch.tensor(steps) >= config.halt_max_steps
        if not config.no_ACT_continue:
            with torch.no_grad():
                _, _, next_halt, next_continue = naive.step(kind, z, data, w, config, rows)
            target = torch.sigmoid(torch.where(last, next_halt, torch.maximum(next_halt, next_continue)))
        bar = 0.0 if config.no_ACT_continue else q_continue
        halted = (last | (q_halt > bar)).tolist()
        want = naive.loss(logits, data["labels"], q_halt, q_continue, target)

        output = model(offered, carry)
        carry, result = output.carry, head(output)
        assert_same(output.logits, logits)
        assert_same(output.q_halt_logits, q_halt)
        assert_same(result.total, want)
        assert carry.latents.keys() == z.keys()
        for name, value in z.items():
            assert_same(carry.latents[name], value)
        assert carry.steps.tolist() == steps
        assert carry.halted.tolist() == halted
        for key, value in data.items():
            assert torch.equal(carry.data[key], value)
        model.zero_grad(set_to_none=True)
        result.total.backward()
        leaves = [w[name] for name, _ in model.named_parameters()] + ([] if rows is None else [rows])
        expected = list(torch.autograd.grad(want, leaves, allow_unused=True))
        gradients = [(name, p.grad) for name, p in model.named_parameters()]
        if rows is not None:
            ids, grad = model.puzzle_emb.take_pending()
            assert torch.equal(ids, data["puzzle_identifiers"])
            gradients.append(("rows of the puzzle table", grad))
        for (key, got), g in zip(gradients, expected, strict=True):
            g = torch.zeros_like(got) if g is None else g
            torch.testing.assert_close(got, g, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
    assert resets
