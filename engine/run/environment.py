"""The environment of a run: versions, machine, source revision and data, kept with its results; its parent process.

A run and the process that started it (`launcher/`) communicate through environment variables. A parent names a file
into which the run writes its directory; a sweep also sets a suffix, which marks a process as a job of a sweep.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import atomic_write_text
from engine.run.files import read_json

SOURCE = Path(__file__).resolve().parents[2]
LONGEST_DIFF = 1_000_000  # characters; a longer diff contains data files, which nobody needs here


def describe_environment(
    *, argv: Sequence[str] | None = None, data_cards: Sequence[Mapping[str, Any]] = (), source: Path = SOURCE
) -> dict[str, Any]:
    """JSON-ready facts: time, python, torch, numpy, all installed packages with their versions, platform, cpu_count,
    accelerators, command, git, data cards.

    "git" is None if `source` is not a git checkout (or git is not installed), else {"commit", "diff", "untracked"},
    the diff against that commit. Environment variables are left out: they may hold secrets.
    """
    import numpy
    import torch

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv if argv is None else argv),
        "working_directory": os.getcwd(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "packages": _packages(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cuda": torch.version.cuda,
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "world_size": int(os.environ.get("WORLD_SIZE") or 1),
        "git": _git_state(source),
        "data_cards": [dict(card) for card in data_cards],
    }


def _packages() -> dict[str, str]:
    """Name -> version of the installed packages, as pip freeze lists them."""
    found: dict[str, str] = {}
    for each in distributions():
        # An interrupted installation leaves folders without metadata: no name, or an error at reading.
        with suppress(OSError, UnicodeDecodeError):
            # `each.metadata` would also parse the long descriptions: 50 ms per launch
            head = (each.read_text("METADATA") or each.read_text("PKG-INFO") or "").partition("\n\n")[0]
            facts = dict(re.findall(r"^(Name|Version): *(\S+)", head, re.MULTILINE))
            if len(facts) == 2:
                found.setdefault(facts["Name"], facts["Version"])  # the first one on the path is imported
    return dict(sorted(found.items()))


DATA_MARKS = ("path", "content_hash", "metadata_hash")
"""Fields of each data card that a checkpoint keeps itself: it may be copied without its run."""


def data_marks(cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields of the data cards that go into a checkpoint."""
    return [{key: card[key] for key in DATA_MARKS if key in card} for card in cards]


def data_change(extra: Mapping[str, Any], environment: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the data set of the card `now` differs from what a run trained on, as text; None if it does not.

    What the run trained on is in its checkpoint's manifest (`extra`; missing in older runs) and in environment.json.
    """
    for cards in (extra.get("data"), environment.get("data_cards")):
        for then in cards if isinstance(cards, list) else []:
            if not isinstance(then, Mapping) or then.get("path") != now.get("path"):
                continue
            for key, what in (("content_hash", "content"), ("metadata_hash", "metadata")):
                before, present = then.get(key), now.get(key)
                if isinstance(before, str) and isinstance(present, str) and before != present:
                    return f"{what} hash {present[:12]}, then {before[:12]}"
    return None


def check_data(run: Path, extra: Mapping[str, Any], cards: Iterable[Mapping[str, Any]]) -> None:
    """Check that a run resumes with the data it began with, wherever they are now. `extra` is its checkpoint's.

    Raises: UsageError that names what is new, changed or missing.
    """
    environment = read_json(run / "environment.json")
    began = extra.get("data") or environment.get("data_cards")
    then = {str(card.get("path")): card.get("content_hash") for card in began or [] if isinstance(card, Mapping)}
    now = {str(card.get("path")): card.get("content_hash") for card in cards}
    for card in cards:
        if (change := data_change(extra, environment, card)) is not None:
            raise UsageError(
                f"{card['path']} is not what this run began with ({change}): "
                "put the old data back, or start a new run (resume=false)"
            )
    others = "a new run takes other data (resume=false, or another run_dir)"
    new = [path for path, content in now.items() if then and path not in then and content not in then.values()]
    if new:
        raise UsageError(f"{new[0]} is not among the data that this run began with ({', '.join(then)}): {others}")
    gone = [path for path, content in then.items() if path not in now and content not in now.values()]
    if gone:
        raise UsageError(f"this run began with {', '.join(gone)} too, which this command leaves out: {others}")


def _git_state(source: Path) -> dict[str, Any] | None:
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(source, "diff", "HEAD") or ""
    if len(diff) > LONGEST_DIFF:
        diff = diff[:LONGEST_DIFF] + f"\n[cut: {len(diff)} characters in all]\n"
    untracked = _git(source, "ls-files", "--others", "--exclude-standard") or ""
    return {"commit": commit.strip(), "diff": diff, "untracked": untracked.splitlines()[:200]}


def _git(source: Path, *arguments: str) -> str | None:
    """Output of a read-only git command, None if it fails. Takes no index lock and never prompts."""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat"}
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments],
            capture_output=True,
            timeout=20,
            env=variables,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


# --- between a run and its parent -------------------------------------------------------------------------------------


REPORT = "LOOPFORGE_JOB_REPORT"
"""The file into which a run writes the path of its run directory, for its parent."""
SUFFIX = "LOOPFORGE_JOB_SUFFIX"
"""Set for each job of a sweep: appended to a default run name (made of the identity) to show what was swept."""
SWEEP = "LOOPFORGE_SWEEP"
"""Set in the process of a sweep and in its workers: the folder to which its jobs report."""
FULL_ERROR = "HYDRA_FULL_ERROR"
SET_FULL_ERROR = "LOOPFORGE_SET_FULL_ERROR"
"""Set if FULL_ERROR was set by us and not by the user: a child process does not inherit it."""


def is_sweep_job() -> bool:
    """Whether this process is a job that a sweep started."""
    return SUFFIX in os.environ


def report_run_dir(run_dir: Path) -> None:
    """Write the run directory of this process for its parent, if that has named a file."""
    if REPORT in os.environ:
        atomic_write_text(os.environ[REPORT], str(run_dir.resolve()))
