"""Writes the expected losses of every recipe's tiny instance, tests/fixtures/losses/RECIPE.jsonl.

    python -m tests.verification.expected_losses                        # all recipes
    python -m tests.verification.expected_losses cfg_pretrain           # some

For a change that is meant to alter numbers; the commit then says why they are others. A recipe whose library is not
installed here keeps its file.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT
from verification.flips import tiny_recipe
from verification.probes.instance import fit

FOLDER = ROOT / "tests/fixtures/losses"
DIGITS = 9
"""Of each value: as many as tell two float32 apart."""


def lines_of(recipe: str) -> list[dict[str, Any]]:
    """What three steps and an evaluation write to metrics.jsonl, less their times, with one thread.

    Raises: ImportError where a library is missing.
    """
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []

    def write(step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if value is None or type(value) in (int, float)}
        lines.append({"step": step, **{name: value for name, value in numbers.items() if not name.startswith("time/")}})

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        tiny = tiny_recipe(ROOT / f"config/{recipe}.yaml", Path(folder) / "data")
        run = {"log_interval": 1}
        fit(tiny.build(perturbed=False, run=run), tiny.config(run=run), write=write)
    return lines


def as_text(lines: list[dict[str, Any]]) -> str:
    rounded = (
        {key: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for key, v in line.items()} for line in lines
    )
    return "".join(f"{json.dumps(line)}\n" for line in rounded)


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for recipe in names or sorted(path.stem for path in (ROOT / "config").glob("cfg_*.yaml")):
        try:
            (FOLDER / f"{recipe}.jsonl").write_text(as_text(lines_of(recipe)), encoding="utf-8")
        except ImportError as error:
            print(f"{recipe}: kept as it is ({error})")


if __name__ == "__main__":
    main(sys.argv[1:])
