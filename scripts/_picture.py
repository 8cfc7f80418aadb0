"""The picture of a model thinking: a row for each example, a column for each ACT step, the solution at the end."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from scripts._boards import Layout, Thought
from scripts._canvas import Canvas

PAPER, INK, MUTED, HAIR, TRACK = "#ffffff", "#1b2430", "#6b7685", "#c5ccd6", "#e7ebf0"
GIVEN, UNSCORED = "#edf0f4", "#f8f9fb"
RIGHT, RIGHT_INK = "#dcf2e4", "#12703a"
WRONG, WRONG_INK = "#fcdeda", "#b4241b"
CHANGED, BAR, BAR_STOP = "#f0a202", "#8fb0e8", "#2f62c9"

MARGIN, GAP, LABEL = 32.0, 20.0, 116.0
HEAD, COLUMN_HEAD, FOOT, ROW_GAP, LEGEND = 66.0, 24.0, 40.0, 16.0, 36.0
STRIP = 1800.0
"""Width that the boards of one line may take; longer episodes go on in a second line."""


def draw_strip(thoughts: Sequence[Thought], layout: Layout, *, title: str, subtitle: str) -> Image.Image:
    """The whole picture. `title` names run and step, `subtitle` says what is shown and how it was chosen."""
    cell = max(7.0, min(30.0, 150.0 / max(layout.rows, layout.columns) + 2.0 * layout.symbol_width))
    board_width, board_height = cell * layout.columns, cell * layout.rows
    column_width = max(board_width, 84.0) + GAP
    steps = max(thought.steps for thought in thoughts)
    lines = -(-steps // max(1, int(STRIP / column_width) - 1))
    per_line = -(-steps // lines)
    row_height = lines * (COLUMN_HEAD + board_height + FOOT) + ROW_GAP

    probe = Canvas(1, 1, 2.0, PAPER)
    text_width = max(probe.text_width(subtitle, 13), probe.text_width(title, 21))
    width = 2 * MARGIN + max(LABEL + (per_line + 1) * column_width - GAP + 10, text_width, 930.0)
    height = MARGIN + HEAD + len(thoughts) * row_height + LEGEND + MARGIN / 2
    canvas = Canvas(width, height, 2.0, PAPER)

    canvas.text(MARGIN, MARGIN + 8, title, size=21, colour=INK)
    canvas.text(MARGIN, MARGIN + 36, subtitle, size=13, colour=MUTED)
    left, top = MARGIN + LABEL, MARGIN + HEAD
    for thought in thoughts:
        _row_label(canvas, MARGIN, top + COLUMN_HEAD, thought, layout)
        for step in range(thought.steps):
            x = left + step % per_line * column_width
            y = top + step // per_line * (COLUMN_HEAD + board_height + FOOT)
            canvas.text(x, y + 10, f"step {step + 1}", size=12, colour=MUTED)
            _board(canvas, x, y + COLUMN_HEAD, cell, thought, layout, step)
            _foot(canvas, x, y + COLUMN_HEAD + board_height + 8, board_width, thought, step)
        x = left + per_line * column_width + 10
        y = top + (lines - 1) * (COLUMN_HEAD + board_height + FOOT)
        canvas.text(x, y + 10, "solution", size=12, colour=MUTED)
        _board(canvas, x, y + COLUMN_HEAD, cell, thought, layout, None)
        top += row_height
    _legend(canvas, MARGIN, top + 4)
    return canvas.image


def _row_label(canvas: Canvas, x: float, y: float, thought: Thought, layout: Layout) -> None:
    to_find = int((thought.scored & ~thought.given(layout)).sum())
    solved = thought.solved_from
    verdict = "not solved" if solved is None else f"right from step {solved + 1}"
    canvas.text(x, y + 9, f"example {thought.number}", size=14, colour=INK)
    canvas.text(x, y + 29, f"{to_find} cells to find", size=12, colour=MUTED)
    canvas.text(x, y + 47, verdict, size=12, colour=WRONG_INK if solved is None else RIGHT_INK)


def _board(
    canvas: Canvas, left: float, top: float, cell: float, thought: Thought, layout: Layout, step: int | None
) -> None:
    """One board; `step` None draws the solution."""
    given, scored = thought.given(layout), thought.scored
    answer = thought.labels if step is None else thought.answers[step]
    right = scored if step is None else thought.right(step)
    marked = []
    for position in range(len(thought.inputs)):
        row, column = layout.place(position)
        x, y = left + column * cell, top + row * cell
        if not scored[position]:
            canvas.box(x, y, cell, cell, fill=UNSCORED)
            continue
        if not right[position]:
            fill, ink = WRONG, WRONG_INK
        elif given[position]:
            fill, ink = GIVEN, INK
        else:
            fill, ink = (RIGHT, RIGHT_INK) if step is not None else (PAPER, RIGHT_INK)
        canvas.box(x, y, cell, cell, fill=fill)
        if not right[position]:
            # A mark beside the colour, for eyes and printers that do not tell red from green.
            canvas.corner(x + cell - 1, y + 1, cell * 0.26, WRONG_INK)
        symbol = layout.symbols[int(answer[position])]
        size = cell * (0.62 if layout.symbol_width == 1 else 0.44)
        if symbol and size >= 6:
            bold = bool(given[position])
            canvas.text(x + cell / 2, y + cell / 2, symbol, size=size, colour=ink, bold=bold, anchor="mm")
        if step is not None and thought.changed(step)[position]:
            marked.append((x, y))
    _grid(canvas, left, top, cell, layout)
    for x, y in marked:
        canvas.box(x, y, cell, cell, outline=CHANGED, line=max(1.0, cell * 0.1), radius=cell * 0.12)


def _grid(canvas: Canvas, left: float, top: float, cell: float, layout: Layout) -> None:
    """Thin lines first, so that the box lines lie on top."""
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


def _foot(canvas: Canvas, x: float, y: float, width: float, thought: Thought, step: int) -> None:
    """The halting bar with its mark at one half, and the numbers below."""
    share = float(thought.q_halt[step])
    stops = share > 0.5
    canvas.box(x, y, width, 6, fill=TRACK, radius=3)
    if share > 0:
        canvas.box(x, y, max(6.0, width * share), 6, fill=BAR_STOP if stops else BAR, radius=3)
    canvas.box(x + width / 2 - 0.5, y - 2, 1, 10, fill=MUTED)
    wrong = int((thought.scored & ~thought.right(step)).sum())
    verdict, colour = ("all right", RIGHT_INK) if wrong == 0 else (f"{wrong} wrong", WRONG_INK)
    canvas.text(x, y + 18, verdict, size=11, colour=colour)
    right = x + max(width, 84.0)
    canvas.text(right, y + 18, f"halt {share:.0%}", size=11, colour=BAR_STOP if stops else MUTED, anchor="rm")


def _legend(canvas: Canvas, x: float, y: float) -> None:
    side = 16.0
    for kind, words in (
        ("given", "given"), ("right", "right"), ("wrong", "wrong"), ("changed", "changed since the step before"),
        ("bar", "how sure the halting head is that the answer is right; beyond the mark it stops"),
    ):  # fmt: skip
        if kind == "bar":
            canvas.box(x, y + side / 2 - 3, 36, 6, fill=TRACK, radius=3)
            canvas.box(x, y + side / 2 - 3, 27, 6, fill=BAR_STOP, radius=3)
            canvas.box(x + 17.5, y + side / 2 - 5, 1, 10, fill=MUTED)
            step = 36.0
        else:
            fill, ink = {"given": (GIVEN, INK), "wrong": (WRONG, WRONG_INK)}.get(kind, (RIGHT, RIGHT_INK))
            canvas.box(x, y, side, side, fill=fill, outline=HAIR, line=0.6)
            if kind == "wrong":
                canvas.corner(x + side, y, side * 0.28, WRONG_INK)
            canvas.text(x + side / 2, y + side / 2, "3", size=10, colour=ink, bold=kind == "given", anchor="mm")
            if kind == "changed":
                canvas.box(x, y, side, side, outline=CHANGED, line=1.8, radius=2)
            step = side
        canvas.text(x + step + 7, y + side / 2, words, size=12, colour=MUTED)
        x += step + 7 + canvas.text_width(words, 12) + 24
