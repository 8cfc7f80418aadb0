"""Episodes over two steps: the carry (DYN705, MOD440), whose example a row works on (DYN706, MOD441), the form of the
loop (SCR130), when rows halt (DYN707).

Step 1 and step 2 offer different examples in every row; between them a fixed pattern of rows is declared halted.
"""

from __future__ import annotations

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
)
from verification.probes.registry import Note, observes

CLOSE = 1e-4


def pattern(carry: Any) -> Tensor:
    """[B] bool: rows 0, 3, 6 ... halt after step 1, the others go on."""
    rows: Tensor = torch.arange(len(carry.halted)) % 3 == 0
    return rows


def force(number: int, output: Any) -> Any:
    """After the first forward pass exactly the rows of `pattern` have halted."""
    if number > 0:
        return output
    return replace(output, carry=replace(output.carry, halted=pattern(output.carry)))


@dataclass
class Episode:
    """What two steps of the task, an evaluation and a third step show."""

    loop: list[str] = field(default_factory=list)
    """What is wrong with how the task calls the model (SCR130)."""
    carry: list[str] = field(default_factory=list)
    """What is wrong with what is carried (MOD440)."""
    example: list[str] = field(default_factory=list)
    """Rows that work on another example than their own (MOD441)."""


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
    if second.carry is None:
        if stored:
            seen.carry.append("the second step got no carry: every step starts afresh")
        else:
            seen.loop.append("the returned carry is not stored: every step starts afresh")
        return seen
    _given_back(seen, first, second)
    if seen.carry:
        return seen
    if any(latent.requires_grad for latent in first.output.carry.latents.values()):
        seen.carry.append("the carry's latents hold a graph: memory grows with every step, or the second step fails")
    _examples(seen, first, second)
    _starts(seen, task.module, second)
    _halts(seen, tiny)
    evaluate(task)
    before = len(recorder.calls)
    step(task, 3)
    third = recorder.calls[before]
    if third.carry is None or not torch.equal(third.carry.steps, second.output.carry.steps):
        seen.carry.append("the carry is lost in an evaluation: the step after it starts afresh")
    return seen


def _stored(task: Any, _: Any, recorder: Recorder) -> bool:
    """Whether the task holds what the model has just returned."""
    if not recorder.calls:
        return False
    carry = recorder.calls[-1].output.carry
    parts = {id(carry), *(id(latent) for latent in carry.latents.values())}
    return any(id(one) in parts for one in reachable(vars(task), 5))


def _given_back(seen: Episode, first: Call, second: Call) -> None:
    """Whether the second step is given what the first one returned."""
    kept, given = first.output.carry, second.carry
    if not torch.equal(given.halted, pattern(kept)):
        seen.carry.append("the task changed which rows have halted between two steps")
    elif any(not torch.equal(given.latents[name], value) for name, value in kept.latents.items()):
        seen.carry.append("the latents that a step is given are not those that the step before returned")
    elif not torch.equal(given.steps, kept.steps):
        seen.carry.append("the step counts that a step is given are not those that the step before returned")


def _examples(seen: Episode, first: Call, second: Call) -> None:
    """Whose example and which step count each row has after the second step."""
    kept, now, halted = first.output.carry, second.output.carry, pattern(first.output.carry)
    for name, value in now.data.items():
        if torch.equal(first.batch[name], second.batch[name]):
            raise Unobservable(f"both steps offer the same {name}")
        if not torch.equal(value[~halted], kept.data[name][~halted]):
            seen.example.append(f"continuing rows lost their own {name}")
        if not torch.equal(value[halted], second.batch[name][halted]):
            seen.example.append(f"halted rows did not take the {name} offered to them")
    if not torch.equal(now.steps[~halted], kept.steps[~halted] + 1):
        seen.carry.append("the step count of continuing rows did not go up by one")
    if not bool((now.steps[halted] == 1).all()):
        seen.carry.append("the step count of rows with a fresh example is not 1")


def _starts(seen: Episode, model: Any, second: Call) -> None:
    """What the rows of the second step depend on: the latents carried to them, and nothing of the incoming batch."""
    generator = torch.Generator().manual_seed(3)
    carried, halted = second.carry.latents, second.carry.halted
    noise = {name: torch.randn(latent.shape, generator=generator).to(latent.dtype) for name, latent in carried.items()}
    disturbed = replace(second.carry, latents={name: latent + noise[name] for name, latent in carried.items()})
    own = {**second.batch, **{name: value for name, value in second.carry.data.items() if name in second.batch}}
    offered = {name: torch.where(_like(halted, value), value, value.roll(1, 0)) for name, value in second.batch.items()}
    with torch.no_grad():
        plain, other, fresh = (model(second.batch, state).logits for state in (second.carry, disturbed, None))
        anew, elsewhere = model(own, None).logits, model(offered, second.carry).logits
    depends = (plain != other).flatten(1).any(dim=1)
    if bool(depends[halted].any()) or not torch.allclose(plain[halted], fresh[halted], atol=CLOSE):
        seen.carry.append("rows that halted did not start from fresh latents: the example before leaks into the next")
    if not bool(depends[~halted].all()):
        seen.carry.append("continuing rows do not depend on the latents carried to them: these were reset")
    elif torch.equal(plain[~halted], anew[~halted]):
        seen.carry.append("continuing rows answer as in a first step: the returned latents are not what was computed")
    if not torch.equal(plain[~halted], elsewhere[~halted]):
        seen.example.append("continuing rows are computed from the incoming batch, not from their own example")


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (value.dim() - 1))


def _halts(seen: Episode, tiny: Tiny) -> None:
    """Whether rows that do not want to halt are carried on."""
    if tiny.max_steps < 2:
        return
    try:
        task = _exploring(tiny, 0)
        set_halting(task.module, willing=False)
    except Unobservable:
        return
    recorder = Recorder(task.module)
    step(task, 1)
    if bool(recorder.calls[-1].output.carry.halted.all()):
        seen.carry.append("every row has halted after one step, whatever q says: nothing is carried")


STORE = "store output.carry in the task, give it to the next forward, and choose row by row with carry.halted"


@observes(
    "DYN705",
    act=True,
    fix=STORE,
    passed="continuing rows keep example, steps and latents; halted rows, and only they, start afresh",
)
def carry(tiny: Tiny) -> Iterator[str | Note]:
    """Everything that is wrong with two steps."""
    seen = episode(tiny)
    yield from (*seen.loop, *seen.carry, *(text for text in seen.example if "computed from" not in text))


@observes("SCR130", act=True, after=("SCR120", "MOD420", "MOD421"), passed="")
def loop_form(tiny: Tiny) -> Iterator[str | Note]:
    """One call of the model for each step, with a stored carry."""
    declared, about = getattr(tiny.model_class, "ACT_MODE", None), tiny.task_class.loss
    if declared == "fixed":
        raise Unobservable("a fixed model is called in a loop over one batch")
    name = f"{tiny.task_class.__name__}.loss"
    for text in episode(tiny).loop:
        yield Note("FAIL", f"{name}: {text}; the model is {declared}", about)
    yield Note("PASS", f"{name}: one call for each step, the carry is stored; the model is {declared}", about)


@observes("MOD440", act=True, after=("SCR120", "MOD420", "MOD421", "SCR130"), passed="")
def persistence(tiny: Tiny) -> Iterator[str | Note]:
    """The carry is complete, new, stored and given back."""
    if getattr(tiny.model_class, "ACT_MODE", None) == "fixed":
        raise Unobservable("a fixed model begins every batch with a fresh carry")
    name = tiny.kept.get("train_forward") or "a training step"
    for text in episode(tiny).carry:
        of_task = "given" in text or "got no carry" in text or "the task" in text or "evaluation" in text
        yield Note("FAIL", text, tiny.task_class.loss if of_task else getattr(tiny.model_class, name, None))
    yield Note("PASS", f"{name} returns a complete new carry and {tiny.task_class.__name__} stores it")


@observes(
    "MOD441",
    act=True,
    after=("SCR120", "MOD420", "MOD421", "SCR130", "MOD440"),
    passed="the loss compares with the labels of each row's own example",
)
def own_example(tiny: Tiny) -> Iterator[str | Note]:
    """What a row is computed from and compared with."""
    if getattr(tiny.model_class, "ACT_MODE", None) == "fixed":
        raise Unobservable("a fixed model begins every batch with a fresh carry")
    if problems := episode(tiny).example:
        yield from problems
    else:
        yield from labels(tiny)


@observes(
    "DYN706",
    act=True,
    after=("SCR120", "MOD420", "MOD421", "SCR130", "MOD440", "MOD441"),
    about="loss",
    fix="take labels from output.carry.data, not from the incoming batch",
    passed="the loss reads each row's own labels: those of continuing rows in the incoming batch change nothing",
)
def labels(tiny: Tiny) -> Iterator[str | Note]:
    """The loss of step 2 with junk labels in the rows that go on, then in the rows that start."""

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


@observes(
    "DYN707",
    act=True,
    after=("SCR120", "MOD420", "MOD421", "MOD422", "SCR130", "MOD440", "MOD450"),
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
    yield from evaluations(tiny)


def _first_halts(tiny: Tiny, willing: bool, explore: int) -> list[int]:
    """The step at which each of the B rows halts first; 0 for a row that did not within halt_max_steps + 2."""
    task = _exploring(tiny, explore)
    set_halting(task.module, willing)
    recorder = Recorder(task.module)
    first = torch.zeros((), dtype=torch.int64)
    for number in range(1, tiny.max_steps + 3):
        step(task, number)
        halted = recorder.calls[-1].output.carry.halted
        first = torch.where((first == 0) & halted, number, first)
    firsts: list[int] = first.tolist()
    return firsts


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
    below = torch.arange(len(batch["exploration"])) % 2 == 0
    batch["exploration"] = torch.where(below, share - 1e-3, share + 1e-3)[:, None].expand(-1, 2).clone()
    with torch.no_grad():
        halted = task.module(batch, None).carry.halted
    if not torch.equal(halted, ~below):
        yield f"arch.halt_exploration_prob={share} is not the probability at which rows explore"


def evaluations(tiny: Tiny) -> Iterator[str]:
    """Evaluation takes `last` steps whatever q says, and computes what `last` training steps compute."""
    answers, last = [], tiny.max_steps
    for willing in (True, False) if tiny.config().arch.get("eval_halting", "fixed") == "fixed" else (False,):
        task = _exploring(tiny, 1)
        set_halting(task.module, willing)
        batch = first_batch(task)
        output = task.module.eval()(batch)
        answers.append(output.logits)
        if output.logits.requires_grad:
            yield "an evaluation keeps gradients: it is not under no_grad"
        if wrong := _unlike(output.carry.steps.tolist(), {last}):
            yield f"evaluation with q {'+' if willing else '-'}10 reports {wrong} steps, expected {last} for every row"
    if not torch.equal(answers[0], answers[-1]):
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
