"""The report as text: markdown tables that also read well on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts._feudal_runs import Cell


def markdown(cells: Sequence[Cell], facts: Mapping[str, Any], metric: str, warnings: Sequence[str]) -> str:
    """The whole report."""
    name = metric.replace("_", " ")
    scores = [["cell", "n", name, "sd", "difference", "95 % t", "95 % bootstrap", "pairs"]]
    for cell in cells:
        one = facts[cell.name]
        gap = one["difference"] or {"mean": None, "t": None, "bootstrap": None, "n": "-"}
        score = one["score"]
        scores.append([
            cell.name, str(score["n"]), _number(score["mean"]), _number(score["sd"]), _number(gap["mean"], "+"),
            _interval(gap["t"]), _interval(gap["bootstrap"]), str(gap["n"]),
        ])  # fmt: skip
    parts = [f"## Held-out {name}", _table(scores), "Difference: cell minus baseline, paired by seed."]
    parts += _of_goals({cell.name: facts[cell.name]["goals"] for cell in cells if facts[cell.name]["goals"]}, name)
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in warnings)]
    return "\n\n".join(parts) + "\n"


def _of_goals(measured: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Three tables of what the goals do, nothing where none was measured."""
    if not measured:
        return []
    follow = [["cell", "cosine", "to random", "controllability", "95 % t", "alike", "directions", "gate", "reading"]]
    use = [["cell", "exchanged", "95 % t", "taken away", "95 % t", "answers changed", "without"]]
    given = [["cell", *next(iter(measured.values()))["scores"]]]
    for label, one in measured.items():
        control = one["control"]
        follow.append([
            label, _number(one["cos"]["mean"]), _number(one["cos_random"]["mean"]), _number(control["mean"], "+"),
            _interval(control["t"]), _number(one["alike"]), _number(one["pr"], digits=1), _number(one["gate"]),
            f"{one['word']}: {one['reason']}",
        ])  # fmt: skip
        lost = [cell for which in ("content", "presence") for cell in (one[which]["mean"], one[which]["t"])]
        use.append([
            label, _number(lost[0], "+"), _interval(lost[1]), _number(lost[2], "+"), _interval(lost[3]),
            _number(one["changed"]["shuffle"]), _number(one["changed"]["zero"]),
        ])  # fmt: skip
        given.append([label, *(_number(score["mean"]) for score in one["scores"].values())])
    title = name[0].upper() + name[1:]
    return [
        "## Are goals followed?", _table(follow),
        "Cosine: between the worker's way and its goal, or a random one that it is given instead. Controllability: "
        "cosine to a foreign goal that it is given, minus that to its own, which it is not given. Alike: mean cosine "
        "between the goals of two examples; directions: participation ratio of their spread.",
        f"## Are goals of use? {title} lost", _table(use),
        "Exchanged between examples, or taken away. Answers changed: share of scored positions, by exchanged goals and "
        "without goals.",
        f"## {title} under other goals", _table(given),
    ]  # fmt: skip


def _number(value: float | None, sign: str = "", digits: int = 3) -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _interval(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:+.3f} .. {pair[1]:+.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
