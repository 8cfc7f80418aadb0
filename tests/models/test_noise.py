"""Numbers keyed by row, and what recursive models do with them: random starts, damping, noisy updates."""

from __future__ import annotations

import math

import pytest
import torch

from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.noise import NOISE_KEY, content_keys, keyed_normal, keyed_trunc_normal
from models.recursive_reasoning.trm import TRM, TRMConfig

SHAPE = PuzzleShape(seq_len=9, vocab_size=6, num_puzzle_identifiers=1)
SMALL = {"hidden_size": 16, "num_heads": 2, "H_cycles": 2, "L_cycles": 2, "L_layers": 1, "puzzle_emb_ndim": 0}


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 6, (rows, 9), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    ids = torch.zeros(rows, dtype=torch.int32)
    return {"inputs": tokens, "labels": tokens.long(), "puzzle_identifiers": ids}


def model(kind: type = TRM, config: type = TRMConfig, **settings: object) -> TRM:
    torch.manual_seed(0)
    own = {"H_layers": 1} if kind is HRM else {"puzzle_emb_len": 0}
    return kind(config(**SMALL | own | settings), SHAPE).double()


def test_keyed_numbers_are_normal_and_those_of_the_row() -> None:
    keys = torch.arange(400)
    drawn = keyed_normal(keys, 0, (250, 2))
    assert drawn.shape == (400, 250, 2)
    numbers = drawn.double().flatten()
    moments = [float((numbers**power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=6 * math.sqrt(96 / len(numbers)))  # 96: variance of z^4
    assert float(torch.corrcoef(drawn[:, :, 0].double()).triu(1).abs().max()) < 0.4  # rows
    assert torch.equal(keyed_normal(keys[7:9], 0, (250, 2)), drawn[7:9])
    assert abs(float((keyed_normal(keys, 1, (250, 2)).double().flatten() * numbers).mean())) < 0.02
    cut = keyed_trunc_normal(keys, 0, (5, 100))
    assert float(cut.double().std()) == pytest.approx(1, abs=0.01)
    assert float(cut.abs().max()) < 2.2738
    assert len(content_keys(batch(64)["inputs"]).unique()) == 64


def test_an_odd_count_of_numbers() -> None:
    assert keyed_normal(torch.arange(3), 0, (5,)).isfinite().all()
    assert keyed_normal(torch.arange(3), 0, (5,)).shape == (3, 5)


@pytest.mark.parametrize(("kind", "config"), [(TRM, TRMConfig), (HRM, HRMConfig)])
def test_damping_and_noise_by_hand(kind: type, config: type) -> None:
    """Every update: z <- .05 z + .95 f(z) + .3 eps(key, number of the update), of the key that counts the ACT steps."""
    made = model(kind, config, damping=0.05, update_noise=0.3)
    rows, keys = batch(), torch.tensor([5, 6, 7, 8])
    inner, output = made.inner, None
    latents, x = inner.initial(4), inner.embed(rows)
    for step in range(2):
        values = {**latents, "x": x}
        for number, update in enumerate(inner.plan):
            hidden = sum(values[name] for name in update.hidden)
            injection = sum(values[name] for name in update.injection) if update.injection else None
            f = inner.get_submodule(update.stack)(hidden, injection, inner.rotary())
            noise = keyed_normal(keys + step, number, (9, 16))
            values[update.target] = 0.05 * values[update.target] + 0.95 * f + 0.3 * noise
        latents = {name: values[name] for name in inner.latent_names}
        output = made.train()({**rows, "keys": keys}, None if output is None else output.carry)
    for name, latent in latents.items():
        torch.testing.assert_close(output.carry.latents[name], latent.detach())
    assert torch.equal(output.carry.latents[NOISE_KEY], keys + 2)


def test_rows_begin_at_numbers_of_their_own_and_keep_them() -> None:
    made = model(latent_init="random")
    rows = batch()
    first = made.initial_carry({**rows, "keys": torch.tensor([5, 6, 7, 5])}).latents
    for name in ("z_H", "z_L"):
        assert float(first[name].std()) == pytest.approx(1, abs=0.1)
        assert torch.equal(first[name][0], first[name][3])
        assert not torch.allclose(first[name][0], first[name][1])
    assert not torch.allclose(first["z_H"], first["z_L"])
    carry = made.train()(rows | {"keys": torch.arange(4)}).carry
    carry.halted = torch.tensor([True, False, False, False])
    opened, _, _ = made._reset_halted(rows | {"keys": torch.arange(10, 14)}, carry)
    assert torch.equal(opened["z_L"][1:], carry.latents["z_L"][1:])
    assert opened[NOISE_KEY].tolist() == [10, 2, 3, 4]


def test_an_evaluation_depends_on_the_puzzle_alone() -> None:
    made = model(latent_init="random", update_noise=0.1).eval()
    rows = batch()
    whole = made(rows).logits
    torch.testing.assert_close(made({name: value[2:] for name, value in rows.items()}).logits, whole[2:])
    torch.testing.assert_close(list(made.think(rows))[-1].logits, whole)
    assert not torch.allclose(model().eval()(rows).logits, whole)


def test_a_demonstration_encoder_refuses_noise() -> None:
    from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig

    for setting in ({"update_noise": 0.1}, {"latent_init": "random"}):
        with pytest.raises(ValueError, match=f"arch.{next(iter(setting))}"):
            TRMWithEncoderConfig(**setting)
