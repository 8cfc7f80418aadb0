"""TRM with an encoder of demonstrations: both training modes, the context's way into the decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.optim.builtin import AdamATan2
from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.etrm import TRMWithEncoder, TRMWithEncoderConfig
from models.recursive_reasoning.etrm_online import TRMWithEncoderOnline, TRMWithEncoderOnlineConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.models.demonstrations import SHAPE, SMALL, tasks

CONFIG = TRMWithEncoderConfig(**SMALL, encoder_num_layers=1)
ONLINE = TRMWithEncoderOnlineConfig(**SMALL, encoder_num_layers=1, num_act_steps=3)
HEAD = ACTLossHead(ACTLossConfig())


def build(config=CONFIG, shape=SHAPE, **keys):
    torch.manual_seed(0)
    kind = TRMWithEncoderOnline if isinstance(config, TRMWithEncoderOnlineConfig) else TRMWithEncoder
    return kind(replace(config, **keys), shape)


def encoder_gradient(model):
    return {name: p.grad for name, p in model.encoder.named_parameters()}


def test_the_decoder_is_trms():
    with torch.device("meta"):
        ours = TRMWithEncoder(TRMWithEncoderConfig(), PuzzleShape(900, 12, 10)).state_dict()
        theirs = TRM(TRMConfig(), PuzzleShape(900, 12, 10)).state_dict()
    decoder = {name: tensor.shape for name, tensor in ours.items() if ".encoder." not in name}
    assert decoder == {name: tensor.shape for name, tensor in theirs.items() if "puzzle_emb" not in name}
    with pytest.raises(ValueError, match=r"arch\.puzzle_emb_ndim=8: expected"):
        TRMWithEncoderConfig(puzzle_emb_ndim=8)


def test_registers_are_ignored_whatever_their_number():
    plain, length = build(), CONFIG.context_len
    for registers in (length, length + 1):
        other = build(registers=registers).state_dict()
        assert other.keys() == plain.state_dict().keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in plain.state_dict().items()), registers


def test_nothing_belongs_to_a_puzzle():
    batch, answers = tasks(4, 1), []
    for puzzles, identifiers in ((3, [0, 1, 2, 0]), (3, [2, 0, 1, 1]), (10**6, [999_999, 5, 10**7, 0])):
        model = build(shape=replace(SHAPE, num_puzzle_identifiers=puzzles))
        batch["puzzle_identifiers"] = torch.tensor(identifiers, dtype=torch.int32)
        answers.append(model.eval()(batch).logits)
        assert puzzles not in {size for tensor in model.state_dict().values() for size in tensor.shape} - {3}
    assert all(torch.equal(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize("kind", ["standard", "recurrent"])
def test_dynamic_encodes_every_row_at_every_step_with_gradient(kind):
    model, calls, carry = build(encoder_type=kind).train(), [], None
    model.encoder.register_forward_hook(lambda module, inputs, made: calls.append(made.context))
    for number in range(1, 4):
        calls.clear()
        output = model(tasks(6, number), carry)
        assert [len(made) for made in calls] == [6]
        calls[0].retain_grad()
        HEAD(output).total.backward()
        assert bool((calls[0].grad != 0).flatten(1).any(1).all()), number
        carry = output.carry
        assert carry.steps.tolist() == [number] * 6  # the fresh head halts nothing
        assert not any(latent.requires_grad for latent in carry.latents.values())
        assert torch.equal(carry.data["demo_inputs"], tasks(6, 1)["demo_inputs"])
        if kind == "recurrent":
            assert set(carry.latents) == {"z_L", "z_H", "encoder_L", "encoder_H"}


def test_every_cell_of_the_query_is_told_its_row_and_column():
    model, batch = build(grid_embedding=True).train(), tasks(4, 1)
    batch["inputs"] = torch.full_like(batch["inputs"], 3)
    cells = model.inner.embed_cells(batch["inputs"])[0].view(4, 4, -1)
    assert len(cells.flatten(0, 1).unique(dim=0)) == 16
    torch.testing.assert_close(cells[1, 2] - cells[1, 0], cells[3, 2] - cells[3, 0])
    HEAD(model(batch)).total.backward()
    for places in (model.inner.embed_places, model.encoder.pairs.embed_places):
        for table in (places.rows, places.columns):
            assert bool((table.embedding_weight.grad != 0).all(-1).all())


def test_continuing_rows_see_the_present_weights():
    model, batch = build().train(), tasks(4, 1)
    carry = model(batch).carry
    with torch.no_grad():
        for param in model.encoder.parameters():
            param.add_(0.1 * torch.randn_like(param))
    other = model(tasks(4, 2), carry)
    torch.testing.assert_close(other.aux["context"], model.encode(batch).context)


def test_online_encodes_once_and_trains_on_every_step():
    model, batch, calls = build(ONLINE).train(), tasks(4, 1), []
    model.encoder.register_forward_hook(lambda module, inputs, made: calls.append(made.context))
    output = model(batch, None)
    assert len(calls) == 1
    assert output.logits.shape[0] == 12
    assert output.carry.steps.tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert output.carry.halted.tolist() == [False] * 8 + [True] * 4
    result = HEAD(output)
    assert result.weight == 12
    result.total.backward()
    together = encoder_gradient(model)

    # The same by hand: TRM's step three times over one context, the loss of each.
    model.zero_grad(set_to_none=True)
    inner = model.inner
    latents, x, total = inner.initial(4), inner.embed(batch), 0.0
    for number in range(3):
        latents, _ = inner.recur(latents, x)
        logits = inner.logits(latents)
        torch.testing.assert_close(logits, output.logits[4 * number : 4 * number + 4])
        one = replace(output, logits=logits, carry=replace(output.carry, data=batch))
        one.q_halt_logits, one.q_continue_logits = inner.q_values(latents)
        one.carry.halted, one.carry.steps, one.aux = output.carry.halted[:4], output.carry.steps[:4], {}
        total = total + HEAD(one).total
        latents = {name: value.detach() for name, value in latents.items()}
    torch.testing.assert_close(total, result.total)
    total.backward()
    torch.testing.assert_close(encoder_gradient(model), together)
    evaluated = model.eval()(batch)
    torch.testing.assert_close(evaluated.logits, output.logits[8:], atol=2e-4, rtol=1e-3)
    assert evaluated.carry.steps.tolist() == [3] * 4


@pytest.mark.parametrize(("config", "steps"), [(CONFIG, 120), (ONLINE, 60)], ids=["dynamic", "online"])
def test_rules_are_learned_from_the_demonstrations(config, steps):
    """Six recolourings on fresh grids. What is right under the own context is wrong under another rule's."""
    keys = {"hidden_size": 32, "H_cycles": 1, "L_cycles": 1, "pairing": "cells", "grid_shape_tokens": False}
    model = build(config, **keys, **({"halt_max_steps": 2} if config is CONFIG else {"num_act_steps": 2}))
    names, params = zip(*model.named_parameters(), strict=True)
    optimizer = AdamATan2(params, names, lr=3e-3, weight_decay=0.01)
    head, carry = ACTLossHead(ACTLossConfig(loss_type="softmax_cross_entropy")), None
    table = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).argsort(1)
    for number in range(steps):
        output = model.train()(tasks(24, number, demonstrations=2, table=table), carry)
        carry = output.carry if config is CONFIG else None
        (head(output).total / 24).backward()
        optimizer.step(min(1.0, (number + 1) / 10, 2 * (1 - number / steps)))
        model.zero_grad()
    batch = tasks(48, 1000, demonstrations=2, table=table)
    context = model.eval().encode(batch).context
    own, other = (
        (model.decode_with_context(batch, shown, 2).logits.argmax(-1) == batch["labels"]).float().mean()
        for shown in (context, context.roll(1, 0))
    )
    assert own > 0.95, own
    assert other < 0.6, other


def test_evaluation_encodes_once_and_equals_a_given_context():
    model, batch, calls = build().eval(), tasks(4, 1), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    whole = model(batch)
    assert len(calls) == 1
    assert whole.carry.steps.tolist() == [4] * 4
    context = model.encode(batch).context.detach().requires_grad_()
    given = model.decode_with_context(batch, context, act_steps=4)
    torch.testing.assert_close(given.logits, whole.logits, atol=2e-4, rtol=1e-3)
    (gradient,) = torch.autograd.grad(given.logits.square().sum(), context)
    assert bool((gradient != 0).flatten(1).any(1).all())
    assert not model.decode_with_context(batch, context.detach(), 2).carry.latents["z_H"].isnan().any()
    rolled = model.decode_with_context(batch, context.roll(1, 0), 4).logits
    assert not torch.allclose(rolled, whole.logits, atol=1e-3)


def test_the_context_enters_at_the_scale_that_is_asked_for():
    root_d = SMALL["hidden_size"] ** 0.5
    for scale, expected in (("match_tokens", 1.0), ("learned", 2.0), ("none", root_d)):
        model, batch = build(context_scale=scale), tasks(3, 1)
        if scale == "learned":
            with torch.no_grad():
                model.inner.context_gain.fill_(2.0)
        x = model.inner.embed(batch)
        placed = model.inner.add_positions(torch.cat((model.inner._scaled(x["context"]), x["cells"]), 1))
        rms = placed[:, : SMALL["context_len"]].square().mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.full_like(rms, expected), atol=1e-3, rtol=1e-3)
        cells = placed[:, SMALL["context_len"] :].square().mean().sqrt().item()
        assert 0.8 < cells < 1.2


def test_the_kl_of_each_row_has_its_weight_however_a_batch_is_cut():
    model = build(encoder_type="hybrid_variational", latent_dim=8).train()
    head, batch = ACTLossHead(ACTLossConfig(kl_weight=0.25)), tasks(6, 1)
    batch["noise"] = torch.randn(6, model.noise_width, generator=torch.Generator().manual_seed(0))
    output = model(batch)
    result = head(output)
    plain = ACTLossHead(ACTLossConfig(kl_weight=0.0))(output)
    kl = output.aux["kl"]
    torch.testing.assert_close(result.total - plain.total, 0.25 * kl.sum())
    (slope,) = torch.autograd.grad(result.total / result.weight, kl, retain_graph=True)
    torch.testing.assert_close(slope, torch.full((6,), 0.25 / 6))
    assert result.metrics["kl"][0].item() == pytest.approx(kl.sum().item())
    parts = [{name: value[cut] for name, value in batch.items()} for cut in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(sum(head(model(part)).total for part in parts), result.total)
    assert "kl" not in head(model.eval()(tasks(2, 1))).metrics
