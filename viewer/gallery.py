"""Tasks as one static HTML page: a card for each, with buttons that filter solved and unsolved ones.

Grids are small embedded pictures; their text for screen readers and tooltips has the digits.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image, ImageColor

from reports.page import html_page
from viewer.page import filter_buttons
from viewer.task_picture import caption_of
from viewer.tasks import Grid, Record, TaskView
from viewer.trajectory import ARC

MAX_TASKS = 2000
CELL, LARGE, LINE = 14, 210, (85, 85, 85)
"""Pixels of a cell, pixels of the longer side of the largest grid, colour of the lines between cells."""
PALETTE = [channel for paint, _ in ARC for channel in ImageColor.getrgb(paint)] + [*LINE]
COLOURS = {
    "right": ("#0a6b4a", "#4fd6a4"),
    "wrong": ("#b03a00", "#ff9a5c"),
}
STYLE = """
main{display:grid;gap:16px}
article{padding:14px 16px;background:var(--card);border:1px solid var(--hair);border-radius:10px;
  content-visibility:auto;contain-intrinsic-size:auto 320px}
article[hidden]{display:none}
h2{justify-content:flex-start;gap:14px}
.badge{padding:1px 8px;border:1px solid currentColor;border-radius:99px;font-size:12.5px;font-weight:500}
.yes{color:var(--right)} .no{color:var(--wrong)} .unknown{color:var(--muted)}
.grids{display:flex;flex-wrap:wrap;gap:12px 22px;margin-top:10px;align-items:flex-start}
.pair{display:flex;flex-wrap:wrap;gap:10px;align-items:flex-start}
.tests{border-top:1px solid var(--hair);padding-top:10px}
figure{margin:0;display:grid;gap:3px}
figcaption{font-size:12.5px;color:var(--muted)}
figcaption.yes{color:var(--right)} figcaption.no{color:var(--wrong)}
img{max-width:100%;image-rendering:pixelated}
"""
SCRIPT = """"use strict";
(() => {
  const nav = document.querySelector("nav"), cards = [...document.querySelectorAll("article")];
  const search = document.getElementById("search");
  let kind = "all";
  const show = () => {
    let count = 0;
    for (const card of cards) {
      card.hidden = !((kind === "all" || card.dataset.solved === kind) && card.id.includes("task-" + search.value));
      count += !card.hidden;
    }
    document.getElementById("count").textContent = count + " of " + cards.length + " tasks";
  };
  for (const button of nav.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      kind = button.dataset.show;
      nav.querySelectorAll("[data-show]").forEach((other) => other.setAttribute("aria-pressed", other === button));
      show();
    });
  }
  search.addEventListener("input", show);
  nav.hidden = false;
  show();
})();
"""


def draw_gallery(record: Record, title: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page of the first `MAX_TASKS` tasks."""
    tasks = record.tasks[:MAX_TASKS]
    counts = {kind: sum(_kind(task) == kind for task in tasks) for kind in ("yes", "no", "unknown")}
    kinds = [("all", "All", len(tasks)), ("yes", "Solved", counts["yes"]), ("no", "Not solved", counts["no"])]
    kinds += [("unknown", "Unknown", counts["unknown"])] if counts["unknown"] else []
    cards = "\n".join(_card(task) for task in tasks)
    return html_page(
        title=title,
        generator="Loopforge visualize",
        facts=facts,
        body=f"""<nav aria-label="Filter" hidden>
<div class="group" role="group" aria-label="Which tasks">{filter_buttons(*kinds)}</div>
<label>Name begins with <input id="search" type="search" size="12"></label><output id="count"></output></nav>
<main>
{cards}
</main>""",
        colours=COLOURS,
        style=STYLE,
        script=SCRIPT,
    )


def _kind(task: TaskView) -> str:
    return "unknown" if task.solved is None else "yes" if task.solved else "no"


def _card(task: TaskView) -> str:
    side = max(max(len(grid), len(grid[0])) for grid in _grids(task))
    cell = max(3, min(CELL, LARGE // side))
    demonstrations = "".join(
        f'<div class="pair">{_figure(question, cell, f"example {number}")}{_figure(answer, cell, "output")}</div>'
        for number, (question, answer) in enumerate(task.demonstrations, start=1)
    )
    tests = []
    for number, test in enumerate(task.tests, start=1):
        figures = [_figure(test.grid, cell, f"test {number}" if len(task.tests) > 1 else "test")]
        for place, attempt in enumerate(test.attempts, start=1):
            kind = "" if attempt.right is None else "yes" if attempt.right else "no"
            figures.append(_figure(attempt.grid, cell, caption_of(place, attempt, test.votes), kind))
        if not test.attempts:
            figures.append(_figure((), cell, "no answer", "no"))
        if test.solution is not None:
            figures.append(_figure(test.solution, cell, "solution"))
        tests.append(f'<div class="pair">{"".join(figures)}</div>')
    kind = _kind(task)
    return (
        f'<article id="task-{escape(task.name)}" data-solved="{kind}"><h2>{escape(task.name)} '
        f'<span class="badge {kind}">{escape(task.verdict)}</span></h2>'
        f'<div class="grids">{demonstrations}</div><div class="grids tests">{"".join(tests)}</div></article>'
    )


def _grids(task: TaskView) -> list[Grid]:
    pairs = [grid for pair in task.demonstrations for grid in pair]
    answers = [attempt.grid for test in task.tests for attempt in test.attempts]
    solutions = [test.solution or () for test in task.tests]
    return [grid for grid in (*pairs, *(test.grid for test in task.tests), *answers, *solutions) if grid]


def _figure(grid: Grid, cell: int, caption: str, kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    if not grid:
        return f"<figure><figcaption{marked}>{escape(caption)}</figcaption></figure>"
    text = "\n".join("".join(map(str, row)) for row in grid)
    image = base64.b64encode(_png(grid, cell)).decode()
    size = f'width="{len(grid[0]) * cell + 1}" height="{len(grid) * cell + 1}"'
    return (
        f'<figure><figcaption{marked}>{escape(caption)}</figcaption><img {size} src="data:image/png;base64,{image}" '
        f'alt="{text}" title="{text}"></figure>'
    )


def _png(grid: Grid, cell: int) -> bytes:
    """The grid in ten colours, with a line around every cell."""
    rows, columns = len(grid), len(grid[0])
    line = bytes([len(ARC)])
    rule = line * (columns * cell + 1)
    pixels = rule
    for row in grid:
        pixels += (b"".join(line + bytes([colour]) * (cell - 1) for colour in row) + line) * (cell - 1) + rule
    image = Image.frombytes("P", (columns * cell + 1, rows * cell + 1), pixels)
    image.putpalette(PALETTE)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
