"""Boards side by side on a terminal: in colour, or with marks where there is none.

Every cell is drawn as mark + token + mark, so both forms have the same width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from scripts._boards import Layout, Thought

STYLES = {
    "given": "bold",
    "right": "green",
    "wrong": "red",
    "unscored": "dim",
    "line": "bright_black",
    "changed": "reverse",
    "note": "bright_black",
}
GAP = 3


def legend(colour: bool) -> Text:
    """One line that explains the cells."""
    if not colour:
        return Text("legend: ' 3 ' given   ' 3+' right   ' 3-' wrong   '*3+' changed since the last step   ' . ' empty")
    parts = [("3", "given", " given   "), ("3", "right", " right   "), ("3", "wrong", " wrong   ")]
    text = Text()
    for symbol, style, words in parts:
        text.append(symbol, STYLES[style]).append(words, STYLES["note"])
    return text.append("3", "green reverse").append(" changed since the last step", STYLES["note"])


def draw(console: Console, thoughts: Sequence[Thought], layout: Layout) -> None:
    """Print each example: its heading, then the board after every step and the solution, as many as fit in a line."""
    colour = console.color_system is not None
    console.print(legend(colour))
    for thought in thoughts:
        console.print()
        console.print(Text(heading(thought, layout), "bold" if colour else ""))
        blocks = [_block(thought, layout, step, colour) for step in range(thought.steps)]
        blocks.append(_block(thought, layout, None, colour))
        width = max(line.cell_len for block in blocks for line in block) + GAP
        per_line = max(1, (console.width + GAP) // width)
        for begin in range(0, len(blocks), per_line):
            for lines in zip(*blocks[begin : begin + per_line], strict=True):
                joined = Text()
                for line in lines:
                    joined.append_text(line)
                    joined.append(" " * (width - line.cell_len))
                joined.rstrip()
                console.print(joined, soft_wrap=True)


def heading(thought: Thought, layout: Layout) -> str:
    """`example 12: 9 cells to find; right from step 3 on; would halt at step 4`."""
    to_find = int((thought.scored & ~thought.given(layout)).sum())
    solved, halts = thought.solved_from, thought.halts_at
    return "; ".join(
        (
            f"example {thought.number}: {to_find} cells to find",
            "not solved" if solved is None else f"right from step {solved + 1} on",
            "would not halt" if halts is None else f"would halt at step {halts + 1}",
        )
    )


def _block(thought: Thought, layout: Layout, step: int | None, colour: bool) -> list[Text]:
    """One board with its title above and the halting probability below; `step` None is the solution."""
    lines = [Text("solution" if step is None else f"step {step + 1}", STYLES["note"] if colour else "")]
    for row in range(layout.rows):
        if row and layout.heavy(row, along_rows=True) and layout.box:
            lines.append(_separator(layout, colour))
        lines.append(_row(thought, layout, step, row, colour))
    if step is None:
        return [*lines, Text(), Text()]
    to_find, changed = thought.scored & ~thought.given(layout), int(thought.changed(step).sum())
    note = f"{int((thought.right(step) & to_find).sum())}/{int(to_find.sum())} right"
    solved = "green" if colour and thought.solved(step) else STYLES["note"] if colour else ""
    lines.append(Text(note + (f", {changed} new" if changed else ""), solved))
    halting = "bold" if colour and thought.q_halt[step] > 0.5 else STYLES["note"] if colour else ""
    lines.append(Text(f"halt {thought.q_halt[step]:.0%}", halting))
    return lines


def _separator(layout: Layout, colour: bool) -> Text:
    cell = layout.symbol_width + 2
    assert layout.box is not None
    boxes = layout.columns // layout.box[1]
    return Text("+".join("-" * (cell * layout.box[1]) for _ in range(boxes)), STYLES["line"] if colour else "")


def _row(thought: Thought, layout: Layout, step: int | None, row: int, colour: bool) -> Text:
    text = Text()
    for column in range(layout.columns):
        if column and layout.box and layout.heavy(column, along_rows=False):
            text.append("|", STYLES["line"] if colour else "")
        position = row * layout.columns + column
        if position >= len(thought.inputs):
            text.append(" " * (layout.symbol_width + 2))
            continue
        for piece, style in _cell(thought, layout, step, position, colour):
            text.append(piece, style)
    return text


def _cell(thought: Thought, layout: Layout, step: int | None, position: int, colour: bool) -> Iterator[tuple[str, str]]:
    scored, given = bool(thought.scored[position]), bool(thought.given(layout)[position])
    if step is None:
        token, right, changed = int(thought.labels[position]) if scored else 0, True, False
    else:
        token = int(thought.answers[step][position])
        right = bool(thought.right(step)[position])
        changed = bool(thought.changed(step)[position])
    kind = "unscored" if not scored else "wrong" if not right else "given" if given else "right"
    symbol = ("" if not scored else layout.symbols[token] or ".").rjust(layout.symbol_width)
    if colour:
        style = f"{STYLES[kind]} {STYLES['changed']}" if changed else STYLES[kind]
        yield " ", ""
        yield symbol, style
        yield " ", ""
    else:
        mark = {"right": "+", "wrong": "-"}.get(kind, " ") if step is not None else " "
        yield f"{'*' if changed else ' '}{symbol}{mark}", ""
