"""The tables of a report, for page and terminal: runs, comparison of cells, settings that differ, final figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.overview.collect import Overview, RunView, differing
from reports.tables import Column, Table

RATES = {"time/examples_per_s": "examples/s", "time/tokens_per_s": "tokens/s"}


def run_table(overview: Overview) -> Table:
    """A row for each run: its cell, state, figure and speed; and where it ran, if that differs."""
    rates = [name for name in RATES if any(name in run.curves for run in overview.runs)]
    columns = [Column("run"), Column("cell"), Column("seed"), Column("state"), Column("step")]
    columns += [Column(overview.metric or "metric", "number", 4), Column("best", "number", 4)]
    columns += [Column("step, ms", "number", 1), *(Column(RATES[name], "number", 0) for name in rates)]
    columns += [Column("minutes", "number", 1)]
    places = [places_of(run) for run in overview.runs]
    same = places_in_common(overview)
    varied = [name for name in places[0] if name not in same]
    table = Table([*columns, *map(Column, varied)])
    for run, cell, place in zip(overview.runs, overview.cell_names, places, strict=True):
        seconds = _number(run.summary.get("seconds"))
        table.add(
            run.name,
            cell,
            run.seed,
            run.state,
            run.status.get("step"),
            run.finished.results[overview.metric] if run.finished and overview.metric else None,
            _number(_part(run.summary, "best").get("value")),
            run.typical("time/step_ms"),
            *map(run.typical, rates),
            None if seconds is None else seconds / 60,
            *(place[name] for name in varied),
        )
    return table


def places_of(run: RunView) -> dict[str, str]:
    """torch version, device and commit of a run."""
    torch = str(run.environment.get("torch", "-"))
    return {"torch": torch, "device": device_of(run), "commit": commit_of(run) or "-"}


def places_in_common(overview: Overview) -> dict[str, str]:
    """The entries of `places_of` that all runs share."""
    places = [places_of(run) for run in overview.runs]
    return {name: value for name, value in places[0].items() if all(place[name] == value for place in places)}


def comparison_table(overview: Overview) -> Table:
    """A row for each cell: mean over seeds with its 95 % interval, and the paired difference from the reference."""
    columns = [Column("cell"), Column("seeds"), Column("mean", "number", 4), Column("95 %", "interval", 4)]
    table = Table([*columns, Column("difference", "number", 4, signed=True), Column("95 % of it", "interval", 4)])
    for name, each in overview.compared.items():
        score, gap = each["score"], each["difference"]
        pair = (gap["mean"], gap["t"]) if gap else (None, None)
        table.add(name, score["n"], score["mean"], score["t"], *pair)
    return table


def difference_table(overview: Overview) -> Table:
    """The settings that differ between cells: a row for each key, or for each cell if there are many cells."""
    rows, cells = differing(overview), overview.names
    if len(cells) > max(4, len(rows)):
        table = Table([Column("cell"), *(Column(key) for key in rows)])
        for cell in cells:
            table.add(cell, *(row[cell] for row in rows.values()))
        return table
    table = Table([Column("key"), *(Column(cell) for cell in cells)])
    for key, row in rows.items():
        table.add(key, *(row[cell] for cell in cells))
    return table


def result_table(overview: Overview) -> Table:
    """Every figure of the final evaluations, with a column for each run."""
    runs = [run for run in overview.runs if run.finished]
    table = Table([Column("figure"), *(Column(run.name, "number", 4) for run in runs)])
    for name in dict.fromkeys(name for run in runs if run.finished for name in run.finished.results):
        table.add(name, *(run.finished.results.get(name) for run in runs if run.finished))
    return table


def device_of(run: RunView) -> str:
    """`4 x NVIDIA H100`, or the CPU with its cores."""
    accelerators, size = run.environment.get("accelerators"), run.environment.get("world_size") or 1
    cpu = f"CPU, {run.environment.get('cpu_count')} cores" if "cpu_count" in run.environment else "-"
    on_cpu = run.config.get("device") == "cpu" or not accelerators
    name = cpu if on_cpu or not isinstance(accelerators, list) else str(accelerators[0])
    return name if size == 1 else f"{size} x {name}"


def commit_of(run: RunView) -> str | None:
    """`1944a09`, with a plus sign if files had been changed."""
    git = _part(run.environment, "git")
    return f"{str(git['commit'])[:7]}{'+' * bool(git.get('diff'))}" if "commit" in git else None


def _part(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def as_text(overview: Overview) -> str:
    """All tables as text for a terminal, with the notes."""
    places = "; ".join(f"{name} {value}" for name, value in places_in_common(overview).items())
    parts = [run_table(overview).markdown() + (f"\nall on: {places}" if places else "")]
    if overview.metric and len(overview.names) + len(overview.runs) > 2:
        head = f"{overview.metric}, {overview.better} is better; differences from {overview.reference}, paired by seed"
        parts.append(f"{head}\n{comparison_table(overview).markdown()}")
    differences = difference_table(overview)
    if differences.rows and len(differences.columns) > 1:
        parts.append(f"settings that differ\n{differences.markdown()}")
    if overview.cells:
        parts.append(f"final figures\n{result_table(overview).markdown()}")
    return "\n\n".join([*parts, *overview.notes]) + "\n"
