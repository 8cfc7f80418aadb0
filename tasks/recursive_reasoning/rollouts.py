"""`scripts/evaluate.py --rollouts`: accuracy of the selection rules against block calls per puzzle."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from dataset.format import PuzzleSplit
from dataset.symmetries import symmetries_of
from engine.errors import UsageError
from engine.io import print_rank0
from evaluators.rollouts import ORACLE, Figure, Rollouts, RolloutsConfig
from evaluators.selection import RULES
from reports.canvas import as_png
from reports.output import write_beside
from reports.scatter import Points, draw_scatter

FLAGS = ("vary", "select", "sigma")


def rollouts_of(args: argparse.Namespace, seed: int, steps: int, splits: Sequence[PuzzleSplit] = ()) -> Rollouts | None:
    """The evaluator for the arguments of scripts/evaluate.py; None without --rollouts.

    Defaults are what helped most (docs/results/rollouts.md): a vote over the symmetries of the data sets or, if one
    has none, the most confident of random starts. Raises: UsageError.
    """
    options = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if args.rollouts is None:
        if options:
            raise UsageError(f"--{next(iter(options))} is about rollouts: add --rollouts N")
        return None
    if args.rollouts < 2:
        raise UsageError("--rollouts 1 is the plain evaluation: give 2 or more, or leave it out")
    if steps < 2:
        raise UsageError(f"--rollouts {args.rollouts} needs 2 ACT steps or more: give --steps 2 or more")
    if args.halting == "latched":
        raise UsageError(
            "--halting latched ends an episode at its own step: rollouts all take the same (--select first)"
        )
    symmetric = bool(splits) and all(symmetries_of(split.root, split.metadata) is not None for split in splits)
    vary = options.setdefault("vary", "symmetry" if symmetric else "init")
    options.setdefault("select", "vote" if vary == "symmetry" else "q")
    if "sigma" in options and vary != "noise":
        raise UsageError(f"--sigma is the size of the noise: it has no meaning with --vary {vary}")
    if not 0 < options.get("sigma", 1.0) < math.inf:
        raise UsageError(f"--sigma {options['sigma']:g}: expected a number above 0")
    return Rollouts(RolloutsConfig(rollouts=args.rollouts, steps=steps, seed=seed, **options))


def print_table(evaluator: Rollouts, figures: Sequence[Figure]) -> None:
    """Print a row for each number of rollouts at full depth, a column for each rule; accuracies in percent.

    Mazes have a second table, which accepts any shortest path.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rules = (*RULES, ORACLE)
    by_rule = {(f.rule, f.rollouts): f for f in figures if f.steps == evaluator.steps}

    def show(share: Callable[[Figure], float | None], caption: str) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("N", "calls", *(rule.removeprefix("vote_") for rule in rules), "of first"):
            table.add_column(heading, justify="right", no_wrap=True)
        for breadth in sorted({rollouts for _, rollouts in by_rule}):
            shown = (f"{100 * (share(by_rule[rule, breadth]) or 0.0):.1f}" for rule in rules)
            calls = (f"{by_rule[rule, breadth].block_calls:.0f}" for rule in (ORACLE, "first"))
            table.add_row(str(breadth), next(calls), *shown, next(calls))
        Console(highlight=False).print(table)
        print_rank0(caption)

    show(
        lambda figure: figure.exact,
        "block calls of N rollouts of a puzzle; exact accuracy in percent by selection rule; block calls of first",
    )
    if any(figure.shortest_path is not None for figure in figures):
        show(lambda figure: figure.shortest_path, "the same, any shortest path instead of the reference path")
    config = evaluator.config
    chosen = by_rule[config.select, config.rollouts]
    print_rank0(
        f"rollouts    {config.rollouts} of {evaluator.steps} steps, vary={config.vary}; {config.select} chooses "
        f"{100 * chosen.exact:.2f} % ({100 * chosen.low:.2f} .. {100 * chosen.high:.2f}) "
        f"in {chosen.block_calls:.0f} block calls per puzzle"
    )
    plain = by_rule[ORACLE, 1].exact
    if chosen.exact < plain:
        harm = f"with vary={config.vary}, select={config.select} rollouts do harm here"
        verdict = harm if chosen.high < plain else "the interval holds both"
        print_rank0(f"note: that is below the model's own answer ({100 * plain:.2f} %): {verdict}")


def draw(evaluator: Rollouts, figures: Sequence[Figure], title: str) -> Image.Image:
    """Plot accuracy against block calls per puzzle: one series for each rule at full depth, one for depth alone."""
    wide = [f for f in figures if f.steps == evaluator.steps and f.rollouts > 1]
    alone = [f for f in figures if f.rule == ORACLE and f.rollouts == 1]
    kinds = [Points("one rollout, more steps", [(f.block_calls, f.exact) for f in alone], plain=True)]
    apart = 0.012 * max(f.block_calls for f in figures)
    for number, rule in enumerate(RULES):
        shift = 0.0 if rule == "first" else apart * (number - 2)  # `first` has its own cost
        kinds.append(Points(rule, [(f.block_calls + shift, f.exact) for f in wide if f.rule == rule]))
    oracle = [(f.block_calls, f.exact) for f in wide if f.rule == ORACLE]
    kinds.append(Points("any of them right (oracle)", oracle, plain=True, hollow=True))
    breadth = f"2 to {evaluator.config.rollouts} rollouts of {evaluator.steps} steps, vary={evaluator.config.vary}"
    subtitle = f"{breadth}; points of the same cost are drawn side by side"
    return draw_scatter(title, subtitle, ("block calls per puzzle", "exact accuracy"), kinds)


def write_picture(target: Path, evaluator: Rollouts, figures: Sequence[Figure], title: str) -> None:
    """Write the plot of the figures to `target`. Raises: UsageError if it cannot be written."""
    write_beside(target, as_png(draw(evaluator, figures, title)))
