"""Expands base grids and (transform, colours, offset) into tokens: a few bytes per example instead of two canvases.

A template is a transformed grid with its border, at the top left of the canvas. Translating it by (row, column) shifts
its bytes by row * C + column, recolouring it is one `bytes.translate`: about a microsecond for a canvas of 900 tokens.

N examples, P puzzles, G groups (= tasks), E pairs of all groups, C side of the canvas, T = C * C.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dataset.arc.augment import SWAPS, dihedral
from dataset.arc.tokens import EOS, FIRST_COLOUR, PAD, VOCAB_SIZE

TEMPLATES = 1 << 16
"""Most templates in the cache; one takes about half a kilobyte."""
_HEAD, _REST = bytes((PAD, EOS, FIRST_COLOUR)), bytes(range(VOCAB_SIZE, 256))


@dataclass(eq=False)
class Expander:
    """The examples of one split as tokens."""

    side: int
    cells: np.ndarray
    """The cells of all grids one after another, input and output of each pair in turn; uint8."""
    shapes: np.ndarray
    """Rows and columns of each grid; uint8 [2 E, 2]."""
    augmentations: np.ndarray
    """Transform and new colours of the colours 1 to 9 of each puzzle; uint8 [P, 10]."""
    offsets: np.ndarray
    """Row and column of the first cell of each example; uint8 [N, 2]."""
    puzzle_indices: np.ndarray
    """Offsets of the puzzles into the examples; int64 [P + 1]."""
    group_indices: np.ndarray
    """Offsets of the groups into the puzzles; int64 [G + 1]."""
    _templates: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        """T"""
        return self.side * self.side

    @cached_property
    def _starts(self) -> np.ndarray:
        """Offset of each grid in the cells, [2 E + 1]."""
        return np.concatenate([[0], np.cumsum(self.shapes.astype(np.int64).prod(axis=1))])

    @cached_property
    def _first_pair(self) -> np.ndarray:
        """Index of the first pair of each group, [G]: every puzzle of a group has one example for each of its pairs."""
        first = self.group_indices[:-1]
        sizes = self.puzzle_indices[first + 1] - self.puzzle_indices[first]
        return np.cumsum(sizes) - sizes

    def _grids(self, examples: np.ndarray, labels: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(grid, puzzle, shape [n, 2] after the transform) of the input or label of each example [n]."""
        puzzles = np.searchsorted(self.puzzle_indices, examples, side="right") - 1
        groups = np.searchsorted(self.group_indices, puzzles, side="right") - 1
        grids = 2 * (self._first_pair[groups] + examples - self.puzzle_indices[puzzles]) + labels
        shapes = self.shapes[grids]
        swapped = SWAPS[self.augmentations[puzzles, 0]]
        return grids, puzzles, np.where(swapped[:, None], shapes[:, ::-1], shapes)

    def ends(self) -> np.ndarray:
        """One past the last row and column of each example on the canvas; int64 [N, 2]."""
        examples = np.arange(len(self.offsets))
        largest = np.maximum(*(self._grids(examples, labels)[2] for labels in (False, True)))
        return self.offsets.astype(np.int64) + largest

    def rows(self, examples: np.ndarray, *, labels: bool) -> np.ndarray:
        """The inputs or the labels of examples [n]; uint8 [n, T]."""
        grids, puzzles, shapes = self._grids(examples, labels)
        tids = self.augmentations[puzzles, 0].astype(np.int64)
        colours = (self.augmentations[puzzles, 1:] + np.uint8(FIRST_COLOUR)).tobytes()
        row, column = self.offsets[examples].astype(np.int64).T
        at_edge = column + shapes[:, 1] == self.side
        keys, shifts = grids << 4 | tids << 1 | at_edge, row * self.side + column
        length, templates = self.length, self._templates
        if len(templates) > TEMPLATES:
            templates.clear()
        parts = []
        place = 0
        for key, shift in zip(keys.tolist(), shifts.tolist(), strict=True):
            template = templates.get(key)
            if template is None:
                template = templates[key] = self._template(key)
            table = _HEAD + colours[place : place + 9] + _REST
            place += 9
            parts.append((bytes(shift) + template[: length - shift].translate(table)).ljust(length, b"\0"))
        return np.frombuffer(bytearray().join(parts), dtype=np.uint8).reshape(-1, length)

    def _template(self, key: int) -> bytes:
        """The canvas of a transformed grid, up to the end of its border; `key` as in `rows`."""
        number, tid, at_edge = key >> 4, key >> 1 & 7, key & 1
        grid = self.cells[self._starts[number] : self._starts[number + 1]].reshape(self.shapes[number])
        grid = dihedral(grid, tid) + np.uint8(FIRST_COLOUR)
        height, width = grid.shape
        canvas = np.full((height + 1, self.side), PAD, dtype=np.uint8)
        canvas[:height, :width] = grid
        canvas[height, :width] = EOS
        if not at_edge:  # at the edge it would wrap into the first column of the next row
            canvas[:height, width] = EOS
        return canvas.tobytes()
