"""One example on the page: its name and outcome, its board after the last step, and its curves over all steps.

The classes of a cell (`board.css`; `page.js` sets the same): g given, r right, w wrong, c changed at this step,
u outside of the grid, tN a token with a colour of its own; `--p` is how sure the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from viewer.boards import Thought, View

LEVELS = 94
"""Steps in which a confidence is written."""
CHART = (270, 96, 8, 40, 14, 16)
"""Of the curves: width, height, then the margins left, right, above, below."""


def card(thought: Thought) -> str:
    """The card as it stands after the last step."""
    last, name = thought.steps - 1, f"Example {thought.number}"
    solved = thought.solved_from is not None
    halts = thought.halts_at
    stop = "would not halt" if halts is None else f"would halt at step {halts + 1}"
    to_find = int(thought.to_find.sum())
    verdict = f"{'✓' if solved else '✗'} {thought.outcome}"
    boards = f'<table class="board answer" aria-label="{name}: the model\'s answer">{_rows(thought, last)}</table>'
    if not thought.layout.in_place:
        puzzle = f'<table class="board" aria-label="{name}: the puzzle">{_rows(thought, "puzzle")}</table>'
        pairs = ((puzzle, "puzzle"), (boards, "answer"))
        boards = "\n".join(f"<figure>{board}<figcaption>{says}</figcaption></figure>" for board, says in pairs)
    counts = f"{thought.found(last)} of {to_find} found · {thought.wrong(last)} wrong · halt {thought.q_halt[last]:.0%}"
    return f"""<article id="example-{thought.number}" data-solved="{"yes" if solved else "no"}">
<h2>{name} <span class="badge {"yes" if solved else "no"}">{verdict}</span></h2>
<p class="note">{to_find} cells to find · {stop}</p>
<div class="boards">{boards}</div>
<p class="now">{counts}</p>
{_chart(thought)}
</article>"""


def _rows(thought: Thought, view: View) -> str:
    layout, tokens, kinds = thought.layout, thought.tokens(view).tolist(), thought.kinds(view)
    cells = [_cell(thought, view, *cell) for cell in zip(range(len(tokens)), tokens, kinds, strict=True)]
    rows = [cells[begin : begin + layout.columns] for begin in range(0, len(cells), layout.columns)]
    return "".join("<tr>" + "".join(row) for row in rows)


def _cell(thought: Thought, view: View, position: int, token: int, kind: str) -> str:
    if kind == "none":
        return '<td class="u">'
    # A given cell that the model gets wrong is wrong first of all.
    classes = {"given": "g", "right": "r", "wrong": "w", "plain": ""}[kind].split()
    style = ""
    if kind == "wrong" and thought.given[position]:
        classes.append("g")
    if isinstance(view, int):
        if thought.changed(view)[position]:
            classes.append("c")
        style = f' style="--p:{round(float(thought.confidence[view][position]) * LEVELS) / LEVELS:.2g}"'
    if thought.layout.paint(token):
        classes.append(f"t{token}")
    return f'<td class="{" ".join(classes)}"{style}>{escape(thought.layout.symbols[token])}'


def chart_x(steps: int) -> list[float]:
    """Where each step lies on the chart."""
    width, _, left, right, _, _ = CHART
    return [round(left + (width - left - right) * step / max(1, steps - 1), 1) for step in range(steps)]


def _chart(thought: Thought) -> str:
    """Both curves over all steps, a line where the page stands, the two ends of the scale in words."""
    width, height, left, right, top, bottom = CHART
    deep = height - top - bottom
    xs, to_find = chart_x(thought.steps), int(thought.to_find.sum())
    found = [thought.found(step) / to_find if to_find else 1.0 for step in range(thought.steps)]

    def curve(shares: Sequence[float]) -> str:
        points = [f"{x:g} {top + deep * (1 - share):.1f}" for x, share in zip(xs, shares, strict=True)]
        return f"M{'L'.join(points)}" + ("" if len(points) > 1 else "h.1")

    middle, end, foot = top + deep / 2, width - right, height - 3
    return f"""<svg class="chart" viewBox="0 0 {width} {height}" role="img" \
aria-label="Over {thought.steps} steps: right cells from {found[0]:.0%} to {found[-1]:.0%}, \
halting from {thought.q_halt[0]:.0%} to {thought.q_halt[-1]:.0%}">
<path class="grid" d="M{left} {top}H{end}M{left} {top + deep}H{end}"/><path class="half" d="M{left} {middle:g}H{end}"/>
<text x="{end + 4}" y="{top + 4}">100 %</text><text x="{end + 4}" y="{middle + 4:g}">50 %</text>\
<text x="{end + 4}" y="{top + deep + 4}">0 %</text>
<text x="{left}" y="{foot}">step 1</text><text x="{end}" y="{foot}" text-anchor="end">{thought.steps}</text>
<path class="cursor" d="M0 {top - 6}V{top + deep}" transform="translate({xs[-1]:g})"/>
<path class="found" d="{curve(found)}"/><path class="halt" d="{curve(thought.q_halt.tolist())}"/>
</svg>"""
