"""Winner-take-all over several chains, and late states: against plain passes of the same model, from the same starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.recursive_reasoning.act import ACTCarry
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.noise import NOISE_KEY, keyed_trunc_normal, spread_keys
from models.recursive_reasoning.transformers_baseline import TransformerBaseline, TransformerBaselineConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from models.recursive_reasoning.trm_hier6 import TRMHier6, TRMHier6Config
from models.recursive_reasoning.trm_singlez import TRMSingleZ
from tests.models.test_noise import SHAPE, SMALL, batch, model

KINDS = [(TRM, TRMConfig), (HRM, HRMConfig), (TRMHier6, TRMHier6Config)]
KEYS = torch.tensor([25, 36, 47, 58])


def alive(made: TRM) -> TRM:
    """With a halting head that tells rows apart."""
    with torch.no_grad():
        torch.nn.init.normal_(made.inner.q_head.weight)
        made.inner.q_head.bias.zero_()
    return made


def pair(kind: type, config: type, **settings: object) -> tuple[TRM, TRM]:
    """A model with three chains, and the same with one."""
    settings["no_ACT_continue"] = True
    plain = alive(model(kind, config, **settings))
    many = model(kind, config, chains=3, **settings)
    many.load_state_dict(plain.state_dict())
    return many, plain


def starts(made: TRM, z_h: torch.Tensor, keys: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The latents that each of three chains of the rows begins an ACT step with."""
    names = made.inner.latent_names
    low = [name for name in names if name != "z_H"]
    own = spread_keys(keys, 3).view(len(keys), 3)
    drawn = [{n: keyed_trunc_normal(own[:, k], -1 - names.index(n), (9, 16)) for n in low} for k in range(3)]
    noisy = made.inner.update_noise > 0
    return [{"z_H": z_h, **drawn[k], **({NOISE_KEY: own[:, k]} if noisy else {})} for k in range(3)]


def running(latents: dict[str, torch.Tensor], rows: dict[str, torch.Tensor]) -> ACTCarry:
    return ACTCarry(latents, torch.ones(4, dtype=torch.int32), torch.zeros(4, dtype=torch.bool), rows)


@pytest.mark.parametrize(("kind", "config"), KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_winner_and_its_gradient_are_those_of_a_plain_pass_from_its_start(
    kind: type, config: type, noise: float
) -> None:
    many, plain = pair(kind, config, update_noise=noise)
    rows = batch()
    z_h = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(1)).double()
    carry = running({**starts(many, z_h, KEYS)[0], NOISE_KEY: KEYS}, rows)
    output = many.train()(rows | {"keys": KEYS}, carry)

    outputs = [plain.train()(rows, running(start, rows)) for start in starts(plain, z_h, KEYS)]
    losses = torch.stack([F.cross_entropy(o.logits.transpose(1, 2), rows["labels"], reduction="none") for o in outputs])
    best = losses.sum(dim=-1).argmin(dim=0)
    assert len(best.unique()) > 1, "one chain wins every row: the test would not see a wrong row"
    at = torch.arange(4)
    torch.testing.assert_close(output.logits, torch.stack([o.logits for o in outputs])[best, at])
    torch.testing.assert_close(output.q_halt_logits, torch.stack([o.q_halt_logits for o in outputs])[best, at])
    for name in many.inner.latent_names:
        kept = torch.stack([o.carry.latents[name] for o in outputs])[best, at]
        torch.testing.assert_close(output.carry.latents[name], kept)
    assert torch.equal(output.carry.latents[NOISE_KEY], KEYS + 1)

    weights = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(2))
    (output.logits * weights).sum().backward()
    sum((o.logits * weights * (best == k)[:, None, None]).sum() for k, o in enumerate(outputs)).backward()
    for (name, ours), theirs in zip(many.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_an_evaluation_follows_the_surest_chain_and_sees_no_labels() -> None:
    many, plain = pair(TRM, TRMConfig)
    rows, inner = batch(), plain.inner
    steps = list(many.eval().think({**rows, "keys": KEYS}))
    z_h, keys = inner.initial(4)["z_H"], KEYS
    for step in steps[:3]:
        moved = [inner.recur(start, inner.embed(rows))[0] for start in starts(plain, z_h, keys)]
        best = torch.stack([inner.q_values(one)[0] for one in moved]).argmax(dim=0)
        z_h = torch.stack([one["z_H"] for one in moved])[best, torch.arange(4)].detach()
        torch.testing.assert_close(step.logits, inner.logits({"z_H": z_h}))
        keys = keys + 1
    shuffled = {**rows, "labels": rows["labels"].flip(0)}
    whole = many(rows).logits
    assert torch.equal(many(shuffled).logits, whole)
    torch.testing.assert_close(many({name: value[2:] for name, value in rows.items()}).logits, whole[2:])
    assert many.block_calls == 3 * plain.block_calls
    assert many.flops(1)["eval"] == 3 * plain.flops(1)["eval"]


def test_models_without_a_low_latent_or_with_a_continue_head_refuse_chains() -> None:
    with pytest.raises(ValueError, match=r"arch\.chains=2: the only latent of this model is z_L"):
        TRMSingleZ(TRMConfig(**SMALL, puzzle_emb_len=0, chains=2), SHAPE)
    with pytest.raises(ValueError, match=r"arch\.chains=2: .*no_ACT_continue=true"):
        HRMConfig(chains=2)
    with pytest.raises(ValueError, match=r"arch\.chains=2: expected at most 1"):
        TransformerBaselineConfig(chains=2)


@pytest.mark.parametrize(("kind", "config"), [*KINDS[:2], (TransformerBaseline, TransformerBaselineConfig)])
def test_late_rows_have_taken_their_steps_without_gradient(kind: type, config: type) -> None:
    """Rows 0 and 3 begin an example and take 3 steps more than rows 1 and 2; the counter, the carry's keys and the
    evaluation know nothing of them."""
    noise = {} if kind is TransformerBaseline else {"update_noise": 0.1}
    exact = {"no_ACT_continue": True, "forward_dtype": "float64"}
    made = model(kind, config, H_layers=0 if kind is TRM else 1, **exact, **noise)
    rows, keyed = batch(), {"keys": KEYS} if noise else {}
    before = made.train()(rows | keyed).carry
    before.halted = torch.tensor([True, False, False, True])
    start, inner = made.initial_carry(rows | keyed).latents, made.inner
    for _ in range(3):
        start = {name: value.detach() for name, value in inner.recur(start, inner.embed(rows))[0].items()}
    mixed = {name: torch.stack([start[name][0], *before.latents[name][1:3], start[name][3]]) for name in before.latents}
    expected = made(rows | keyed, running(mixed, rows))
    made.late_steps = 3
    output = made(rows | keyed, before)
    torch.testing.assert_close(output.logits, expected.logits)
    assert output.carry.steps.tolist() == [1, 2, 2, 1]
    gradients = []
    for one in (output, expected):
        made.zero_grad()
        one.logits.square().sum().backward()
        gradients.append([param.grad for param in made.parameters()])
    torch.testing.assert_close(*gradients)
    late = made.eval()(rows).logits
    made.late_steps = 0
    assert torch.equal(made(rows).logits, late)


def test_late_states_are_not_for_models_that_are_steered_or_have_an_encoder() -> None:
    from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig
    from models.recursive_reasoning.subgoal_config import HRMFeudalConfig, SubgoalConfig

    assert HRMFeudalConfig(late_states=0.5).late_states == 0.5
    for make in (TRMWithEncoderConfig, lambda **given: HRMFeudalConfig(subgoal_head=SubgoalConfig(), **given)):
        for given in ({"late_states": 0.5}, {"chains": 2, "no_ACT_continue": True}):
            with pytest.raises(ValueError, match=rf"arch\.{next(iter(given))}="):
                make(**given)
    with pytest.raises(ValueError, match=r"arch\.late_steps is empty"):
        TRMConfig(late_steps=[])
