"""Curves over training as SVG: logged values faint, smoothed ones strong. The page can change the smoothing.

Lines of more than `MOST` points are reduced to means over pieces of equal length. Histograms of halting steps are drawn
as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean
from reports.overview.collect import Overview
from reports.plots import Axis

Points = Sequence[tuple[float, float]]
MOST, CHARTS = 400, 12
"""Most points of a line; most charts of a page without --curves."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400.0, 250.0, 52.0, 10.0, 10.0, 26.0
"""Size of a chart and its margins for the axes, in pixels on a narrow screen."""
LINES = (
    ("#2f62c9", "#7fb0ff"),
    ("#b03a00", "#ff9a5c"),
    ("#0a6b4a", "#4fd6a4"),
    ("#8a4fbf", "#c9a2f2"),
    ("#8a6200", "#e5c158"),
    ("#c23b7a", "#ff8dbd"),
    ("#00707f", "#5fd3e2"),
    ("#5d6877", "#a3afbf"),
)
"""Colours of cells in light and dark mode; later cells repeat them dashed."""
DASHES = ("", "6 3", "2 3", "9 3 2 3")
USUAL = (
    r"train/(loss|lm_loss)",
    r"(val|eval)/(loss|lm_loss|val_loss|train_loss)",
    r"(val|eval)/(exact_)?accuracy",
    r"eval/\w+@\w+",
    r"train/(exact_)?accuracy",
    r"train/grad_norm",
    r"train/lr",
    r"train/steps",
    r"(train|val|eval)/\w+",
)
"""Patterns of the metrics drawn by default, in order of interest."""
HALTED = re.compile(r"((?:train|val|eval)(?:/[^/]+)?/halted)_step_(\d+)")
"""Metrics that form one histogram over ACT steps."""


@dataclass(frozen=True)
class Line:
    """A run in a chart: the index of its cell, and its points."""

    name: str
    cell: int
    points: Points


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """The exponential moving average with `weight` on the past, with Adam's bias correction."""
    mean, total, smoothed = 0.0, 0.0, []
    for value in values:
        mean, total = weight * mean + (1 - weight) * value, weight * total + 1 - weight
        smoothed.append(mean / total)
    return smoothed


def thin(points: Points) -> list[tuple[float, float]]:
    """At most `MOST` points, as means of neighbours."""
    size = -(-len(points) // MOST)
    pieces = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def chosen_metrics(overview: Overview, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """(drawn, left out): the metrics that match `patterns` (regular expressions), or else up to `CHARTS` of the usual
    ones, beginning with the metric of the comparison. Metrics of time are drawn elsewhere.

    Raises: UsageError if there are metrics and no pattern matches one.
    """
    lengths: dict[str, int] = {}
    for name, points in (pair for run in overview.runs for pair in run.curves.items()):
        if not name.startswith("time/"):
            lengths[name] = max(lengths.get(name, 0), len(points))
    known = sorted(lengths)
    if patterns:
        drawn = [name for pattern in patterns for name in known if re.search(pattern, name)]
        if known and not drawn:
            raise UsageError(
                f"--curves {' '.join(patterns)}: no run has such a metric: {did_you_mean(patterns[0], known)}"
            )
        return list(dict.fromkeys(drawn)), []
    known = [name for name in known if not HALTED.fullmatch(name)]  # bars, not curves
    ordered = [name for pattern in USUAL for name in known if re.fullmatch(pattern, name)]
    first = [name for name in (overview.metric,) if name in known]
    ordered = [name for name in dict.fromkeys([*first, *ordered]) if not _is_flat_zero(overview, name)]
    drawn = [name for name in ordered if lengths[name] > 1][:CHARTS]  # a single point is a final figure
    return drawn, [name for name in known if name not in drawn and lengths[name] > 1]


def _is_flat_zero(overview: Overview, name: str) -> bool:
    """Whether a metric is always zero, such as a count of skipped steps: it is not worth drawing."""
    return not any(value for run in overview.runs for _, value in run.curves.get(name, ()))


def lines_of(overview: Overview, metric: str) -> list[Line]:
    """The runs that have `metric`, in the order of their cells."""
    lines = [
        Line(run.name, cell, thin(run.curves[metric]))
        for run, cell in zip(overview.runs, overview.cell_numbers, strict=True)
        if metric in run.curves
    ]
    return sorted(lines, key=lambda line: line.cell)


def histograms(overview: Overview) -> dict[str, list[Line]]:
    """Name -> the newest histogram of each run that has one: points (ACT step, share of rows that halted at it)."""
    result: dict[str, list[Line]] = {}
    for run, cell in zip(overview.runs, overview.cell_numbers, strict=True):
        bars: dict[str, list[tuple[float, float]]] = {}
        for name, points in run.curves.items():
            if points and (match := HALTED.fullmatch(name)):
                bars.setdefault(match[1], []).append((float(match[2]), points[-1][1]))
        for name, shares in bars.items():
            result.setdefault(name, []).append(Line(run.name, cell, sorted(shares)))
    return {name: sorted(lines, key=lambda line: line.cell) for name, lines in sorted(result.items())}


def draw_histogram(title: str, lines: Sequence[Line]) -> str:
    """HTML of one chart: a line with a point at each ACT step for every run."""
    across = Axis([x for line in lines for x, _ in line.points], LEFT, WIDTH - LEFT - RIGHT)
    up = Axis([0.0, *(y for line in lines for _, y in line.points)], HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT)
    drawn = _grid(across, up)
    for line in lines:
        xs, ys = [across(x) for x, _ in line.points], [up(y) for _, y in line.points]
        style = _style(line)
        name = ", ".join(f"{x:.0f}: {y:.3g}" for x, y in line.points)
        dots = "".join(f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in zip(xs, ys, strict=True))
        drawn += f'<g><title>{escape(line.name)}: {name}</title><path {style} d="{_path(xs, ys)}"/>{dots}</g>'
    caption = f"{title}: share of rows by the ACT step at which they halted, as last logged"
    about = f'role="img" aria-label="{escape(caption)}, {len(lines)} run(s)"'
    svg = f'<svg {about} viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">{drawn}</svg>'
    return f'<figure class="chart"><figcaption>{escape(caption)}</figcaption>{svg}</figure>'


def draw_chart(title: str, lines: Sequence[Line], smoothing: float) -> tuple[str, dict[str, Any]]:
    """(HTML of the chart, data with which the page's script smooths it again).

    Raises: ValueError if there is no line.
    """
    across = Axis([x for line in lines for x, _ in line.points], LEFT, WIDTH - LEFT - RIGHT)
    up = Axis(_shown_values(lines, smoothing), HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT)
    grid = _grid(across, up)
    paths, data = "", []
    for line in lines:
        xs = [across(x) for x, _ in line.points]
        raw = [y for _, y in line.points]
        style = _style(line)
        name = f"<title>{escape(line.name)}: {raw[-1]:.6g} at the end</title>"
        if len(raw) == 1:
            paths += f'<circle {style} cx="{xs[0]:.1f}" cy="{up(raw[0]):.1f}" r="3">{name}</circle>'
        paths += f'<path {style} opacity=".28" d="{_path(xs, map(up, raw))}"/>'
        paths += f'<path {style} data-smooth d="{_path(xs, map(up, smooth(raw, smoothing)))}">{name}</path>'
        data.append([[round(x, 1) for x in xs], [round(up(y), 2) for y in raw]])
    frame = f'<svg x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" '
    frame += f'viewBox="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}">{paths}</svg>'
    about = f"{title} over training steps, {len(lines)} run(s)"
    html = (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><svg role="img" aria-label="{escape(about)}" '
    )
    return f'{html}viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">{grid}{frame}</svg></figure>', {"lines": data}


def _grid(across: Axis, up: Axis) -> str:
    """The grid lines at round values, and the numbers of both axes."""
    grid = "".join(
        f'<path class="hair" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{_tick(tick, up)}</text>'
        for tick in up.ticks
    )
    return grid + "".join(
        f'<text x="{across(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in across.ticks
        if tick == int(tick) and tick >= 0
    )


def _style(line: Line) -> str:
    return f'class="c{line.cell % len(LINES)}" stroke-dasharray="{DASHES[line.cell // len(LINES) % len(DASHES)]}"'


def _shown_values(lines: Sequence[Line], smoothing: float) -> list[float]:
    """The values that the axis must contain: smoothed lines, and logged values without the extreme 1 % at each end."""
    logged = sorted(y for line in lines for _, y in line.points)
    cut = len(logged) // 100
    smoothed = [y for line in lines for y in smooth([y for _, y in line.points], smoothing)]
    shown = [*logged[cut : len(logged) - cut], *smoothed]
    return [float(f"{value:.7g}") for value in shown]  # rounding is not a range: a constant has one tick


def _tick(value: float, axis: Axis) -> str:
    return axis.text(value) if 1e-3 <= abs(axis.high) < 1e5 else f"{value:.2g}"


def _path(xs: Sequence[float], ys: Any) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def line_colours() -> Mapping[str, tuple[str, str]]:
    """CSS variables of the cells' colours."""
    return {f"line-{number}": pair for number, pair in enumerate(LINES)}


def draw_strip(values: Sequence[float], interval: tuple[float, float] | None, axis: Axis, cell: int) -> str:
    """A sample on an axis shared by all rows: a dot for each seed, the mean, the interval."""
    bar = ""
    if interval:
        low, high = (max(axis.start, min(axis.start + axis.length, axis(end))) for end in interval)
        bar = f'<path d="M{low:.1f} 9H{high:.1f}" stroke-width="3" opacity=".5"/>'
    dots = "".join(f'<circle cx="{axis(value):.1f}" cy="9" r="3.2"/>' for value in values)
    mean = f'<path d="M{axis(sum(values) / len(values)):.1f} 2V16" stroke-width="2"/>' if values else ""
    return f'<svg class="strip c{cell % len(LINES)}" viewBox="0 0 180 18" aria-hidden="true">{bar}{dots}{mean}</svg>'
