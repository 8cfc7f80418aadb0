"""Job files: one command per line with its state, comments and intent.

    # Does the MLP over positions beat attention on small boards?
    #@ id: A1
    #@ intent: mode=embedding act=dynamic encoder=none purpose=new
    [ ] torchrun --standalone --nproc-per-node=2 pretrain.py --config-name=cfg_pretrain_sudoku_4x4 run_name=mlp
    [-] python pretrain.py run_name=a [4711@host]          running, by process 4711 of host
    [x] python pretrain.py run_name=b                      done
    [!] python pretrain.py run_name=c                      failed

A `#` starts a comment only as the first character of a line; inside a command every byte belongs to the command.
A command is not a shell line: quotes and leading VAR=value work, pipes and `&&` need `bash -c '...'`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.reading import Unreadable, read_bytes, reason_of

STATES = {" ": "todo", "-": "running", "x": "done", "!": "failed"}
MARKS = {state: mark for mark, state in STATES.items()}

_JOB = re.compile(r"\[([ x!-])\][ \t]+(\S.*)", re.DOTALL)
# The runner appends one owner to a line that it marks [-], and later removes exactly one.
_OWNER = re.compile(r"(?P<command>.+) \[(?P<pid>\d+)(?:@(?P<host>[^\s\[\]@]+))?\]\s*", re.DOTALL)
_DIRECTIVE = re.compile(r"#@[ \t]*([A-Za-z][\w-]*)[ \t]*:[ \t]*(.*)")
_SHELL_SIGN = re.compile(r"[|&;<>]")
_VARIABLE = re.compile(r"\$[A-Za-z_]\w*|\$\(|`")
_QUOTED = re.compile(r"""'[^']*'|"((?:\\.|[^"\\])*)"|\\.""", re.DOTALL)
_ENV = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """One job line. `command` is the exact text in the file, without mark and owner."""

    line_number: int
    """1-based"""
    mark: str
    """one of " ", "-", "x", "!\""""
    command: str
    argv: tuple[str, ...] = ()
    """words of the command without leading VAR=value; empty if there is an `error`"""
    env: dict[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()
    """the comment lines directly above, without `# `"""
    intent: dict[str, str] = field(default_factory=dict)
    directives: dict[str, str] = field(default_factory=dict)
    """`#@ key: value` lines other than intent and id"""
    label: str | None = None
    """from `#@ id:`, or from `id=` in the intent"""
    owner: tuple[int, str | None] | None = None
    """(pid, host) of a running job; host is None if the mark has only a pid"""
    error: str | None = None
    """why the command cannot be split into words"""

    @property
    def state(self) -> str:
        """todo, running, done or failed."""
        return STATES[self.mark]

    def value(self, key: str) -> str | None:
        """The text that the command sets `key` to: `key=`, `+key=`, `++key=`, `--key=` or `--key VALUE`."""
        for number, word in enumerate(self.argv):
            name, equals, text = word.partition("=")
            if (equals and name in (key, f"+{key}", f"++{key}")) or (equals and _flag(name) == key):
                return _unquoted(text)
            if _flag(word) == key and number + 1 < len(self.argv):
                return _unquoted(self.argv[number + 1])
        return None

    @property
    def resumes(self) -> bool:
        """Whether the command resumes an existing run, e.g. that of an earlier line."""
        return (self.value("resume") or "").lower() == "true" or self.value("init_from") == "resume"

    @property
    def run_name(self) -> str | None:
        """The value of the command's run_name override."""
        return self.value("run_name")

    @property
    def id(self) -> str:
        """The label, else the run_name, else `L<line>`."""
        name = self.label or self.run_name or f"L{self.line_number}"
        return name.encode("utf-8", "replace").decode()  # for printing: bytes that are not UTF-8 become ?

    @property
    def key(self) -> str:
        """A file name for this job's lock, record and log, independent of the line number."""
        name = re.sub(r"[^\w.=,+-]+", "_", self.label or self.run_name or "job", flags=re.ASCII).lstrip(".")[:80]
        digest = hashlib.sha256(self.command.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{name}-{digest[:8]}"


@dataclass(frozen=True)
class JobFile:
    """A job file as read at one time."""

    text: str
    jobs: list[Job]
    problems: list[tuple[int, str]]
    """(line number, what is wrong): a line that is not a job, comment or blank; a directive without a job"""


def find(name: str | Path, folders: Sequence[str | Path] = (".",)) -> Path:
    """The job file `name`: a path, or a bare `jobs-NAME.txt` (or `jobs-NAME`, `NAME`) in jobs/ of one of `folders`.

    Raises: UsageError that names the nearest file.
    """
    path = user_path(name)
    if path.is_file():
        return path
    places = [Path(folder) / "jobs" for folder in folders]
    if path.parent == Path("."):
        for place in places:
            for form in (path.name, f"{path.name}.txt", f"jobs-{path.name}.txt"):
                if (place / form).is_file():
                    return place / form
    known = [other.name for place in places for other in place.glob("jobs-*.txt")]
    raise UsageError(f"there is no job file {name} (nor one of that name in jobs/): {did_you_mean(path.name, known)}")


def read(path: str | Path) -> JobFile:
    """Read a job file. Raises: UsageError if it cannot be read; bad lines are `problems`."""
    try:
        text = read_bytes(path).decode("utf-8", "surrogateescape")
    except (OSError, Unreadable) as error:
        raise UsageError(f"job file {path} {reason_of(error)}") from None
    return JobFile(text, *parse_text(text))


def parse_text(text: str) -> tuple[list[Job], list[tuple[int, str]]]:
    """(jobs, problems) of a job file's text."""
    jobs: list[Job] = []
    problems: list[tuple[int, str]] = []
    comments: list[str] = []
    intent: dict[str, str] = {}
    directives: dict[str, str] = {}
    pending = 0  # line of the first directive not yet followed by its job
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r").lstrip("\ufeff" if number == 1 else "")
        if "\r" in line:
            problems.append((number, "its lines end with a carriage return alone: save the file with LF or CRLF"))
        elif not line.strip():
            comments = []
        elif line.lstrip().startswith("#@"):
            pending = pending or number
            problem = read_directive(line, intent, directives)
            if problem:
                problems.append((number, problem))
        elif line.lstrip().startswith("#"):
            comments.append(line.lstrip()[1:].strip())
        elif match := _JOB.fullmatch(line):
            label = directives.pop("id", intent.pop("id", None))
            about = {"comments": tuple(comments), "intent": intent, "directives": directives, "label": label}
            jobs.append(_read_command(Job(number, match[1], match[2]), **about))
            comments, intent, directives, pending = [], {}, {}, 0
        elif jobs and jobs[-1].line_number == number - 1 and jobs[-1].command.endswith("\\"):
            problems.append(
                (number - 1, "a job is one line: write it without \\ at the end, and the next line behind it")
            )
        else:
            problems.append((number, f"{line.strip()[:60]!r} is not a job, comment or blank: a job begins with '[ ] '"))
    if pending:
        problems.append((pending, "a '#@' line without a job below it"))
    return jobs, sorted(problems)


def command_job(command: str | Sequence[str], *, line_number: int = 0) -> Job:
    """A job for a command that is not in a file (words are quoted as for a shell)."""
    text = command if isinstance(command, str) else shlex.join(command)
    return _read_command(Job(line_number, " ", text))


def read_directive(line: str, intent: dict[str, str], directives: dict[str, str]) -> str | None:
    """Add the values of a `#@ key: value` line to `intent` or `directives`. Returns what is wrong with it."""
    match = _DIRECTIVE.fullmatch(line.strip())
    if match is None:
        return f"{line.strip()[:60]!r}: expected '#@ intent: key=value ...' or '#@ id: NAME'"
    name, value = match[1].lower(), match[2].strip()
    if name not in ("intent", "id") and (hint := did_you_mean(name, ("intent", "id"))).startswith("did you"):
        return f"'#@ {name}:': {hint}"
    if name != "intent":
        duplicate = name in directives
        directives[name] = value
        return f"'#@ {name}:' appears twice above one job" if duplicate else None
    try:
        words = shlex.split(value)
    except ValueError as error:
        return f"intent: {str(error).lower()}"
    malformed = [word for word in words if "=" not in word]
    intent.update((name, text) for name, equals, text in (word.partition("=") for word in words) if equals)
    return f"intent: {malformed[0]!r} is not key=value" if malformed else None


def _read_command(job: Job, **about: Any) -> Job:
    """The job with the parts of its command (owner, environment, words), and fields from the lines `about` it."""
    owner, error, words, env = None, None, [], {}
    command = job.command  # with trailing blanks: an escaped one is part of the last word
    if job.mark == "-" and (match := _OWNER.fullmatch(command)):
        command, owner = match["command"], (int(match["pid"]), match["host"])
    try:
        words = shlex.split(command)
    except ValueError as problem:
        error = f"the command cannot be split into words: {str(problem).lower()}"
    while words and _ENV.fullmatch(words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if not words and error is None:
        error = "there is no command"
    return replace(job, command=command, argv=tuple(words), env=env, owner=owner, error=error, **about)


def fault_of(job: Job) -> str | None:
    """Why a job cannot run as written: it cannot be read, or needs a shell for unquoted operators or for something to
    expand. None if it can. Text quoted as for a shell is plain text here, too.
    """
    if job.error:
        return job.error
    for word in _QUOTED.sub("''", job.command).split():
        if word.startswith("#"):
            return f"{word!r} begins no comment behind a command: write the comment on a line of its own above it"
        if _SHELL_SIGN.search(word):
            return f"{word!r} is for a shell, which does not read this line: write bash -c '...' around the command"
    expanded = _QUOTED.sub(lambda quoted: re.sub(r"\\.", "", quoted[1] or ""), job.command)
    if (variable := _VARIABLE.search(expanded)) and job.argv[0] not in ("bash", "sh"):
        return f"{variable[0]} is for a shell, which does not read this line: write its value, or ${{oc.env:NAME}}"
    return None


def _flag(word: str) -> str:
    return word[2:].replace("-", "_") if word.startswith("--") else ""


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
