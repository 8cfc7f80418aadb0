"""A model's answers as a picture: a row for each example, a column for each ACT step, the solution at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from reports.canvas import HAIR, INK, MUTED, PAPER, RIGHT_INK, WRONG_INK, Canvas
from viewer.trajectory import Headline, Layout, Trajectory, View, title_of

TRACK = "#e7ebf0"
GIVEN, UNSCORED = "#e6eaf0", "#f8f9fb"
RIGHT, WRONG = "#cfeee3", "#fbdcc8"
FILLS = {
    "given": (GIVEN, INK),
    "right": (RIGHT, RIGHT_INK),
    "wrong": (WRONG, WRONG_INK),
    "plain": (PAPER, INK),
    "none": (UNSCORED, INK),
}
CHANGED, BAR, BAR_STOP = "#7a35c8", "#8fb0e8", "#2f62c9"

MARGIN, GAP, LABEL = 32.0, 20.0, 116.0
HEAD, COLUMN_HEAD, FOOT, ROW_GAP, LEGEND = 66.0, 24.0, 40.0, 16.0, 36.0
STRIP = 1800.0
"""Most width of the boards of a line; longer episodes continue in the next line."""
MAX_HEIGHT = 8000.0
"""Largest height of a picture that every program can open."""


def largest_board(trajectories: Sequence[Trajectory]) -> Layout:
    """The layout of the trajectories with the rows and columns of the largest boards."""
    layouts = [trajectory.layout for trajectory in trajectories]
    return replace(layouts[0], rows=max(one.rows for one in layouts), columns=max(one.columns for one in layouts))


def cell_side(layout: Layout) -> float:
    """Side of a cell: larger on small boards, so that all boards take about the same room."""
    return max(7.0, min(30.0, 150.0 / max(layout.rows, layout.columns) + 2.0 * layout.symbol_width))


def _row_shape(layout: Layout, steps: int) -> tuple[float, int, float]:
    """(width of a column, columns per line, height of all lines of an example)."""
    column_width = max(cell_side(layout) * layout.columns, 84.0) + GAP
    lines = -(-steps // max(1, int(STRIP / column_width) - 1))
    height = lines * (COLUMN_HEAD + cell_side(layout) * layout.rows + FOOT) + ROW_GAP
    return column_width, -(-steps // lines), height


def picture_capacity(layout: Layout, steps: int) -> int:
    """Most examples of a picture; boards cropped to their grids take less room."""
    return int(MAX_HEIGHT // _row_shape(layout, steps + (not layout.in_place))[2])


def draw_picture(trajectories: Sequence[Trajectory], headline: Headline) -> Image.Image:
    """Draw the picture."""
    layout, answers = largest_board(trajectories), trajectories[0].views[:-1]
    cell = cell_side(layout)
    column_width, per_line, row_height = _row_shape(layout, len(answers))
    board_width, board_height, lines = cell * layout.columns, cell * layout.rows, -(-len(answers) // per_line)

    probe = Canvas(1, 1, 2.0, PAPER)
    text_width = max(probe.text_width(headline.subtitle, 13), probe.text_width(headline.title, 21))
    width = 2 * MARGIN + max(LABEL + (per_line + 1) * column_width - GAP + 10, text_width, 930.0)
    height = MARGIN + HEAD + len(trajectories) * row_height + LEGEND + MARGIN / 2
    canvas = Canvas(width, height, 2.0, PAPER)

    canvas.text(MARGIN, MARGIN + 8, headline.title, size=21, colour=INK)
    canvas.text(MARGIN, MARGIN + 36, headline.subtitle, size=13, colour=MUTED)
    left, top = MARGIN + LABEL, MARGIN + HEAD
    for trajectory in trajectories:
        _row_label(canvas, MARGIN, top + COLUMN_HEAD, trajectory)
        for index, view in enumerate(answers):
            x = left + index % per_line * column_width
            y = top + index // per_line * (COLUMN_HEAD + board_height + FOOT)
            canvas.text(x, y + 10, title_of(view), size=12, colour=MUTED)
            draw_board(canvas, x, y + COLUMN_HEAD, cell, trajectory, view)
            if isinstance(view, int):
                draw_foot(canvas, x, y + COLUMN_HEAD + board_height + 8, board_width, trajectory, view)
        x = left + per_line * column_width + 10
        y = top + (lines - 1) * (COLUMN_HEAD + board_height + FOOT)
        canvas.text(x, y + 10, "solution", size=12, colour=MUTED)
        draw_board(canvas, x, y + COLUMN_HEAD, cell, trajectory, "solution")
        top += row_height
    draw_legend(canvas, top + 4, layout)
    return canvas.image


def _row_label(canvas: Canvas, x: float, y: float, trajectory: Trajectory) -> None:
    verdict = trajectory.outcome.removesuffix(" on")
    canvas.text(x, y + 9, f"example {trajectory.number}", size=14, colour=INK)
    canvas.text(x, y + 29, f"{trajectory.to_find.sum()} cells to find", size=12, colour=MUTED)
    # Only the task: there is no room for the augmentation, which text and page show.
    canvas.text(x, y + 65, trajectory.puzzle.partition("|||")[0][:18], size=12, colour=MUTED)
    canvas.text(x, y + 47, verdict, size=12, colour=WRONG_INK if trajectory.solved_from is None else RIGHT_INK)


def draw_board(canvas: Canvas, left: float, top: float, cell: float, trajectory: Trajectory, view: View) -> None:
    """Draw one board of an example."""
    layout, tokens, kinds = trajectory.layout, trajectory.tokens(view), trajectory.kinds(view)
    changed = trajectory.changed(view) if isinstance(view, int) else np.zeros_like(trajectory.scored)
    places = [(left + column * cell, top + row * cell) for row, column in np.ndindex(layout.rows, layout.columns)]
    for (x, y), token, kind in zip(places, tokens, kinds, strict=True):
        fill, ink = FILLS[kind]
        if kind != "none" and (paint := layout.paint(token)):
            fill, ink = paint
        canvas.box(x, y, cell, cell, fill=fill)
        symbol = layout.symbols[token] if kind != "none" else ""
        size = cell * (0.62 if layout.symbol_width == 1 else 0.44)
        if symbol and ink != fill and size >= 6:
            canvas.text(x + cell / 2, y + cell / 2, symbol, size=size, colour=ink, bold=kind == "given", anchor="mm")
    _grid(canvas, left, top, cell, layout)
    for (x, y), kind, new in zip(places, kinds, changed, strict=True):
        if new:
            canvas.box(x, y, cell, cell, outline=CHANGED, line=max(1.0, cell * 0.1), radius=cell * 0.12)
        if kind == "wrong":
            # A mark in addition to the colour, for eyes and printers that do not separate orange from green; its edge
            # separates it from a coloured cell.
            canvas.corner(x + cell - 0.8, y + 0.8, max(5.0, cell * 0.36), PAPER)
            canvas.corner(x + cell - 0.8, y + 0.8, max(4.0, cell * 0.28), WRONG_INK)


def _grid(canvas: Canvas, left: float, top: float, cell: float, layout: Layout) -> None:
    """Draw thin lines first, so that the box lines are on top."""
    for heavy in (False, True):
        line, colour = (1.6, INK) if heavy else (0.6, HAIR)
        for index in range(layout.columns + 1):
            if layout.heavy(index, along_rows=False) is heavy:
                x = left + index * cell
                canvas.rule(x, top, cell * layout.rows, down=True, line=line, colour=colour)
        for index in range(layout.rows + 1):
            if layout.heavy(index, along_rows=True) is heavy:
                y = top + index * cell
                canvas.rule(left, y, cell * layout.columns, down=False, line=line, colour=colour)


def draw_foot(canvas: Canvas, x: float, y: float, width: float, trajectory: Trajectory, step: int) -> None:
    """Draw the halting bar with its mark at 50 %, and the numbers below."""
    share = float(trajectory.q_halt[step])
    stops = share > 0.5
    canvas.box(x, y, width, 6, fill=TRACK, radius=3)
    if share > 0:
        canvas.box(x, y, max(6.0, width * share), 6, fill=BAR_STOP if stops else BAR, radius=3)
    canvas.box(x + width / 2 - 0.5, y - 2, 1, 10, fill=MUTED)
    errors = trajectory.cells_wrong(step)
    verdict, colour = ("all right", RIGHT_INK) if errors == 0 else (f"{errors} wrong", WRONG_INK)
    canvas.text(x, y + 18, verdict, size=11, colour=colour)
    right = x + max(width, 84.0)
    canvas.text(right, y + 18, f"halt {share:.0%}", size=11, colour=BAR_STOP if stops else MUTED, anchor="rm")


def draw_legend(canvas: Canvas, y: float, layout: Layout, *, short: bool = False) -> None:
    """Draw the legend in one line; `short` abbreviates it."""
    side, x = 16.0, MARGIN
    cells = (["given"] if layout.in_place else []) + ["right", "wrong", "changed"]
    for kind in (*cells, "bar"):
        meaning = kind
        if kind == "bar":
            meaning = (
                "halting"
                if short
                else "how sure the halting head is that the answer is right; beyond the mark it stops"
            )
            canvas.box(x, y + side / 2 - 3, 36, 6, fill=TRACK, radius=3)
            canvas.box(x, y + side / 2 - 3, 27, 6, fill=BAR_STOP, radius=3)
            canvas.box(x + 17.5, y + side / 2 - 5, 1, 10, fill=MUTED)
            step = 36.0
        else:
            fill, ink = FILLS.get(kind, FILLS["right"])
            canvas.box(x, y, side, side, fill=fill, outline=HAIR, line=0.6)
            if kind == "wrong":
                canvas.corner(x + side, y, side * 0.3, WRONG_INK)
            canvas.text(x + side / 2, y + side / 2, "3", size=10, colour=ink, bold=kind == "given", anchor="mm")
            if kind == "changed":
                canvas.box(x, y, side, side, outline=CHANGED, line=1.8, radius=2)
                meaning = "just changed" if short else "changed since the step before"
            step = side
        canvas.text(x + step + 7, y + side / 2, meaning, size=12, colour=MUTED)
        x += step + 7 + canvas.text_width(meaning, 12) + 24
