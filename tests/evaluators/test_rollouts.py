"""Rollouts: the rules by hand and in plain loops, labels that cannot matter, and symmetries that are undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dataset.format import load_splits
from dataset.maze.build import MazeBuild, build as build_mazes
from dataset.maze.paths import FREE, GOAL, PATH, START, WALL
from dataset.sudoku.build import SudokuBuild, build
from dataset.symmetries import symmetries_of
from engine.io import UsageError
from evaluators.rollouts import ORACLE, Figure, Rollouts, RolloutsConfig
from evaluators.selection import RULES, RolloutOutputs
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM
from models.recursive_reasoning.hrm_feudal import HRMFeudal
from models.recursive_reasoning.trm import TRM
from models.recursive_reasoning.trm_hier6 import TRMHier6
from models.recursive_reasoning.trm_singlez import TRMSingleZ
from tasks.recursive_reasoning.rollouts import print_table

STEPS, TOKENS, WORDS = 4, 16, 6
SMALL = {"hidden_size": 16, "num_heads": 2, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0, "halt_max_steps": STEPS}


def model_of(cls=TRM, **keys):
    torch.manual_seed(0)
    model = cls(cls.Config(**{**SMALL, **keys}), PuzzleShape(TOKENS, WORDS, 1)).eval()
    torch.nn.init.normal_(model.inner.q_head.weight)
    return model


def batch_of(rows: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    board = torch.randint(1, WORDS, (rows, TOKENS), generator=generator, dtype=torch.int32)
    return {"inputs": board, "labels": board.clone(), "puzzle_identifiers": torch.zeros(rows, dtype=torch.int32)}


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "sudoku"
    build(SudokuBuild(output_dir=root, size=4, num_train=8, num_test=8))
    return load_splits([root], "test")


def evaluator_of(model, splits=(), **keys) -> Rollouts:
    evaluator = Rollouts(RolloutsConfig(**{"rollouts": 4, **keys}))
    evaluator.attach(model, None)
    evaluator.begin(splits)
    return evaluator


def test_rules_on_a_case_by_hand():
    # one puzzle of one position, three rollouts of three steps; the answers at the end are 7, 8 and 7
    answers = torch.tensor([[1, 2, 7], [3, 8, 8], [5, 6, 7]])[:, :, None, None]
    q = torch.tensor([[-1.0, -1.0, 1.0], [-2.0, 0.5, -3.0], [-1.0, 0.4, 0.9]])[:, :, None]
    moved = torch.tensor([[torch.inf, 3.0, 2.0], [torch.inf, 2.0, 4.0], [torch.inf, 1.0, 1.0]])[:, :, None]
    rolled = RolloutOutputs(answers, q, moved)
    chosen = {name: (int(rule(rolled)[0]), int(rule(rolled)[1])) for name, rule in RULES.items()}
    assert chosen == {"residual": (7, 3), "q": (7, 3), "first": (8, 2), "vote": (7, 3), "vote_cells": (7, 3)}
    alone = {name: int(rule(rolled.cut(1, 1))[0]) for name, rule in RULES.items()}
    assert set(alone.values()) == {1}


def test_rules_equal_plain_loops():
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 2, (5, 4, 30, 3), generator=generator)
    q, moved = torch.randn(5, 4, 30, generator=generator), torch.rand(5, 4, 30, generator=generator)
    moved[:, 0] = torch.inf
    rolled = RolloutOutputs(answers, q, moved)
    chosen = {name: rule(rolled) for name, rule in RULES.items()}
    for n in range(30):
        ends = [tuple(answers[r, -1, n].tolist()) for r in range(5)]
        sure = [float(q[r, -1, n]) for r in range(5)]
        residual = [float(moved[r, 1:, n].sum()) for r in range(5)]
        step = next((t for t in range(4) if any(q[r, t, n] > 0 for r in range(5))), 3)
        first = max(range(5), key=lambda r: float(q[r, step, n]))
        expected = {
            "residual": ends[residual.index(min(residual))],
            "q": ends[sure.index(max(sure))],
            "first": tuple(answers[first, step, n].tolist()),
            "vote": ends[max(range(5), key=lambda r: (ends.count(ends[r]), sure[r]))],
            "vote_cells": tuple(int(sum(end[t] for end in ends) >= 3) for t in range(3)),
        }
        assert {name: tuple(chosen[name][0][n].tolist()) for name in RULES} == expected
        assert int(chosen["first"][1][n]) == step + 1


@pytest.mark.parametrize("vary", ["init", "noise", "symmetry"])
def test_labels_cannot_change_the_choice(vary, sudoku):
    """Permuted or blanked labels: the same rollouts and the same answer of each rule."""
    model, batch = model_of(), batch_of(8)
    generator = torch.Generator().manual_seed(5)
    chosen = []
    for labels in (
        batch["labels"],
        batch["labels"][torch.randperm(8, generator=generator)],
        batch["labels"] * 0 - 100,
    ):
        evaluator = evaluator_of(model, sudoku, vary=vary)
        seen: list[torch.Tensor] = []

        def kept(puzzles, roll=evaluator.roll, seen=seen):
            assert "labels" not in puzzles
            rolled = roll(puzzles)
            seen += [rule(rolled)[0] for rule in RULES.values()]
            return rolled

        evaluator.roll = kept
        evaluator.update({**batch, "labels": labels}, [], batch["labels"], 7)
        chosen.append(torch.cat(seen))
    assert len(chosen[0]) == 7 * len(RULES)
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


@pytest.mark.parametrize("vary", ["init", "noise", "symmetry"])
def test_the_first_rollout_is_the_plain_one_and_the_others_differ(vary, sudoku):
    model, batch = model_of(), batch_of()
    batch.pop("labels")
    rolled = evaluator_of(model, sudoku, vary=vary).roll(batch)
    plain = list(model.think({**batch, "labels": batch["inputs"]}, STEPS))
    for step, output in enumerate(plain):
        assert torch.allclose(rolled.q[0, step], output.q_halt_logits, atol=1e-5)
        assert torch.equal(rolled.answers[0, step], output.logits.argmax(dim=-1))
    away = torch.linalg.vector_norm(plain[1].logits - plain[0].logits, dim=-1).mean(dim=-1)
    assert torch.allclose(rolled.residual[0, 1], away, atol=1e-5)
    assert rolled.answers.shape == (4, STEPS, 10, TOKENS)
    assert not torch.allclose(rolled.q[0], rolled.q[1], atol=1e-4)
    again = evaluator_of(model, sudoku, vary=vary).roll(batch)
    assert torch.equal(rolled.answers, again.answers), "the same seed gives the same rollouts"
    other = evaluator_of(model, sudoku, vary=vary, seed=1).roll(batch)
    assert not torch.equal(rolled.q, other.q)


@pytest.mark.parametrize("vary", ["init", "noise", "symmetry"])
def test_a_rollout_depends_on_its_puzzle_and_number_alone(vary, sudoku, monkeypatch):
    """Not on the rest of the batch, on what came before, on the rank or on how many rollouts there are."""
    model, batch = model_of(), batch_of()
    batch.pop("labels")
    whole = evaluator_of(model, sudoku, vary=vary).roll(batch)
    monkeypatch.setenv("RANK", "1")
    fewer = evaluator_of(model, sudoku, vary=vary, rollouts=3)
    fewer.roll({name: value[:3] for name, value in batch.items()})
    part = fewer.roll({name: value[6:] for name, value in batch.items()})
    assert torch.allclose(part.q, whole.q[:3, :, 6:], atol=1e-5)
    assert torch.equal(part.answers, whole.answers[:3, :, 6:])


@pytest.mark.parametrize("cls", [TRM, TRMSingleZ, TRMHier6, HRM, HRMFeudal])
def test_every_recursive_model_rolls_out(cls):
    model, batch = model_of(cls), batch_of(4)
    for vary in ("init", "noise"):
        evaluator = evaluator_of(model, vary=vary)
        evaluator.update(batch, [], batch["labels"], 4)
        figures = {(f.rule, f.rollouts, f.steps): f for f in evaluator.figures()}
        most = figures[ORACLE, 4, STEPS]
        assert most.block_calls == 4 * STEPS * model.block_calls
        assert all(figures[rule, 4, STEPS].block_calls <= most.block_calls for rule in RULES)
        assert model.eval_halting == "fixed"


def test_accuracy_and_cost_are_counted():
    """A model that always answers with the input: all is right, except in the row whose label differs."""
    model, batch = model_of(), batch_of(6)
    evaluator = evaluator_of(model, rollouts=2)
    answers = batch["inputs"].long()

    def roll(puzzles):
        low = [int((answers == row).all(dim=1).nonzero()[0]) for row in puzzles["inputs"]]
        shown = answers[low].expand(2, STEPS, -1, -1)
        return RolloutOutputs(shown, torch.ones(shown.shape[:3]), torch.zeros(shown.shape[:3]))

    evaluator.roll = roll
    batch["labels"][0, 0] += 1
    batch["labels"][1] = -100  # nothing to score: does not count
    evaluator.update(batch, [], answers, 5)
    result = evaluator.result()
    assert result["rollouts/exact_accuracy"] == result["rollouts/plain"] == result["rollouts/oracle"] == 3 / 4
    assert result["rollouts/exact_accuracy_low"] < 3 / 4 < result["rollouts/exact_accuracy_high"]
    figures = {(f.rule, f.rollouts, f.steps): f.block_calls for f in evaluator.figures()}
    assert figures["q", 2, STEPS] == 2 * STEPS * model.block_calls
    assert figures["first", 2, STEPS] == 2 * model.block_calls, "all are willing to halt after one step"


def test_of_mazes_any_shortest_path_is_counted_apart(tmp_path, sudoku, capsys) -> None:
    """Three mazes: the reference path, the other way round an open square, and a wall drawn over."""
    build_mazes(MazeBuild(output_dir=tmp_path / "maze", size=6, num_train=2, num_test=4))
    splits = load_splits([tmp_path / "maze"], "test")
    evaluator = evaluator_of(model_of(), splits, rollouts=2)
    inputs = torch.full((3, 16), FREE)
    inputs[:, 5], inputs[:, 10] = START, GOAL
    labels = inputs.clone()
    labels[:, 6] = PATH
    answers = labels.clone()
    answers[1, 6], answers[1, 9] = FREE, PATH
    answers[2, 0] = WALL
    shown = answers.expand(2, STEPS, -1, -1)
    evaluator.roll = lambda puzzles: RolloutOutputs(shown, torch.ones(shown.shape[:3]), torch.zeros(shown.shape[:3]))
    batch = {"inputs": inputs.repeat(2, 1), "labels": labels.repeat(2, 1)}  # so many rows, so many at once
    evaluator.update(batch, [], answers, 3)
    assert {(f.exact, f.shortest_path) for f in evaluator.figures()} == {(1 / 3, 2 / 3)}
    result = evaluator.result()
    assert (result["rollouts/exact_accuracy"], result["rollouts/shortest_path"]) == (1 / 3, 2 / 3)
    print_table(evaluator, evaluator.figures())
    assert "any shortest path instead of the reference path" in capsys.readouterr().out
    plain = evaluator_of(model_of(), sudoku, rollouts=2)  # a 4x4 Sudoku has as many words and cells
    assert not plain.mazes


def test_symmetries_are_those_of_the_data(tmp_path, sudoku):
    rng = np.random.default_rng(0)
    split = sudoku[0]
    drawn = symmetries_of(split.root, split.metadata)(8, rng)
    puzzles, answers = np.array(split.inputs), np.array(split.labels)
    turned, solved = drawn.apply(puzzles), drawn.apply(answers)
    assert ((turned == 1) | (turned == solved)).all()
    assert (drawn.undo(solved) == answers).all()
    assert (np.sort(solved.reshape(8, 4, 4), axis=2) == [2, 3, 4, 5]).all()
    build_mazes(MazeBuild(output_dir=tmp_path / "maze", size=6, num_train=2, num_test=4))
    maze = load_splits([tmp_path / "maze"], "test")[0]
    drawn = symmetries_of(maze.root, maze.metadata)(4, rng)
    boards = np.array(maze.inputs)
    assert (drawn.undo(drawn.apply(boards)) == boards).all()
    assert (np.sort(drawn.apply(boards), axis=1) == np.sort(boards, axis=1)).all()


def test_what_cannot_be_rolled_out_is_refused(sudoku, tmp_path):
    with pytest.raises(UsageError, match="2 ACT steps"):
        evaluator_of(model_of(halt_max_steps=1))
    split = type(sudoku[0])(**{**vars(sudoku[0]), "root": tmp_path})
    (tmp_path / "test").mkdir()
    for name in (sudoku[0].root / "test").iterdir():
        (tmp_path / "test" / name.name).write_bytes(name.read_bytes())
    with pytest.raises(UsageError, match="declares no symmetries"):
        evaluator_of(model_of(), [split], vary="symmetry")
    with pytest.raises(ValueError, match="rollouts=1"):
        RolloutsConfig(rollouts=1)


@pytest.mark.parametrize(
    ("right", "high", "verdict"),
    [
        (0.72, 0.9, "with vary=init, select=q rollouts do harm here"),
        (0.97, 0.99, "the interval holds both"),
        (0.98, 0.99, None),
    ],
)
def test_a_choice_below_the_models_own_answer_is_called_that(
    right: float, high: float, verdict: str | None, capsys
) -> None:
    evaluator = evaluator_of(model_of(), rollouts=2)
    exact = {1: 0.98, 2: right}
    figures = [
        Figure(rule, breadth, STEPS, 48.0 * breadth, exact[breadth], 0.0, high)
        for rule in (*RULES, ORACLE)
        for breadth in exact
    ]
    print_table(evaluator, figures)
    note = f"below the model's own answer (98.00 %): {verdict}\n"
    printed = capsys.readouterr().out
    assert note in printed if verdict else "own answer" not in printed
