"""Encoders of demonstrations: the table, sets and padding, gradients, latents, sizes, and the sixth in one file."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from models.encoders import encoder_class, encoder_types, kinds
from models.encoders.aggregation import masked_mean
from models.encoders.latent import kl_divergence, sample
from models.encoders.pairs import grid_sizes
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig
from tests.models.demonstrations import SHAPE, SMALL, tasks

CONFIG = TRMWithEncoderConfig(**SMALL)
TABLE = {
    "standard": (2, "mean"),
    "hybrid_standard": (4, "set_transformer"),
    "hybrid_variational": (4, "cross_attention"),
    "lpn_standard": (6, "mean"),
    "lpn_variational": (6, "mean"),
    "recurrent": (2, "mean"),
    "perceiver": (2, "cross_attention"),
}
TYPES = sorted(TABLE)
AGGREGATIONS = ("mean", "set_transformer", "cross_attention")


def build(kind, **keys):
    torch.manual_seed(0)
    config = replace(CONFIG, encoder_type=kind, **{"encoder_num_layers": 1, **keys})
    return encoder_class(kind)(config, SHAPE, dtype=torch.float32, attention="auto")


def demos(batch):
    return batch["demo_inputs"], batch["demo_labels"], batch["demo_mask"]


def context(encoder, batch):
    made = encoder.eval()(*demos(batch)).context
    return encoder.refine(made, encoder.initial(len(made))).context


def test_the_table_is_the_guides_and_an_override_wins():
    assert encoder_types() == TYPES
    for kind, (layers, aggregation) in TABLE.items():
        made = build(kind, encoder_num_layers=None)
        assert (made.layers, made.aggregation, len(made.pairs.layers)) == (layers, aggregation, layers)
        assert made.describe() == f"{kind}, {layers} layers, aggregation {aggregation} (as in the table)"
    made = build("standard", encoder_num_layers=3, aggregation="cross_attention")
    assert (len(made.pairs.layers), made.aggregation) == (3, "cross_attention")
    assert made.describe().endswith("(the table has layers 2, aggregation mean)")
    with pytest.raises(ValueError, match=r"arch.encoder_type=hybrid_standart: did you mean hybrid_standard\?"):
        encoder_class("hybrid_standart")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_demonstrations_are_a_set_and_padding_is_nothing(kind, aggregation):
    encoder, batch = build(kind, aggregation=aggregation), tasks(4, 1)
    close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        plain = context(encoder, batch)
        assert plain.shape == (4, CONFIG.context_len, CONFIG.hidden_size)
        close(plain.square().mean(-1), torch.ones(plain.shape[:2]))
        close(context(encoder, {name: value[:, [2, 0, 1]] for name, value in batch.items() if "demo" in name}), plain)

        fewer = tasks(4, 1, demonstrations=2)
        junk = {**fewer, "demo_inputs": batch["demo_inputs"], "demo_labels": batch["demo_labels"]}
        two = context(encoder, fewer)
        close(context(encoder, junk), two)  # what is in a masked place
        close(context(encoder, {name: value[:, :2] for name, value in fewer.items() if "demo" in name}), two)
        assert not torch.allclose(two, plain, atol=1e-3)
        ignored = {**batch, "demo_labels": torch.where(batch["demo_labels"] == 0, -100, batch["demo_labels"])}
        close(context(encoder, ignored), plain)

        changed = {**batch, "demo_labels": batch["demo_labels"].clone()}
        changed["demo_labels"][:, 1] = changed["demo_labels"][:, 1].flip(-1)
        assert not torch.allclose(context(encoder, changed), plain, atol=1e-3)
        some = {**batch, "demo_mask": batch["demo_mask"].clone()}
        some["demo_mask"][0], some["demo_mask"][1] = False, torch.tensor([True, False, False])
        mixed = context(encoder, some)
        assert bool(torch.isfinite(mixed).all())
        close(mixed[2:], plain[2:])
        nothing = context(encoder, {**batch, "demo_mask": torch.zeros_like(batch["demo_mask"])})
        close(nothing[1], nothing[0])
        close(mixed[0], nothing[0])
        with encoder.pairs.unpacked():  # every place computed, whether there is a demonstration or not
            for given, made in ((batch, plain), (fewer, two), (some, mixed)):
                close(context(encoder, given), made)


def test_padding_is_hidden_from_attention_and_cut_away():
    encoder, batch = build("standard", grid_shape_tokens=False), tasks(3, 2)
    for name in ("demo_inputs", "demo_labels"):
        batch[name][:, :, 8:] = 0
        batch[name][0, 0, 8:] = 3  # one long pair: the others are masked, not cut
    with torch.no_grad():
        together = encoder(*demos(batch)).context
        alone = encoder(*(value[1:] for value in demos(batch))).context
    torch.testing.assert_close(together[1:], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "perceiver"])
def test_the_row_of_a_cell_is_told_by_its_embedding_alone(kind):
    """A grid that stands one row lower is the same to rotary positions."""
    batch = tasks(4, 3)
    high, low = dict(batch), dict(batch)
    for name in ("demo_inputs", "demo_labels"):
        grids = batch[name].unflatten(-1, (4, 4)).clone()
        grids[..., 3, :] = 0
        high[name], low[name] = grids.flatten(-2), grids.roll(1, dims=-2).flatten(-2)
    for embedded in (False, True):
        encoder = build(kind, grid_embedding=embedded, grid_shape_tokens=False)
        with torch.no_grad():
            made = context(encoder, high), context(encoder, low)
        assert torch.allclose(*made, atol=2e-5) != embedded


@pytest.mark.parametrize("kind", ["standard", "lpn_standard"])
def test_a_cell_is_read_with_what_it_becomes(kind):
    """`pairing: cells`: half the positions, input and output told apart, and a cell of one grid alone is not lost."""
    encoder, batch = build(kind, pairing="cells", grid_shape_tokens=False), tasks(4, 1)
    lengths, close = [], partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)
    encoder.pairs.layers[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    inputs, labels, _ = demos(batch)
    with torch.no_grad():
        plain = context(encoder, batch)
        assert lengths == [16 + (kind == "lpn_standard")]
        assert not torch.allclose(context(encoder, {**batch, "demo_inputs": labels, "demo_labels": inputs}), plain)
        labels[:, :, 8:] = 0  # outputs that are smaller than their inputs
        smaller = context(encoder, batch)
        inputs[:, :, 12:] = 5 - inputs[:, :, 12:]
        assert not torch.allclose(context(encoder, batch), smaller, atol=1e-3)
        inputs[:, :, 8:] = 0
        lengths.clear()
        short = context(encoder, batch)
        inputs[0, 0, 8:] = 2  # a long pair: the others are masked, not cut
        close(context(encoder, batch)[1:], short[1:])
        assert [length - (kind == "lpn_standard") for length in lengths] == [8, 16]


@pytest.mark.parametrize("kind", TYPES)
def test_every_parameter_gets_a_gradient(kind):
    encoder = build(kind, **({"aggregation": "set_transformer"} if kind == "lpn_standard" else {}))
    made = encoder.train()(*demos(tasks(4, 3)), noise=torch.ones(4, encoder.noise_width))
    made.context.retain_grad()
    refined = encoder.refine(made.context, encoder.initial(4))
    weight = torch.randn(refined.context.shape, generator=torch.Generator().manual_seed(0))
    total = (refined.context * weight).sum() + (0 if made.kl is None else made.kl.sum())
    total.backward()
    dry = [name for name, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert dry == []
    assert bool((made.context.grad != 0).flatten(1).any(1).all())
    assert all(not value.requires_grad for value in refined.state.values())


def test_a_recurrent_encoder_thinks_on_from_its_state():
    encoder, batch = build("recurrent"), tasks(3, 4)
    with torch.no_grad():
        made = encoder(*demos(batch)).context
        first = encoder.refine(made, encoder.initial(3))
        second = encoder.refine(made, first.state)
    assert set(first.state) == set(encoder.initial(3))
    assert not torch.allclose(first.context, second.context, atol=1e-3)
    # a recursion that has run into one fixed point does not hide the demonstrations: it could not get out of there
    encoder.stack.forward = lambda hidden, injection, rope=None: torch.ones_like(hidden)
    stuck = encoder.refine(made.requires_grad_(), encoder.initial(3)).context
    assert torch.linalg.vector_norm(stuck[0] - stuck[1]) > 0.5 * torch.linalg.vector_norm(made[0] - made[1])
    assert bool((torch.autograd.grad(stuck[:, 0, 0].sum(), made)[0] != 0).any())


@pytest.mark.parametrize("kind", ["hybrid_variational", "lpn_variational"])
def test_a_latent_is_sampled_in_training_and_its_mean_in_evaluation(kind):
    encoder, batch = build(kind, latent_dim=8), tasks(4, 5, demonstrations=2)
    inputs = demos(batch)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoder.posterior.logvar.bias.fill_(-1.0)
        centre = encoder.eval()(*inputs, noise=noise)
        drawn = encoder.train()(*inputs, noise=noise)
        torch.testing.assert_close(encoder(*inputs, noise=noise).context, drawn.context)
        torch.testing.assert_close(encoder(*inputs, noise=0 * noise).context, centre.context)
        assert not torch.equal(encoder(*inputs).context, encoder(*inputs).context)
        torch.testing.assert_close(encoder.context_of(drawn.latent), drawn.context)
        count = 2 if kind == "lpn_variational" else CONFIG.context_len  # demonstrations, or attended tokens
        assert centre.mu.shape == (4, 3 if kind == "lpn_variational" else count, 8)
        torch.testing.assert_close(centre.latent, centre.mu[:, :count].mean(1))
        spread = (torch.tensor(-1.0).exp() / count).sqrt()
        torch.testing.assert_close(drawn.latent - centre.latent, spread * noise)
        one = 0.5 * (centre.mu.square() + centre.logvar.exp() - 1 - centre.logvar).sum(-1)
        torch.testing.assert_close(centre.kl, one[:, :count].mean(1))
    assert kl_divergence(torch.ones(3), torch.zeros(3)).item() == pytest.approx(1.5)


@pytest.mark.parametrize("aggregation", ["set_transformer", "cross_attention"])
def test_a_posterior_sees_the_mean_demonstration_beside_the_aggregation(aggregation):
    """Tasks that are alike got lost in an aggregation that was all the posterior saw: 0.75 of 8 tasks by heart."""
    encoder, batch = build("hybrid_variational", aggregation=aggregation), tasks(4, 5)
    with torch.no_grad():
        pairs = encoder.pairs(*demos(batch))
        alone = encoder.posterior.mu.weight.new_zeros(4, encoder.aggregate.tokens, CONFIG.hidden_size)
        made = encoder.aggregate(pairs, batch["demo_mask"])
        encoder.aggregate.forward = lambda vectors, mask: alone
        plain = encoder.eval()(*demos(batch))
        expected, _ = encoder.posterior(pairs.mean(1, keepdim=True).expand_as(alone))
        torch.testing.assert_close(plain.mu, expected)
        encoder.aggregate.forward = lambda vectors, mask: made
        assert not torch.allclose(encoder(*demos(batch)).mu, plain.mu, atol=1e-3)


def test_grid_sizes():
    grid = torch.zeros(2, 2, 4, 4, dtype=torch.int32)
    grid[0, 0, 1:3, 0:3] = 5  # moved down by one; two rows, three columns
    grid[0, 0, 3, 0:3] = grid[0, 0, 1:3, 3] = 1  # its end
    grid[0, 1] = 2
    grid[1, 1, 0, 0] = 2
    assert grid_sizes(grid.flatten(1), 4).tolist() == [[2, 3, 4, 4], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="need square grids, the data have 15 cells"):
        encoder_class("standard")(CONFIG, PuzzleShape(15, 6, 3), dtype=torch.float32, attention="auto")


# At the published sizes: width D 512, T 16, 30x30 grids. A block is 4 D² of attention and 3 D · 1536 of SwiGLU; words of
# input and output, and 31 sizes for each of four sides, are embedded; D -> T·D lays the context out.
D, BLOCK = 512, 4 * 512**2 + 3 * 512 * 1536
WORDS, OUTPUT, HEADS = 2 * 12 * D + 4 * 31 * D, D * 16 * D, 2 * (D * D + D)
SIZES = {
    "standard": WORDS + D * D + 2 * BLOCK + OUTPUT,
    "hybrid_standard": WORDS + D + 4 * BLOCK + BLOCK + OUTPUT,
    "hybrid_variational": WORDS + D + 4 * BLOCK + 16 * D + BLOCK + D + HEADS + OUTPUT,
    "lpn_standard": WORDS + D + 6 * BLOCK + OUTPUT,
    "lpn_variational": WORDS + D + 6 * BLOCK + HEADS + OUTPUT,
    "recurrent": WORDS + D * D + 2 * BLOCK + OUTPUT + 2 * BLOCK,
    "perceiver": WORDS + 2 * BLOCK + 16 * D + BLOCK,
}


@pytest.mark.parametrize("kind", TYPES)
def test_parameter_table_and_nothing_is_sized_by_the_number_of_puzzles(kind):
    counts = []
    for puzzles in (10, 1_000_000):
        with torch.device("meta"):
            config = TRMWithEncoderConfig(encoder_type=kind)
            made = encoder_class(kind)(config, PuzzleShape(900, 12, puzzles), dtype=torch.float32, attention="auto")
        counts.append(sum(p.numel() for p in made.parameters()))
    assert counts == [SIZES[kind]] * 2


def test_a_further_encoder_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "first_only.py").write_text(
        "from models.encoders.base import DemoEncoder\n\n\n"
        "class FirstOnly(DemoEncoder):\n"
        "    def encode_pairs(self, demo_inputs, demo_labels, demo_mask):\n"
        "        return self.pairs(demo_inputs, demo_labels, demo_mask)[:, :1]\n"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    encoder, batch = build("first_only", encoder_num_layers=None), tasks(3, 6)
    assert encoder.describe() == "first_only, 2 layers, aggregation mean (as in the table)"
    assert context(encoder, batch).shape == (3, CONFIG.context_len, CONFIG.hidden_size)
    del sys.modules["models.encoders.kinds.first_only"]


def test_a_row_without_demonstrations_has_finite_gradients_and_no_noise():
    mask = torch.tensor([[True, True], [False, False]])
    mu, logvar = (torch.randn(2, 2, 3).requires_grad_() for _ in range(2))
    variance = masked_mean(logvar.exp(), mask) / mask.sum(1, keepdim=True).clamp(min=1)
    latent = sample(masked_mean(mu, mask), variance, torch.randn(2, 3))
    latent.sum().backward()
    assert not latent[1].any()
    assert torch.isfinite(logvar.grad).all()
    assert logvar.grad[0].all()
