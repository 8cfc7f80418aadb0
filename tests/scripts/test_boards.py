from __future__ import annotations

import numpy as np
import pytest

from scripts._boards import Thought, layout_of, most_interesting

SOLUTION = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2])
WRONG = 2 + (SOLUTION - 1) % 4  # every digit one further: no cell is right


def thought(number: int, *right_cells: int, given: int = 6, q_halt: tuple[float, ...] = ()) -> Thought:
    """An example of which, after each step, the first so many cells are right."""
    cells = np.arange(16)
    answers = np.array([np.where(cells < count, SOLUTION, WRONG) for count in right_cells])
    inputs = np.where(cells < given, SOLUTION, 1)
    return Thought(number, inputs, SOLUTION, answers, np.array(q_halt or [0.1] * len(right_cells)))


@pytest.mark.parametrize(("side", "box"), [(4, (2, 2)), (6, (2, 3)), (9, (3, 3))])
def test_sudoku_layout(side: int, box: tuple[int, int]) -> None:
    layout = layout_of(side * side, side + 2)
    assert (layout.rows, layout.columns, layout.box, layout.blank) == (side, side, box, 1)
    assert layout.symbols == ("?", "", *map(str, range(1, side + 1)))
    assert layout.place(side + 2) == (1, 2)
    assert [line for line in range(side + 1) if layout.heavy(line, along_rows=True)] == list(range(0, side + 1, box[0]))
    assert [line for line in range(side + 1) if layout.heavy(line, along_rows=False)] == list(
        range(0, side + 1, box[1])
    )


@pytest.mark.parametrize(("seq_len", "vocab", "shape"), [(900, 12, (30, 30)), (81, 12, (9, 9)), (10, 5, (3, 4))])
def test_other_data_are_a_grid_of_tokens(seq_len: int, vocab: int, shape: tuple[int, int]) -> None:
    layout = layout_of(seq_len, vocab)
    assert (layout.rows, layout.columns) == shape
    assert layout.box is None
    assert len(layout.symbols) == vocab


def test_cells_of_a_thought() -> None:
    layout = layout_of(16, 6)
    example = thought(0, 6, 10, 16, q_halt=(0.1, 0.6, 0.9))
    assert example.given(layout).nonzero()[0].tolist() == list(range(6))
    assert example.right(1).sum() == 10
    assert not example.changed(0).any()
    assert example.changed(1).nonzero()[0].tolist() == [6, 7, 8, 9]
    assert [example.solved(step) for step in range(3)] == [False, False, True]
    assert (example.solved_from, example.halts_at, example.changes) == (2, 1, 10)


def test_unscored_cells_are_neither_right_nor_changed() -> None:
    base = thought(0, 0, 16)
    labels = np.where(np.arange(16) < 4, SOLUTION, -100)
    example = Thought(0, base.inputs, labels, base.answers, base.q_halt)
    assert example.right(1).sum() == example.changed(1).sum() == 4
    assert example.solved(1)
    assert not example.given(layout_of(16, 6))[4:].any()


@pytest.mark.parametrize(
    ("right", "expected"), [((16, 16), 0), ((3, 16), 1), ((16, 3), None), ((16, 3, 16), 2), ((3,), None)]
)
def test_solved_from_means_to_the_end(right: tuple[int, ...], expected: int | None) -> None:
    assert thought(0, *right).solved_from == expected


def test_most_interesting() -> None:
    early, late = thought(1, 16, 16, 16), thought(2, 6, 8, 16)
    middle, restless = thought(3, 6, 16, 16), thought(4, 6, 12, 7)
    failed = thought(5, 7, 7, 7)
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
