"""Build the pattern task of LPN (arXiv 2411.08706): few-shot tasks that a small model learns on a CPU.

    python -m dataset.build_pattern_dataset --output-dir data/my-pattern
    python -m dataset.build_pattern_dataset --side 5 --pattern 2 --test-density 1 --output-dir data/my-dense-pattern

A marked cell of the input shows where a pattern goes, the demonstrations of the task show which pattern. Evaluation
uses patterns that are not trained on.
"""

from __future__ import annotations

from engine.io import begin, execute

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # `python dataset/build_pattern_dataset.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset.arc.pattern import PatternPlan, build_patterns
from dataset.arguments import BuilderParser, run_builder
from engine.io import print_rank0


def parser() -> argparse.ArgumentParser:
    """The command line; every flag is also accepted with underscores."""
    out = BuilderParser("build_pattern_dataset", __doc__)
    plan = PatternPlan()
    out.add_argument("--output-dir", type=Path, required=True, help="folder to create")
    out.add_argument("--side", type=int, default=plan.side, help="side of the grids")
    out.add_argument("--pattern", type=int, default=plan.pattern, help="side of the patterns")
    out.add_argument("--demonstrations", type=int, default=plan.demonstrations, help="of each task; it has one test")
    out.add_argument("--num-train", type=int, default=plan.num_train, help="tasks to train on")
    out.add_argument("--num-test", type=int, default=plan.num_test, help="tasks with patterns that are not trained on")
    out.add_argument("--density", type=float, default=plan.density, help="share of the pattern's cells with a colour")
    out.add_argument("--test-density", type=float, help="the same for the evaluation (default: that of training)")
    out.add_argument("--seed", type=int, default=plan.seed, help="the same seed gives the same data, byte for byte")
    out.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    return out


def _build(argv: Sequence[str] | None) -> None:
    arguments = vars(parser().parse_args(argv))
    root, overwrite = arguments.pop("output_dir"), arguments.pop("overwrite")
    card = build_patterns(root, PatternPlan(**arguments), overwrite=overwrite)
    counts = card["counts"]
    print_rank0(
        f"built {root} ({card['canvas']}x{card['canvas']}, patterns {card['pattern']}x{card['pattern']}) in "
        f"{card['seconds']:.1f} s: train {counts['train']['groups']:,} tasks, test {counts['test']['groups']:,} tasks; "
        f"sha256 {card['content_hash'][:16]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print what was built, return the exit code."""
    return run_builder(lambda: _build(argv))


if __name__ == "__main__":
    execute(main)
