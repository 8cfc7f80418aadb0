"""Compare runs of train_animal.py with each other and with their base at other sampling settings
(scripts/animal_report.py)."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from engine import reading
from engine.errors import UsageError
from engine.io import print_rank0
from reports.output import prepare_folder, write_report
from reports.runs import Run, find_runs
from reports.scatter import Points, draw_scatter
from reports.statistics import summarize
from reports.study import Cell, Study, group
from reports.tables import Column, Table
from tasks.animal.args import AnimalConfig
from tasks.animal.evaluation import Figures
from tasks.animal.loading import open_animal_run
from tasks.animal.samples import Sample
from tasks.animal.tempering import tempered
from tasks.loading import data_root, pick_checkpoint

SHOWN = (
    *("valid_fraction", "in_grammar", "plausible_fraction", "ref_kl"),
    *("concept_kl", "cluster_kl", "v_eff", "utility_10"),
)
SENSE, NATS = 0.95, 1.0
"""Bounds on a point: least share of samples that make sense, largest KL from the base in nats."""
EDGE = 3.0
"""Right edge of the plot, in nats."""


@dataclass(frozen=True, kw_only=True)
class AnimalStudy(Study):
    """A study of runs of train_animal.py."""

    ignored: Collection[str] = frozenset({*AnimalConfig.NOT_IDENTITY, "hydra"})
    expected: str = "run of train_animal.py"

    def check(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a run of another script."""
        if config.get("script") != "train_animal.py":
            raise UsageError(f"{path} is a run of {config.get('script')}, not of train_animal.py")


def write_comparison(args: argparse.Namespace) -> None:
    """Read the runs, measure their base, print and write the comparison. Raises: UsageError."""
    prepare_folder(args.out)
    study = AnimalStudy()
    runs, left_out = find_runs(args.runs, "eval/v_eff", study)
    cells, warnings = group(runs, study)
    base = {} if args.no_base else {seed: _base_points(run) for seed, run in _one_of_each_seed(runs).items()}
    table = Table([Column("runs"), Column("seed"), *(Column(name, "number") for name in SHOWN)])
    for seed, points in base.items():
        table.add(f"base, {_best(points)[0]}", seed, *(_best(points)[1].get(name) for name in SHOWN))
    for cell in cells:
        for seed, run in sorted(cell.runs.items()):
            table.add(cell.name, seed, *(run.results.get(f"eval/{name}") for name in SHOWN))
    text = "\n\n".join([table.markdown(), _gains(cells, base).markdown(), *left_out, *warnings])
    print_rank0(text)
    write_report(
        args.out, {"comparison.md": text + "\n", "pareto.png": _picture(cells, base), "base.json": _named(base)}
    )
    print_rank0(f"written     {args.out}")


def _gains(cells: Sequence[Cell], base: Mapping[int, Mapping[str, Figures]]) -> Table:
    """Each cell's v_eff divided by the base's best, by seed."""
    over = Column("v_eff over the best of the base", "number", 2)
    table = Table([Column("runs"), over, Column("each seed"), Column("within bounds")])
    for cell in cells:
        scores = {seed: run.results["eval/v_eff"] for seed, run in sorted(cell.runs.items()) if seed in base}
        ratios = [score / (_best(base[seed])[1]["v_eff"] or 1e-9) for seed, score in scores.items()]
        good = sum(_within_bounds(_figures(run)) for run in cell.runs.values())
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        table.add(cell.name, summarize(ratios)["mean"], shown or "-", f"{good} of {len(cell.runs)}")
    return table


def _picture(cells: Sequence[Cell], base: Mapping[int, Mapping[str, Figures]]) -> Image.Image:
    points = [figures for points in base.values() for figures in points.values()]
    kinds = [
        Points("base, other temperatures", _plane(points, True), plain=True),
        Points("the same, out of bounds", _plane(points, False), plain=True, hollow=True),
        *(
            Points(cell.name, [_point(each) for each in map(_figures, cell.runs.values()) if "ref_kl" in each])
            for cell in cells
        ),
    ]
    return draw_scatter(
        "Diversity and what it costs",
        f"out of bounds: fewer than {SENSE:.0%} make sense, or more than {NATS:g} nat from the base",
        ("KL from the base, nats per sample", "v_eff: valid fraction x Vendi score"),
        [kind for kind in kinds if kind.values],
        x_most=EDGE,
        bound=NATS,
    )


def _one_of_each_seed(runs: Sequence[Run]) -> dict[int, Run]:
    return {run.seed: run for run in sorted(runs, key=lambda run: (run.seed, str(run.path)), reverse=True)}


def _base_points(run: Run) -> dict[str, Figures]:
    """Sampling settings -> metrics of the base of `run`, with the embedder and clusters of that run's evaluations."""
    with contextlib.chdir(data_root(run.path.resolve())):
        opened = open_animal_run(pick_checkpoint(run.path.resolve(), "latest"))
    task: Any = opened.plan.task
    config, figures = opened.config, task.measurement.figures
    figures.fit(read_samples(run.path / "eval_samples_before.jsonl"))
    grid = tempered(task.sampler, figures, rows=config.eval_samples, seed=config.seed)
    return {f"T {one.temperature:g}, top-p {one.top_p:g}": point for one, point in grid}


def read_samples(path: Path) -> list[Sample]:
    """Read samples written by `tasks/animal/pages.py`. Raises: UsageError for a missing or damaged file."""
    try:
        lines = reading.read_bytes(path).split(b"\n")  # not splitlines(): a text may hold U+2028
        samples = [Sample(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}): expected the samples of a run of train_animal.py") from None
    if not samples:
        raise UsageError(f"{path} is empty: expected the samples of a run of train_animal.py")
    return samples


def _figures(run: Run) -> Figures:
    return {name.removeprefix("eval/"): value for name, value in run.results.items()}


def _within_bounds(figures: Figures) -> bool:
    """Whether enough samples make sense and the KL from the base is small enough; a diverged run has none."""
    sense = figures.get("in_grammar", figures.get("plausible_fraction")) or 0.0
    kl = figures.get("ref_kl")
    return sense >= SENSE and kl is not None and kl <= NATS


def _best(points: Mapping[str, Figures]) -> tuple[str, Figures]:
    """The point within bounds with the highest v_eff; if there is none, that of plain sampling."""
    good = {name: figures for name, figures in points.items() if _within_bounds(figures)}
    pool = good or {name: figures for name, figures in points.items() if name == "T 1, top-p 1"}
    name = max(pool, key=lambda one: pool[one]["v_eff"] or 0.0)
    return name, pool[name]


def _plane(points: Sequence[Figures], good: bool) -> list[tuple[float, float]]:
    return [_point(each) for each in points if _within_bounds(each) == good]


def _point(figures: Figures) -> tuple[float, float]:
    return figures["ref_kl"] or 0.0, figures["v_eff"] or 0.0


def _named(base: Mapping[int, Mapping[str, Figures]]) -> dict[str, Any]:
    return {str(seed): dict(points) for seed, points in base.items()}
