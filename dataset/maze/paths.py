"""Shortest paths in many mazes at once, and what an answer is worth.

N mazes, S side of the grid; a maze is a grid of tokens [N, S, S] (`CHARSET`). A step goes to one of four neighbours.
The length of a path is its number of steps; a path of length L is drawn with L - 1 path cells between start and goal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHARSET = "# SGo"
"""The signs of the published files; token = place + 1, 0 is padding."""
WALL, FREE, START, GOAL, PATH = range(1, len(CHARSET) + 1)
VOCAB_SIZE = len(CHARSET) + 1
UNREACHED = -1
STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0))
"""Up, left, right, down: the order in which ties between shortest paths are broken."""


def _spread(front: np.ndarray) -> np.ndarray:
    """All cells [N, S, S] beside a cell of `front`."""
    beside = np.zeros_like(front)
    beside[:, 1:] |= front[:, :-1]
    beside[:, :-1] |= front[:, 1:]
    beside[:, :, 1:] |= front[:, :, :-1]
    beside[:, :, :-1] |= front[:, :, 1:]
    return beside


def distances(passable: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Steps from the cells of `source` to every cell over `passable` ones, both bool [N, S, S]; int32, -1 unreached."""
    steps = np.where(source, 0, UNREACHED).astype(np.int32)
    front, step = source, 0
    while front.any():
        step += 1
        front = _spread(front) & passable & (steps == UNREACHED)
        steps[front] = step
    return steps


def path_lengths(mazes: np.ndarray) -> np.ndarray:
    """Length of the shortest path from start to goal of each maze [N, S, S]; -1 where there is none. int32 [N]."""
    at_goal = mazes == GOAL
    steps = distances(mazes != WALL, mazes == START)
    return np.where(at_goal, steps, UNREACHED).max(axis=(1, 2))


@dataclass(frozen=True)
class Verdict:
    """Of each of N answers; bool [N]."""

    path: np.ndarray
    """The maze is left as it is, and the path cells are one path from start to goal without detours or strays."""
    shortest: np.ndarray
    """Such a path, and no path is shorter."""


def judge(mazes: np.ndarray, answers: np.ndarray) -> Verdict:
    """What the answers to these mazes are worth, both token grids [N, S, S]; needs no reference answer.

    A set of path cells is a path where the goal can be reached over it in as many steps as it has cells, plus one: then
    no cell is left over, and none gives a short cut.
    """
    drawn = answers == PATH
    kept = (np.where(drawn, FREE, answers) == mazes).reshape(len(mazes), -1).all(axis=1)
    over = drawn | (answers == START) | (answers == GOAL)
    reached = distances(over, answers == START)
    length = np.where(answers == GOAL, reached, UNREACHED).reshape(len(mazes), -1).max(axis=1)
    path = kept & (length == drawn.reshape(len(mazes), -1).sum(axis=1) + 1)
    shortest = path.copy()
    shortest[path] = length[path] == path_lengths(mazes[path])
    return Verdict(path=path, shortest=shortest)


def draw_shortest(maze: np.ndarray) -> np.ndarray:
    """The maze [S, S] with a shortest path drawn in; ties go to the first of up, left, right, down from the start.

    Raises: ValueError where the goal cannot be reached.
    """
    answer = maze.copy()
    to_goal = distances((maze != WALL)[None], (maze == GOAL)[None])[0]
    row, column = np.argwhere(maze == START)[0].tolist()
    left = int(to_goal[row, column])
    if left == UNREACHED:
        raise ValueError("the goal cannot be reached from the start")
    side = len(maze)
    while left > 1:
        left -= 1
        row, column = next(
            (row + down, column + right)
            for down, right in STEPS
            if 0 <= row + down < side and 0 <= column + right < side and to_goal[row + down, column + right] == left
        )
        answer[row, column] = PATH
    return answer
