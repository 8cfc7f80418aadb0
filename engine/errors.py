"""The three ways a run ends other than well, each with the exit code that a job runner reads.

`UsageError` -> 2, `RunFailure` -> 1, `Interrupted` -> 3. All three print one line and no traceback
(set HYDRA_FULL_ERROR=1 to see it); any other exception is a bug or a broken machine and keeps its traceback (exit 1).
"""

from __future__ import annotations


class UsageError(Exception):
    """The command, the config or a file it names cannot be used. The text: what, expected, nearest choice."""

    exit_code = 2


class RunFailure(Exception):
    """The run was well-formed but cannot go on (out of memory, too many non-finite steps, disk full at the end)."""

    exit_code = 1


class RankLost(RunFailure):
    """Another rank of this run is gone; its message says why."""


class Interrupted(BaseException):
    """A signal asked the run to stop; the checkpoint is on disk and the same command goes on from it.

    Like KeyboardInterrupt no Exception, so that nothing takes it for a failed download or optimizer and goes on.
    """

    exit_code = 3
