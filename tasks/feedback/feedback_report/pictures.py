"""The report's plots: losses by section, the loss after each pass, and the sweep over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from reports.plots import Column, Panel, Row, draw_curve, draw_rows, row_of
from reports.study import Cell, Comparison
from tasks.feedback.feedback_report.study import METRIC, RANK, section
from tasks.feedback.feedback_report.tables import passes_of, rank_sweep

NOTE = "dots: seeds; bar: mean; line: 95 % t interval over seeds"


def pictures(cells: Sequence[Cell], compared: Mapping[str, Comparison]) -> dict[str, Image.Image]:
    """File name -> plot: `cells_1.png`, ... for each section, `passes.png` if a cell has several passes, `ranks.png` if
    cells differ only in rank."""
    drawn = {}
    for number, heading in enumerate(dict.fromkeys(map(section, cells)), start=1):
        drawn[f"cells_{number}.png"] = _losses(heading, [c for c in cells if section(c) == heading], compared)
    if several := [cell for cell in cells if len(passes_of(cell)) > 2]:
        drawn["passes.png"] = _passes(several[0])
    swept = rank_sweep(cells)
    if seeds := sorted(set.intersection(*(set(cell.runs) for cell in swept))) if swept else []:
        columns = [Column(str(cell.settings[RANK]), [cell.values(METRIC)[seed] for seed in seeds]) for cell in swept]
        note = f"dots: seeds that all ranks have; bar: mean; otherwise as {swept[0].name}"
        drawn["ranks.png"] = draw_curve("Loss by rank", note, "rank", columns)
    return drawn


def _losses(heading: str, cells: Sequence[Cell], compared: Mapping[str, Comparison]) -> Image.Image:
    labels = [f"{cell.name.partition(': ')[2] or cell.name} (n = {len(cell.runs)})" for cell in cells]
    looped = [cell.settings.get("base.arch.loops") for cell in cells]
    labels = [f"{label}, base looped {n} times" if n else label for label, n in zip(labels, looped, strict=True)]
    scores = [compared[cell.name]["score"] for cell in cells]
    rows = [Row(score["values"], score["mean"]) for score in scores]
    gaps = [row_of(compared[cell.name]["difference"]) for cell in cells]
    panels = [Panel("loss, nats a token", rows), Panel("difference from static LoRA", gaps, lines=(0.0,))]
    return draw_rows(f"Held-out loss: {heading}", NOTE, labels, panels)


def _passes(cell: Cell) -> Image.Image:
    columns = []
    for number in range(len(passes_of(cell))):
        name = f"eval/nll_pass{number}"
        columns.append(Column(str(number), [run.results[name] for run in cell.runs.values() if name in run.results]))
    return draw_curve("Loss after each pass", f"dots: seeds; bar: mean; {cell.name}", "passes with deltas", columns)
