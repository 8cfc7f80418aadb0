"""Probes of episodes: the carry (DYN705), whose labels the loss reads (DYN706), when rows halt (DYN707).

Step 1 and step 2 offer different examples in every row; between them a fixed pattern of rows is declared halted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import UsageError
from verification.probes.instance import Recorder, Tiny, Unobservable, first_batch, junk, set_halting, step
from verification.probes.registry import Note, observes
from verification.probes.shrink import BATCH, VOCAB

CLOSE = 1e-4
HALTED = torch.arange(BATCH) % 3 == 0
"""Rows 0, 3 and 6 halt after step 1, the others go on."""


def force(number: int, output: Any) -> Any:
    """After the first forward pass exactly the rows of HALTED have halted."""
    return replace(output, carry=replace(output.carry, halted=HALTED.clone())) if number == 0 else output


@observes(
    "DYN705",
    passed="continuing rows keep example, steps and latents; halted rows, and only they, start afresh",
    fix="store output.carry in the task, give it to the next forward, and choose row by row with carry.halted",
)
def carry(tiny: Tiny) -> Iterator[str | Note]:
    """Two steps of the task, then the second one again from a fresh start."""
    plan = tiny.build()
    recorder = Recorder(plan.task.module, force)
    for number in (1, 2):
        step(plan.task, number)
    if len(recorder.calls) != 2:
        yield f"{len(recorder.calls)} forward passes in 2 steps: expected one ACT step for each optimizer step"
        return
    first, second = recorder.calls
    if second.carry is None:
        yield "the second step got no carry: every step starts afresh"
        return
    kept, given = first.output.carry, second.carry
    if not torch.equal(given.halted, HALTED):
        yield "the task changed which rows have halted between two steps"
        return
    if any(not torch.equal(given.latents[name], value) for name, value in kept.latents.items()):
        yield "the latents that a step is given are not those that the step before returned"
    if not torch.equal(given.steps, kept.steps):
        yield "the step counts that a step is given are not those that the step before returned"
    if any(latent.requires_grad for latent in kept.latents.values()):
        yield "the carry's latents hold a graph: memory grows with every step"
    yield from _examples(first, second)
    yield from _starts(plan.task.module, second)


def _examples(first: Any, second: Any) -> Iterator[str]:
    """Whose example and which step count each row has after the second step."""
    kept, now = first.output.carry, second.output.carry
    for name, value in now.data.items():
        if torch.equal(first.batch[name], second.batch[name]):
            raise Unobservable(f"both steps offer the same {name}")
        if not torch.equal(value[~HALTED], kept.data[name][~HALTED]):
            yield f"continuing rows lost their own {name}"
        if not torch.equal(value[HALTED], second.batch[name][HALTED]):
            yield f"halted rows did not take the {name} offered to them"
    if not torch.equal(now.steps[~HALTED], kept.steps[~HALTED] + 1):
        yield "the step count of continuing rows did not go up by one"
    if not bool((now.steps[HALTED] == 1).all()):
        yield "the step count of rows with a fresh example is not 1"


def _starts(model: Any, second: Any) -> Iterator[str]:
    """Which rows of the second step depend on the carried latents, and whether halted rows start like a new run."""
    generator = torch.Generator().manual_seed(3)
    carried = second.carry.latents
    noise = {name: torch.randn(latent.shape, generator=generator).to(latent.dtype) for name, latent in carried.items()}
    disturbed = replace(second.carry, latents={name: latent + noise[name] for name, latent in carried.items()})
    with torch.no_grad():
        plain, other, fresh = (model(second.batch, state).logits for state in (second.carry, disturbed, None))
    depends = (plain != other).flatten(1).any(dim=1)
    if bool(depends[HALTED].any()) or not torch.allclose(plain[HALTED], fresh[HALTED], atol=CLOSE):
        yield "rows that halted did not start from fresh latents: the example before leaks into the next"
    if not bool(depends[~HALTED].all()):
        yield "continuing rows do not depend on the latents carried to them: these were reset"


@observes(
    "DYN706",
    passed="the loss reads each row's own labels: those of continuing rows in the incoming batch change nothing",
    fix="take labels from output.carry.data, not from the incoming batch",
)
def labels(tiny: Tiny) -> Iterator[str | Note]:
    """The loss of step 2 with junk labels in the rows that go on, then in the rows that start."""

    def loss(rows: Tensor | None) -> float:
        task = tiny.build().task
        recorder = Recorder(task.module, force)
        step(task, 1)

        def change(batch: dict[str, Tensor]) -> None:
            if rows is not None:
                batch["labels"] = torch.where(rows[:, None], junk(batch["labels"], VOCAB), batch["labels"])

        value = step(task, 2, change)
        if len(recorder.calls) != 2:
            raise Unobservable("a step is not one forward pass")
        return value

    plain = loss(None)
    if loss(~HALTED) != plain:
        yield "labels offered to continuing rows changed the loss: they are trained against another example's answer"
    if loss(HALTED) == plain:
        yield "labels of rows that start afresh changed nothing: the loss does not read them"


@observes(
    "DYN707",
    passed="rows halt when q says so, explore when told to, and at halt_max_steps at last; evaluation takes all steps",
    fix="halt where (q says so or steps >= halt_max_steps) and steps >= the explored minimum; evaluation: always "
    "halt_max_steps, no q, no exploration",
)
def halting(tiny: Tiny) -> Iterator[str | Note]:
    """The step of the first halt of every row under a halting head fixed to +10 or -10."""
    last = tiny.max_steps
    seen = {(willing, explore): _first_halts(tiny, willing, explore) for willing in (True, False) for explore in (0, 1)}
    if wrong := _unlike(seen[True, 0], {1}):
        yield f"q +10 without exploration: rows halted first at step {wrong}, expected 1"
    expected = set(range(min(2, last), last + 1))
    if wrong := _unlike(seen[True, 1], expected):
        yield f"q +10 with exploration 1: rows halted first at step {wrong}, expected {min(2, last)} to {last}"
    for explore in (0, 1):
        if wrong := _unlike(seen[False, explore], {last}):
            yield f"q -10 with exploration {explore}: rows halted first at step {wrong}, expected halt_max_steps={last}"
    if last > 1:
        yield from _threshold(tiny)
    if tiny.config().arch.get("eval_halting", "fixed") == "fixed":
        yield from _evaluation(tiny, last)


def _first_halts(tiny: Tiny, willing: bool, explore: int) -> list[int]:
    """The step at which each of the B rows halts first; 0 for a row that did not within halt_max_steps + 2."""
    task = _exploring(tiny, explore)
    set_halting(task.module, willing)
    recorder = Recorder(task.module)
    first = torch.zeros(BATCH, dtype=torch.int64)
    for number in range(1, tiny.max_steps + 3):
        step(task, number)
        halted = recorder.calls[-1].output.carry.halted
        first = torch.where((first == 0) & halted, number, first)
    return first.tolist()


def _exploring(tiny: Tiny, explore: float) -> Any:
    try:
        return tiny.build(halt_exploration_prob=explore).task
    except UsageError as error:
        raise Unobservable(f"the architecture takes no halt_exploration_prob ({error})") from error


def _threshold(tiny: Tiny) -> Iterator[str]:
    """The configured probability itself: a row that draws just below it explores, one just above does not."""
    task = tiny.build().task
    set_halting(task.module, willing=True)
    batch = first_batch(task)
    share = tiny.config().arch.get("halt_exploration_prob")
    if "exploration" not in batch or not isinstance(share, int | float) or not 0 < share < 1:
        return
    below = torch.arange(BATCH) % 2 == 0
    batch["exploration"] = torch.where(below, share - 1e-3, share + 1e-3)[:, None].expand(-1, 2).clone()
    with torch.no_grad():
        halted = task.module(batch, None).carry.halted
    if not torch.equal(halted, ~below):
        yield f"arch.halt_exploration_prob={share} is not the probability at which rows explore"


def _evaluation(tiny: Tiny, last: int) -> Iterator[str]:
    """Evaluation takes `last` steps whatever q says, and computes what `last` training steps compute."""
    answers = []
    for willing in (True, False):
        task = _exploring(tiny, 1)
        set_halting(task.module, willing)
        task.module.eval()
        batch = first_batch(task)
        task.module.eval()
        with torch.no_grad():
            output = task.module(batch)
        answers.append(output.logits)
        if wrong := _unlike(output.carry.steps.tolist(), {last}):
            yield f"evaluation with q {'+' if willing else '-'}10 reports {wrong} steps, expected {last} for every row"
    if not torch.equal(*answers):
        yield "the halting head changes the answer of an evaluation: it must always take halt_max_steps"
    if getattr(tiny.model_class, "ENCODER_POLICY", "none") not in ("none", None):
        return  # an encoder may sample in training
    model, state = task.module.train(), None
    with torch.no_grad():
        for _ in range(last):
            output = model(batch, state)
            state = output.carry
    if not torch.allclose(output.logits, answers[-1], atol=CLOSE):
        yield f"evaluation does not answer what {last} training steps answer: it takes another number of steps"


def _unlike(values: list[int], expected: set[int]) -> str:
    """The values outside `expected` as text; empty when there is none."""
    wrong = sorted({value for value in values if value not in expected})
    return ", ".join("never" if value == 0 else str(value) for value in wrong)
