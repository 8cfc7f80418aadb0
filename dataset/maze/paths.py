"""Shortest paths in batches of mazes, and the judgement of answers.

N mazes, S side of the grid; a maze is a grid of tokens [N, S, S] (`CHARSET`). A step goes to one of four neighbours.
The length of a path is its number of steps; a path of length L is drawn with L - 1 path cells between start and goal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHARSET = "# SGo"
"""The characters of the published files; token = index + 1, 0 is padding."""
WALL, FREE, START, GOAL, PATH = range(1, len(CHARSET) + 1)
VOCAB_SIZE = len(CHARSET) + 1
UNREACHED = -1
STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0))
"""Up, left, right, down: the order in which ties between shortest paths are broken."""


def _neighbours(front: np.ndarray) -> np.ndarray:
    """The neighbours of the cells of `front`; bool [N, S, S]."""
    out = np.zeros_like(front)
    out[:, 1:] |= front[:, :-1]
    out[:, :-1] |= front[:, 1:]
    out[:, :, 1:] |= front[:, :, :-1]
    out[:, :, :-1] |= front[:, :, 1:]
    return out


def distances(passable: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Steps from the cells of `source` through `passable` cells, both bool [N, S, S]; int32, -1 if unreached."""
    steps = np.where(source, 0, UNREACHED).astype(np.int32)
    front, step = source, 0
    while front.any():
        step += 1
        front = _neighbours(front) & passable & (steps == UNREACHED)
        steps[front] = step
    return steps


def path_lengths(mazes: np.ndarray) -> np.ndarray:
    """Length of the shortest path from start to goal in each maze [N, S, S]; int32 [N], -1 if there is none."""
    at_goal = mazes == GOAL
    steps = distances(mazes != WALL, mazes == START)
    return np.where(at_goal, steps, UNREACHED).max(axis=(1, 2))


@dataclass(frozen=True)
class Verdict:
    """The judgement of N answers; bool [N] each."""

    path: np.ndarray
    """The maze is unchanged, and the path cells form one path from start to goal without detours or stray cells."""
    shortest: np.ndarray
    """Such a path, and a shortest one."""


def judge(mazes: np.ndarray, answers: np.ndarray) -> Verdict:
    """Judge answers to mazes, both token grids [N, S, S], without reference answers.

    A set of path cells is a path if the shortest way through it to the goal has one step more than it has cells: then
    no cell is left over, and there is no short cut.
    """
    drawn = answers == PATH
    unchanged = (np.where(drawn, FREE, answers) == mazes).reshape(len(mazes), -1).all(axis=1)
    passable = drawn | (answers == START) | (answers == GOAL)
    reached = distances(passable, answers == START)
    length = np.where(answers == GOAL, reached, UNREACHED).reshape(len(mazes), -1).max(axis=1)
    path = unchanged & (length == drawn.reshape(len(mazes), -1).sum(axis=1) + 1)
    shortest = path.copy()
    shortest[path] = length[path] == path_lengths(mazes[path])
    return Verdict(path=path, shortest=shortest)


def draw_shortest(maze: np.ndarray) -> np.ndarray:
    """The maze [S, S] with a shortest path drawn in; ties go to the first of up, left, right, down from the start.

    Raises: ValueError if the goal cannot be reached.
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
