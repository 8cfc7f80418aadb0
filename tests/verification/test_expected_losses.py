"""The numbers of every recipe are those that they were: three steps and an evaluation of its tiny instance.

Where a change is meant to alter them, `python -m tests.verification.expected_losses` writes the new ones, and the
commit says why. The rest is rounding: other versions of torch (2.11 to 2.13) and other CPUs add in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.losses import compare_losses, read_losses
from tests.conftest import ROOT
from tests.verification.expected_losses import FOLDER, as_text, lines_of

RECIPES = sorted(path.stem for path in (ROOT / "config").glob("cfg_*.yaml"))
TOLERANCE, ABSOLUTE = 1e-4, 1e-6
"""Of what is continuous in the weights; shares of right answers jump by whole rows. Torch 2.11 and 2.13 on one machine
differ by at most 5e-7, and 1e-7 where a metric is the difference of two losses."""
CONTINUOUS = ("loss", "norm", "/lr", "nll", "perplexity")


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_those_that_were(recipe: str, tmp_path: Path) -> None:
    try:
        text = as_text(lines_of(recipe))
    except ImportError as error:
        pytest.skip(f"{error}: pip install -e '.[animal]'")
    (tmp_path / "now.jsonl").write_text(text)
    expected, now = (read_losses(file) for file in (FOLDER / f"{recipe}.jsonl", tmp_path / "now.jsonl"))
    differences, compared = compare_losses(expected, now, tolerance=TOLERANCE, absolute=ABSOLUTE, patterns=CONTINUOUS)
    assert compared >= 8
    assert not differences, (
        f"{recipe} computes other numbers: {differences[0]}; if that is meant: python -m tests.verification.expected_losses"
    )


def test_every_file_is_of_a_recipe() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*")) == RECIPES
