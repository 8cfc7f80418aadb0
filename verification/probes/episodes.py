"""Probes of two-step episodes: the carry (DYN705, MOD440), the example of each row (DYN706, MOD441), the form of the
loop (SCR130), halting (DYN707).

Steps 1 and 2 offer different examples in every row; between them a fixed pattern of rows is set to halted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError
from verification.probes.instance import (
    Call,
    Recorder,
    Tiny,
    Unobservable,
    evaluate,
    finish_step,
    first_batch,
    junk,
    reachable,
    set_halting,
    step,
    unroll,
)
from verification.probes.registry import Note, probe

CLOSE = 1e-4


def pattern(carry: Any) -> Tensor:
    """[B] bool: rows 0, 3, 6 ... halt after step 1, the others continue."""
    rows: Tensor = torch.arange(len(carry.halted)) % 3 == 0
    return rows


def force(number: int, output: Any) -> Any:
    """Set exactly the rows of `pattern` to halted after the first forward pass."""
    if number > 0:
        return output
    return replace(output, carry=replace(output.carry, halted=pattern(output.carry)))


@dataclass
class Episode:
    """Faults found in two steps of the task, an evaluation and a third step."""

    loop: list[str] = field(default_factory=list)
    """In how the task calls the model (SCR130)."""
    task: list[str] = field(default_factory=list)
    """In what the task stores (MOD440)."""
    model: list[str] = field(default_factory=list)
    """In the carry that the model returns, or in its use of one (MOD440)."""
    example: list[str] = field(default_factory=list)
    """Rows that use another example than their own (MOD441)."""

    @property
    def carry(self) -> list[str]:
        return [*self.task, *self.model]


def episode(tiny: Tiny) -> Episode:
    """Observed once for all probes."""
    return tiny.once(_episode)


def _episode(tiny: Tiny) -> Episode:
    seen, task = Episode(), tiny.build().task
    recorder = Recorder(task.module, force)
    stored = all([_stored(task, task.loss(piece), recorder) for piece in task.micro_batches(1)])
    finish_step(task)
    step(task, 2)
    calls = len(recorder.calls)
    if calls != 2:
        seen.loop.append(f"the model is called {calls} times in 2 steps: expected one ACT step for each optimizer step")
        return seen
    first, second = recorder.calls
    if second.carry is None and stored:
        seen.task.append("the second step got no carry: every step starts afresh")
    elif second.carry is None:
        seen.loop.append("the returned carry is not stored: every step starts afresh")
    else:
        _check_carry(seen, first, second)
    if seen.carry or seen.loop:
        return seen
    if any(latent.requires_grad for latent in first.output.carry.latents.values()):
        seen.model.append("the carry's latents hold a graph: memory grows with every step, or the second step fails")
    _check_examples(seen, first, second)
    _check_start(seen, task.module, second)
    if tiny.max_steps > 1:
        with contextlib.suppress(Unobservable):
            if {1} == set(_first_halts(tiny, halt=False, explore=0, steps=1)):
                seen.model.append("every row has halted after one step, whatever q says: nothing is carried")
    evaluate(task)
    before = len(recorder.calls)
    step(task, 3)
    third = recorder.calls[before]
    if third.carry is None or not torch.equal(third.carry.steps, second.output.carry.steps):
        seen.task.append("the carry is lost in an evaluation: the step after it starts afresh")
    return seen


def _stored(task: Any, _: Any, recorder: Recorder) -> bool:
    """Whether the task stores the carry that the model has just returned."""
    if not recorder.calls:
        return False
    carry = recorder.calls[-1].output.carry
    parts = {id(carry), *(id(latent) for latent in carry.latents.values())}
    return any(id(one) in parts for one in reachable(vars(task)))


def _check_carry(seen: Episode, first: Call, second: Call) -> None:
    """Check that the carry of the second step is the one that the first step returned."""
    returned, passed = first.output.carry, second.carry
    if not torch.equal(passed.halted, pattern(returned)):
        seen.task.append("the task changed which rows have halted between two steps")
    elif any(not torch.equal(passed.latents[name], value) for name, value in returned.latents.items()):
        seen.task.append("the latents that a step is given are not those that the step before returned")
    elif not torch.equal(passed.steps, returned.steps):
        seen.task.append("the step counts that a step is given are not those that the step before returned")


def _check_examples(seen: Episode, first: Call, second: Call) -> None:
    """Check the example and the step count of each row after the second step."""
    before, now, halted = first.output.carry, second.output.carry, pattern(first.output.carry)
    for name, value in now.data.items():
        if torch.equal(first.batch[name], second.batch[name]):
            raise Unobservable(f"both steps offer the same {name}")
        if not torch.equal(value[~halted], before.data[name][~halted]):
            seen.example.append(f"continuing rows lost their own {name}")
        if not torch.equal(value[halted], second.batch[name][halted]):
            seen.example.append(f"halted rows did not take the {name} offered to them")
    if not torch.equal(now.steps[~halted], before.steps[~halted] + 1):
        seen.model.append("the step count of continuing rows did not go up by one")
    if not bool((now.steps[halted] == 1).all()):
        seen.model.append("the step count of rows with a fresh example is not 1")


def _check_start(seen: Episode, model: Any, second: Call) -> None:
    """Check that continuing rows of the second step depend on the carried latents only, and halted ones on new ones."""
    generator = torch.Generator().manual_seed(3)
    carried, halted = second.carry.latents, second.carry.halted
    noise = {name: torch.randn(latent.shape, generator=generator).to(latent.dtype) for name, latent in carried.items()}
    disturbed = replace(second.carry, latents={name: latent + noise[name] for name, latent in carried.items()})
    own = {**second.batch, **{name: value for name, value in second.carry.data.items() if name in second.batch}}
    offered = {name: torch.where(_like(halted, value), value, value.roll(1, 0)) for name, value in second.batch.items()}
    with torch.no_grad():
        plain, other, fresh = (model(second.batch, state).logits for state in (second.carry, disturbed, None))
        restarted, other_batch = model(own, None).logits, model(offered, second.carry).logits
    depends = (plain != other).flatten(1).any(dim=1)
    if bool(depends[halted].any()) or not torch.allclose(plain[halted], fresh[halted], atol=CLOSE):
        seen.model.append("rows that halted did not start from fresh latents: the example before leaks into the next")
    if not bool(depends[~halted].all()):
        seen.model.append("continuing rows do not depend on the latents carried to them: these were reset")
    elif torch.equal(plain[~halted], restarted[~halted]):
        seen.model.append("continuing rows answer as in a first step: the returned latents are not what was computed")
    if not torch.equal(plain[~halted], other_batch[~halted]):
        seen.example.append("continuing rows are computed from the incoming batch, not from their own example")


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (value.dim() - 1))


@probe("DYN705", act=True)
def carry(tiny: Tiny) -> Iterator[str]:
    """All faults of two steps."""
    seen = episode(tiny)
    yield from (*seen.loop, *seen.carry, *(text for text in seen.example if "computed from" not in text))


def _carried(tiny: Tiny) -> Episode:
    if tiny.act_mode == "fixed":
        raise Unobservable("a fixed model is called in a loop over one batch, and begins each with a fresh carry")
    return episode(tiny)


@probe("SCR130", "MOD421", act=True, about="loss")
def loop_form(tiny: Tiny) -> Iterator[str]:
    """The model is called once for each step, with a stored carry."""
    for text in _carried(tiny).loop:
        yield f"{tiny.task_class.__name__}.loss: {text}; the model is {getattr(tiny.model_class, 'ACT_MODE', None)}"


@probe("MOD440", "SCR130", act=True)
def persistence(tiny: Tiny) -> Iterator[str | Note]:
    """The carry is complete, updated, stored and passed on."""
    seen = _carried(tiny)
    yield from (Note("FAIL", text, tiny.task_class.loss) for text in seen.task)
    yield from seen.model


@probe("MOD441", "MOD440", act=True)
def own_example(tiny: Tiny) -> Iterator[str | Note]:
    """A row is computed from, and compared with, its own example."""
    yield from _carried(tiny).example or labels(tiny)


@probe("DYN706", "MOD441", act=True, about="loss")
def labels(tiny: Tiny) -> Iterator[str]:
    """The loss of step 2 with junk labels in the rows that continue, then in the rows that start."""

    def loss(rows: str) -> float:
        task = tiny.build().task
        recorder = Recorder(task.module, force)
        step(task, 1)
        halted = pattern(recorder.calls[0].output.carry)
        chosen = {"halted": halted, "continuing": ~halted}.get(rows, torch.zeros_like(halted))

        def change(batch: dict[str, Tensor]) -> None:
            batch["labels"] = torch.where(_like(chosen, batch["labels"]), junk(batch["labels"]), batch["labels"])

        value = step(task, 2, change)
        if len(recorder.calls) != 2:
            raise Unobservable("a step is not one forward pass")
        return value

    plain = loss("")
    if loss("continuing") != plain:
        yield "labels offered to continuing rows changed the loss: they are trained against another example's answer"
    if loss("halted") == plain:
        yield "labels of rows that start afresh changed nothing: the loss does not read them"


# --- halting ----------------------------------------------------------------------------------------------------------


@probe("DYN707", "MOD422", "MOD450", act=True)
def halting(tiny: Tiny) -> Iterator[str]:
    """The step of each row's first halt with the halting head fixed to +10 or -10."""
    last = tiny.max_steps
    for halt, explore, expected in (
        (True, 0, {1}),
        (True, 1, set(range(min(2, last), last + 1))),
        (False, 0, {last}),
        (False, 1, {last}),
    ):
        if others := _unlike(_first_halts(tiny, halt, explore, last + 2), expected):
            what = f"q {'+' if halt else '-'}10 with exploration {explore}: rows halted first at step {others}"
            most = f" to {last}" if len(expected) > 1 else ""
            yield f"{what}, expected {min(expected)}{most}{'' if halt else ', halt_max_steps'}"
    if last > 1:
        yield from _threshold(tiny)
    yield from evaluations(tiny)


def _first_halts(tiny: Tiny, halt: bool, explore: int, steps: int) -> list[int]:
    """The step at which each of the B rows halts first; 0 for a row that does not within `steps` steps."""
    task = exploring(tiny, explore)
    set_halting(task.module, halt)
    recorder = Recorder(task.module)
    first = torch.zeros((), dtype=torch.int64)
    for number in range(1, steps + 1):
        step(task, number)
        halted = recorder.calls[-1].output.carry.halted
        first = torch.where((first == 0) & halted, number, first)
    firsts: list[int] = first.tolist()
    return firsts


def exploring(tiny: Tiny, explore: float) -> Any:
    """A task with exploration probability `explore`."""
    try:
        return tiny.build(halt_exploration_prob=explore).task
    except UsageError as error:
        raise Unobservable(f"the architecture takes no halt_exploration_prob ({error})") from error


def _threshold(tiny: Tiny) -> Iterator[str]:
    """With the configured probability, a row that draws just below it explores, one just above it does not."""
    task = tiny.build().task
    set_halting(task.module, halt=True)
    batch = first_batch(task)
    share = tiny.config().arch.get("halt_exploration_prob")
    if "exploration" not in batch or not isinstance(share, int | float) or not 0 < share < 1:
        return
    below = torch.arange(len(batch["exploration"])) % 2 == 0
    batch["exploration"] = torch.where(below, share - 1e-3, share + 1e-3)[:, None].expand(-1, 2).clone()
    (output,) = unroll(task.module, batch, 1)
    if not torch.equal(output.carry.halted, ~below):
        yield f"arch.halt_exploration_prob={share} is not the probability at which rows explore"


def samples(tiny: Tiny) -> bool:
    """Whether training may compute something other than an evaluation, as an encoder may sample."""
    return getattr(tiny.model_class, "ENCODER_POLICY", "none") not in ("none", None)


def evaluations(tiny: Tiny) -> Iterator[str]:
    """Evaluation takes `max_steps` steps whatever the q values are, and computes what as many training steps do."""
    answers, last = [], tiny.max_steps
    for halt in (True, False) if tiny.config().arch.get("eval_halting", "fixed") == "fixed" else (False,):
        task = exploring(tiny, 1)
        set_halting(task.module, halt)
        batch = first_batch(task)
        output = task.module.eval()(batch)
        answers.append(output.logits)
        if output.logits.requires_grad:
            yield "an evaluation keeps gradients: it is not under no_grad"
        if others := _unlike(output.carry.steps.tolist(), {last}):
            yield f"evaluation with q {'+' if halt else '-'}10 reports {others} steps, expected {last} for every row"
    if not torch.equal(answers[0], answers[-1]):
        yield "the halting head changes the answer of an evaluation: it must always take halt_max_steps"
    if not samples(tiny):
        *_, output = unroll(task.module.train(), batch, last)
        if not torch.allclose(output.logits, answers[-1], atol=CLOSE):
            yield f"evaluation does not answer what {last} training steps answer: it takes another number of steps"


def _unlike(values: list[int], expected: set[int]) -> str:
    """The values outside `expected` as text; empty if there are none."""
    unexpected = sorted({value for value in values if value not in expected})
    return ", ".join("never" if value == 0 else str(value) for value in unexpected)
