"""Planted faults: a copy of this repository, what is changed in it, and what the verifier must then say.

A fault is a few edits and a job line (or the text of a whole job file). An edit whose text is no longer found fails loudly,
so that the table cannot go stale in silence. The faults are in faults_*.py, what must stay without a failure in
faults_none.py.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

FOLDERS = (
    "config",
    "models",
    "losses",
    "tasks",
    "evaluators",
    "dataset",
    "engine",
    "launcher",
    "jobs",
    "docs",
    "scripts",
    "verification",
)
SMALL = "python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu"
LARGE = "torchrun --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp"
FILES = {
    "SCRIPT": "pretrain.py",
    "BASE": "config/base/pretrain.yaml",
    "RECIPE": "config/cfg_pretrain_sudoku_4x4.yaml",
    "OTHER_RECIPE": "config/cfg_train.yaml",
    "ARCH": "config/arch/trm.yaml",
    "TRM": "models/recursive_reasoning/trm.py",
    "ACT": "models/recursive_reasoning/act.py",
    "INNER": "models/recursive_reasoning/inner.py",
    "RECURSION": "models/recursive_reasoning/recursion.py",
    "TABLE": "models/sparse_embedding.py",
    "LOSS": "losses/act.py",
    "FAMILY": "tasks/recursive_reasoning/family.py",
    "BUILD": "tasks/recursive_reasoning/build.py",
    "TASK": "tasks/recursive_reasoning/task.py",
    "GROUPS": "tasks/recursive_reasoning/groups.py",
}
"""The names of files in the tables; those of another family have their own."""

Edit = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One slip. `codes` must be found at `level`; no other code may be a FAIL, except those of `follows`.

    Without codes it is something unusual but right: no FAIL, and `quiet` codes must not even be a WARN.
    """

    name: str
    what: str
    codes: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    job: str = SMALL
    """The command that is verified, with `intent`."""
    jobs: str | None = None
    """The text of a job file in its place."""
    intent: tuple[tuple[str, str], ...] = ()
    level: str = "FAIL"
    follows: tuple[str, ...] = ()
    everything: bool = False
    """The whole tree is verified, pages included."""
    probes: bool = False
    """Only a tiny instance shows it, though rules judge its code too."""
    quiet: tuple[str, ...] = ()


# --- tables -------------------------------------------------------------------------------------------------------------


def faults(table: str, *, job: str = SMALL, files: Mapping[str, str] = FILES) -> tuple[Fault, ...]:
    """A fault for each line `name | codes | what | command | intent`, with the edits that stand indented below it.

    Before the codes their level where it is not FAIL, OBSERVED where only a tiny instance shows it, EVERYTHING where the
    whole tree is verified; behind them in brackets the codes that follow. The command is `job` where it is left out, and
    `job` with more words after a `+`; lines that begin with `>` are those of a job file in its place.

    An edit is `FILE | text => other text` (`=>>` for every occurrence), `copy FILE NEW`, `move FILE NEW`, `remove FILE...`,
    `put FILE | text`, or FILE with a patch below it: lines before (` `, `-`) and after (` `, `+`), at the file's end where
    it has only `+`. FILE is a path, or the name of one in `files`.
    """
    made = []
    for (name, codes, what, command, intent), below in _rows(table):
        codes, _, follows = codes.rstrip(")").partition("(")
        words = codes.split()
        level = next((word for word in words if word in ("WARN", "INFO")), "FAIL")
        made.append(
            Fault(
                name=name,
                what=what,
                codes=tuple(word for word in words if word not in (level, "OBSERVED", "EVERYTHING")),
                edits=_edits(below, files),
                job=f"{job} {command.removeprefix('+ ')}" if command.startswith("+ ") else command or job,
                jobs=_jobs(below, job),
                intent=tuple((key, value) for key, _, value in (word.partition("=") for word in intent.split())),
                level=level,
                follows=tuple(follows.split()),
                everything="EVERYTHING" in words,
                probes="OBSERVED" in words,
            )
        )
    return tuple(made)


def right(table: str, *, job: str = SMALL, files: Mapping[str, str] = FILES) -> tuple[Fault, ...]:
    """What is right, for each line `name | codes that must be quiet | what | command | intent`; edits as in `faults`."""
    return tuple(replace(case, codes=(), quiet=case.codes) for case in faults(table, job=job, files=files))


def _rows(table: str) -> Iterator[tuple[list[str], list[str]]]:
    """Each row's cells, and the lines below it."""
    for row in re.split(r"\n(?=\S)", table.strip("\n")):
        first, *below = row.split("\n")
        cells = [cell.strip() for cell in first.split(" | ")]
        yield [*cells, *[""] * (5 - len(cells))], below


def _jobs(below: list[str], job: str) -> str | None:
    """The text of the job file, in which the first `+` of a line stands for `job`."""
    lines = [re.sub(r"(^| )\+ ", rf"\1{job} ", line[4:], count=1) for line in below if line.startswith("  >")]
    return "".join(f"{line}\n" for line in lines) or None


def _edits(below: list[str], files: Mapping[str, str]) -> tuple[Edit, ...]:
    made: list[Edit] = []
    for head, *lines in _hunks([line for line in below if not line.startswith("  >")]):
        word, *paths = (files.get(word, word) for word in head.partition(" | ")[0].split())
        text = head.partition(" | ")[2]
        old, new = text.split(" =>> ") if (every := " =>> " in text) else text.partition(" => ")[::2]
        if word in ("copy", "move"):
            made.append(partial({"copy": copy, "move": move}[word], *paths))
        elif word == "remove":
            made += [partial(remove, path) for path in paths]
        elif word == "put":
            made.append(partial(put, paths[0], text))
        elif lines:
            made.append(_patch(word, lines))
        else:
            made.append(partial(swap, word, old, new, every))
    return tuple(made)


def _hunks(lines: list[str]) -> Iterator[list[str]]:
    """Each edit's first line with the lines of its patch."""
    group: list[str] = []
    for line in lines:
        if group and re.match(r"  [^ +-]", line):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _patch(path: str, lines: list[str]) -> Edit:
    before, after = ("".join(f"{line[4:]}\n" for line in lines if line[2:3] not in (mark,)) for mark in "+-")
    return partial(swap, path, before, after, False) if before else partial(append, path, after)


# --- edits ------------------------------------------------------------------------------------------------------------


def swap(path: str, old: str, new: str, every: bool, root: Path) -> None:
    """Replace the only occurrence of `old`, or every one."""
    text = (root / path).read_text(encoding="utf-8")
    count = text.count(old)
    if count != 1 and not (every and count):
        raise LookupError(f"{path} holds {count} times {old!r}: bring the fault up to date")
    _write(root / path, text.replace(old, new))


def put(path: str, text: str, root: Path) -> None:
    """Write a new file."""
    if (root / path).exists():
        raise LookupError(f"{path} exists already: bring the fault up to date")
    _write(root / path, text)


def append(path: str, text: str, root: Path) -> None:
    """Add to the end of a file, made where it is missing."""
    _write(root / path, ((root / path).read_text(encoding="utf-8") if (root / path).exists() else "") + text)


def move(path: str, new: str, root: Path) -> None:
    """Rename a file."""
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    os.rename(root / path, root / new)


def copy(path: str, new: str, root: Path) -> None:
    """Copy a file."""
    _write(root / new, (root / path).read_text(encoding="utf-8"))


def remove(path: str, root: Path) -> None:
    """Delete a file or a folder."""
    if (root / path).is_dir():
        shutil.rmtree(root / path)
    else:
        (root / path).unlink()


def _write(path: Path, text: str) -> None:
    """Write its own file: those of the copy are hard links to a shared one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


# --- copies -----------------------------------------------------------------------------------------------------------


def copy_repository(source: Path, target: Path) -> Path:
    """What a run and its verification read, copied once."""
    target.mkdir(parents=True)
    unwanted = shutil.ignore_patterns("images")
    for name in FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=unwanted)
    for path in [
        *source.glob("*.py"),
        *source.glob("*.json"),
        source / "README.md",
        source / "Makefile",
        source / "pyproject.toml",
    ]:
        shutil.copy2(path, target / path.name)
    return target


def overlay(pristine: Path, target: Path, edits: Iterable[Edit]) -> Path:
    """A tree of hard links to `pristine` with `edits` applied: its own folder, so nothing cached by path can be stale."""
    shutil.copytree(pristine, target, copy_function=os.link)
    for edit in edits:
        edit(target)
    for path in target.rglob("*.py"):
        if path.stat().st_nlink == 1:  # changed: a slip is not a syntax error
            ast.parse(path.read_text(encoding="utf-8"), str(path))
    return target
