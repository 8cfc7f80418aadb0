"""Named data sets: `ensure(path)` makes a data path usable and builds small generated ones on first use.

Text data sets have their own catalog, dataset/text/named.py, with `ensure_text`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dataset.arc.augment import LARGEST
from dataset.arc.corpus.generate import PRESETS, CorpusPlan
from dataset.arc.pattern import PatternPlan
from dataset.entries import (
    ARC_BUILDER,
    MAZE_BUILDER,
    SUDOKU_BUILDER,
    Built,
    BuiltCorpus,
    BuiltMazes,
    BuiltPatterns,
    BuiltSudoku,
    Published,
)
from dataset.format import load_splits
from dataset.metadata import read_card
from dataset.text import named as text
from dataset.text.build import describe_text
from dataset.text.named import ensure_text
from dataset.writing import CARD, describe as describe_puzzles, stand_in_reason
from engine.io import UsageError, did_you_mean, print_rank0, user_path

__all__ = ["BUILT", "PUBLISHED", "STAND_INS", "build_command", "describe", "ensure", "ensure_text"]

BUILT: Mapping[str, Built] = {
    "debug-sudoku-4x4": BuiltSudoku(size=4, num_train=64, num_test=16, blanks=(6, 10)),
    "sudoku-default": BuiltSudoku(size=4, num_train=1_000, num_test=64, blanks=(6, 10)),
    "sudoku-4x4": BuiltSudoku(size=4, num_train=20_000, num_test=256, blanks=(6, 10)),
    "sudoku-6x6": BuiltSudoku(size=6, num_train=10_000, num_test=500, blanks=(12, 22), num_aug=7),
    "sudoku-9x9-easy": BuiltSudoku(size=9, num_train=5_000, num_test=500, blanks=(30, 45), num_aug=7),
    "sudoku-9x9-hard": BuiltSudoku(size=9, num_train=1_000, num_test=10_000, min_difficulty=5, num_aug=1_000),
    "maze-8x8": BuiltMazes(size=8, num_train=20_000, num_test=500, aug=False),
    "arc-corpus-10x10": BuiltCorpus(
        corpus=CorpusPlan(side=7, num_train=81, num_test=27, num_novel=12, demonstrations=(6, 10)), num_aug=4, canvas=10
    ),
    "arc-corpus-easy-10x10": BuiltCorpus(
        corpus=CorpusPlan(
            side=6,
            families="recolour,keep,negative,patched,cleaned,hollowed",
            num_train=48,
            num_test=18,
            num_novel=0,
        ),
        num_aug=1,
        canvas=10,
    ),
    "arc-corpus-6x6": BuiltCorpus(
        corpus=CorpusPlan(side=6, families="first", num_train=63, num_test=14, num_novel=8), num_aug=4, canvas=6
    ),
    "few-shot-6x6": BuiltCorpus(
        # No augmented copies: turning changes some rules (stripes of columns, a chequer from the right). More tasks
        # instead, and twice as many of the families that are learned last.
        corpus=CorpusPlan(
            side=6,
            families=",".join((*PRESETS["few"], "grounded", "stamped", "targeted")),
            num_train=14_400,
            num_test=200,
            num_novel=0,
        ),
        num_aug=0,
        canvas=6,
        data_mode="encoder",
        translate=False,
    ),
    "few-shot-10x10": BuiltCorpus(
        corpus=CorpusPlan(side=10, num_train=1_620, num_test=135, num_novel=60),
        num_aug=8,
        canvas=10,
        data_mode="encoder",
    ),
    "pattern-5x5": BuiltPatterns(patterns=PatternPlan(side=5, pattern=2)),
    "pattern-10x10": BuiltPatterns(patterns=PatternPlan(side=10, pattern=4)),
}
_STAND_IN = BuiltCorpus(corpus=CorpusPlan(side=10), num_aug=8, canvas=LARGEST)
CPU_SECONDS = {"sudoku-9x9-easy": 30, "sudoku-9x9-hard": 600, "maze-8x8": 30, "few-shot-6x6": 40}
"""CPU time of a build on one machine, which several cores divide; builds not listed take less than 20 s."""
STAND_INS = {"arc-corpus": _STAND_IN, "arc-corpus-encoder": replace(_STAND_IN, data_mode="encoder")}
_CSV = "the public Sudoku-Extreme CSV (train.csv, test.csv; --download in place of --input FOLDER fetches them)"


def _arc(subsets: str, test_set: str, groups: int, mean_examples: float, *, data_mode: str = "embedding") -> Published:
    source = f"--input-file-prefix FOLDER/arc-agi --subsets {subsets} --test-set-name {test_set}"
    form = "_encoder" if data_mode == "encoder" else ""
    return Published(
        command=f"{ARC_BUILDER}{form} {source} --num-aug 1000 --compact",
        data="the public tasks (FOLDER/arc-agi_SUBSET_challenges.json and _solutions.json)",
        groups=groups,
        mean_examples=mean_examples,
        offline="arc-corpus" + form.replace("_", "-"),
        data_mode=data_mode,
    )


PUBLISHED = {
    "sudoku-extreme-1k-aug-1000": Published(
        command=f"{SUDOKU_BUILDER} --input FOLDER --subsample-size 1000 --num-aug 1000", data=_CSV, groups=1000
    ),
    "sudoku-extreme-full": Published(command=f"{SUDOKU_BUILDER} --input FOLDER", data=_CSV),
    "maze-30x30-hard-1k": Published(
        command=f"{MAZE_BUILDER} --input FOLDER",
        data="the public Maze-Hard CSV (train.csv, test.csv; --download in place of --input FOLDER fetches them)",
        groups=1000,
    ),
    "arc1concept-aug-1000": _arc("training evaluation concept", "evaluation", 960, 4.15),
    "arc2concept-aug-1000": _arc("training2 evaluation2 concept", "evaluation2", 1280, 4.33),
    "arc1concept-encoder-aug-1000": _arc("training evaluation concept", "evaluation", 529, 4.67, data_mode="encoder"),
    "arc2concept-encoder-aug-1000": _arc(
        "training2 evaluation2 concept", "evaluation2", 1160, 4.5, data_mode="encoder"
    ),
}


def build_command(path: str | Path) -> str | None:
    """The command that builds the data set at `path`; None for a name that is not in the catalog."""
    name = Path(path).name
    command = PUBLISHED[name].command if name in PUBLISHED else BUILT[name].command() if name in BUILT else None
    if command is None:
        return text.build_command(path) if name in text.NAMED else None
    return f"{command} --output-dir {shlex.quote(str(path))}"


def describe(path: str | Path) -> dict[str, Any]:
    """The card of the puzzle or text data set at `path`. Raises: UsageError if it is neither."""
    root = Path(path)
    return describe_text(root) if (root / "train.bin").exists() else describe_puzzles(root)


def ensure(path: str | Path, *, build: bool = True, offline: Literal["stand_in", "error"] = "stand_in") -> Path:
    """Check the data set at `path` and return it; with `build`, a generated one that is missing is built first.

    A missing published data set is an error, unless its entry has a stand-in and `offline` allows it. Several ranks may
    call this at once: the first builds, the others wait. One line announces a build; every use of a stand-in, or of a
    generated data set whose parameters differ from the catalog's, prints one line, too.

    Raises: UsageError for a damaged data set, for a missing one that cannot be built here (with the command), and for
    a stand-in with `offline="error"`.
    """
    root = user_path(path)
    if not root.exists():
        entry = PUBLISHED.get(root.name)
        stand_in = entry.offline if entry and offline != "error" else None
        if root.name not in BUILT and stand_in is None:
            raise UsageError(_missing(root))
        if not build:
            raise UsageError(f"{root} does not exist, and a run's config does not build data: {build_command(root)}")
        _build_once(root, stand_in)
    for split in ("train", "test"):
        load_splits([root], split)
    _report_stand_in(root, offline)
    _report_difference(root)
    return root


def _report_difference(root: Path) -> None:
    """Print one line if a generated data set was built with other parameters than the catalog has now."""
    if root.name not in BUILT or not (root / CARD).exists():
        return
    card, differences = read_card(root / CARD), []
    for key, expected in BUILT[root.name].card().items():
        recorded: Any = card
        for part in key.split("."):
            recorded = recorded.get(part) if isinstance(recorded, dict) else None
        if recorded != expected:
            differences.append(
                f"{key} {'not recorded' if recorded is None else _short(recorded)}, now {_short(expected)}"
            )
    if differences:
        print_rank0(
            f"OTHER DATA: {root} was built with other parameters than its name means now ({'; '.join(differences)}). "
            f"Keep it under another name, or replace it: {build_command(root)} --overwrite"
        )


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _report_stand_in(root: Path, offline: str) -> None:
    reason = stand_in_reason(root)
    if reason is None:
        return
    command = build_command(root)
    if offline == "error" and root.name in PUBLISHED and PUBLISHED[root.name].offline:
        raise UsageError(f"{root} is a stand-in ({reason}) and offline=error forbids those: {command} --overwrite")
    real = f" The real one: {command}" + ("" if "FOLDER" not in command else " --overwrite") if command else ""
    print_rank0(f"STAND-IN DATA: {root} is {reason}; figures are not comparable (stand_in: true).{real}")


def _build_once(root: Path, stand_in: str | None) -> None:
    entry = STAND_INS[stand_in] if stand_in else BUILT[root.name]
    what = f"its stand-in {stand_in}" if stand_in else "it"
    long = f", about {CPU_SECONDS[root.name]} CPU seconds" if root.name in CPU_SECONDS else ""
    print_rank0(f"{root} is missing: building {what} now ({entry.summary()}{long})")
    try:
        if stand_in:
            STAND_INS[stand_in].stand_in(root)
        else:
            entry.build(root)
    except UsageError:
        # Another rank or run held the lock and has built it: the result is the same, bit for bit.
        if not root.exists():
            raise


def _missing(root: Path) -> str:
    command = build_command(root)
    if root.name in text.NAMED:
        return f"{root} does not exist, and it would hold text, not puzzles ({command}): train.py reads such data sets"
    if (entry := PUBLISHED.get(root.name)) is not None:
        why = f"; offline=error forbids its stand-in {entry.offline}" if entry.offline else ""
        return f"{root} does not exist{why}. It is made from {entry.data}: {command}"
    return f"data set {root} does not exist and '{root.name}' cannot be built at launch: " + did_you_mean(
        root.name, BUILT
    )
