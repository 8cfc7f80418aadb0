"""scripts/compare_losses.py: the values of two runs, side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from reports.losses import compare_losses, read_losses
from tests.conftest import run_script


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    lines = [{"step": s, "train/loss": 1.0 / s, "time/step_ms": s, "eval/acc": None} for s in (1, 2, 3)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        lines[2] = {"step": 3, "train/loss": 0.25, "time/step_ms": 99, "eval/acc": 0.5, "more": 1}
    return [tmp_path / "a", tmp_path / "b"]


def test_what_differs_is_named_with_its_first_step(pair: list[Path]) -> None:
    differences, compared = compare_losses(*map(read_losses, pair))
    assert compared == 7
    assert [(one.metric, one.step, one.first, one.second) for one in differences] == [
        ("eval/acc", 3, None, 0.5),
        ("more", 3, None, 1),
        ("train/loss", 3, 1 / 3, 0.25),
    ]
    assert differences[2].greatest == pytest.approx(0.25)
    assert not compare_losses(*map(read_losses, pair), tolerance=0.26, patterns=["loss"])[0]


def test_lines_of_a_run_that_goes_on_are_compared(pair: list[Path]) -> None:
    """The last line may be half-written; a number may have more digits than a float."""
    file = pair[0] / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "train/loss": 1{"0" * 400}}}\n{{"step": 2, "train/lo')
    (difference,), compared = compare_losses(read_losses(file), read_losses(pair[1]), patterns=["train/loss"])
    assert (compared, difference.values, difference.greatest) == (3, 3, math.inf)


def test_the_command(pair: list[Path], tmp_path: Path) -> None:
    same = run_script("scripts/compare_losses", str(pair[0]), str(pair[0] / "metrics.jsonl"), "--assert-equal")
    assert (same.code, same.output.count("equal: 6 values\n")) == (0, 1)
    assert "are the same metrics, which always agree" in same.output
    (copy := tmp_path / "copy.jsonl").write_text((pair[0] / "metrics.jsonl").read_text().rstrip())
    equal = run_script("scripts/compare_losses", str(pair[0]), str(copy), "--assert-equal")  # all lines count
    assert (equal.code, equal.output) == (0, "equal: 6 values\n")
    other = run_script("scripts/compare_losses", *map(str, pair), "--assert-equal")
    assert other.code == 1
    assert "3 of 7 values differ, first at step 3" in other.output
    assert run_script("scripts/compare_losses", *map(str, pair)).code == 0
    (tmp_path / "text").write_text("notes")
    for words, message in (
        ((str(pair[0]), str(tmp_path / "none")), "none cannot be read (No such file or directory): expected a run"),
        ((str(pair[0]), str(tmp_path / "text")), "is not a file of JSON lines"),
        ((*map(str, pair), "--metrics", "lss"), "--metrics lss: neither has such a metric"),
        ((*map(str, pair), "--metrics", "acc", "train/los$"), "such a metric: did you mean 'train/loss'?"),
        ((str(pair[0]), str(tmp_path)), "has no metrics.jsonl: expected a run"),
        ((*map(str, pair), "--metrics", "["), "error: argument --metrics: '[' is not a regular expression: "),
        ((*map(str, pair), "--tolerance", "nan"), "error: --tolerance nan: expected a number of at least 0"),
        ((*map(str, pair), "--tolerance", "inf"), "error: --tolerance inf: "),
        ((*map(str, pair), "--tolerance", "-1"), "error: --tolerance -1.0: "),
    ):
        refused = run_script("scripts/compare_losses", *words)
        assert refused.code == 2, refused.output
        assert message in refused.output
