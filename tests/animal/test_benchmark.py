"""One pass with a shared prompt against back-propagation through the generation: same gradient, less time."""

from __future__ import annotations

import pytest

from tasks.animal import benchmark


def test_three_ways_agree_and_the_shared_prompt_is_three_times_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="pip install -e '.[animal]'")
    seconds = benchmark.main(["--layers", "2", "--turns", "2"])
    assert seconds["generation"] > 3 * seconds["shared"]
    lines = capsys.readouterr().out.splitlines()
    assert all(float(line.split()[-1]) < 1e-4 for line in lines)
