"""The cross entropy of one and of several streams, against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from losses.language_model import LMLossConfig, LMLossHead
from models.language_models.gpt import LMOutput


def make_output(words: tuple[int, ...] = (7,), dtype: torch.dtype = torch.float64) -> tuple[LMOutput, list[Tensor]]:
    """Random hidden states [3, 5, 4] and heads, whose tensors want gradients."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    heads = [torch.randn(v, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for v in words]
    output = LMOutput(hidden, tuple(range(len(words))), lambda number, rows: rows @ heads[number].t())
    return output, [hidden, *heads]


def make_labels(*words: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels = torch.stack([torch.randint(v, (3, 5), generator=generator) for v in words], dim=1)
    labels[0, :, 0] = labels[2, :, 4] = -100
    return labels[:, 0] if len(words) == 1 else labels


def formula(logits: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """-log(exp(right) / sum(exp)) summed over the scored positions; how many there are; how many are right."""
    total, count, right = 0.0, 0, 0
    for row, target in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if target != -100:
            total -= row[target] - math.log(sum(math.exp(value) for value in row))
            count, right = count + 1, right + (max(row) == row[target])
    return total, count, right


@pytest.mark.parametrize("chunk", [0, 4, 100])
def test_one_stream(chunk: int) -> None:
    output, _ = make_output()
    labels, head = make_labels(7), LMLossHead(LMLossConfig(chunk_tokens=chunk))
    total, count, right = formula(output.logits().detach(), labels)
    result = head(output, labels)
    assert result.total.item() == pytest.approx(total, rel=1e-12)
    assert result.weight.item() == count == 13
    assert set(result.metrics) == {"loss"}  # accuracy would cost a pass over the logits in every training step
    assert not result.metrics["loss"][0].requires_grad
    with torch.no_grad():
        metrics = head(output, labels).metrics
    assert [value.item() for value in metrics["loss"]] == pytest.approx([total, count])
    assert [value.item() for value in metrics["accuracy"]] == [right, count]


def test_chunks_have_the_same_gradient_and_never_all_logits() -> None:
    largest, gradients = [], []
    for chunk in (0, 4):
        output, leaves = make_output()
        sizes: list[int] = []

        def counted(number: int, rows: Tensor, made=output.head, sizes=sizes) -> Tensor:
            sizes.append(rows.numel() // 4)
            return made(number, rows)

        head = LMLossHead(LMLossConfig(chunk_tokens=chunk))
        watched = LMOutput(output.hidden, output.streams, counted)
        head(watched, make_labels(7)).total.backward()
        gradients.append([leaf.grad for leaf in leaves])
        with torch.no_grad():
            head(watched, make_labels(7))
        largest.append(max(sizes))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert largest == [15, 4]


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_several_streams(weights: list[float] | None) -> None:
    """The mean of the streams' losses, or the weighted one: 1/4 and 3/4."""
    output, _ = make_output((7, 3))
    labels = make_labels(7, 3)
    labels[1, 1, 2] = -100  # one position that only the second stream leaves out
    result = LMLossHead(LMLossConfig(stream_weights=weights))(output, labels)
    (a, n, _), (b, m, _) = (formula(output.logits(k).detach(), labels[:, k]) for k in (0, 1))
    share = 0.5 if weights is None else 0.25
    assert result.total.item() == pytest.approx(share * a + (1 - share) * b, rel=1e-12)
    assert result.weight.item() == pytest.approx(share * n + (1 - share) * m)
    assert [value.item() for value in result.metrics["loss_0"]] == pytest.approx([a, n])
    assert [value.item() for value in result.metrics["loss_1"]] == pytest.approx([b, m])


def test_wide_sums_and_single_positions() -> None:
    output, _ = make_output(dtype=torch.bfloat16)
    labels, head = make_labels(7), LMLossHead(LMLossConfig())
    assert head(output, labels).total.dtype == torch.float32
    losses = make_output()[0]
    each = head.token_losses(losses, labels)
    assert each.shape == labels.shape
    assert not each[labels == -100].any()
    torch.testing.assert_close(each.sum(), head(losses, labels).total)


def test_nothing_scored() -> None:
    output, leaves = make_output()
    result = LMLossHead(LMLossConfig())(output, torch.full((3, 5), -100))
    result.total.backward()
    assert result.total.item() == result.weight.item() == 0
    assert not leaves[0].grad.any()


@pytest.mark.parametrize("values", [[], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_make_no_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"arch\.loss\.stream_weights"):
        LMLossConfig(stream_weights=values)


def test_labels_and_weights_must_fit_the_streams() -> None:
    with pytest.raises(ValueError, match=r"arch\.loss\.chunk_tokens=-1"):
        LMLossConfig(chunk_tokens=-1)
    head = LMLossHead(LMLossConfig(stream_weights=[1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"expected 2 numbers, one per stream"):
        head(make_output((7, 3))[0], make_labels(7, 3))
    with pytest.raises(ValueError, match=r"labels have shape \[3, 5\], expected \[B, 2, T\]"):
        head(make_output((7, 3))[0], make_labels(7))
    with pytest.raises(ValueError, match=r"expected \[B, T\]"):
        head(make_output()[0], make_labels(7, 3))
