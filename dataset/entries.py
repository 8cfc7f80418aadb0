"""Entries of the catalog of named data sets (dataset/catalog.py): how each is built, announced and recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from dataset.arc.build import ArcBuild, build_generated
from dataset.arc.corpus.generate import CorpusPlan
from dataset.arc.pattern import PatternPlan, build_patterns
from dataset.maze.build import MazeBuild, build as build_mazes
from dataset.sudoku.build import SudokuBuild, build

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
        """Training examples of a puzzle; None if only the build counts them."""

    def command(self) -> str:
        """The builder with its flags, without the folder."""

    def summary(self) -> str:
        """What is built, for the line that announces it."""

    def card(self) -> dict[str, Any]:
        """Values that its card.json must have (nested keys joined by dots); others mean other build parameters."""

    def build(self, root: Path) -> None:
        """Build it. Raises: UsageError."""


@dataclass(frozen=True, kw_only=True)
class BuiltBoards:
    """Common to generated boards: a group is a board with its augmented copies. Fields as in the builder."""

    size: int
    num_train: int
    num_test: int
    data_mode: ClassVar[str] = "embedding"
    mean_examples: ClassVar[float | None] = 1.0
    what: ClassVar[str]

    @property
    def groups(self) -> int:
        return self.num_train

    def summary(self) -> str:
        side = f"{self.size}x{self.size}"
        return f"{self.num_train} training and {self.num_test} test {self.what} of {side}, generated"

    def flags(self) -> str:
        """The flags that all builders of boards share."""
        return f"--size {self.size} --num-train {self.num_train} --num-test {self.num_test}"

    def card(self) -> dict[str, Any]:
        groups = {"counts.train.groups": self.num_train, "counts.test.groups": self.num_test}
        return {"board": f"{self.size}x{self.size}", **groups}


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

    def card(self) -> dict[str, Any]:
        blanks = {"blanks": list(self.blanks)} if self.blanks else {}
        return {**super().card(), "num_aug": self.num_aug, "min_difficulty": self.min_difficulty, **blanks}

    def build(self, root: Path) -> None:
        build(SudokuBuild(output_dir=root, **vars(self)))


@dataclass(frozen=True, kw_only=True)
class BuiltMazes(BuiltBoards):
    """Generated mazes."""

    aug: bool
    what: ClassVar[str] = "mazes"

    def command(self) -> str:
        return f"{MAZE_BUILDER} {self.flags()}" + (" --aug" if self.aug else "")

    def card(self) -> dict[str, Any]:
        return {**super().card(), "aug": self.aug}

    def build(self, root: Path) -> None:
        build_mazes(MazeBuild(output_dir=root, **vars(self)))


@dataclass(frozen=True, kw_only=True)
class BuiltCorpus:
    """A generated corpus of grid tasks (dataset/arc/corpus/)."""

    corpus: CorpusPlan
    num_aug: int
    canvas: int
    data_mode: Literal["embedding", "encoder"] = "embedding"
    translate: bool = True
    """Encoder mode: training pairs anywhere on the canvas, else at the top left as in evaluation."""
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
        flags += "" if self.translate else " --translation none"
        builder = ARC_BUILDER + ("_encoder --compact" if self.data_mode == "encoder" else "")
        return f"{builder} --generated {flags}"

    def summary(self) -> str:
        side = f"{self.corpus.side}x{self.corpus.side}"
        count = self.corpus.num_train + self.corpus.num_test + self.corpus.num_novel
        copies = f", {self.num_aug} augmentations of each" if self.num_aug else ""
        return f"{count} grid tasks of up to {side}{copies}, generated"

    def card(self) -> dict[str, Any]:
        plan = self.corpus
        train, novel = plan.names()
        return {
            "families": train,
            "held_out_families": novel,
            "subsets.training.tasks": plan.num_train,
            "subsets.evaluation.tasks": plan.num_test,
            "canvas": self.canvas,
            "num_aug": self.num_aug,
            "corpus_seed": plan.seed,
            **({"moved": self.translate} if self.data_mode == "encoder" else {}),
        }

    def _plan(self, root: Path) -> ArcBuild:
        compact = self.data_mode == "encoder"
        return ArcBuild(
            output_dir=root,
            num_aug=self.num_aug,
            canvas=self.canvas,
            data_mode=self.data_mode,
            compact=compact,
            translate=self.translate,
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

    def summary(self) -> str:
        plan = self.patterns
        count = plan.num_train + plan.num_test
        return f"{count} tasks of {plan.side}x{plan.side} with patterns of {plan.pattern}x{plan.pattern}, generated"

    def card(self) -> dict[str, Any]:
        plan = self.patterns
        counts = {"subsets.training.tasks": plan.num_train, "subsets.evaluation.tasks": plan.num_test}
        return {"pattern": plan.pattern, "canvas": plan.side, "density": plan.density, **counts}

    def build(self, root: Path) -> None:
        build_patterns(root, self.patterns)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set built from published data. A launch never builds it."""

    command: str
    """The builder with its flags, without the folder; FOLDER is where the published files are."""
    data: str
    """What the published files are."""
    groups: int | None = None
    """Training groups."""
    mean_examples: float | None = 1.0
    """Training examples of a puzzle."""
    data_mode: str = "embedding"
    """What its dataset.json says."""
    offline: str | None = None
    """Key of STAND_INS that is built if it is missing (docs/decisions/0007-stand-in-data.md)."""
