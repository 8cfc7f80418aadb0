"""Steps through a model's answers on a terminal: one board at a time, with the keys of a pager.

POSIX terminals only; elsewhere, and without a terminal, `viewer.terminal.draw` prints all boards.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.control import Control
from rich.text import Text

from viewer.terminal import STYLES, board_block, heading, legend, side_by_side
from viewer.trajectory import Headline, Trajectory, View

HELP = "left/right step   up/down example   space play   s solution   q quit"
KEYS = {
    "\x1b[D": "back",
    "\x1b[C": "forward",
    "\x1b[A": "previous",
    "\x1b[B": "next",
    "\x1b[H": "first",
    "\x1b[F": "last",
    "\x1bOD": "back",
    "\x1bOC": "forward",
    "\x1bOA": "previous",
    "\x1bOB": "next",
    "\x1bOH": "first",
    "\x1bOF": "last",
    "\x1b[1~": "first",
    "\x1b[4~": "last",
    "\x1b[7~": "first",
    "\x1b[8~": "last",
    "h": "back",
    "l": "forward",
    "k": "previous",
    "j": "next",
    "0": "first",
    "$": "last",
    "p": "previous",
    "n": "next",
    "\r": "forward",
    "\n": "forward",
    " ": "play",
    "s": "solution",
    "q": "quit",
    "\x1b": "quit",
    "\x03": "quit",
    "\x04": "quit",
}
"""Key sequence of a terminal -> action. Terminals send arrow keys in two forms, Home and End in four."""
PREFIXES = {key[:end] for key in KEYS if key.startswith("\x1b") for end in range(1, len(key))}
PLAY_S = 0.7
ESCAPE_S = 0.05
BAR = 30


class Stepper:
    """The state of the viewer: an example, a step, and whether it plays or shows the solution."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories, self.example, self.step = trajectories, 0, 0
        self.playing = self.solution = self.done = False

    @property
    def trajectory(self) -> Trajectory:
        return self.trajectories[self.example]

    def press(self, action: str | None) -> None:
        """Apply the action of a key; None is a tick of the clock while playing; unknown actions do nothing."""
        last = self.trajectory.steps - 1
        if action == "play":
            self.playing = not self.playing
            self.step = 0 if self.playing and self.step == last else self.step
        elif action is None:
            self.step = min(last, self.step + 1)
            self.playing = self.step < last
        else:
            self.playing = False
        if action in ("back", "forward", "first", "last"):
            target = {"back": self.step - 1, "forward": self.step + 1, "first": 0, "last": last}[action]
            self.step = min(last, max(0, target))
        elif action in ("previous", "next"):
            example = self.example + (1 if action == "next" else -1)
            if 0 <= example < len(self.trajectories):
                self.example, self.step = example, 0
        elif action == "solution":
            self.solution = not self.solution
        self.done = action == "quit"

    def lines(self, headline: Headline, width: int, height: int, colour: bool) -> list[Text]:
        """The lines of the screen. If it is too low, lines around the board are dropped, then the end of the board."""
        trajectory, note = self.trajectory, STYLES["note"] if colour else ""
        strong = "bold" if colour else ""
        view: View = "solution" if self.solution else self.step
        views = [view] if trajectory.layout.in_place else ["puzzle", view]
        board = list(side_by_side([board_block(trajectory, one, colour) for one in views], width))
        caption = f"{self.example + 1} of {len(self.trajectories)}, {heading(trajectory)}"
        state = f"step {self.step + 1} of {trajectory.steps}{'  playing' if self.playing else ''}"
        track = "".join("#" if step <= self.step else "-" for step in range(trajectory.steps))
        above = [Text(headline.title, strong), Text(caption), Text()]
        below = [
            Text(),
            Text(f"[{track}] {state}" if len(track) <= BAR else state, strong),
            legend(trajectory.layout, colour),
        ]
        below.append(Text(HELP, note))
        spare = height - len(board)
        if spare < len(above) + len(below):
            above, below = [Text(caption)], [Text(state, strong)]
        if (room := height - len(above) - len(below)) < len(board):
            hidden = len(board) - room + 1
            board = [*board[: max(0, room - 1)], Text(f"... {hidden} more lines: make the window taller", note)]
        shown = [*above, *board, *below]
        for line in shown:
            line.truncate(width, overflow="ellipsis")
        return shown


def step_through(console: Console, trajectories: Sequence[Trajectory], headline: Headline) -> None:
    """Show the first answer and follow the keys of standard input, until q."""
    stepper, colour = Stepper(trajectories), console.color_system is not None
    with key_reader(sys.stdin.fileno()) as read, console.screen(hide_cursor=True) as screen:
        while not stepper.done:
            console.control(Control.home())
            screen.update(Group(*stepper.lines(headline, console.width, console.height, colour)))
            key = read(PLAY_S if stepper.playing else None)
            stepper.press(None if key is None else KEYS.get(key, "other"))


@contextlib.contextmanager
def key_reader(descriptor: int) -> Iterator[Callable[[float | None], str | None]]:
    """A function that waits up to some seconds (None: forever) for a key and returns what the terminal sent.

    It returns None if no key came, and q at the end of input. The terminal is always restored on exit.
    """
    import termios
    import tty

    def ready(seconds: float | None) -> bool:
        return bool(select.select([descriptor], [], [], seconds)[0])

    def read(seconds: float | None) -> str | None:
        if not ready(seconds):
            return None
        try:
            sent = os.read(descriptor, 1)
        except OSError:  # the terminal has been closed
            sent = b""
        if not sent:
            return "q"
        # The bytes of an arrow key arrive together; nothing follows a true Escape.
        while sent.startswith(b"\x1b") and sent.decode("ascii", "replace") in PREFIXES and ready(ESCAPE_S):
            sent += os.read(descriptor, 1)
        return sent.decode("ascii", "replace")

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield read
    finally:
        with contextlib.suppress(termios.error):  # the terminal has been closed
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
