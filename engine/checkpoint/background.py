"""Work beside the training loop: one piece at a time, in a thread, its error raised where it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A thread for one piece of work. It ends with the process: what it left half-done has a temporary name."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`, once the piece before it has ended. Raises: that one's error."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the present piece has ended. Raises: its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
