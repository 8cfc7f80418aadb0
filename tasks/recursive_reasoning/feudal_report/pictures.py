"""The report's plots: scores and differences of all cells, effects of goals, and sweeps over weight and period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from reports.plots import Column, Panel, Row, draw_curve, draw_rows, row_of
from reports.study import Cell, Comparison
from tasks.recursive_reasoning.feudal_report.cell_goals import CONTROL, CellGoals
from tasks.recursive_reasoning.feudal_report.study import PERIOD, WEIGHT, has_head

NOTE = "dots: seeds; bar: mean; line: 95 % t interval over seeds"


def pictures(
    cells: Sequence[Cell], compared: Mapping[str, Comparison], goals: Mapping[str, CellGoals], name: str
) -> dict[str, Image.Image]:
    """File name -> plot: `cells.png`, `goals.png` if goals were measured, `sweep_weight.png` and `sweep_period.png` if
    enough cells differ in only that key."""
    drawn = {"cells.png": _scores(cells, compared, name)}
    if goals:
        drawn["goals.png"] = _goals(goals, name)
    for key, short in ((WEIGHT, "weight"), (PERIOD, "period")):
        if columns := sweep(cells, compared, key):
            last = key.rpartition(".")[2]
            note = "dots: seeds; bar: mean; grey and unjoined: no head, and a head without loss"
            drawn[f"sweep_{short}.png"] = draw_curve(f"Held-out {name} by {last}", note, last, columns)
    return drawn


def _scores(cells: Sequence[Cell], compared: Mapping[str, Comparison], name: str) -> Image.Image:
    labels = [f"{cell.name} (n = {len(cell.runs)})" for cell in cells]
    scores = [compared[cell.name]["score"] for cell in cells]
    rows = [Row(score["values"], score["mean"]) for score in scores]
    gaps = [row_of(compared[cell.name]["difference"]) for cell in cells]
    panels = [Panel(name, rows), Panel("difference from the baseline, paired by seed", gaps, lines=(0.0,))]
    return draw_rows(f"Held-out {name} of each cell", NOTE, labels, panels)


def _goals(goals: Mapping[str, CellGoals], name: str) -> Image.Image:
    panels = [
        Panel("controllability (cosine)", [row_of(each["control"]) for each in goals.values()], lines=(CONTROL,)),
        Panel(f"{name} lost by exchanged goals", [row_of(each["content"]) for each in goals.values()], lines=(0.0,)),
        Panel(f"{name} lost without goals", [row_of(each["presence"]) for each in goals.values()], lines=(0.0,)),
    ]
    note = f"{NOTE}; a manager is used where the first panel is right of {CONTROL} and the second right of 0"
    return draw_rows("Are goals followed, and are they of use?", note, list(goals), panels)


def sweep(cells: Sequence[Cell], compared: Mapping[str, Comparison], key: str) -> list[Column]:
    """Columns of the cells with a head that differ only in `key`, by its value, preceded by detached columns without a
    head and with weight 0. Empty for fewer than two values to join."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if has_head(cell.settings):
            groups.setdefault(repr(sorted((k, v) for k, v in cell.settings.items() if k != key)), []).append(cell)
    largest = max(groups.values(), key=len) if groups else []
    ordered = sorted(largest, key=lambda cell: cell.settings[key])
    without_loss = [cell for cell in ordered if key == WEIGHT and cell.settings[key] == 0]
    joined = [cell for cell in ordered if cell not in without_loss]
    if len(joined) < 2:
        return []
    baselines = [cell for cell in cells if not has_head(cell.settings)][:1]

    def column(label: str, cell: Cell, *, apart: bool = False) -> Column:
        return Column(label, list(compared[cell.name]["seeds"].values()), apart)

    return [
        *(column("no head", cell, apart=True) for cell in baselines),
        *(column("0 (head)", cell, apart=True) for cell in without_loss),
        *(column(f"{cell.settings[key]:g}", cell) for cell in joined),
    ]
