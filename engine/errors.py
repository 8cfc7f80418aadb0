"""The three errors that end a run, each with the exit code that a job runner reads.

`UsageError` -> 2, `RunFailure` -> 1, `Interrupted` -> 3. All three print one line and no traceback
(set HYDRA_FULL_ERROR=1 to see it); any other exception is a bug or a broken machine and keeps its traceback (exit 1).
"""

from __future__ import annotations

import errno
import os


class UsageError(Exception):
    """The command, the config or a file it names cannot be used. The text: what is wrong, expected, nearest choice."""

    exit_code = 2


class RunFailure(Exception):
    """The run was well-formed but cannot continue (out of memory, too many non-finite steps, disk full at the end)."""

    exit_code = 1


class OutOfMemory(RunFailure):
    """Out of memory in a step; names the batch-size key and its value."""

    def __init__(self, text: str, batch_key: str, batch_rows: int) -> None:
        super().__init__(text)
        self.batch_key, self.batch_rows = batch_key, batch_rows


class RankLost(RunFailure):
    """Another rank of this run is gone; that rank's message has the reason."""


class Interrupted(BaseException):
    """A signal asked the run to stop; the checkpoint is on disk and the same command resumes from it.

    Like KeyboardInterrupt not an Exception, so that no handler takes it for a failed download, e.g., and continues.
    """

    exit_code = 3


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOMEM}
RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTSUP, errno.EOPNOTSUPP}
PLACES = {errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EXDEV}
BUSY = {errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ENOLCK, errno.ETIMEDOUT}
REFUSED = RIGHTS | PLACES | BUSY


def disk_fault(error: BaseException) -> UsageError | RunFailure | None:
    """`error` in one line if a disk or its permissions caused it; None for others, including a missing file (a bug)."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from"):  # pathlib before Python 3.13
        return UsageError(f"{str(error).partition(' from ')[2]} is a symbolic link that points to itself: remove it")
    if not isinstance(error, OSError):
        return None
    # numpy's error on a full disk has no errno, only the number of items written
    code = errno.ENOSPC if error.errno is None and " requested and " in str(error.args) else error.errno
    if code not in FULL | REFUSED:
        return None
    place = error.filename if isinstance(error.filename, str | os.PathLike) else "a file"
    line = f"{place} cannot be used: {os.strerror(code)}"
    if code not in FULL:
        return UsageError(f"{line}; check its permissions and the disk it is on, or choose another place")
    return RunFailure(f"{line}; free some space (df -h, df -i); the same command then resumes")
