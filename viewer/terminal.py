"""Boards side by side on a terminal: in colour, or with marks without colour.

Every cell is drawn as mark + token + mark, so both forms have the same width; boards of many columns omit the first
mark.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from viewer.trajectory import Layout, Trajectory, View, title_of

STYLES = {
    "given": "bold",
    "right": "green",
    "wrong": "underline red",
    "plain": "",
    "none": "",
    "line": "bright_black",
    "changed": "reverse",
    "note": "bright_black",
}
MARKS = {"right": "+", "wrong": "-"}
GAP = 3
WIDE = 16
"""Boards of more columns have narrower cells."""


def make_console(no_color: bool) -> Console:
    """A console of standard output: in colour on a terminal unless forbidden, 120 columns if the width is unknown."""
    terminal = sys.stdout.isatty()
    plain = no_color or not terminal or "NO_COLOR" in os.environ
    width = None if terminal or "COLUMNS" in os.environ else 120
    return Console(color_system=None if plain else "auto", highlight=False, width=width)


def legend(layout: Layout, colour: bool) -> Text:
    """One line that explains the cells."""
    given = layout.in_place
    if not colour:
        entries = ["' 3 ' given"] if given else []
        entries += ["' 3+' right", "' 3-' wrong", "'*3+' changed since the last step" if not narrow(layout) else ""]
        entries += ["' . ' empty"] if "" in layout.symbols[1:] else []
        return Text("legend: " + "   ".join(filter(None, entries)))
    text = Text()
    if layout.paints:
        for mark, kind, meaning in (("-", "wrong", " wrong   "), ("*", "right", " changed since the last step")):
            text.append(mark, STYLES[kind]).append(meaning, STYLES["note"])
        return text
    parts = ([("3", "given", " given   ")] if given else []) + [
        ("3", "right", " right   "),
        ("3", "wrong", " wrong   "),
    ]
    for symbol, style, meaning in parts:
        text.append(symbol, STYLES[style]).append(meaning, STYLES["note"])
    return text.append("3", "green reverse").append(" changed since the last step", STYLES["note"])


def draw(console: Console, trajectories: Sequence[Trajectory]) -> None:
    """Print each example: its heading, then the boards of all steps and the solution, as many as fit in a line."""
    colour = console.color_system is not None
    console.print(legend(trajectories[0].layout, colour))
    for trajectory in trajectories:
        console.print()
        console.print(Text(heading(trajectory), "bold" if colour else ""))
        for line in side_by_side([board_block(trajectory, view, colour) for view in trajectory.views], console.width):
            console.print(line, soft_wrap=True)


def side_by_side(blocks: Sequence[Sequence[Text]], room: int) -> Iterator[Text]:
    """The lines of blocks of equal height, as many side by side as fit into `room` characters."""
    width = max(line.cell_len for block in blocks for line in block) + GAP
    per_line = max(1, (room + GAP) // width)
    for begin in range(0, len(blocks), per_line):
        for lines in zip(*blocks[begin : begin + per_line], strict=True):
            joined = Text()
            for line in lines:
                joined.append_text(line)
                joined.append(" " * (width - line.cell_len))
            joined.rstrip()
            yield joined


def heading(trajectory: Trajectory) -> str:
    """`example 12: 9 cells to find; right from step 3 on; would halt at step 4`."""
    named = f" ({trajectory.puzzle})" if trajectory.puzzle else ""
    outcome = f"{trajectory.outcome}; {trajectory.halting}"
    return f"example {trajectory.number}{named}: {trajectory.to_find.sum()} cells to find; {outcome}"


def board_block(trajectory: Trajectory, view: View, colour: bool) -> list[Text]:
    """A board with its title above and, for an answer, the count of right cells and the halting probability below."""
    layout = trajectory.layout
    lines = [Text(title_of(view), STYLES["note"] if colour else "")]
    for row, cells in enumerate(_cells(trajectory, view, colour)):
        if row and layout.box and layout.heavy(row, along_rows=True):
            lines.append(_separator(layout, colour))
        lines.append(cells)
    if not isinstance(view, int):
        return [*lines, Text(), Text()]
    changed = int(trajectory.changed(view).sum())
    note = f"{trajectory.cells_found(view)}/{trajectory.to_find.sum()} right"
    solved = "green" if colour and trajectory.solved(view) else STYLES["note"] if colour else ""
    lines.append(Text(note + (f", {changed} new" if changed else ""), solved))
    halting = "bold" if colour and trajectory.q_halt[view] > 0.5 else STYLES["note"] if colour else ""
    lines.append(Text(f"halt {trajectory.q_halt[view]:.0%}", halting))
    return lines


def narrow(layout: Layout) -> bool:
    """Whether a board has too many columns for three characters per cell."""
    return layout.columns > WIDE


def _separator(layout: Layout, colour: bool) -> Text:
    cell = layout.symbol_width + 2
    assert layout.box is not None
    boxes = layout.columns // layout.box[1]
    return Text("+".join("-" * (cell * layout.box[1]) for _ in range(boxes)), STYLES["line"] if colour else "")


def _cells(trajectory: Trajectory, view: View, colour: bool) -> Iterator[Text]:
    """The rows of a board."""
    layout, tokens, kinds = trajectory.layout, trajectory.tokens(view).tolist(), trajectory.kinds(view)
    changed = trajectory.changed(view).tolist() if isinstance(view, int) else [False] * len(tokens)
    for row in range(layout.rows):
        text = Text()
        for column in range(layout.columns):
            if column and layout.box and layout.heavy(column, along_rows=False):
                text.append("|", STYLES["line"] if colour else "")
            position = row * layout.columns + column
            kind = kinds[position]
            symbol = "" if kind == "none" else layout.symbols[tokens[position]] or "."
            paint = layout.paint(tokens[position]) if colour and kind != "none" else None
            style = STYLES[kind] if colour else ""
            if paint:
                style = f"{paint[1]} on {paint[0]}"
            elif colour and changed[position]:
                style += " " + STYLES["changed"]
            # The colour of an ARC cell is its token, not whether it is right, so it needs the marks.
            marked = isinstance(view, int) and (not colour or bool(layout.paints))
            before = "*" if marked and changed[position] else " "
            after = MARKS.get(kind, " ") if marked and not (colour and kind == "right") else " "
            padded = symbol.rjust(layout.symbol_width)
            if paint or marked:
                text.append(padded + after if narrow(layout) else before + padded + after, style)
            else:
                text.append("" if narrow(layout) else " ").append(padded, style).append(" ")
        yield text
