"""A model's answers as an animated GIF: a frame for each ACT step, the last one held."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from reports.canvas import INK, MUTED, PAPER, RIGHT_INK, WRONG_INK, Canvas
from viewer import picture as still
from viewer.picture import BAR_STOP, MARGIN, TRACK
from viewer.trajectory import Headline, Trajectory, View

STEP_MS, HOLD_MS = 900, 3000
ENLARGED, FEW = 1.5, 4
"""Scale of boards for at most FEW examples: a frame shows only one step, so they can be larger than in the picture."""
PAIR, GAP, HEAD, NAME, FOOT, LEGEND = 14.0, 36.0, 76.0, 46.0, 56.0, 48.0
MAX_EXAMPLES, MAX_STEPS = 16, 64
MAX_WIDTH = 1280.0
COLOURS = 256


def animation_capacity(steps: int) -> int:
    """Most examples of an animation, 0 for too many steps: nobody can follow more, or watch more than a minute."""
    return MAX_EXAMPLES if steps <= MAX_STEPS else 0


def draw_animation(trajectories: Sequence[Trajectory], headline: Headline) -> bytes:
    """The encoded GIF. All frames share one palette, so that colours are the same in each."""
    frames = _with_one_palette([draw_frame(trajectories, headline, step) for step in range(trajectories[0].steps)])
    stream = io.BytesIO()
    durations = [STEP_MS] * (len(frames) - 1) + [HOLD_MS]
    frames[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        comment=b"Loopforge visualize",
        optimize=False,
        disposal=1,
    )
    return stream.getvalue()


def draw_frame(trajectories: Sequence[Trajectory], headline: Headline, step: int) -> Image.Image:
    """All examples after `step` (0-based), side by side in as square a grid as the width allows."""
    layout = still.largest_board(trajectories)
    cell = (ENLARGED if len(trajectories) <= FEW else 1.0) * still.cell_side(layout)
    board_width, board_height = cell * layout.columns, cell * layout.rows
    # The puzzle is shown next to the answer unless the answer contains it.
    shown: list[View] = [step] if layout.in_place else ["puzzle", step]
    across = max(len(shown) * (board_width + PAIR) - PAIR, 168.0) + GAP
    columns = max(1, min(math.ceil(math.sqrt(len(trajectories))), int((MAX_WIDTH - 2 * MARGIN + GAP) // across)))
    rows = -(-len(trajectories) // columns)
    block = NAME + board_height + FOOT
    width = 2 * MARGIN + max(columns * across - GAP, 480.0)
    left = (width - columns * across + GAP) / 2
    canvas = Canvas(width, MARGIN + HEAD + rows * block + LEGEND, 1.5, PAPER)
    _head(canvas, width, headline, trajectories, step)
    for index, trajectory in enumerate(trajectories):
        x, y = left + index % columns * across, MARGIN + HEAD + index // columns * block
        canvas.text(x, y + 8, f"example {trajectory.number}", size=15, colour=INK)
        canvas.text(x, y + 27, trajectory.puzzle or f"{trajectory.to_find.sum()} cells to find", size=12, colour=MUTED)
        for view in shown:
            still.draw_board(canvas, x, y + NAME - 4, cell, trajectory, view)
            x += board_width + PAIR
        still.draw_foot(canvas, x - board_width - PAIR, y + NAME + board_height + 6, board_width, trajectory, step)
    still.draw_legend(canvas, MARGIN + HEAD + rows * block, layout, short=True)
    return canvas.image


def _head(canvas: Canvas, width: float, headline: Headline, trajectories: Sequence[Trajectory], step: int) -> None:
    """The run on the left, the step on the right, and a progress bar below."""
    steps, right = trajectories[0].steps, width - MARGIN
    solved = sum(trajectory.solved(step) for trajectory in trajectories)
    counter = f"step {step + 1} of {steps}"
    canvas.text(right, MARGIN, counter, size=19, colour=BAR_STOP, anchor="rm")
    room = right - MARGIN - canvas.text_width(counter, 19) - 24
    size = min(19.0, 19.0 * room / canvas.text_width(headline.title, 19))
    canvas.text(MARGIN, MARGIN, headline.title, size=max(9.0, size), colour=INK)
    verdict = f"{solved} of {len(trajectories)} boards right"
    canvas.text(MARGIN, MARGIN + 28, verdict, size=14, colour=RIGHT_INK if solved == len(trajectories) else WRONG_INK)
    gap = 4.0 if steps <= 40 else 0.0
    piece = (right - MARGIN + gap) / steps
    for number in range(steps):
        fill = BAR_STOP if number <= step else TRACK
        canvas.box(MARGIN + number * piece, MARGIN + 50, piece - gap, 5, fill=fill, radius=2.5)


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Encode all frames with their most frequent colours; others (of text smoothing) become the nearest of them."""
    uniques = [np.unique(_packed(frame), return_counts=True) for frame in frames]
    colours, places = np.unique(np.concatenate([values for values, _ in uniques]), return_inverse=True)
    counts = np.bincount(places, weights=np.concatenate([times for _, times in uniques]))
    commonest = colours[np.argsort(-counts, kind="stable")[:COLOURS]]
    distance = np.abs(_channels(colours)[:, None] - _channels(commonest)[None]).sum(axis=-1)
    nearest = distance.argmin(axis=1).astype(np.uint8)
    coded = []
    for frame in frames:
        image = Image.fromarray(nearest[np.searchsorted(colours, _packed(frame))])
        image.putpalette(_channels(commonest).astype(np.uint8).tobytes())
        coded.append(image)
    return coded


def _packed(frame: Image.Image) -> np.ndarray:
    """The colours of a frame as 0xRRGGBB; int32 [height, width]."""
    red, green, blue = np.moveaxis(np.asarray(frame).astype(np.int32), -1, 0)
    packed: np.ndarray = red << 16 | green << 8 | blue
    return packed


def _channels(colours: np.ndarray) -> np.ndarray:
    """Colours 0xRRGGBB [n] -> channels [n, 3]."""
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1)
