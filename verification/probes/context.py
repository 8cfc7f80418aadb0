"""Probes of what a row is conditioned on, its embedded or encoded input: made anew (DYN701), with a gradient (DYN702).

Looked at are calls of the family's `context_calls` (`embed`, `encode`) on any module of the model, and modules that
are called an encoder. Between the two steps a fixed pattern of rows is declared halted, the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verification.probes.episodes import force
from verification.probes.instance import Recorder, Tiny, Unobservable, step
from verification.probes.registry import Note, observes


@dataclass
class Made:
    """One call that embedded or encoded rows."""

    name: str
    rows: int
    value: Tensor


class Watch:
    """Records the outermost calls that make context in `model`."""

    def __init__(self, model: nn.Module, words: Iterable[str]) -> None:
        self.made: list[Made] = []
        self._depth = 0
        words = tuple(words)
        found = False
        for path, module in model.named_modules():
            leaf = path.rpartition(".")[2].lower()
            names = [word for word in words if not isinstance(getattr(module, word, None), nn.Module | None)]
            for name in [*names, *(["forward"] if leaf in words or leaf.endswith("encoder") else [])]:
                setattr(module, name, self._recorded(f"{path or 'the model'}.{name}", getattr(module, name)))
                found = True
        if not found:
            raise Unobservable(f"no module of the model has one of {', '.join(words)}")

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                value = call(*args, **kwargs)
            finally:
                self._depth -= 1
            rows = next(iter(value.values()), None) if isinstance(value, dict) else value  # the embedding comes first
            if self._depth == 0 and isinstance(rows, Tensor):
                if rows.requires_grad:
                    rows.retain_grad()
                self.made.append(Made(name, rows.shape[0], rows))
            return value

        return made


def _task(tiny: Tiny) -> tuple[Any, Recorder, Watch]:
    task = tiny.build(run={"accumulation": 1}).task
    return task, Recorder(task.module, force), Watch(task.module, tiny.spec.context_calls)


@observes(
    "DYN701",
    act=True,
    passed="each training step embeds or encodes every row of its batch anew",
    fix="embed (encode) carry.data unconditionally in the training method",
)
def encoded_rows(tiny: Tiny) -> Iterator[str | Note]:
    """Rows that a first and a second step embed, the second one with rows that go on."""
    task, recorder, watch = _task(tiny)
    if getattr(tiny.model_class, "ACT_MODE", None) != "dynamic":
        raise Unobservable("what a step must encode is known of dynamic halting only")
    for number in (1, 2):
        watch.made.clear()
        step(task, number)
        size = recorder.calls[-1].batch["inputs"].shape[0]
        rows = sum(made.rows for made in watch.made)
        if rows < size:
            yield f"step {number} embedded {rows} of its {size} rows: the others go on with an old embedding"


@observes(
    "DYN702",
    act=True,
    passed="a gradient reaches the embedding of every row, also of rows that go on",
    fix="no detach, no_grad or torch.where between the embedding (encoding) of a row and its use",
)
def gradient_of_rows(tiny: Tiny) -> Iterator[str | Note]:
    """The gradient of the loss of a second step with respect to what the step embedded."""
    task, _, watch = _task(tiny)
    step(task, 1)
    watch.made.clear()
    for micro_batch in task.micro_batches(2):
        task.loss(micro_batch)[0].backward()
    reached: Tensor | None = None
    for made in watch.made:
        if made.value.grad is not None:
            rows = (made.value.grad != 0).flatten(1).any(dim=1)
            reached = rows if reached is None or reached.shape != rows.shape else reached | rows
    if reached is None:
        yield "no gradient reaches what a step embeds: the embedding (encoder) never learns"
    elif not bool(reached.all()):
        dry = torch.nonzero(~reached).flatten().tolist()
        yield f"no gradient reaches the embedding of {len(dry)} of {reached.numel()} rows ({dry[:6]})"
