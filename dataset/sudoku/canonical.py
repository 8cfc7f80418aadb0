"""Canonical forms of Sudoku solutions, equal for two solutions exactly if a symmetry maps one to the other.

Symmetries relabel the digits, permute bands, rows in a band, stacks and columns in a stack, and transpose boards with
square boxes (augment.py draws from them). The canonical form is the least of all symmetric boards, row by row. Its
first row is 1, 2, …; its second depends on where the digits of the first row are in it, for which every order of the
columns is tried; the order of the other rows follows.

N boards, C = n * n cells, K column orders (1,296 on 9x9), P pairs of rows of one band (36 on 9x9, transposes included).
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import numpy as np

from dataset.sudoku.grid import Geometry

CHUNK = 64


@cache
def _column_orders(geo: Geometry) -> np.ndarray:
    """Old column of each new column, for every order of stacks and of the columns in each; int64 [K, n]."""
    w = geo.box_width
    inside = list(permutations(range(w)))
    orders = [
        [stack * w + column for stack, columns in zip(stacks, chosen, strict=True) for column in columns]
        for stacks in permutations(range(geo.size // w))
        for chosen in product(inside, repeat=geo.size // w)
    ]
    return np.array(orders)


def _second_rows(moves: np.ndarray, geo: Geometry) -> np.ndarray:
    """The second row as one number for every column order, with the first relabelled 0, 1, …; [M, n] -> int64 [M, K].

    `moves[m, c]` is the column in which the first row has the digit that the second row has in column c.
    """
    orders = _column_orders(geo)
    places = np.argsort(orders, axis=1)  # new column of each old one
    keys = np.zeros((len(moves), len(orders)), dtype=np.int64)
    for column in range(geo.size):
        keys = keys * geo.size + places[np.arange(len(orders)), moves[:, orders[:, column]]]
    return keys


def _views(boards: np.ndarray, geo: Geometry) -> np.ndarray:
    """The boards and, with square boxes, their transposes; digits from 0; [N, V, n, n]."""
    plain = boards.reshape(-1, 1, geo.size, geo.size).astype(np.int64) - 1
    return plain if geo.box_height != geo.box_width else np.concatenate([plain, plain.swapaxes(2, 3)], axis=1)


def _least(view: np.ndarray, first: int, second: int, orders: np.ndarray, geo: Geometry) -> np.ndarray:
    """The least board over column orders [K', n] with rows `first` and `second` of the view on top; uint8 [C]."""
    n, h = geo.size, geo.box_height
    places = np.argsort(orders, axis=1)
    label = places[:, np.argsort(view[first])]  # [K', n]: new digit of each old one
    boards = label[np.arange(len(orders))[:, None, None], view[:, orders].swapaxes(0, 1)]  # [K', n, n]
    lead = boards[:, :, 0].copy()
    # The first column decides the order of the rows; the two chosen rows and their band come first.
    lead[:, first], lead[:, second] = -2, -1
    bands = lead.reshape(len(orders), n // h, h)
    rows = np.argsort(bands, axis=2) + np.arange(0, n, h)[:, None]
    rows = np.take_along_axis(rows, np.argsort(bands.min(axis=2), axis=1)[:, :, None], axis=1).reshape(len(orders), n)
    sorted_rows = np.take_along_axis(boards, rows[:, :, None], axis=1).reshape(len(orders), -1)
    return sorted_rows[np.lexsort(sorted_rows.T[::-1])[0]].astype(np.uint8) + np.uint8(1)


def canonical(boards: np.ndarray, geo: Geometry) -> np.ndarray:
    """The canonical form of each solution [N, C]; uint8 [N, C]."""
    h = geo.box_height
    if not len(boards):
        return np.empty((0, geo.cells), dtype=np.uint8)
    views = _views(boards, geo)
    pairs = [
        (view, first, second)
        for view in range(views.shape[1])
        for first in range(geo.size)
        for second in range(first // h * h, first // h * h + h)
        if first != second
    ]
    where = np.argsort(views, axis=3)  # column of each digit in each row
    moves = np.stack([np.take_along_axis(where[:, v, a], views[:, v, b], axis=1) for v, a, b in pairs], axis=1)
    kinds, of_pair = np.unique(moves.reshape(-1, geo.size), axis=0, return_inverse=True)
    best = np.concatenate(
        [_second_rows(kinds[low : low + CHUNK], geo).min(axis=1) for low in range(0, len(kinds), CHUNK)]
    )
    of_pair = of_pair.reshape(len(boards), len(pairs))
    out = np.empty((len(boards), geo.cells), dtype=np.uint8)
    known: dict[int, np.ndarray] = {}
    for number in range(len(boards)):
        keys = best[of_pair[number]]
        forms = []
        for pair in np.flatnonzero(keys == keys.min()):
            kind = int(of_pair[number, pair])
            if kind not in known:
                known[kind] = _column_orders(geo)[_second_rows(kinds[kind][None], geo)[0] == best[kind]]
            view, first, second = pairs[pair]
            forms.append(_least(views[number, view], first, second, known[kind], geo))
        out[number] = min(forms, key=bytes)
    return out


def classes(boards: np.ndarray, geo: Geometry) -> list[bytes]:
    """The canonical forms of solutions [N, C] as hashable keys."""
    return [row.tobytes() for row in canonical(boards, geo)]
