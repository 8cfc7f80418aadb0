"""A drawing surface in logical units: text and shapes are laid out once and scaled to any resolution."""

from __future__ import annotations

import io
from functools import cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, MUTED, HAIR = "#ffffff", "#1b2430", "#5d6877", "#c5ccd6"
"""Colours of every picture: background, text, secondary text, thin lines."""
RIGHT_INK, WRONG_INK = "#0a6b4a", "#b03a00"

Anchor = Literal["lm", "mm", "rm", "lt", "mt"]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class Canvas:
    """An image to draw on; coordinates and sizes are in logical units of `scale` pixels."""

    def __init__(self, width: float, height: float, scale: float, background: str) -> None:
        self.scale = scale
        self.image = Image.new("RGB", (round(width * scale), round(height * scale)), background)
        self.pen = ImageDraw.Draw(self.image)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        outline: str | None = None,
        line: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        """Draw a rectangle with its outline inside. Nothing is drawn if a side is shorter than a pixel."""
        left, top, right, bottom = (round(v * self.scale) for v in (x, y, x + width, y + height))
        if right <= left or bottom <= top:
            return
        corners, width = (left, top, right - 1, bottom - 1), max(1, round(line * self.scale)) if outline else 0
        if radius:
            round_by = min(radius * self.scale, (right - left) / 2)
            self.pen.rounded_rectangle(corners, radius=round_by, fill=fill, outline=outline, width=width)
        else:  # much faster than a rounded one, and boards have thousands of cells
            self.pen.rectangle(corners, fill=fill, outline=outline, width=width)

    def rule(self, x: float, y: float, length: float, *, down: bool, line: float, colour: str) -> None:
        """Draw a line of thickness `line` from (x, y), `length` to the right or down."""
        half = line / 2
        if down:
            self.box(x - half, y - half, line, length + line, fill=colour)
        else:
            self.box(x - half, y - half, length + line, line, fill=colour)

    def corner(self, x: float, y: float, size: float, colour: str) -> None:
        """Draw a small triangle in the corner whose top right point is (x, y)."""
        points = [(x - size, y), (x, y), (x, y + size)]
        self.pen.polygon([(a * self.scale, b * self.scale) for a, b in points], fill=colour)

    def text(
        self, x: float, y: float, text: str, *, size: float, colour: str, bold: bool = False, anchor: Anchor = "lm"
    ) -> None:
        """Draw one line of text at an anchor point."""
        # The built-in font has no bold face; a stroke in the same colour imitates one.
        stroke = max(1, round(size * self.scale / 28)) if bold else 0
        self.pen.text(
            (x * self.scale, y * self.scale),
            _one_line(text),
            fill=colour,
            font=_font(round(size * self.scale)),
            anchor=anchor,
            stroke_width=stroke,
            stroke_fill=colour,
        )

    def text_width(self, text: str, size: float) -> float:
        """Logical width of a line of text."""
        return self.pen.textlength(_one_line(text), font=_font(round(size * self.scale))) / self.scale


def _one_line(text: str) -> str:
    """One line: the name of a run's folder may have a line break."""
    return text.replace("\n", " ")


def as_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
