"""The report as text: losses by section, passes, controls, and pairs of cells that differ in one setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reports.statistics import paired_difference, summarize
from reports.study import Cell, Comparison
from reports.tables import Column, Table
from tasks.feedback.feedback_report.study import FLOPS, METRIC, MODE, PARAMETERS, PASSES, RANK, READS, REVERSE, section

INTERVAL = Column("95 % t", "interval")
TOGETHER = {MODE: ("arch.hyper_dim", "arch.hyper_heads")}
"""Setting -> settings that may differ with it: the widths at which both modes have as many parameters."""
PAIRS = {REVERSE: False, MODE: "distinct", READS: "hidden", PASSES: 1}
"""Setting in which pairs of cells differ -> its reference value."""


def report_text(cells: Sequence[Cell], compared: Mapping[str, Comparison], warnings: Sequence[str]) -> str:
    """The whole report."""
    parts = []
    for heading in dict.fromkeys(map(section, cells)):
        parts += [f"## {heading}", loss_table([c for c in cells if section(c) == heading], compared).markdown()]
    parts.append(
        "Loss: nats a token on the data's held-out split. Difference: from the static LoRA on the same base that is "
        "nearest in parameters, paired by seed. Operations: of one forward pass with all its passes, a position."
    )
    for heading, table in {
        "Passes": passes_table(cells),
        "What the deltas are": delta_table(cells),
        "One thing changed": pair_table(cells),
    }.items():
        parts += [f"## {heading}", table.markdown()] if table.rows else []
    parts.append(
        "Shuffled, mean, static: the loss less the row's own under another row's delta, under the mean of all, under "
        "the part that depends on no input. A shuffled one of 0 means a costly static LoRA."
    )
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in warnings)]
    return "\n\n".join(parts) + "\n"


def loss_table(cells: Sequence[Cell], compared: Mapping[str, Comparison]) -> Table:
    """Loss, parameters and operations of each cell, its difference from the static LoRA, and gap_closed if it was
    measured."""
    closed = [mean(cell, "eval/gap_closed") for cell in cells]
    more = [] if closed == [None] * len(cells) else [Column("gap closed", "number", digits=2)]
    table = Table(
        [
            Column("cell"),
            Column("n"),
            Column("parameters", "number", digits=0),
            Column("operations", "number", digits=0),
            Column("loss", "number"),
            Column("sd", "number"),
            Column("of the plain base", "number"),
            Column("difference", "number", signed=True),
            INTERVAL,
            *more,
        ]
    )
    for cell, share in zip(cells, closed, strict=True):
        score, gap = compared[cell.name]["score"], compared[cell.name]["difference"]
        difference = (None, None) if gap is None else (gap["mean"], gap["t"])
        sizes = mean(cell, PARAMETERS), mean(cell, FLOPS)
        row = cell.name, score["n"], *sizes, score["mean"], score["sd"], mean(cell, "eval/base_loss"), *difference
        table.add(*row, *([share] if more else []))
    return table


def passes_of(cell: Cell) -> list[float]:
    """The loss after 0, 1, ... passes of an adapter; empty for a base."""
    means: list[float] = []
    while "eval/nll_pass1" in next(iter(cell.runs.values())).results:
        value = mean(cell, f"eval/nll_pass{len(means)}")
        if value is None:
            break
        means.append(value)
    return means


def passes_table(cells: Sequence[Cell]) -> Table:
    """The loss of each hypernetwork after each pass."""
    most = max((len(passes_of(cell)) for cell in cells), default=0)
    table = Table([Column("cell"), *(Column(f"after {number}", "number") for number in range(most))])
    for cell in cells:
        if MODE in cell.settings and (values := passes_of(cell)):
            table.add(cell.name, *values, *[None] * (most - len(values)))
    return table


def delta_table(cells: Sequence[Cell]) -> Table:
    """Controls and size of the deltas, for each adapter that has them."""
    controls = {"shuffled": "shuffled_nll", "mean": "mean_nll", "static": "static_nll"}
    sizes = {
        "largest norm": "delta_ratio_max",
        "spectral": "delta_spectral",
        "stable rank": "delta_stable_rank",
        "cosine": "delta_cosine",
        "dynamic": "delta_dynamic",
    }
    signed = [Column(name, "number", signed=True) for name in controls]
    table = Table([Column("cell"), *signed, *(Column(name, "number", digits=2) for name in sizes)])
    for cell in cells:
        if (own := passes_of(cell)) and mean(cell, "eval/shuffled_nll") is not None:
            others = [mean(cell, f"eval/{name}") for name in controls.values()]
            lost = [None if other is None else other - own[-1] for other in others]
            table.add(cell.name, *lost, *(mean(cell, f"eval/{name}") for name in sizes.values()))
    return table


def pair_table(cells: Sequence[Cell]) -> Table:
    """Differences between cells that differ only in one setting of PAIRS."""
    table = Table([Column("cell"), Column("less"), Column("difference", "number", signed=True), INTERVAL, Column("n")])
    for other, one in pairs(cells):
        gap = paired_difference(other.values(METRIC), one.values(METRIC))
        table.add(other.name, one.name, gap["mean"], gap["t"], gap["n"])
    return table


def pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """(cell, reference cell) for each pair."""
    for key, usual in PAIRS.items():
        free = {key, *TOGETHER.get(key, ())}
        for one in (cell for cell in cells if cell.settings.get(key) == usual):
            for other in cells:
                if other.settings.get(key, usual) != usual and _rest(other, free) == _rest(one, free):
                    yield other, one


def rank_sweep(cells: Sequence[Cell]) -> list[Cell]:
    """The largest set of hypernetworks that differ only in rank, sorted by rank; empty for fewer than two."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if MODE in cell.settings:
            groups.setdefault(repr(sorted(_rest(cell, {RANK}).items())), []).append(cell)
    largest = max(groups.values(), key=len, default=[])
    return sorted(largest, key=lambda cell: cell.settings[RANK]) if len(largest) > 1 else []


def mean(cell: Cell, metric: str) -> float | None:
    """Mean of a metric over the seeds that have it; None without any."""
    return summarize([run.results[metric] for run in cell.runs.values() if metric in run.results])["mean"]


def _rest(cell: Cell, free: set[str]) -> dict[str, object]:
    return {key: value for key, value in cell.settings.items() if key not in free}
