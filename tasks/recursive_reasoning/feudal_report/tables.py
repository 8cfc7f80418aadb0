"""The report as text: Markdown tables that also read well on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.study import Comparison
from reports.tables import Column, Table
from tasks.recursive_reasoning.feudal_report.cell_goals import CellGoals

T_INTERVAL = Column("95 % t", "interval")


def report_text(scores: Table, goals: Mapping[str, CellGoals], name: str, warnings: Sequence[str]) -> str:
    """The whole report: scores, effects of the goals if they were measured, warnings."""
    parts = [f"## Held-out {name}", scores.markdown(), "Difference: cell minus baseline, paired by seed."]
    if goals:
        parts += _goal_sections(goals, name)
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in warnings)]
    return "\n\n".join(parts) + "\n"


def score_table(compared: Mapping[str, Comparison], name: str) -> Table:
    """A row for each cell: its scores and its difference from the baseline."""
    table = Table(
        [
            Column("cell"),
            Column("n"),
            Column(name, "number"),
            Column("sd", "number"),
            Column("difference", "number", signed=True),
            T_INTERVAL,
            Column("95 % bootstrap", "interval"),
            Column("pairs"),
        ]
    )
    for cell, each in compared.items():
        score, gap = each["score"], each["difference"]
        difference = (None, None, None, None) if gap is None else (gap["mean"], gap["t"], gap["bootstrap"], gap["n"])
        table.add(cell, score["n"], score["mean"], score["sd"], *difference)
    return table


def _goal_sections(goals: Mapping[str, CellGoals], name: str) -> list[str]:
    title = name[0].upper() + name[1:]
    return [
        "## Are goals followed?",
        _following(goals).markdown(),
        "Cosine: between the worker's way and its goal, or a random one that it is given instead. Controllability: "
        "cosine to a foreign goal that it is given, minus that to its own, which it is not given. Alike: mean cosine "
        "between the goals of two examples; directions: participation ratio of their spread.",
        f"## Are goals of use? {title} lost",
        _usefulness(goals).markdown(),
        "Exchanged between examples, or taken away. Answers changed: share of scored positions, by exchanged goals and "
        "without goals.",
        f"## {title} under other goals",
        _by_source(goals).markdown(),
    ]


def _following(goals: Mapping[str, CellGoals]) -> Table:
    table = Table(
        [
            Column("cell"),
            Column("cosine", "number"),
            Column("to random", "number"),
            Column("controllability", "number", signed=True),
            T_INTERVAL,
            Column("alike", "number"),
            Column("directions", "number", digits=1),
            Column("gate", "number"),
            Column("reading"),
        ]
    )
    for cell, each in goals.items():
        control, reading = each["control"], f"{each['word']}: {each['reason']}"
        cosines = each["cos"]["mean"], each["cos_random"]["mean"]
        table.add(cell, *cosines, control["mean"], control["t"], each["alike"], each["pr"], each["gate"], reading)
    return table


def _usefulness(goals: Mapping[str, CellGoals]) -> Table:
    table = Table(
        [
            Column("cell"),
            Column("exchanged", "number", signed=True),
            T_INTERVAL,
            Column("taken away", "number", signed=True),
            T_INTERVAL,
            Column("answers changed", "number"),
            Column("without", "number"),
        ]
    )
    for cell, each in goals.items():
        content, presence, changed = each["content"], each["presence"], each["changed"]
        lost = content["mean"], content["t"], presence["mean"], presence["t"]
        table.add(cell, *lost, changed["shuffle"], changed["zero"])
    return table


def _by_source(goals: Mapping[str, CellGoals]) -> Table:
    sources = list(next(iter(goals.values()))["scores"])
    table = Table([Column("cell"), *(Column(source, "number") for source in sources)])
    for cell, each in goals.items():
        table.add(cell, *(each["scores"][source]["mean"] for source in sources))
    return table
