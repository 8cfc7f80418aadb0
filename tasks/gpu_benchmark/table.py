"""The table as text: one line for each row and mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEAD = (
    "| | mode | ms a step | quartiles | faster than public code, compiled | quartiles | TFLOP/s | of the product's |\n"
    "|---|---|---|---|---|---|---|---|"
)


def lines_of(row: Mapping[str, Any], matmul_tflops: float) -> Iterator[str]:
    """The lines of one row, then a line for each failed mode and for each warning that it printed."""
    name = row["name"]
    if "error" in row:
        yield f"failed: {name}: {row['error']}"
        return
    for mode, figures in row["modes"].items():
        low, middle, high = (f"{value:.4g}" for value in figures["ms"])
        ratio = ["", "", ""]
        if "ratio" in figures:
            ratio = [f"{value:.2f}" for value in figures["ratio"]]
        rate = figures.get("tflops")
        speed = "| |" if rate is None else f"{rate:.4g} | {100 * rate / matmul_tflops:.1f} % |"
        yield f"| {name} | {mode} | {middle} | {low} .. {high} | {ratio[1]} | {ratio[0]} .. {ratio[2]} | {speed}"
    for mode, error in row["errors"].items():
        yield f"failed: {name}: {mode}: {error}"
    for mode, printed in row["notes"].items():
        yield from (f"note: {name}: {mode}: {line}" for line in printed if line.startswith("warning"))
