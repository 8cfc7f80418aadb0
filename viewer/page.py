"""A model's answers as one static HTML page with every example and every ACT step, which loads nothing.

Without JavaScript the page shows the last step; the script (`page.js`) redraws the same cells for other steps from the
JSON at its end. Colours and sizes are CSS variables, so that the style sheet (`board.css`) fits any board.

T positions of an example, S ACT steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.page import html_page
from viewer.cards import LEVELS, card, chart_x
from viewer.picture import largest_board
from viewer.trajectory import Headline, Layout, Trajectory

COLOURS = {
    "given": ("#e6eaf0", "#2b3543"),
    "unscored": ("#f4f6f8", "#121820"),
    "right": ("#009e73", "#14b184"),
    "right-ink": ("#064a33", "#d3fbe9"),
    "right-note": ("#0a6b4a", "#4fd6a4"),
    "wrong": ("#d55e00", "#e8701a"),
    "wrong-ink": ("#6b1f00", "#ffe3d2"),
    "wrong-mark": ("#b03a00", "#ff9a5c"),
    "changed": ("#7a35c8", "#c9a2ff"),
}
"""Colours of boards and their marks, in addition to those of every page: (in light, in dark mode)."""
SHADE = (0.06, 0.36)
"""Opacity of a cell's colour at confidence 0, and what confidence 1 adds."""
FIRST = 32
"""Arrays are strings with one character per cell: chr(FIRST + value); confidences have LEVELS levels."""
MAX_BYTES = 8e6
MAX_EXAMPLES = 500


def page_capacity(layout: Layout, steps: int) -> int:
    """Most examples of a page that a phone can still open."""
    cell = 2 * steps + (45 if layout.in_place else 75)
    return min(MAX_EXAMPLES, int(MAX_BYTES / (layout.rows * layout.columns * cell + 4000)))


def draw_page(trajectories: Sequence[Trajectory], headline: Headline) -> str:
    """The whole page."""
    here = Path(__file__).parent
    layout, steps = largest_board(trajectories), trajectories[0].steps
    solved = sum(trajectory.solved_from is not None for trajectory in trajectories)
    cards = "\n".join(card(trajectory) for trajectory in trajectories)
    without_script = f"Shown after the last step, {steps}. With JavaScript you can go through all."
    return html_page(
        title=headline.title,
        generator="Loopforge visualize",
        facts=headline.facts,
        body=f"""<noscript><p class="note">{without_script}</p></noscript>
{_controls(steps, len(trajectories), solved)}
{_legend(layout)}
<main>
{cards}
</main>""",
        colours=COLOURS,
        style=board_css(layout) + "\n" + (here / "board.css").read_text(encoding="utf-8") + paint_css(layout),
        script=(here / "page.js").read_text(encoding="utf-8"),
        data=page_data(trajectories),
    )


def page_data(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """The data of the script. Per cell: kind (g given, f to find, u unscored), label, answers and confidences."""
    examples, layout = [], trajectories[0].layout
    for trajectory in trajectories:
        steps = range(trajectory.steps)
        to_find, scored = trajectory.to_find, trajectory.scored
        examples.append(
            {
                "kind": "".join("f" if f else "g" if s else "u" for f, s in zip(to_find, scored, strict=True)),
                "columns": trajectory.layout.columns,
                "labels": _text([max(0, label) for label in trajectory.labels.tolist()]),
                "answers": [_text(trajectory.answers[step].tolist()) for step in steps],
                "sure": [_text((trajectory.confidence[step] * LEVELS).round().astype(int).tolist()) for step in steps],
                "halt": [round(float(q), 4) for q in trajectory.q_halt],
                "found": [trajectory.cells_found(step) for step in steps],
                "wrong": [trajectory.cells_wrong(step) for step in steps],
            }
        )
    return {
        "first": FIRST,
        "levels": LEVELS,
        "symbols": layout.symbols,
        "painted": [bool(paint) for paint in layout.paints],
        "chart": chart_x(trajectories[0].steps),
        "examples": examples,
    }


def _text(values: Sequence[int]) -> str:
    return "".join(chr(FIRST + value) for value in values)


def board_css(layout: Layout) -> str:
    """CSS of the cell size, and of thick lines between boxes."""
    side = max(11.0, min(54.0, 268.0 / layout.columns))
    font = 0.6 if layout.symbol_width == 1 else 1.0 / layout.symbol_width
    boards = 1 if layout.in_place else 2
    rules = [
        f":root{{--columns:{layout.columns}; --side:{side:.1f}px; --font:{font:.2f}; --boards:{boards};"
        f" --shade-least:{SHADE[0]}; --shade-more:{SHADE[1]};}}",
        *(
            f".board td:nth-child({index + 1}){{border-left:2px solid var(--line)}}"
            for index in range(1, layout.columns)
            if layout.heavy(index, along_rows=False)
        ),
        *(
            f".board tr:nth-child({index + 1}) td{{border-top:2px solid var(--line)}}"
            for index in range(1, layout.rows)
            if layout.heavy(index, along_rows=True)
        ),
    ]
    return "\n".join(rules)


def paint_css(layout: Layout) -> str:
    """CSS classes of tokens that are coloured cells; they must come after the rules for right and wrong."""
    return "".join(
        f".board .t{token}{{background-color:{paint[0]};color:{paint[1]}}}\n"
        for token, paint in enumerate(layout.paints)
        if paint
    )


def _controls(steps: int, shown: int, solved: int) -> str:
    """The controls, hidden until the script runs."""
    filters = filter_buttons(("all", "All", shown), ("yes", "Solved", solved), ("no", "Not solved", shown - solved))
    return f"""<nav id="controls" aria-label="Steps and filters" hidden>
<div class="group"><button type="button" id="back" aria-label="one step back">◀</button>
<button type="button" id="play" class="main">Play</button>
<button type="button" id="on" aria-label="one step on">▶</button></div>
<label class="slide"><span class="sr">ACT step</span>
<input id="step" type="range" min="1" max="{steps}" value="{steps}" step="1"></label>
<output id="where" for="step">step {steps} of {steps}</output>
<div class="group" role="group" aria-label="Which examples">{filters}</div>
<div class="group"><button type="button" id="solution" aria-pressed="false">Solution</button>
<button type="button" id="theme">Dark</button></div>
<p class="keys"><kbd>←</kbd> <kbd>→</kbd> step · <kbd>Space</kbd> play · <kbd>Home</kbd> <kbd>End</kbd> first, last ·
<kbd>S</kbd> solution · point at a cell for its numbers</p>
</nav>"""


def filter_buttons(*kinds: tuple[str, str, int]) -> str:
    """A button for each (value of `data-solved`, label, number of cards); `all` is pressed."""
    return "".join(
        f'<button type="button" data-show="{kind}" aria-pressed="{str(kind == "all").lower()}"'
        f"{'' if count else ' disabled'}>{name} {count}</button>"
        for kind, name, count in kinds
    )


def _legend(layout: Layout) -> str:
    shades = "" if layout.paints else ", sure"
    cells = [
        ('<td class="r" style="--p:1">3', f"right{shades}"),
        ('<td class="r" style="--p:.2">3', "right, unsure"),
        ('<td class="w" style="--p:1">3', f"wrong{shades}"),
        ('<td class="w" style="--p:.2">3', "wrong, unsure"),
        ('<td class="r c" style="--p:.6">3', "changed at this step"),
    ]
    if layout.paints:  # a cell with its own colour has no shade for certainty
        cells = cells[::2]
    if layout.in_place:
        cells.insert(0, ('<td class="g">3', "given"))
    items = "".join(
        f'<li><table class="board key" role="presentation"><tr>{cell}</table>{meaning}</li>' for cell, meaning in cells
    )
    lines = (
        '<li><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true"><path class="found" d="M0 5H30"/></svg>'
        "cells to find that are right</li>"
        '<li><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true"><path class="halt" d="M0 5H30"/></svg>'
        "how sure the halting head is; above the thin line it would stop</li>"
    )
    return f'<ul class="legend" aria-label="Legend">{items}{lines}</ul>'
