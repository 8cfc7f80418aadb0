"""Pictures of a comparison: rows of points with their interval, and the curve of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from reports.canvas import HAIR, INK, MUTED, PAPER, WRONG_INK, Canvas
from reports.statistics import Summary

POINT, MEAN = "#8fb0e8", "#2f62c9"
MARGIN, ROW, PANEL, GAP, HEAD, FOOT = 28.0, 34.0, 300.0, 44.0, 96.0, 62.0


@dataclass(frozen=True)
class Row:
    """A row of a panel: the points of all seeds, their mean and its interval; without points, an empty row."""

    points: Sequence[float] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None


def row_of(summary: Summary | None) -> Row:
    """A sample with its mean and t interval; an empty row if there is none."""
    if summary is None or summary["mean"] is None:
        return Row()
    return Row(summary["values"], summary["mean"], summary["t"])


@dataclass(frozen=True)
class Panel:
    """A column of rows with its own axis; `lines`: values to mark, for example zero."""

    title: str
    rows: Sequence[Row]
    lines: Sequence[float] = field(default=())


class Axis:
    """Maps values to positions: a range slightly wider than the values, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, length: float) -> None:
        low, high = min(values), max(values)
        pad = 0.08 * (high - low) or max(0.02, abs(high) * 0.05)
        self.low, self.high, self.start, self.length = low - pad, high + pad, start, length
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step)
        self.digits = max(0, -math.floor(math.log10(step * 1.001)))
        last = math.floor(self.high / step)
        self.ticks = [round(k * step, self.digits) + 0.0 for k in range(first, last + 1)]  # + 0.0: no minus zero

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * self.length

    def text(self, tick: float) -> str:
        return f"{tick:.{self.digits}f}"


def dot(canvas: Canvas, x: float, y: float, size: float, fill: str, line: str = PAPER) -> None:
    """Draw a round point centred on (x, y) with an outline of colour `line`."""
    width = 0.7 if line == PAPER else 1.5
    canvas.box(x - size / 2, y - size / 2, size, size, fill=fill, outline=line, line=width, radius=size / 2)


def draw_rows(title: str, subtitle: str, labels: Sequence[str], panels: Sequence[Panel]) -> Image.Image:
    """Draw a row for each label, with the panels side by side."""
    probe = Canvas(1, 1, 2.0, PAPER)
    left = MARGIN + max(probe.text_width(label, 13) for label in labels) + 24
    width = left + len(panels) * (PANEL + GAP) - GAP + MARGIN
    width = max(width, 2 * MARGIN + max(probe.text_width(title, 20), probe.text_width(subtitle, 12)))
    canvas = Canvas(width, HEAD + len(labels) * ROW + FOOT, 2.0, PAPER)
    canvas.text(MARGIN, 28, title, size=20, colour=INK)
    canvas.text(MARGIN, 52, subtitle, size=12, colour=MUTED)
    for number, label in enumerate(labels):
        canvas.text(left - 24, HEAD + (number + 0.5) * ROW, label, size=13, colour=INK, anchor="rm")
    for number, panel in enumerate(panels):
        _panel(canvas, panel, left + number * (PANEL + GAP))
    return canvas.image


def _panel(canvas: Canvas, panel: Panel, left: float) -> None:
    shown = [v for row in panel.rows for v in (*row.points, *(row.interval or ()))] + list(panel.lines)
    axis = Axis(shown or [0.0, 1.0], left, PANEL)
    bottom = HEAD + len(panel.rows) * ROW
    canvas.text(left + PANEL / 2, HEAD - 16, panel.title, size=13, colour=INK, anchor="mm")
    for tick in axis.ticks:
        canvas.rule(axis(tick), HEAD, bottom - HEAD, down=True, line=0.6, colour=HAIR)
        canvas.text(axis(tick), bottom + 14, axis.text(tick), size=11, colour=MUTED, anchor="mm")
    for value in panel.lines:
        canvas.rule(axis(value), HEAD, bottom - HEAD, down=True, line=1.4, colour=WRONG_INK)
    for number, row in enumerate(panel.rows):
        y = HEAD + (number + 0.5) * ROW
        if row.interval:
            low, high = map(axis, row.interval)
            canvas.rule(low, y, high - low, down=False, line=2.2, colour=MEAN)
        for point in row.points:
            dot(canvas, axis(point), y - 7, 8, POINT)
        if row.mean is not None:
            canvas.rule(axis(row.mean), y - 5, 13, down=True, line=3.0, colour=MEAN)


@dataclass(frozen=True)
class Column:
    """A value of a sweep; a column that is `apart`, such as a baseline, is not joined to the curve."""

    label: str
    points: Sequence[float]
    apart: bool = False


def draw_curve(title: str, subtitle: str, axis_title: str, columns: Sequence[Column]) -> Image.Image:
    """Draw the points of all seeds above each value, the curve of their means, and n below."""
    probe = Canvas(1, 1, 2.0, PAPER)
    left, top, high, wide = MARGIN + 60, HEAD, 300.0, 96.0
    width = max(left + len(columns) * wide + MARGIN, 2 * MARGIN + probe.text_width(subtitle, 12), 560.0)
    canvas = Canvas(width, top + high + 86, 2.0, PAPER)
    canvas.text(MARGIN, 28, title, size=20, colour=INK)
    canvas.text(MARGIN, 52, subtitle, size=12, colour=MUTED)
    axis = Axis([point for column in columns for point in column.points], top + high, -high)
    for tick in axis.ticks:
        canvas.rule(left, axis(tick), len(columns) * wide, down=False, line=0.6, colour=HAIR)
        canvas.text(left - 10, axis(tick), axis.text(tick), size=11, colour=MUTED, anchor="rm")
    before: tuple[float, float] | None = None
    for number, column in enumerate(columns):
        x, mean = left + (number + 0.5) * wide, sum(column.points) / len(column.points)
        here = (x * canvas.scale, axis(mean) * canvas.scale)
        if before and not column.apart:
            canvas.pen.line([before, here], fill=MEAN, width=round(2 * canvas.scale))
        before = None if column.apart else here
    for number, column in enumerate(columns):
        x, mean = left + (number + 0.5) * wide, sum(column.points) / len(column.points)
        for place, point in enumerate(column.points):
            dot(canvas, x + (place - (len(column.points) - 1) / 2) * 7, axis(point), 8, POINT)
        canvas.rule(x - 16, axis(mean), 32, down=False, line=3.0, colour=MUTED if column.apart else MEAN)
        canvas.text(x, top + high + 18, column.label, size=13, colour=INK, anchor="mm")
        canvas.text(x, top + high + 36, f"n = {len(column.points)}", size=11, colour=MUTED, anchor="mm")
    canvas.text(left + len(columns) * wide / 2, top + high + 62, axis_title, size=12, colour=MUTED, anchor="mm")
    return canvas.image
