"""Probes of what a family declares of its loss: weighted terms (`Term`), and next tokens as targets.

Shapes: B rows, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.fields import value_at
from verification.probes.instance import Recorder, Tiny, Unobservable, finish_step, set_halting
from verification.probes.registry import Note, probe
from verification.spec import Term

WEIGHT = 0.5


@probe(
    "ARC340",
    "MOD440",
    act=True,
    about="loss",
    passed="each further term of the loss is added by its weight, and what it holds is held",
)
def added(tiny: Tiny) -> Iterator[str | Note]:
    """The second step of an episode in which no row halts, with and without the weight."""
    terms = [
        one for one in tiny.spec.terms if value_at(tiny.arch, one.needs) and value_at(tiny.arch, one.weight) is not None
    ]
    if not terms:
        raise Unobservable("the loss has no further term")
    for term in terms:
        (base, sums, _), (total, _, calls) = (_step(tiny, term, weight) for weight in (0.0, WEIGHT))
        own = sums[term.metric]
        if abs(total - base - WEIGHT * own) > 1e-3 * max(1.0, abs(base)):
            yield f"{term.weight}={WEIGHT} adds {total - base:.4g} to the loss, {term.metric} is {own:.4g}"
        if abs(own - (by_hand := term.by_hand(sums))) > 1e-3 * max(1.0, abs(by_hand)):
            yield f"{term.metric} is {own:.4g}: {term.formula} is {by_hand:.4g}"
        _, second, third, _ = (call.output.aux[term.held] for call in calls)
        if not torch.allclose(second, third, atol=1e-5):
            yield f"rows have another {term.held} in their third pass than in their second, it should be held for two"


def _step(tiny: Tiny, term: Term, weight: float) -> tuple[float, dict[str, float], list[Any]]:
    """(loss of the second step, sums of its metrics, the four calls of the model)."""
    changed: dict[str, Any] = {**term.under, term.weight: weight}
    task = tiny.build(**changed).task
    set_halting(task.module, halt=False)
    recorder, seen = Recorder(task.module), list[tuple[float, dict[str, float]]]()
    for number in range(1, 5):
        with torch.no_grad():
            total, _, metrics = next(task.loss(batch) for batch in task.micro_batches(number))
        finish_step(task)
        seen.append((float(total), {name: float(pair[0]) for name, pair in metrics.items()}))
    return *seen[1], recorder.calls


# --- next tokens ------------------------------------------------------------------------------------------------------


@probe(
    "DYN706",
    act=False,
    about="micro_batches",
    passed="the target of each place is the next token of its own text",
    fix="targets are the tokens from the second of the window on: x = w[:-1], y = w[1:]",
)
def targets(tiny: Tiny) -> Iterator[str | Note]:
    """The targets in the micro-batches of three steps are the next tokens."""
    task = tiny.build().task
    for number in (1, 2, 3):
        for batch in task.micro_batches(number):
            tokens, following, _ = _text(tiny, batch)
            if not torch.equal(following[..., :-1], tokens[..., 1:]):
                yield f"step {number}: targets are not the tokens that follow"


@probe(
    "DYN712",
    act=False,
    passed="no prediction depends on a later token, in training and in evaluation",
    fix="a causal mask in every layer that mixes places",
)
def later_tokens(tiny: Tiny) -> Iterator[str | Note]:
    """Logits of the first half of the positions do not depend on the tokens of the second half."""
    task = tiny.build().task
    tokens, following, more = _text(tiny, next(iter(task.micro_batches(1))))
    half, vocab_size = tokens.shape[-1] // 2, int(max(tokens.max(), following.max())) + 1
    other = torch.cat((tokens[..., :half], (tokens[..., half:] + 1) % vocab_size), dim=-1)
    for training in (True, False):
        task.module.train(training)
        seen: list[list[Tensor]] = []
        for ids in (tokens, other):
            torch.manual_seed(5)  # for dropout
            with torch.no_grad():
                output = task.module(ids, **more)
                seen.append([output.logits(number)[:, :half] for number in range(len(output.streams))])
        if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*seen, strict=True)):
            yield f"in {'training' if training else 'evaluation'} predictions depend on tokens that come after them"


def _text(tiny: Tiny, batch: Any) -> Any:
    if tiny.spec.text is None:
        raise Unobservable("the models predict no next token")
    return tiny.spec.text(batch)
