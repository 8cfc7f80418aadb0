from __future__ import annotations

import numpy as np
import pytest

from viewer.trajectory import Trajectory, cropped, layout_of, most_interesting

SOLUTION = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
LAYOUT = layout_of(16, 6)
WRONG = 2 + (SOLUTION - 1) % 4  # every digit one further: no cell is right


def trajectory(number: int, *right_cells: int, given: int = 6, q_halt: tuple[float, ...] = ()) -> Trajectory:
    """An example of which, after each step, the first so many cells are right."""
    cells = np.arange(16)
    answers = np.array([np.where(cells < count, SOLUTION, WRONG) for count in right_cells])
    inputs = np.where(cells < given, SOLUTION, 1)
    halting = np.array(q_halt or [0.1] * len(right_cells))
    return Trajectory(number, LAYOUT, inputs, SOLUTION, answers, halting, np.full(answers.shape, 0.75))


@pytest.mark.parametrize(("side", "box"), [(4, (2, 2)), (6, (2, 3)), (9, (3, 3))])
def test_sudoku_layout(side: int, box: tuple[int, int]) -> None:
    layout = layout_of(side * side, side + 2)
    assert (layout.rows, layout.columns, layout.box, layout.blank) == (side, side, box, 1)
    assert layout.symbols == ("?", "", *map(str, range(1, side + 1)))
    assert layout.in_place
    assert not layout.paints
    assert [line for line in range(side + 1) if layout.heavy(line, along_rows=True)] == list(range(0, side + 1, box[0]))
    assert [line for line in range(side + 1) if layout.heavy(line, along_rows=False)] == list(
        range(0, side + 1, box[1])
    )


@pytest.mark.parametrize(("seq_len", "vocab", "shape"), [(900, 13, (30, 30)), (81, 7, (9, 9)), (10, 5, (3, 4))])
def test_other_data_are_a_grid_of_tokens(seq_len: int, vocab: int, shape: tuple[int, int]) -> None:
    layout = layout_of(seq_len, vocab)
    assert (layout.rows, layout.columns) == shape
    assert layout.box is None
    assert not layout.in_place
    assert len(layout.symbols) == vocab


def test_mazes_and_arc_are_told_by_their_vocabulary() -> None:
    maze, arc = layout_of(900, 6), layout_of(900, 12)
    assert maze.symbols == ("?", "#", "", "S", "G", "o")
    assert maze.in_place
    assert [token for token in range(6) if maze.paint(token)] == [1]  # walls
    assert arc.symbols[2:] == tuple("0123456789")
    assert not arc.in_place
    assert [token for token in range(12) if arc.paint(token)] == list(range(2, 12))
    assert len({arc.paint(token) for token in range(2, 12)}) == 10


def test_arc_grids_are_cut_to_what_they_hold() -> None:
    canvas = np.zeros((2, 30, 30), int)
    canvas[0, 4:7, 10:12] = 5  # a puzzle of 3 x 2
    canvas[1, 4:6, 10:15] = np.arange(10).reshape(2, 5) + 2  # its solution of 2 x 5
    inputs, labels = canvas.reshape(2, 900)
    answers = np.stack([np.full(900, 3), labels])
    example = cropped(
        1, layout_of(900, 12), inputs, np.where(labels, labels, -100), answers, np.array([0.1, 0.9]), answers / 12
    )
    assert (example.layout.rows, example.layout.columns) == (3, 5)
    assert example.tokens("puzzle").reshape(3, 5)[:, :2].tolist() == [[5, 5]] * 3
    assert example.tokens("solution").tolist() == [*range(2, 12), 0, 0, 0, 0, 0]
    assert example.kinds("solution") == ["right"] * 10 + ["none"] * 5
    assert example.kinds("puzzle") == (["plain"] * 2 + ["none"] * 3) * 3
    assert example.kinds(0) == ["wrong", "right"] + ["wrong"] * 8 + ["none"] * 5
    assert example.views == ["puzzle", 0, 1, "solution"]
    assert example.to_find.sum() == 10  # nothing is given: the answer is another grid
    assert example.confidence[0] == pytest.approx(np.full(15, 0.25))


def test_a_maze_is_whole_and_its_path_is_to_be_found() -> None:
    inputs = np.array([1, 1, 1, 3, 2, 4, 1, 1, 1])
    labels = np.where(inputs == 2, 5, inputs)
    example = cropped(0, layout_of(9, 6), inputs, labels, labels[None], np.array([0.5]), np.ones((1, 9)))
    assert example.to_find.nonzero()[0].tolist() == [4]
    assert example.kinds(0) == ["given"] * 4 + ["right"] + ["given"] * 4
    assert example.views == [0, "solution"]


def test_a_sequence_that_fills_no_rectangle_is_filled_up() -> None:
    tokens = np.arange(1, 11)
    example = cropped(0, layout_of(10, 11), tokens, tokens, tokens[None], np.array([0.5]), np.ones((1, 10)))
    assert (example.layout.rows, example.layout.columns) == (3, 4)
    assert example.kinds(0)[10:] == ["none", "none"]
    assert example.solved(0)


def test_cells_of_a_thought() -> None:
    example = trajectory(0, 6, 10, 16, q_halt=(0.1, 0.6, 0.9))
    assert example.given.nonzero()[0].tolist() == list(range(6))
    assert example.right(1).sum() == 10
    assert (example.to_find.sum(), example.cells_found(1), example.cells_wrong(1)) == (10, 4, 6)
    assert not example.changed(0).any()
    assert example.changed(1).nonzero()[0].tolist() == [6, 7, 8, 9]
    assert [example.solved(step) for step in range(3)] == [False, False, True]
    assert (example.solved_from, example.halts_at, example.changes) == (2, 1, 10)


def test_unscored_cells_are_neither_right_nor_changed() -> None:
    base = trajectory(0, 0, 16)
    labels = np.where(np.arange(16) < 4, SOLUTION, -100)
    example = Trajectory(0, LAYOUT, base.inputs, labels, base.answers, base.q_halt, base.confidence)
    assert example.right(1).sum() == example.changed(1).sum() == 4
    assert example.solved(1)
    assert not example.given[4:].any()


@pytest.mark.parametrize(
    ("right", "expected"), [((16, 16), 0), ((3, 16), 1), ((16, 3), None), ((16, 3, 16), 2), ((3,), None)]
)
def test_solved_from_means_to_the_end(right: tuple[int, ...], expected: int | None) -> None:
    assert trajectory(0, *right).solved_from == expected


def test_most_interesting() -> None:
    early, late = trajectory(1, 16, 16, 16), trajectory(2, 6, 8, 16)
    middle, restless = trajectory(3, 6, 16, 16), trajectory(4, 6, 12, 7)
    failed = trajectory(5, 7, 7, 7)
    pool = [early, failed, middle, restless, late]

    def chosen(count: int) -> list[int]:
        return [t.number for t in most_interesting(pool, count)]

    assert chosen(1) == [2]
    assert chosen(2) == [2, 3]
    assert chosen(3) == [2, 3, 4]  # room for one that fails: the one that changes most
    assert chosen(4) == [2, 3, 1, 4]
    assert chosen(9) == [2, 3, 1, 4, 5]
    assert [t.number for t in most_interesting([failed], 4)] == [5]
    assert [t.number for t in most_interesting([early, middle, late], 3)] == [2, 3, 1]
