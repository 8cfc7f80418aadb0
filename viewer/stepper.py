"""Step through a model's answers on a terminal: one board at a time, with the keys of a pager.

POSIX terminals only; elsewhere, and without a terminal, `_terminal.draw` prints all boards.
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

from viewer.boards import Headline, Thought, View
from viewer.terminal import STYLES, board_block, heading, legend, side_by_side

HELP = "left/right step   up/down example   space play   s solution   q quit"
KEYS = {
    "\x1b[D": "back", "\x1b[C": "on", "\x1b[A": "previous", "\x1b[B": "next", "\x1b[H": "first", "\x1b[F": "last",
    "\x1bOD": "back", "\x1bOC": "on", "\x1bOA": "previous", "\x1bOB": "next", "\x1bOH": "first", "\x1bOF": "last",
    "\x1b[1~": "first", "\x1b[4~": "last", "\x1b[7~": "first", "\x1b[8~": "last",
    "h": "back", "l": "on", "k": "previous", "j": "next", "0": "first", "$": "last", "p": "previous", "n": "next",
    "\r": "on", "\n": "on", " ": "play", "s": "solution", "q": "quit", "\x1b": "quit", "\x03": "quit", "\x04": "quit",
}  # fmt: skip
"""What a terminal sends -> what it means. The arrow keys come in two forms, Home and End in four."""
PREFIXES = {key[:end] for key in KEYS if key.startswith("\x1b") for end in range(1, len(key))}
PLAY_S = 0.7
ESCAPE_S = 0.05
BAR = 30


class Stepper:
    """Where the viewer stands: an example, a step, and whether it plays or shows the solution."""

    def __init__(self, thoughts: Sequence[Thought]) -> None:
        self.thoughts, self.example, self.step = thoughts, 0, 0
        self.playing = self.solution = self.done = False

    @property
    def thought(self) -> Thought:
        return self.thoughts[self.example]

    def press(self, action: str | None) -> None:
        """Do what a key means; None is the clock while playing, other words do nothing."""
        last = self.thought.steps - 1
        if action == "play":
            self.playing = not self.playing
            self.step = 0 if self.playing and self.step == last else self.step
        elif action is None:
            self.step = min(last, self.step + 1)
            self.playing = self.step < last
        else:
            self.playing = False
        if action in ("back", "on", "first", "last"):
            wanted = {"back": self.step - 1, "on": self.step + 1, "first": 0, "last": last}[action]
            self.step = min(last, max(0, wanted))
        elif action in ("previous", "next"):
            wanted = self.example + (1 if action == "next" else -1)
            if 0 <= wanted < len(self.thoughts):
                self.example, self.step = wanted, 0
        elif action == "solution":
            self.solution = not self.solution
        self.done = action == "quit"

    def lines(self, words: Headline, width: int, height: int, colour: bool) -> list[Text]:
        """The screen. Where it is too low, the words around the board go first, then the end of the board."""
        thought, note = self.thought, STYLES["note"] if colour else ""
        strong = "bold" if colour else ""
        view: View = "solution" if self.solution else self.step
        views = [view] if thought.layout.in_place else ["puzzle", view]
        board = list(side_by_side([board_block(thought, one, colour) for one in views], width))
        told = f"{self.example + 1} of {len(self.thoughts)}, {heading(thought)}"
        state = f"step {self.step + 1} of {thought.steps}{'  playing' if self.playing else ''}"
        track = "".join("#" if step <= self.step else "-" for step in range(thought.steps))
        above = [Text(words.title, strong), Text(told), Text()]
        below = [
            Text(),
            Text(f"[{track}] {state}" if len(track) <= BAR else state, strong),
            legend(thought.layout, colour),
        ]
        below.append(Text(HELP, note))
        spare = height - len(board)
        if spare < len(above) + len(below):
            above, below = [Text(told)], [Text(state, strong)]
        if (room := height - len(above) - len(below)) < len(board):
            hidden = len(board) - room + 1
            board = [*board[: max(0, room - 1)], Text(f"... {hidden} more lines: make the window higher", note)]
        shown = [*above, *board, *below]
        for line in shown:
            line.truncate(width, overflow="ellipsis")
        return shown


def step_through(console: Console, thoughts: Sequence[Thought], words: Headline) -> None:
    """Show the first answer and go where the keys of standard input lead, until q."""
    stepper, colour = Stepper(thoughts), console.color_system is not None
    with key_reader(sys.stdin.fileno()) as read, console.screen(hide_cursor=True) as screen:
        while not stepper.done:
            console.control(Control.home())
            screen.update(Group(*stepper.lines(words, console.width, console.height, colour)))
            key = read(PLAY_S if stepper.playing else None)
            stepper.press(None if key is None else KEYS.get(key, "other"))


@contextlib.contextmanager
def key_reader(descriptor: int) -> Iterator[Callable[[float | None], str | None]]:
    """A function that waits for a key (so many seconds, None = for ever) and returns what the terminal sent for it.

    None when no key came; end of input reads as q. The terminal is set back on the way out, whatever happens.
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
        # The bytes of an arrow key come at once; after a true Escape nothing does.
        while sent.startswith(b"\x1b") and sent.decode("ascii", "replace") in PREFIXES and ready(ESCAPE_S):
            sent += os.read(descriptor, 1)
        return sent.decode("ascii", "replace")

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield read
    finally:
        with contextlib.suppress(termios.error):  # the same
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
