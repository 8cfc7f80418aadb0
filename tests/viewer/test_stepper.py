"""The terminal viewer: its state after keys, and the real thing on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

import pytest
from rich.console import Console

from tests.viewer.test_page import arc
from tests.viewer.test_trajectory import LAYOUT, trajectory
from viewer.stepper import KEYS, Stepper, step_through
from viewer.trajectory import Headline, layout_of

WORDS = Headline("project/run", "what", ())
THOUGHTS = [trajectory(3, 6, 9, 16), trajectory(7, 5, 12, 15, 16)]
LEFT, RIGHT, UP, DOWN, HOME, END = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B", "\x1b[H", "\x1b[F"


def after(*keys: str | None) -> Stepper:
    stepper = Stepper(THOUGHTS)
    for key in keys:
        stepper.press(None if key is None else KEYS.get(key, "other"))
    return stepper


def screen(stepper: Stepper, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in stepper.lines(WORDS, width, height, colour=False)]


@pytest.mark.parametrize(
    ("keys", "example", "step"),
    [
        ((RIGHT,), 0, 1),
        ((RIGHT, RIGHT, RIGHT, RIGHT), 0, 2),
        ((RIGHT, LEFT, LEFT), 0, 0),
        ((END,), 0, 2),
        ((END, HOME), 0, 0),
        ((RIGHT, DOWN), 1, 0),
        ((DOWN, DOWN, END), 1, 3),
        ((DOWN, UP, UP), 0, 0),
        (("l", "l", "h"), 0, 1),
        (("j", "$"), 1, 3),
        (("\r", "x", "\x1bOC"), 0, 2),
    ],
)
def test_keys_lead_to_a_step(keys: tuple[str, ...], example: int, step: int) -> None:
    stepper = after(*keys)
    assert (stepper.example, stepper.step, stepper.done) == (example, step, False)


def test_playing_stops_at_the_end_at_a_key_and_starts_over() -> None:
    assert after(" ").playing
    assert (after(" ", None).step, after(" ", None).playing) == (1, True)
    assert (after(" ", None, None).step, after(" ", None, None).playing) == (2, False)
    assert not after(" ", " ").playing
    assert not after(" ", LEFT).playing
    assert after(END, " ").step == 0


@pytest.mark.parametrize("key", ["q", "\x1b", "\x04"])
def test_quitting(key: str) -> None:
    assert after(key).done


def test_screen_shows_the_step_and_its_board() -> None:
    lines = screen(after(RIGHT))
    assert lines[0] == "project/run"
    assert lines[1].startswith("1 of 2, example 3: 10 cells to find; right from step 3 on")
    assert any("[##-] step 2 of 3" in line for line in lines)
    assert "3/10 right, 3 new" in lines
    assert "halt 10%" in lines
    assert "solution" in screen(after("s"))
    assert "step 1" not in screen(after("s"))
    assert "playing" in "".join(screen(after(" ")))


def test_low_and_narrow_windows_still_say_where_one_is() -> None:
    for height in (3, 6, 9, 12):
        lines = screen(after(RIGHT), width=30, height=height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= 30
        assert "step 2 of 3" in "".join(lines)
    assert "make the window taller" in "".join(screen(after(RIGHT), width=80, height=6))


def test_puzzle_stands_beside_the_answer_of_arc() -> None:
    lines = screen(Stepper([arc(3, 5)]))
    assert any(line.split() == ["puzzle", "step", "1"] for line in lines)
    assert layout_of(900, 12).in_place is not LAYOUT.in_place


def drive(keys: list[bytes]) -> tuple[int, str]:
    """Run the viewer on a pseudo-terminal; each key is sent once the screen has answered the one before."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="80", LINES="24")
        try:
            sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")  # pytest has put others there
            step_through(Console(color_system=None, force_terminal=True), THOUGHTS, WORDS)
            sys.stdout.flush()
            os._exit(0)
        finally:
            os._exit(1)
    shown, deadline = b"", time.monotonic() + 30
    waiting = list(keys)
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.2)[0]:
            if waiting:
                os.write(terminal, waiting.pop(0))
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the child has closed its side
            break
        if not piece:
            break
        shown += piece
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_on_a_terminal() -> None:
    code, shown = drive([b"\x1b[C", b"\x1b[B", b"\x1b[F", b"\x1b[5~", b"q"])
    assert code == 0
    steps = [shown.index(words) for words in ("step 1 of 3", "step 2 of 3", "step 1 of 4", "step 4 of 4")]
    assert steps == sorted(steps)
    assert shown.index("\x1b[?1049h") < steps[0]
    assert shown.rindex("\x1b[?1049l") > steps[-1]  # the screen of before comes back
    assert "\x1b[?25h" in shown[steps[-1] :]  # and the cursor
