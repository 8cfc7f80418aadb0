"""Named data sets: `ensure(path)` makes a data path usable and builds small generated ones on first use.

Text data sets have a catalog of their own, dataset/text/named.py, with `ensure_text`.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from dataset.arc.augment import LARGEST
from dataset.arc.build import ArcBuild, build_generated
from dataset.arc.corpus.generate import CorpusPlan
from dataset.arc.pattern import PatternPlan, build_patterns
from dataset.format import load_splits
from dataset.maze.build import MazeBuild, build as build_mazes
from dataset.sudoku.build import SudokuBuild, build
from dataset.text import named as text
from dataset.text.build import describe_text
from dataset.text.named import ensure_text
from dataset.writing import describe as describe_puzzles, stand_in_reason
from engine.io import UsageError, did_you_mean, print_rank0, user_path

__all__ = ["BUILT", "PUBLISHED", "STAND_INS", "build_command", "describe", "ensure", "ensure_text"]

SUDOKU_BUILDER, ARC_BUILDER = "python -m dataset.build_sudoku_dataset", "python -m dataset.build_arc_dataset"
PATTERN_BUILDER = "python -m dataset.build_pattern_dataset"
MAZE_BUILDER = "python -m dataset.build_maze_dataset"


class Built(Protocol):
    """A generated data set that a run may build at launch."""

    @property
    def data_mode(self) -> str:
        """What its dataset.json says."""

    @property
    def groups(self) -> int:
        """Training groups."""

    @property
    def mean_examples(self) -> float | None:
        """Training examples of a puzzle; None where they are counted only when it is built."""

    def command(self) -> str:
        """The builder with its flags, without the folder."""

    def words(self) -> str:
        """What is built, for the line that announces it."""

    def build(self, root: Path) -> None:
        """Build it. Raises: UsageError."""


@dataclass(frozen=True, kw_only=True)
class BuiltBoards(ABC):
    """Generated boards of one kind: a group is one of them, with its augmented copies. Fields are the builder's."""

    size: int
    num_train: int
    num_test: int
    data_mode: ClassVar[str] = "embedding"
    mean_examples: ClassVar[float | None] = 1.0
    what: ClassVar[str]

    @property
    def groups(self) -> int:
        return self.num_train

    def words(self) -> str:
        side = f"{self.size}x{self.size}"
        return f"{self.num_train} training and {self.num_test} test {self.what} of {side}, generated"

    def flags(self) -> str:
        """What every builder of boards is told."""
        return f"--size {self.size} --num-train {self.num_train} --num-test {self.num_test}"

    @abstractmethod
    def command(self) -> str:
        """The builder with its flags, without the folder."""

    @abstractmethod
    def build(self, root: Path) -> None:
        """Build it. Raises: UsageError."""


@dataclass(frozen=True, kw_only=True)
class BuiltSudoku(BuiltBoards):
    """Generated Sudokus."""

    blanks: tuple[int, int] | None = None
    min_difficulty: int = 0
    num_aug: int = 0
    what: ClassVar[str] = "puzzles"

    def command(self) -> str:
        blanks = f" --blanks {self.blanks[0]} {self.blanks[1]}" if self.blanks else ""
        hard = f" --min-difficulty {self.min_difficulty}" if self.min_difficulty else ""
        augmented = f" --num-aug {self.num_aug}" if self.num_aug else ""
        return f"{SUDOKU_BUILDER} {self.flags()}{blanks}{hard}{augmented}"

    def build(self, root: Path) -> None:
        build(SudokuBuild(output_dir=root, **vars(self)))


@dataclass(frozen=True, kw_only=True)
class BuiltMazes(BuiltBoards):
    """Generated mazes."""

    aug: bool
    what: ClassVar[str] = "mazes"

    def command(self) -> str:
        return f"{MAZE_BUILDER} {self.flags()}" + (" --aug" if self.aug else "")

    def build(self, root: Path) -> None:
        build_mazes(MazeBuild(output_dir=root, **vars(self)))


@dataclass(frozen=True, kw_only=True)
class BuiltCorpus:
    """A generated corpus of grid tasks (dataset/arc/corpus/)."""

    corpus: CorpusPlan
    num_aug: int
    canvas: int
    data_mode: Literal["embedding", "encoder"] = "embedding"
    moved: bool = True
    """Training pairs of encoder mode anywhere on the canvas; else at the top left, where evaluation has them."""
    mean_examples: ClassVar[float | None] = None

    @property
    def groups(self) -> int:
        if self.data_mode == "encoder":
            return self.corpus.num_train
        return self.corpus.num_train + self.corpus.num_test + self.corpus.num_novel

    def command(self) -> str:
        plan = self.corpus
        counts = f"--num-train {plan.num_train} --num-test {plan.num_test} --num-novel {plan.num_novel}"
        size = f"--canvas {self.canvas}" + (f" --largest {plan.side}" if plan.side < self.canvas else "")
        shown = f"--demonstrations {plan.demonstrations[0]} {plan.demonstrations[1]}"
        flags = f"{size} --families {plan.families} {counts} {shown} --num-aug {self.num_aug}"
        flags += "" if self.moved else " --translation none"
        builder = ARC_BUILDER + ("_encoder --compact" if self.data_mode == "encoder" else "")
        return f"{builder} --generated {flags}"

    def words(self) -> str:
        side = f"{self.corpus.side}x{self.corpus.side}"
        count = self.corpus.num_train + self.corpus.num_test + self.corpus.num_novel
        return f"{count} grid tasks of up to {side}, {self.num_aug} augmentations of each, generated"

    def _plan(self, root: Path) -> ArcBuild:
        compact = self.data_mode == "encoder"
        return ArcBuild(
            output_dir=root,
            num_aug=self.num_aug,
            canvas=self.canvas,
            data_mode=self.data_mode,
            compact=compact,
            moved=self.moved,
        )

    def build(self, root: Path) -> None:
        build_generated(self._plan(root), self.corpus)

    def stand_in(self, root: Path) -> None:
        """Build it under the name of published data; its card states that. Raises: UsageError."""
        build_generated(self._plan(root), self.corpus, {"stand_in": True, "stand_in_for": root.name})


@dataclass(frozen=True, kw_only=True)
class BuiltPatterns:
    """The pattern task (dataset/arc/pattern.py)."""

    patterns: PatternPlan
    data_mode: ClassVar[str] = "encoder"

    @property
    def groups(self) -> int:
        return self.patterns.num_train

    @property
    def mean_examples(self) -> float:
        return float(self.patterns.demonstrations + 1)

    def command(self) -> str:
        plan = self.patterns
        counts = f"--num-train {plan.num_train} --num-test {plan.num_test}"
        return f"{PATTERN_BUILDER} --side {plan.side} --pattern {plan.pattern} {counts}"

    def words(self) -> str:
        plan = self.patterns
        count = plan.num_train + plan.num_test
        return f"{count} tasks of {plan.side}x{plan.side} with patterns of {plan.pattern}x{plan.pattern}, generated"

    def build(self, root: Path) -> None:
        build_patterns(root, self.patterns)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set that a command makes of published data. A launch never builds it."""

    command: str
    """The builder with its flags, without the folder; FOLDER is where the published files are."""
    data: str
    """What those files are."""
    groups: int | None = None
    """Training groups."""
    mean_examples: float | None = 1.0
    """Training examples of a puzzle."""
    data_mode: str = "embedding"
    """What its dataset.json says."""
    offline: str | None = None
    """Key of STAND_INS that is built where it is missing (docs/decisions/0007-stand-in-data.md)."""


BUILT: Mapping[str, Built] = {
    "debug-sudoku-4x4": BuiltSudoku(size=4, num_train=64, num_test=16, blanks=(6, 10)),
    "sudoku-default": BuiltSudoku(size=4, num_train=1_000, num_test=64, blanks=(6, 10)),
    "sudoku-4x4": BuiltSudoku(size=4, num_train=20_000, num_test=256, blanks=(6, 10)),
    "sudoku-6x6": BuiltSudoku(size=6, num_train=10_000, num_test=500, blanks=(12, 22), num_aug=7),
    "sudoku-9x9-easy": BuiltSudoku(size=9, num_train=5_000, num_test=500, blanks=(30, 45), num_aug=7),
    "sudoku-9x9-hard": BuiltSudoku(size=9, num_train=1_000, num_test=10_000, min_difficulty=5, num_aug=1_000),
    "maze-8x8": BuiltMazes(size=8, num_train=2_000, num_test=500, aug=True),
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
        corpus=CorpusPlan(side=6, families="few", num_train=1_600, num_test=200, num_novel=0),
        num_aug=8,
        canvas=6,
        data_mode="encoder",
        moved=False,
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
    """The command that builds the data set at `path`, or None for a name that the catalog does not know."""
    name = Path(path).name
    command = PUBLISHED[name].command if name in PUBLISHED else BUILT[name].command() if name in BUILT else None
    if command is None:
        return text.build_command(path) if name in text.NAMED else None
    return f"{command} --output-dir {shlex.quote(str(path))}"


def describe(path: str | Path) -> dict[str, Any]:
    """The card of the data set at `path`, of puzzles or of text. Raises: UsageError when it is neither."""
    root = Path(path)
    return describe_text(root) if (root / "train.bin").exists() else describe_puzzles(root)


def ensure(path: str | Path, *, build: bool = True, offline: Literal["stand_in", "error"] = "stand_in") -> Path:
    """The data set at `path`, checked; a known generated one that is missing is built first, if `build` allows it.

    A published one that is missing is an error, unless its entry declares a stand-in that `offline` does not forbid.
    Several ranks may call this at once: the first builds, the others wait for it. One line announces a build, and one
    line at every use that the data are a stand-in.

    Raises: UsageError for a damaged data set, for a missing one that cannot be built here, with the command, and for
    a stand-in with `offline="error"`.
    """
    root = user_path(path)
    if not root.exists():
        entry = PUBLISHED.get(root.name)
        stand_in = entry.offline if entry and offline != "error" else None
        if root.name not in BUILT and stand_in is None:
            raise UsageError(_missing(root))
        if not build:
            raise UsageError(f"{root} does not exist, and the config of a run builds no data: {build_command(root)}")
        _build_once(root, stand_in)
    for split in ("train", "test"):
        load_splits([root], split)
    _report_stand_in(root, offline)
    return root


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
    print_rank0(f"{root} is missing: building {what} now ({entry.words()})")
    try:
        if stand_in:
            STAND_INS[stand_in].stand_in(root)
        else:
            entry.build(root)
    except UsageError:
        # Another rank or run held the lock and has finished: its result is ours, bit for bit.
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
