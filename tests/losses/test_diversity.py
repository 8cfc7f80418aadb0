"""The diversity losses: golden vectors, gradients in closed form against autograd, and what each coefficient does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from losses.diversity import (
    Alternatives,
    DiversityLoss,
    DiversityLossConfig,
    Frequencies,
    concept_loss,
    open_loss,
    reference_kl,
    to_uniform,
)
from models.animal.completions import Completions

K, CLUSTERS = 3, (3, 0, 2)
SEVERAL = (2, 4)
"""Options of further concepts."""


def made(
    rows: int = 12, length: int = 7, seed: int = 0, further: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Completions]:
    """Random completions: row 0 invalid, row 1 not clustered, ends of different lengths; `further` concepts have token 0
    or 3."""
    random = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(rows, length, generator=random).double()
    ref = logp + torch.randn(rows, length, generator=random).double()
    ends = torch.randint(4, length + 1, (rows, 1), generator=random)
    place = torch.arange(length)
    option = torch.randint(0, K, (rows,), generator=random)
    option[0], option[1], option[2:4] = -1, 0, torch.tensor([0, 2])
    cluster = torch.tensor([int(torch.randint(0, max(CLUSTERS[o], 1), (1,), generator=random)) for o in option])
    cluster[(option < 0) | (option == 1)] = -1
    cluster[1] = -1
    valid = (option >= 0)[:, None]
    mask = place < ends
    concept, opened = (place >= 1) & (place < 3) & mask & valid, (place >= 3) & mask & valid
    ids = torch.zeros_like(mask, dtype=torch.long)
    others = [torch.randint(0, size, (rows,), generator=random).where(valid[:, 0], -1) for size in further]
    spans = [(place == 3 * number) & mask & valid for number in range(len(further))]
    return (
        logp,
        ref,
        Completions(
            ids=ids,
            mask=mask,
            concept=concept,
            open=opened,
            option=option,
            cluster=cluster,
            further=torch.stack(spans, 1) if spans else torch.zeros(rows, 0, length).bool(),
            further_option=torch.stack(others, 1) if others else torch.zeros(rows, 0).long(),
        ),
    )


def by_hand(
    logp: Tensor,
    ref: Tensor,
    batch: Completions,
    alternatives: Alternatives | None = None,
    further: tuple[int, ...] = (),
) -> list[Tensor]:
    """L_c, L_open and L_kl in plain loops, with raw probabilities, for autograd."""

    def histogram(weights: dict[int, Tensor], count: int) -> Tensor:
        whole = sum(weights.values())
        return sum(w / whole * torch.log(w / whole * count) for w in weights.values())

    sums: list[dict[int, Tensor]] = [{} for _ in range(1 + len(further))]
    inner: dict[int, dict[int, Tensor]] = {}
    k3, count = torch.zeros((), dtype=logp.dtype), 0
    for i in range(len(logp)):
        option, cluster = int(batch.option[i]), int(batch.cluster[i])
        for t in range(logp.shape[1]):
            if batch.mask[i, t]:
                apart = ref[i, t] - logp[i, t]
                k3, count = k3 + torch.exp(apart) - apart - 1, count + 1
        named = [(option, batch.concept[i])]
        named += [(int(batch.further_option[i, k]), batch.further[i, k]) for k in range(len(further))]
        for own, (one, tokens) in zip(sums, named, strict=True) if option >= 0 and alternatives is None else ():
            p = math.prod(logp[i, t].exp() for t in range(logp.shape[1]) if tokens[t])
            own[one] = own.get(one, 0) + p
        if cluster >= 0:
            tokens = [logp[i, t] for t in range(logp.shape[1]) if batch.open[i, t]]
            g = torch.exp(sum(tokens) / len(tokens))
            inner.setdefault(option, {})[cluster] = inner.setdefault(option, {}).get(cluster, 0) + g
    for row in range(len(alternatives.logp)) if alternatives else ():
        option, own = int(alternatives.option[row]), sums[int(alternatives.concept[row])]
        own[option] = own.get(option, 0) + alternatives.logp[row].exp()
    return [
        sum(histogram(own, size) for own, size in zip(sums, (K, *further), strict=True)),
        sum(histogram(weights, CLUSTERS[option]) for option, weights in inner.items()),
        k3 / count,
    ]


def test_golden_concept_loss() -> None:
    weights = torch.tensor([0.6, 0.7, 0.5, 0.3], dtype=torch.float64)
    dogs = torch.tensor([1, 1, 1, 0])
    for options, expected in ((2, 0.283031), (3, 0.688496)):
        assert float(to_uniform(weights.log(), dogs, options)[0]) == pytest.approx(expected, abs=1e-6)
    slope = to_uniform(weights.log(), dogs, 2)[1] / weights  # with respect to S
    assert slope.tolist() == pytest.approx([0.121889] * 3 + [-0.731330], abs=1e-6)
    value, slope = to_uniform(weights.log(), torch.zeros(4, dtype=torch.long), 2)
    assert float(value) == pytest.approx(math.log(2))  # the full set of options: one of two is far from uniform
    even = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    value, slope = to_uniform(even, torch.tensor([0, 1, 1]), 2)
    assert float(value) == pytest.approx(0, abs=1e-12)
    assert slope.abs().max() < 1e-12
    assert to_uniform(even, torch.full((3,), -1), 2)[0].isnan()


def test_golden_open_loss() -> None:
    logp = torch.tensor([[0.5, 0.5, 1], [0.9, 0.4, 1], [0.2, 0.8, 0.1]], dtype=torch.float64).log()
    opened = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]]).bool()
    zero = torch.zeros(3, dtype=torch.long)
    batch = Completions(
        ids=torch.zeros(3, 3).long(),
        mask=opened,
        concept=~opened,
        open=opened,
        option=zero,
        cluster=torch.tensor([0, 0, 1]),
        further=torch.zeros(3, 0, 3).bool(),
        further_option=torch.zeros(3, 0).long(),
    )
    for count, expected in ((5, 1.128505), (2, 0.212215)):
        value, slope = open_loss(logp, batch, torch.tensor([count]))
        assert float(value) == pytest.approx(expected, abs=1e-6)
    assert slope[0, 0] == slope[0, 1]
    assert slope[0, 2] == 0


@pytest.mark.parametrize("further", [(), SEVERAL])
@pytest.mark.parametrize("objective", ["kl", "kl_exact"])
def test_the_coefficients_are_the_gradient(objective: str, further: tuple[int, ...]) -> None:
    logp, ref, batch = made(further=further)
    head = DiversityLoss(DiversityLossConfig(objective=objective, w_c=0.7, w_o=0.4, w_kl=0.3))
    alternatives = None
    if objective == "kl_exact":
        alternatives = Alternatives(
            logp=-2 * torch.rand(9, generator=torch.Generator().manual_seed(1)).double(),
            option=torch.arange(9) % 2,
            concept=torch.arange(9) // 2 % (1 + len(further)),
        )
    result = head(logp, ref, batch, torch.tensor(CLUSTERS), alternatives=alternatives, further=further)
    leaf = logp.clone().requires_grad_()
    other = replace(alternatives, logp=alternatives.logp.clone().requires_grad_()) if alternatives else None
    parts = by_hand(leaf, ref, batch, other, further)
    total = 0.7 * parts[0] + 0.4 * parts[1] + 0.3 * parts[2]
    total.backward()
    assert result.total == pytest.approx(float(total.detach()))
    assert [result.concept, result.open, result.ref_kl] == pytest.approx([float(part.detach()) for part in parts])
    assert torch.allclose(result.coefficients, leaf.grad, atol=1e-12)
    if other is not None:
        assert torch.allclose(result.alternatives, other.logp.grad, atol=1e-12)


@pytest.mark.parametrize("further", [(), SEVERAL])
def test_trajectory_balance_by_hand(further: tuple[int, ...]) -> None:
    logp, ref, batch = made(further=further)
    shares = [torch.tensor([0.6, 0.4]).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()]
    frequencies = Frequencies(
        option=torch.tensor([0.7, 0.2, 0.1]).double(),
        cluster=torch.tensor([[0.5, 0.3, 0.2], [0, 0, 0], [0.9, 0.1, 0]]).double(),
        further=shares[: len(further)],
    )
    head = DiversityLoss(DiversityLossConfig(objective="tb", alpha_c=0.9, alpha_o=0.8, invalid_penalty=5))
    result = head(logp, ref, batch, torch.tensor(CLUSTERS), frequencies=frequencies, further=further)
    leaf, excess = logp.clone().requires_grad_(), []
    for i in range(len(logp)):
        reward = sum(ref[i, t] for t in range(logp.shape[1]) if batch.mask[i, t])
        option, cluster = int(batch.option[i]), int(batch.cluster[i])
        if option < 0:
            reward = reward - 5
        else:
            reward = reward - 0.9 * math.log(frequencies.option[option] * K)
            for k, size in enumerate(further):
                reward = reward - 0.9 * math.log(shares[k][batch.further_option[i, k]] * size)
        if cluster >= 0:
            reward = reward - 0.8 * math.log(frequencies.cluster[option, cluster] * CLUSTERS[option])
        excess.append(sum(leaf[i, t] for t in range(logp.shape[1]) if batch.mask[i, t]) - reward)
    values = torch.stack(excess)
    loss = (values - values.detach().mean()).square().mean()
    loss.backward()
    assert float(result.total) == pytest.approx(float(loss.detach()))
    assert torch.allclose(result.coefficients, leaf.grad, atol=1e-12)


def test_rows_may_come_in_any_order() -> None:
    logp, ref, batch = made()
    order = torch.randperm(len(logp), generator=torch.Generator().manual_seed(3))
    head = DiversityLoss(DiversityLossConfig(w_kl=0.5))
    left = head(logp, ref, batch, torch.tensor(CLUSTERS))
    right = head(logp[order], ref[order], batch.rows(order), torch.tensor(CLUSTERS))
    assert torch.allclose(left.coefficients[order], right.coefficients)


@pytest.mark.parametrize("name", ["w_c", "w_o", "w_kl", "alpha_c", "alpha_o", "invalid_penalty"])
@pytest.mark.parametrize("objective", ["kl", "kl_exact", "tb"])
def test_every_coefficient_changes_the_gradient_where_it_is_documented_to(name: str, objective: str) -> None:
    logp, ref, batch = made()
    frequencies = Frequencies(option=torch.tensor([0.7, 0.2, 0.1]), cluster=torch.tensor([[0.5, 0.3, 0.2]] * 3))
    numbers = torch.arange(len(logp))
    alternatives = Alternatives(logp=logp[:, 0], option=numbers % K, concept=torch.zeros_like(numbers))
    config = DiversityLossConfig(objective=objective, w_kl=0.1)

    def gradient(config: DiversityLossConfig) -> list[Tensor]:
        head = DiversityLoss(config)
        result = head(logp, ref, batch, torch.tensor(CLUSTERS), alternatives=alternatives, frequencies=frequencies)
        return [result.coefficients] + ([result.alternatives] if result.alternatives is not None else [])

    before, after = gradient(config), gradient(replace(config, **{name: getattr(config, name) + 0.5}))
    changed = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert changed == (name.startswith("w_") == (objective != "tb"))


def test_what_lies_behind_the_end_takes_no_part() -> None:
    logp, ref, batch = made()
    other = logp.where(batch.mask, -50.0)
    head = DiversityLoss(DiversityLossConfig(w_kl=0.5))
    left, right = (head(values, ref, batch, torch.tensor(CLUSTERS)) for values in (logp, other))
    assert torch.equal(left.coefficients, right.coefficients)
    assert not left.coefficients[~batch.mask].any()


def test_far_from_the_base_and_without_a_valid_row_everything_is_finite() -> None:
    logp, ref, batch = made()
    value, slope = reference_kl(logp - 500, ref, batch.mask)
    assert value.isfinite()
    assert not slope.any()
    none = replace(batch, option=torch.full_like(batch.option, -1), cluster=torch.full_like(batch.cluster, -1))
    result = DiversityLoss(DiversityLossConfig())(logp - 500, ref, none, torch.tensor(CLUSTERS))
    assert result.concept.isnan()
    assert result.open.isnan()
    assert result.total == 0
    assert not result.coefficients.any()
    assert concept_loss(logp - 500, batch, [K])[0].isfinite()
    with pytest.raises(ValueError, match="w_c=0 and w_o=0"):
        DiversityLossConfig(w_c=0, w_o=0, w_kl=1)


def test_the_terms_in_words() -> None:
    assert DiversityLossConfig().terms == "0.8 concept + 0.2 open block"
    assert DiversityLossConfig(objective="kl_exact", w_kl=0.5, w_o=0).terms == "0.8 exact concept + 0.5 KL to the base"
    assert DiversityLossConfig(objective="tb").terms.startswith("trajectory balance")
