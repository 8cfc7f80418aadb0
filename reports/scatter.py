"""A scatter plot of two figures against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from PIL import Image

from reports.canvas import HAIR, INK, MUTED, PAPER, WRONG_INK, Canvas
from reports.plots import HEAD, MARGIN, Axis, dot

COLOURS = ("#2f62c9", "#b03a00", "#0a6b4a", "#8a4fbf", "#a06a00", "#c23b7a")
PLAIN = "#9aa5b4"
WIDE, HIGH, LEGEND = 640.0, 380.0, 250.0
LETTERS = 32
"""Most characters of a line of the legend."""


@dataclass(frozen=True)
class Points:
    """Points (x, y) of one kind; `plain` ones are drawn in grey, `hollow` ones (which do not count) without fill."""

    label: str
    values: Sequence[tuple[float, float]]
    plain: bool = False
    hollow: bool = False


def draw_scatter(
    title: str,
    subtitle: str,
    titles: tuple[str, str],
    kinds: Sequence[Points],
    *,
    x_most: float | None = None,
    bound: float | None = None,
) -> Image.Image:
    """Draw all points, with a legend on the right.

    Args:
        titles: titles of the two axes.
        x_most: points beyond it are drawn at the right edge, labelled with their x.
        bound: a value of x to mark.
    """
    labels = [wrap(kind.label, LETTERS) for kind in kinds]
    tall = max(HEAD + HIGH + 70, HEAD + 12 + sum(16 * len(parts) + 8 for parts in labels))
    canvas = Canvas(2 * MARGIN + 60 + WIDE + 24 + LEGEND, tall, 2.0, PAPER)
    left, bottom = MARGIN + 60, HEAD + HIGH
    canvas.text(MARGIN, 28, title, size=20, colour=INK)
    canvas.text(MARGIN, 52, subtitle, size=12, colour=MUTED)
    shown = [point for kind in kinds for point in kind.values]
    xs = [x if x_most is None else min(x, x_most) for x, _ in shown] + ([] if bound is None else [bound])
    across, up = Axis(xs or [0.0, 1.0], left, WIDE), Axis([y for _, y in shown] or [0.0, 1.0], bottom, -HIGH)
    for tick in up.ticks:
        canvas.rule(left, up(tick), WIDE, down=False, line=0.6, colour=HAIR)
        canvas.text(left - 10, up(tick), up.text(tick), size=11, colour=MUTED, anchor="rm")
    for tick in across.ticks:
        canvas.rule(across(tick), HEAD, HIGH, down=True, line=0.6, colour=HAIR)
        canvas.text(across(tick), bottom + 16, across.text(tick), size=11, colour=MUTED, anchor="mm")
    if bound is not None:
        canvas.rule(across(bound), HEAD, HIGH, down=True, line=1.4, colour=WRONG_INK)
    canvas.text(left, HEAD - 18, titles[1], size=12, colour=MUTED)
    canvas.text(left + WIDE / 2, bottom + 42, titles[0], size=12, colour=MUTED, anchor="mm")
    colours = iter(COLOURS * (1 + len(kinds) // len(COLOURS)))
    y = HEAD + 12
    for kind, parts in zip(kinds, labels, strict=True):
        colour = PLAIN if kind.plain else next(colours)
        fill, line = (PAPER, colour) if kind.hollow else (colour, PAPER)
        for x, height in kind.values:
            at = across(x if x_most is None else min(x, x_most))
            dot(canvas, at, up(height), 11, fill, line)
            if x_most is not None and x > x_most:
                canvas.text(at - 9, up(height), f"x = {x:.3g}", size=11, colour=MUTED, anchor="rm")
        dot(canvas, left + WIDE + 34, y, 11, fill, line)
        for part in parts:
            canvas.text(left + WIDE + 48, y, part, size=12, colour=INK)
            y += 16
        y += 8
    return canvas.image
