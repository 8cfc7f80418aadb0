"""One graph of the whole step: the same numbers as step by step. Here a tape stands in for CUDA's graphs; those
themselves are tested where there is a GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.checkpoint.state_tree import RowSharded, copied
from engine.device import choose_device, make_runtime, staged
from engine.errors import UsageError
from engine.loop import step_graph
from engine.loop.step_graph import StepGraph, check_step_graph, make_step_graph
from engine.loop.trainer import Trainer
from engine.registry import Family
from tasks.language_model.family import FAMILY as LANGUAGE
from tasks.recursive_reasoning import task as puzzle_task
from tasks.recursive_reasoning.family import FAMILY as RECURSIVE
from tests.train.conftest import TINY as TINY_TEXT, place as place, texts as texts
from tests.train.test_learning import TO_HOST_INSIDE, composed
from verification.probes.instance import NoStop

TINY = ("+debug=tiny", "epochs=2", "max_steps=20", "grad_clip=1.0", "log_interval=1", "arch.halt_exploration_prob=0.5")
PUZZLES, FEUDAL = "cfg_pretrain_sudoku_4x4", "cfg_pretrain_sudoku_6x6_feudal"
FROM_HOST = "aten::lift_fresh"
"""What torch.tensor does with numbers of the host: to a GPU it would send them, which waits."""


class Tape(TorchDispatchMode):
    """Records the operations of a function, constants and all, and undoes what they did: a CUDA graph on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.before: dict[int, Any] = {}
        self.made: set[int] = set()
        self.generator = torch.get_rng_state()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in (*TO_HOST_INSIDE, FROM_HOST):
            raise RuntimeError(f"{function._schema.name} is not allowed while a stream is being captured")
        for storage in _storages((args, kwargs)):
            if storage.data_ptr() not in self.made | self.before.keys():
                self.before[storage.data_ptr()] = (storage, storage.clone())
        out = function(*args, **(kwargs or {}))
        self.made |= {storage.data_ptr() for storage in _storages(out)} - self.before.keys()
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        for storage, kept in self.before.values():
            storage.copy_(kept)
        torch.set_rng_state(self.generator)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]


def _storages(tree: Any) -> list[Any]:
    return [tensor.untyped_storage() for tensor in _tensors(tree)]


def record(body: Callable[[], None]) -> Callable[[], None]:
    tape = Tape()
    try:
        with tape:
            body()
    finally:
        tape.undo()
    return tape.replay


class Counted(StepGraph):
    """Remembers which steps were taken by a graph."""

    taken: list[int]

    def step(self, number: int, micro_batches: list[Any], factor: float) -> bool:
        done = super().step(number, micro_batches, factor)
        self.taken = [*getattr(self, "taken", []), *[number] * done]
        return done


def fitted(
    family: Family, config: Any, *, graph: Callable[..., Any] | None
) -> tuple[Trainer, list[tuple[int, dict[str, Any]]]]:
    """A run without evaluations, with the graph recorded by `graph` or without one: the trainer, and what it logged."""
    lines: list[tuple[int, dict[str, Any]]] = []
    runtime = make_runtime(config)
    plan = family.build(config, runtime)
    stop: Any = NoStop()
    trainer = Trainer(plan, config, runtime, save=lambda *_: None, write=lambda *line: lines.append(line), stop=stop)
    trainer.evaluations.step, plan.final_eval = 0, False
    if graph is not None:
        trainer.graph = Counted(trainer, graph)
    trainer.fit()
    measured = ({n: math.nan if v is None else v for n, v in values.items()} for _, values in lines)
    kept = [{n: v for n, v in values.items() if not n.startswith("time/")} for values in measured]
    return trainer, list(zip((step for step, _ in lines), kept, strict=True))


def both(family: Family, recipe: str, *argv: str, rtol: float = 0.0, atol: float = 0.0) -> tuple[Trainer, Trainer]:
    """The run without and with a graph. Each step logs the same values: one that a replay left behind would differ."""
    config = composed(recipe, family, "device=cpu", *argv)
    plain, plain_lines = fitted(family, config, graph=None)
    captured, lines = fitted(family, config, graph=record)
    assert [step for step, _ in lines] == [step for step, _ in plain_lines]
    for (_, values), (_, expected) in zip(lines, plain_lines, strict=True):
        assert values == pytest.approx(expected, rel=rtol, abs=atol, nan_ok=True)
    norms = [values["train/grad_norm"] for _, values in lines if "train/grad_norm" in values]
    assert len({*norms}) == len(norms)
    return plain, captured


def state(trainer: Trainer) -> tuple[list[Tensor], list[Any]]:
    """Every tensor that a checkpoint of the run would hold, and all else: counts, names."""
    tree = [trainer.module.state_dict(), trainer.state_dict(), trainer.ema and trainer.ema.shadow]
    leaves = [leaf.tensor if isinstance(leaf, RowSharded) else leaf for leaf in tree_leaves(tree)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], [x for x in leaves if not isinstance(x, Tensor)]


def assert_equal(one: Trainer, other: Trainer, rtol: float = 0.0, atol: float = 0.0) -> None:
    (tensors, rest), (others, other_rest) = state(one), state(other)
    torch.testing.assert_close(tensors, others, rtol=rtol, atol=atol, equal_nan=True)
    assert rest == other_rest


HEAD = "arch.subgoal_head"
EXACT = {
    "table": (PUZZLES, "arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=2", "ema=true", "lr_warmup_steps=10"),
    "evaluation between": (PUZZLES, "eval_interval=1", "epochs=4", "ema=true"),
    "hrm": (PUZZLES, "arch=hrm", "accumulation=2"),
    "noise": (PUZZLES, "arch.latent_init=random", "arch.update_noise=0.01"),
    "chains": (PUZZLES, "arch.chains=3", "arch.no_ACT_continue=true"),
    "manager": (FEUDAL, f"{HEAD}.manager_period=2", "arch.halt_max_steps=6"),
    "manager by schedule": (FEUDAL, f"{HEAD}.schedule=[1,3]", f"{HEAD}.goal_source=random", f"{HEAD}.displacement=fun"),
}


@pytest.mark.parametrize("case", EXACT)
def test_puzzles_to_the_bit(workplace: Path, case: str) -> None:
    recipe, *argv = EXACT[case]
    with contextlib.chdir(workplace):
        plain, captured = both(RECURSIVE, recipe, *TINY, "stats_interval=5", *argv)
    assert captured.graph.taken == [step for step in range(4, 21) if step % 5]
    assert_equal(plain, captured)


def test_what_the_host_changes_is_captured_anew_or_not_at_all(workplace: Path) -> None:
    """A deeper stage has its own graph, after a warm-up of its own; a late state and a step whose norms are read have
    none, and the steps around them go on from each other's carry."""
    argv = ("arch.cycles_schedule=[[0,1,1],[0.5,1,2]]", "arch.late_states=0.3", "arch.late_steps=[1]")
    with contextlib.chdir(workplace):
        plain, captured = both(RECURSIVE, PUZZLES, *TINY, *argv, "total_steps=20", "stats_interval=5")
    late = [step for step in range(1, 21) if captured.task._late_steps(step)]
    taken = {*captured.graph.taken}
    assert late
    assert not {*late, 5, 10, 15, 20} & taken
    assert taken & {*range(4, 10)}
    assert taken & {*range(14, 20)}
    assert_equal(plain, captured)


def test_muon_within_rounding(workplace: Path) -> None:
    with contextlib.chdir(workplace):
        given = (*TINY, "+optimizer=muon", "max_steps=8")
        plain, captured = both(RECURSIVE, PUZZLES, *given, rtol=1e-3, atol=1e-5)
    assert len(captured.graph.taken) == 5
    assert_equal(plain, captured, rtol=0.01, atol=5e-3)  # Muon's iteration is in bfloat16


@pytest.mark.parametrize(
    "argv", [("arch.dropout=0.1",), ("optimizer=muon", "arch=gpt_fast", "ema=true")], ids=["dropout", "muon"]
)
def test_text_within_rounding(place: Path, argv: tuple[str, ...]) -> None:
    """AdamW's kernels read a rate from the device as float32."""
    given = [
        *TINY_TEXT[1:],
        "max_iters=20",
        "lr_decay_iters=20",
        "warmup_iters=5",
        "log_interval=1",
        "stats_interval=5",
        "eval_interval=99",
    ]
    with contextlib.chdir(place):
        plain, captured = both(LANGUAGE, "cfg_train_cpu", *given, *argv, rtol=1e-3, atol=1e-5)
    assert captured.graph.taken == [step for step in range(4, 21) if step % 5]
    assert_equal(plain, captured, rtol=1e-3, atol=5e-5)


def test_a_step_that_is_called_off_leaves_everything_as_it_was(workplace: Path) -> None:
    """A loss that is not finite within the graph: the weights of the step before, their average, and the count."""
    with contextlib.chdir(workplace):
        config = composed(PUZZLES, RECURSIVE, "device=cpu", *TINY, "max_steps=6", "ema=true")
        trainer, _ = fitted(RECURSIVE, config, graph=record)
        kept = copied({**trainer.module.state_dict(), "average": trainer.ema.state_dict()})
        for carry in trainer.task._carries:
            for latent in carry.latents.values():
                latent.fill_(float("nan"))
            carry.halted.zero_()
        trainer.step = 7
        trainer._train_step()
    assert trainer.graph.taken[-1] == 7
    assert int(trainer.skipped.total()) == 1
    now = {**trainer.module.state_dict(), "average": trainer.ema.state_dict()}
    torch.testing.assert_close(now, kept, rtol=0, atol=0)


def test_what_cannot_be_captured_runs_without(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(step_graph, "print_rank0", lines.append)

    def refuses(body: Callable[[], None]) -> Callable[[], None]:
        def then_fails() -> None:
            body()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        return record(then_fails)

    with contextlib.chdir(workplace):
        argv = (*TINY, "arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=2")
        config = composed(PUZZLES, RECURSIVE, "device=cpu", *argv)
        plain, _ = fitted(RECURSIVE, config, graph=None)
        captured, _ = fitted(RECURSIVE, config, graph=refuses)
    assert not captured.graph.taken
    assert lines == [
        "warning: step_graph=auto failed (operation not permitted when stream is capturing), training continues without"
    ]
    assert_equal(plain, captured)


@dataclass
class Held:
    piece: int
    rows: dict[str, Tensor] = field(compare=False)


def test_a_batch_whose_tensors_cannot_be_found_runs_without(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that knows none of them would see the first batch again and again."""
    task = puzzle_task.RecursiveReasoningTask
    draw, loss = task.micro_batches, task.loss
    monkeypatch.setattr(task, "micro_batches", lambda self, step: [Held(*batch) for batch in draw(self, step)])
    monkeypatch.setattr(task, "loss", lambda self, batch: loss(self, (batch.piece, batch.rows)))
    lines: list[str] = []
    monkeypatch.setattr(step_graph, "print_rank0", lines.append)
    with contextlib.chdir(workplace):
        _, captured = both(RECURSIVE, PUZZLES, *TINY, "max_steps=6")
    assert not captured.graph.taken
    assert lines == [
        "warning: step_graph=auto failed (a micro-batch holds an object of type Held: expected tensors, numbers, text "
        "or None in dicts, lists, tuples), training continues without"
    ]


def test_on_is_refused_with_the_reason(workplace: Path) -> None:
    given = ("+optimizer=muon", "optimizer.rest.name=radam", "device=cpu", "max_steps=1")
    with contextlib.chdir(workplace):
        trainer, _ = fitted(RECURSIVE, composed(PUZZLES, RECURSIVE, *TINY, *given), graph=None)
    trainer.config.step_graph, trainer.last_step = "on", 50
    trainer.runtime = replace(trainer.runtime, device=torch.device("cuda"))
    with pytest.raises(
        UsageError,
        match=r"step_graph=on: .* synchronises with the host at each step; use step_graph=auto, or step_graph=off",
    ):
        make_step_graph(trainer)


def test_on_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="step_graph=on is for device=cuda, this is device=cpu: leave it at auto"):
        composed(PUZZLES, RECURSIVE, "device=cpu", "step_graph=on")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="step_graph=on needs CUDA, this run is on cpu"):
            check_step_graph("on", choose_device("auto").device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    "given",
    [
        EXACT["table"],
        EXACT["chains"],
        EXACT["manager by schedule"],
        (PUZZLES, "+optimizer=muon", "arch.cycles_schedule=[[0,1,1],[0.5,1,2]]"),
        (PUZZLES, "compile=block"),
    ],
    ids=["table", "chains", "manager", "muon", "compiled"],
)
def test_on_a_gpu_fifty_steps_have_the_same_losses(workplace: Path, given: tuple[str, ...]) -> None:
    losses, (recipe, *argv) = [], given
    with contextlib.chdir(workplace):
        for kind in ("off", "on"):
            full = (*TINY, "epochs=4", "max_steps=50", "device=cuda", f"step_graph={kind}", *argv)
            trainer, lines = fitted(RECURSIVE, composed(recipe, RECURSIVE, *full), graph=None)
            losses.append([values["train/loss"] for _, values in lines])
            assert (trainer.graph is not None and trainer.graph.works) is (kind == "on")
    assert len(losses[0]) == 50
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0.02, atol=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", ["off", "on"])
def test_on_a_gpu_batches_sent_beside_the_steps_are_those_that_are_waited_for(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def waited_for(arrays: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        return {name: torch.as_tensor(value).to(device) for name, value in arrays.items()}

    losses = []
    with contextlib.chdir(workplace):
        for sent in (staged, waited_for):
            monkeypatch.setattr(puzzle_task, "staged", sent)
            given = (*TINY, "epochs=4", "max_steps=50", "device=cuda", f"step_graph={kind}")
            _, lines = fitted(RECURSIVE, composed(PUZZLES, RECURSIVE, *given), graph=None)
            losses.append([values["train/loss"] for _, values in lines])
    assert len(losses[0]) == 50
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0.02, atol=0.02)
