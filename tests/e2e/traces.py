"""What distinguishes a run from one with another value of a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Result, last_checkpoint, metrics, weights


@dataclass
class Trace:
    """What a run computed, wrote and printed."""

    weights: dict[str, bytes]
    """Of the model, without those of the average."""
    evaluation: list[dict]
    lines: list[dict]
    files: set[str]
    output: str


def trace_of(result: Result, run: Path, checkpoint: str | None = None) -> Trace:
    """The trace of a run that has ended well, with the weights of `checkpoint` in its folder, else of the newest."""
    assert result.code == 0, result.output
    lines = metrics(run)
    evaluation = [line for line in lines if any(key.startswith("eval/") for key in line)]
    files = {str(path.relative_to(run)) for path in run.rglob("*") if ".lock" not in path.name}
    files |= {file.read_text() for file in run.glob("samples/*")}
    stored = weights(run / checkpoint if checkpoint else last_checkpoint(run))
    model = {name: value for name, value in stored.items() if name.startswith("model.")}
    return Trace(model, evaluation, lines, files, result.output)
