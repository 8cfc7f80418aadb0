"""Exact match on the final number of an answer, as in GSM8K: the one after `####`, else the last one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from engine.distributed import all_reduce_sum

NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?")
MARK = "####"


def final_number(text: str) -> float | None:
    """The number after the last `####`, else the last number of the text; None if there is none. Dollar signs and
    thousands separators are ignored: `$1,200.00` is 1200."""
    marked = text.rpartition(MARK)[2] if MARK in text else ""
    numbers = NUMBER.findall(marked)[:1] or NUMBER.findall(text)[-1:]
    return float(numbers[0].replace(",", "").replace("$", "")) if numbers else None


class FinalNumber:
    """`exact_match`: share of texts with the right final number; `answered`: share of texts with a number.

    Works on text: batch["texts"] are the references, `preds` the generated texts.
    """

    needs_steps: ClassVar[bool] = False

    def __init__(self, config: None = None) -> None:
        self.begin()

    def begin(self) -> None:
        """Reset the counts."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def update(self, batch: Mapping[str, Any], steps: Any, preds: Sequence[str], valid_rows: int) -> None:
        """Count the first `valid_rows` texts."""
        for reference, generated in zip(batch["texts"][:valid_rows], preds[:valid_rows], strict=True):
            expected, answer = final_number(reference), final_number(generated)
            self.sums += torch.tensor([answer is not None and answer == expected, answer is not None, 1.0])

    def result(self) -> dict[str, float | None]:
        """The shares and `answers`, the number of texts, over all ranks."""
        correct, answered, count = all_reduce_sum(self.sums.clone()).tolist()
        return {
            "exact_match": correct / count if count else None,
            "answered": answered / count if count else None,
            "answers": count,
        }
