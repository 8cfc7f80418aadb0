"""One example on the page: its name and outcome, its board after the last step, and its curves over all steps.

The CSS classes of a cell (`board.css`; `page.js` sets the same): g given, r right, w wrong, c changed at this step,
u outside the grid, tN a token with its own colour; `--p` is the model's confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from viewer.trajectory import Trajectory, View

LEVELS = 94
"""Number of levels to which confidences are quantised."""
CHART = (270, 96, 8, 40, 14, 16)
"""Size of the chart: width, height, then the margins left, right, top, bottom."""


def card(trajectory: Trajectory) -> str:
    """The HTML of a card after the last step."""
    last, name = trajectory.steps - 1, f"Example {trajectory.number}"
    solved = trajectory.solved_from is not None
    to_find = int(trajectory.to_find.sum())
    named = f"{escape(trajectory.puzzle)} · " if trajectory.puzzle else ""
    verdict = f"{'✓' if solved else '✗'} {trajectory.outcome}"
    boards = f'<table class="board answer" aria-label="{name}: the model\'s answer">{_rows(trajectory, last)}</table>'
    if not trajectory.layout.in_place:
        puzzle = f'<table class="board" aria-label="{name}: the puzzle">{_rows(trajectory, "puzzle")}</table>'
        pairs = ((puzzle, "puzzle"), (boards, "answer"))
        boards = "\n".join(f"<figure>{board}<figcaption>{caption}</figcaption></figure>" for board, caption in pairs)
    counts = f"{trajectory.cells_found(last)} of {to_find} found · {trajectory.cells_wrong(last)} wrong"
    counts += f" · halt {trajectory.q_halt[last]:.0%}"
    return f"""<article id="example-{trajectory.number}" data-solved="{"yes" if solved else "no"}">
<h2>{name} <span class="badge {"yes" if solved else "no"}">{verdict}</span></h2>
<p class="note">{named}{to_find} cells to find · {trajectory.halting}</p>
<div class="boards">{boards}</div>
<p class="now">{counts}</p>
{_chart(trajectory)}
</article>"""


def _rows(trajectory: Trajectory, view: View) -> str:
    layout, tokens, kinds = trajectory.layout, trajectory.tokens(view).tolist(), trajectory.kinds(view)
    cells = [_cell(trajectory, view, *cell) for cell in zip(range(len(tokens)), tokens, kinds, strict=True)]
    rows = [cells[begin : begin + layout.columns] for begin in range(0, len(cells), layout.columns)]
    return "".join("<tr>" + "".join(row) for row in rows)


def _cell(trajectory: Trajectory, view: View, position: int, token: int, kind: str) -> str:
    if kind == "none":
        return '<td class="u">'
    # A given cell that the model gets wrong is shown as wrong.
    classes = {"given": "g", "right": "r", "wrong": "w", "plain": ""}[kind].split()
    style = ""
    if kind == "wrong" and trajectory.given[position]:
        classes.append("g")
    if isinstance(view, int):
        if trajectory.changed(view)[position]:
            classes.append("c")
        style = f' style="--p:{round(float(trajectory.confidence[view][position]) * LEVELS) / LEVELS:.2g}"'
    if trajectory.layout.paint(token):
        classes.append(f"t{token}")
    return f'<td class="{" ".join(classes)}"{style}>{escape(trajectory.layout.symbols[token])}'


def chart_x(steps: int) -> list[float]:
    """The x position of each step on the chart."""
    width, _, left, right, _, _ = CHART
    return [round(left + (width - left - right) * step / max(1, steps - 1), 1) for step in range(steps)]


def _chart(trajectory: Trajectory) -> str:
    """Both curves over all steps, a cursor at the current step, and labels of the scale."""
    width, height, left, right, top, bottom = CHART
    deep = height - top - bottom
    xs, to_find = chart_x(trajectory.steps), int(trajectory.to_find.sum())
    shares = [trajectory.cells_found(step) / to_find if to_find else 1.0 for step in range(trajectory.steps)]

    def curve(shares: Sequence[float]) -> str:
        points = [f"{x:g} {top + deep * (1 - share):.1f}" for x, share in zip(xs, shares, strict=True)]
        return f"M{'L'.join(points)}" + ("" if len(points) > 1 else "h.1")

    middle, end, foot = top + deep / 2, width - right, height - 3
    return f"""<svg class="chart" viewBox="0 0 {width} {height}" role="img" \
aria-label="Over {trajectory.steps} steps: right cells from {shares[0]:.0%} to {shares[-1]:.0%}, \
halting from {trajectory.q_halt[0]:.0%} to {trajectory.q_halt[-1]:.0%}">
<path class="grid" d="M{left} {top}H{end}M{left} {top + deep}H{end}"/><path class="half" d="M{left} {middle:g}H{end}"/>
<text x="{end + 4}" y="{top + 4}">100 %</text><text x="{end + 4}" y="{middle + 4:g}">50 %</text>\
<text x="{end + 4}" y="{top + deep + 4}">0 %</text>
<text x="{left}" y="{foot}">step 1</text><text x="{end}" y="{foot}" text-anchor="end">{trajectory.steps}</text>
<path class="cursor" d="M0 {top - 6}V{top + deep}" transform="translate({xs[-1]:g})"/>
<path class="found" d="{curve(shares)}"/><path class="halt" d="{curve(trajectory.q_halt.tolist())}"/>
</svg>"""
