"""The text is read back cell by cell; of the picture, the colours at the centres of cells and bars."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ImageColor
from rich.console import Console

from reports.canvas import Canvas
from reports.scatter import Points, draw_scatter
from tests.viewer.test_trajectory import LAYOUT, SOLUTION, WRONG, trajectory
from viewer import picture as still
from viewer.picture import draw_picture, picture_capacity
from viewer.terminal import draw, heading, legend
from viewer.trajectory import Headline, Trajectory, cropped, layout_of

WORDS = Headline("run", "what", (("Run", "run"),))


def text_of(example: Trajectory, *, width: int = 200, colour: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None)
    draw(console, [example])
    return stream.getvalue()


def test_plain_boards_are_marked() -> None:
    lines = text_of(trajectory(3, 6, 7, 16, q_halt=(0.02, 0.3, 0.97))).splitlines()
    assert "example 3: 10 cells to find; right from step 3 on; would halt at step 3" in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("step 1"))
    assert lines[start].split() == ["step", "1", "step", "2", "step", "3", "solution"]
    second_row = lines[start + 2]
    w = [str(digit - 1) for digit in WRONG]
    s = [str(digit - 1) for digit in SOLUTION]
    assert second_row.startswith(f" {s[4]}  {s[5]} | {w[6]}- {w[7]}-")
    assert f" {s[4]}  {s[5]} |*{s[6]}+ {w[7]}-" in second_row  # step 2: cell 6 was mended, cell 7 was not
    assert f" {s[4]}  {s[5]} | {s[6]}+*{s[7]}+" in second_row
    assert second_row.rstrip().endswith(f" {s[4]}  {s[5]} | {s[6]}  {s[7]}")
    assert "0/10 right" in text_of(trajectory(3, 6))
    assert "1/10 right, 1 new" in text_of(trajectory(3, 6, 7))
    assert "halt 2%" in lines[-1]
    assert "halt 97%" in lines[-1]
    assert "\x1b" not in "\n".join(lines)


def test_boards_wrap_to_the_width() -> None:
    for width in (20, 50, 90):
        lines = text_of(trajectory(0, *range(6, 14)), width=width).splitlines()
        assert max(map(len, (line for line in lines if "|" in line))) <= width
        assert "\n".join(lines).count("halt 10%") == 8


def test_colour_is_used_on_a_terminal() -> None:
    text = text_of(trajectory(0, 6, 8), colour=True)
    assert "\x1b[4;31m" in text  # wrong: red and, for eyes that confuse it with green, underlined
    assert "\x1b[7;32m" in text  # changed to right
    assert "*" not in text
    assert "right" in legend(LAYOUT, True).plain


def test_headings() -> None:
    assert heading(trajectory(9, 16, 7)) == "example 9: 10 cells to find; not solved; would not halt"


def colours_of(picture, box: tuple[int, int, int, int]) -> set[tuple[int, int, int]]:
    return {colour for _, colour in picture.crop(box).getcolors(1 << 24)}


def test_picture_shows_right_wrong_given_and_changed() -> None:
    picture = draw_picture([trajectory(0, 6, 8, 16, q_halt=(0.1, 0.4, 0.9))], WORDS)
    body = colours_of(picture, (0, 2 * 100, picture.width, picture.height - 2 * 60))
    rgb = ImageColor.getrgb
    for colour in (
        still.RIGHT,
        still.WRONG,
        still.GIVEN,
        still.CHANGED,
        still.BAR,
        still.BAR_STOP,
        still.INK,
    ):
        assert rgb(colour) in body, colour


@pytest.mark.parametrize(
    ("name", "right", "absent"),
    [("WRONG", (16, 16), True), ("CHANGED", (16, 16), True), ("WRONG", (7, 7), False), ("CHANGED", (7, 8), False)],
)
def test_picture_marks_only_what_is_there(name: str, right: tuple[int, ...], absent: bool) -> None:
    picture = draw_picture([trajectory(0, *right)], WORDS)
    legend_top = picture.height - 2 * 60
    assert (
        ImageColor.getrgb(getattr(still, name)) not in colours_of(picture, (0, 0, picture.width, legend_top))
    ) is absent


def test_long_episodes_go_on_below() -> None:
    short = draw_picture([trajectory(0, *[7] * 8)], WORDS)
    long = draw_picture([trajectory(0, *[7] * 32)], WORDS)
    assert long.height > short.height * 1.5
    assert long.width <= 2 * (still.STRIP + 2 * still.MARGIN + still.LABEL + 10)


@pytest.mark.parametrize(("seq_len", "vocab"), [(900, 12), (900, 6), (81, 11), (10, 5), (36, 8)])
def test_any_grid_can_be_drawn(seq_len: int, vocab: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, vocab, seq_len)
    labels[::7] = -100
    inputs, answers = rng.integers(0, vocab, seq_len), rng.integers(0, vocab, (3, seq_len))
    confidence = rng.random((3, seq_len))
    layout = layout_of(seq_len, vocab)
    example = cropped(1, layout, inputs, labels, answers, np.array([0.0, 0.5, 1.0]), confidence)
    picture = draw_picture([example, example], WORDS)
    assert picture.height > 200
    for colour in (False, True):
        assert text_of(example, colour=colour).count("halt ") >= 3


@pytest.mark.parametrize(("seq_len", "vocab"), [(16, 6), (81, 11), (900, 12)])
def test_a_full_picture_is_as_tall_as_said(seq_len: int, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still, "MAX_HEIGHT", 1800.0)
    layout, steps = layout_of(seq_len, vocab), 12
    most = picture_capacity(layout, steps)
    cells = np.full((steps, seq_len), 3)
    example = cropped(1, layout, cells[0], cells[0], cells, np.zeros(steps), np.ones(cells.shape))
    height = draw_picture([example] * most, WORDS).height / 2
    assert height - 1800 < 200  # title and legend
    assert height > 1800 * 0.7


def test_arc_pictures_show_the_puzzle_and_smaller_grids_take_less_room() -> None:
    def example(side: int) -> Trajectory:
        canvas = np.zeros((30, 30), int)
        canvas[:side, :side] = 4
        flat = canvas.ravel()
        labels = np.where(flat, flat, -100)
        return cropped(0, layout_of(900, 12), flat, labels, flat[None], np.array([0.9]), np.ones((1, 900)))

    text = text_of(example(3))
    titles = next(line for line in text.splitlines() if line.startswith("puzzle")).split()
    assert titles == ["puzzle", "step", "1", "solution"]
    assert " 2  2  2     2+ 2+ 2+    2  2  2" in text
    assert draw_picture([example(3)], WORDS).height < draw_picture([example(20)], WORDS).height
    red = ImageColor.getrgb("#ff4136")  # colour 2
    assert red in colours_of(draw_picture([example(3), example(20)], WORDS), (0, 200, 1200, 900))


def test_canvas_scales() -> None:
    canvas = Canvas(10, 10, 3.0, "#ffffff")
    canvas.box(2, 2, 4, 4, fill="#ff0000")
    red = np.asarray(canvas.image)[:, :, 1] == 0
    assert red.sum() == 12 * 12
    assert red[6:18, 6:18].all()


@pytest.mark.parametrize("text", ["two\nlines", "not UTF-8: \udcff", "\n"])
def test_any_name_can_be_drawn(text: str) -> None:
    canvas = Canvas(40, 10, 1.0, "#ffffff")
    assert canvas.text_width(text, 12) > 0
    canvas.text(2, 5, text, size=12, colour="#000000")


def test_a_scatter_has_room_for_its_legend() -> None:
    kinds = [Points(f"cell {number}", [(0.0, 1.0)]) for number in range(40)]
    few, many = (draw_scatter("t", "s", ("x", "y"), kinds[:count]) for count in (3, 40))
    assert many.height > few.height
    last_row = np.asarray(many)[-60:, 1300:]
    assert (last_row != np.asarray(many)[-1, -1]).any()
