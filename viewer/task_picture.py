"""Tasks as a picture, and as text on a terminal: demonstrations, test grids, attempts and solutions side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image
from rich.console import Console
from rich.text import Text

from reports.canvas import HAIR, INK, MUTED, PAPER, RIGHT_INK, WRONG_INK, Canvas
from viewer.tasks import Attempt, Grid, Record, TaskView
from viewer.trajectory import ARC

MARGIN, GAP, ROW_GAP, CAPTION, TITLE, HEAD = 28.0, 22.0, 14.0, 20.0, 34.0, 64.0
LARGEST_CELL, ROOM, LEAST_CELL = 22.0, 170.0, 6.0
MAX_HEIGHT = 8000.0
DIGITS_FROM = 11.0
"""Smallest side of a cell in which its digit is drawn, for eyes that confuse some of the colours."""
Column = list[tuple[str, Grid | None, str]]
"""A column of grids: (caption, grid, colour of the caption)."""


def columns_of(task: TaskView) -> list[Column]:
    """A column for each demonstration (input, output), two for each test grid (test and solution, attempts)."""
    columns: list[Column] = []
    for number, (question, answer) in enumerate(task.demonstrations, start=1):
        columns.append([(f"example {number}", question, MUTED), ("output", answer, MUTED)])
    for number, test in enumerate(task.tests, start=1):
        test_column: Column = [(f"test {number}" if len(task.tests) > 1 else "test", test.grid, INK)]
        if test.solution is not None:
            test_column.append(("solution", test.solution, MUTED))
        attempts: Column = []
        for place, attempt in enumerate(test.attempts, start=1):
            colour = MUTED if attempt.right is None else RIGHT_INK if attempt.right else WRONG_INK
            attempts.append((caption_of(place, attempt, test.votes), attempt.grid, colour))
        columns += [test_column, attempts or [("no answer", None, WRONG_INK)]]
    return columns


def caption_of(place: int, attempt: Attempt, votes: int) -> str:
    """`attempt 1: 30 of 51 votes, right`"""
    verdict = "" if attempt.right is None else ", right" if attempt.right else ", wrong"
    verdict += "" if attempt.grid else " (no grid)"
    return f"attempt {place}: {attempt.votes} of {votes}{' votes' if votes != 1 else ' vote'}{verdict}"


# --- the picture ------------------------------------------------------------------------------------------------------


def cell_of(task: TaskView) -> float:
    """Side of a cell, the same for all grids of a task and larger for small grids."""
    grids = [grid for column in columns_of(task) for _, grid, _ in column if grid]
    largest = max(max(len(grid), len(grid[0])) for grid in grids)
    return max(LEAST_CELL, min(LARGEST_CELL, ROOM / largest))


def draw_tasks(record: Record, title: str) -> Image.Image:
    """Draw a row for each task, up to MAX_HEIGHT; the heading states how many are shown."""
    probe = Canvas(1, 1, 2.0, PAPER)
    shown: list[TaskView] = []
    height = MARGIN + HEAD + MARGIN
    for task in record.tasks:
        block = TITLE + _height(task) + 2 * ROW_GAP
        if shown and height + block > MAX_HEIGHT:
            break
        shown.append(task)
        height += block
    count = f"{len(shown)} of {len(record.tasks)} tasks; " if len(shown) < len(record.tasks) else ""
    widths = [_width(probe, task) for task in shown]
    subtitle = f"{count}{record.meaning}"
    width = 2 * MARGIN + max(*widths, probe.text_width(title, 20), probe.text_width(subtitle, 12), 420.0)
    canvas = Canvas(width, height, 2.0, PAPER)
    canvas.text(MARGIN, MARGIN + 6, title, size=20, colour=INK)
    canvas.text(MARGIN, MARGIN + 32, subtitle, size=12, colour=MUTED)
    top = MARGIN + HEAD
    for task in shown:
        colour = MUTED if task.solved is None else RIGHT_INK if task.solved else WRONG_INK
        canvas.text(MARGIN, top + 8, task.name, size=15, colour=INK, bold=True)
        canvas.text(MARGIN + probe.text_width(task.name, 15) + 16, top + 8, task.verdict, size=13, colour=colour)
        x, cell = MARGIN, cell_of(task)
        for number, column in enumerate(columns_of(task)):
            if number == len(task.demonstrations):  # a line between demonstrations and tests
                canvas.rule(x - GAP / 2, top + TITLE - 4, _height(task), down=True, line=1.0, colour=HAIR)
            x += _draw_column(canvas, x, top + TITLE, cell, column) + GAP
        top += TITLE + _height(task) + 2 * ROW_GAP
    return canvas.image


def _draw_column(canvas: Canvas, x: float, y: float, cell: float, column: Column) -> float:
    for caption, grid, colour in column:
        canvas.text(x, y + 8, caption, size=11, colour=colour)
        y += CAPTION
        if grid:
            draw_grid(canvas, x, y, cell, grid)
            y += len(grid) * cell
        y += ROW_GAP
    return _column_width(canvas, cell, column)


def draw_grid(canvas: Canvas, left: float, top: float, cell: float, grid: Grid) -> None:
    """Draw coloured cells with thin lines between them."""
    for row, cells in enumerate(grid):
        for column, colour in enumerate(cells):
            x, y = left + column * cell, top + row * cell
            fill, ink = ARC[colour]
            canvas.box(x, y, cell, cell, fill=fill, outline="#555555", line=0.5)
            if cell >= DIGITS_FROM:
                canvas.text(x + cell / 2, y + cell / 2, str(colour), size=cell * 0.5, colour=ink, anchor="mm")


def _column_width(canvas: Canvas, cell: float, column: Column) -> float:
    grids = max((len(grid[0]) * cell for _, grid, _ in column if grid), default=0.0)
    return max(grids, *(canvas.text_width(caption, 11) for caption, _, _ in column))


def _width(canvas: Canvas, task: TaskView) -> float:
    columns = columns_of(task)
    return sum(_column_width(canvas, cell_of(task), column) + GAP for column in columns) - GAP


def _height(task: TaskView) -> float:
    cell = cell_of(task)
    return max(sum(CAPTION + len(grid or ()) * cell + ROW_GAP for _, grid, _ in column) for column in columns_of(task))


# --- the terminal -----------------------------------------------------------------------------------------------------


def print_tasks(console: Console, tasks: Sequence[TaskView]) -> None:
    """Print each task: its name and outcome, its demonstrations, its test grids with attempts and solution."""
    colour = console.color_system is not None
    for task in tasks:
        console.print()
        console.print(Text(f"{task.name}: {task.verdict}", "bold" if colour else ""))
        for lines in _rows(task, console.width, colour):
            console.print(lines, soft_wrap=True)


def _rows(task: TaskView, room: int, colour: bool) -> Iterator[Text]:
    for question, answer in task.demonstrations:
        yield from _side_by_side([("example", question), ("output", answer)], room, colour)
    for test in task.tests:
        blocks: list[tuple[str, Grid]] = [("test", test.grid)]
        blocks += [(caption_of(n, attempt, test.votes), attempt.grid) for n, attempt in enumerate(test.attempts, 1)]
        if test.solution is not None:
            blocks.append(("solution", test.solution))
        yield from _side_by_side(blocks, room, colour)


def _side_by_side(blocks: Sequence[tuple[str, Grid]], room: int, colour: bool) -> Iterator[Text]:
    """Grids side by side, as many as fit into `room` characters, with two characters per cell."""
    widths = [max(len(caption), 2 * len(grid[0]) if grid else 0) + 3 for caption, grid in blocks]
    while blocks:
        count, used = 1, widths[0]
        while count < len(blocks) and used + widths[count] - 3 <= room:
            used += widths[count]
            count += 1
        part, sizes = blocks[:count], widths[:count]
        yield Text("".join(caption.ljust(size) for (caption, _), size in zip(part, sizes, strict=True)).rstrip())
        for row in range(max(len(grid) for _, grid in part)):
            line, gap = Text(), 0  # lines are not padded at their end
            for (_, grid), size in zip(part, sizes, strict=True):
                cells = grid[row] if row < len(grid) else ()
                line.append(" " * gap if cells else "")
                for cell in cells:
                    paint, ink = ARC[cell]
                    line.append(f"{cell} ", f"{ink} on {paint}" if colour else "")
                gap = (0 if cells else gap) + size - 2 * len(cells)
            yield line
        yield Text()
        blocks, widths = blocks[count:], widths[count:]
