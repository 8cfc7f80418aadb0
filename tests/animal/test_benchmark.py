"""One pass with a shared prompt against back-propagation through the generation: the same gradient."""

from __future__ import annotations

import pytest

from tasks.animal import benchmark


def test_three_ways_have_the_same_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="pip install -e '.[animal]'")
    benchmark.main(["--layers", "2", "--turns", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert all(float(line.split()[-1]) < 1e-4 for line in lines)
