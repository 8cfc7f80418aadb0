"""Exact match on the final number of an answer, as GSM8K is scored: the one behind `####`, else the last one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from engine.distributed import all_reduce_sum

NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")
MARK = "####"


def final_number(text: str) -> float | None:
    """The number behind the last `####`, else the last number of the text; None where there is none. Signs for
    money and thousands do not count: `$1,200.00` is 1200."""
    marked = text.rpartition(MARK)[2] if MARK in text else ""
    numbers = NUMBER.findall(marked)[:1] or NUMBER.findall(text)[-1:]
    return float(numbers[0].replace(",", "").replace("$", "")) if numbers else None


class FinalNumber:
    """`exact_match`, the share of texts whose final number is that of the true text; `answered`, of those with one.

    Takes texts: batch["texts"] are the true ones, `preds` those that a model wrote.
    """

    needs_steps: ClassVar[bool] = False

    def __init__(self, config: None = None) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget the texts so far."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def update(self, batch: Mapping[str, Any], steps: Any, preds: Sequence[str], valid_rows: int) -> None:
        """Add the first `valid_rows` texts."""
        for true, made in zip(batch["texts"][:valid_rows], preds[:valid_rows], strict=True):
            expected, given = final_number(true), final_number(made)
            self.sums += torch.tensor([given is not None and given == expected, given is not None, 1.0])

    def result(self) -> dict[str, float | None]:
        """Over all ranks."""
        right, answered, count = all_reduce_sum(self.sums.clone()).tolist()
        return {
            "exact_match": right / count if count else None,
            "answered": answered / count if count else None,
            "answers": count,
        }
