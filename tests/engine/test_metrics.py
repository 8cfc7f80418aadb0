"""The log window of a checkpoint, taken up by a task that reports other metrics or the same in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.loop.metrics import LogLine, MetricWindow

CPU = torch.device("cpu")


def pairs(**values: float) -> dict[str, Any]:
    return {name: (torch.tensor(value), torch.tensor(1.0)) for name, value in values.items()}


def step(window: MetricWindow, **values: float) -> None:
    window.add(pairs(**values))
    window.close(torch.tensor(1.0))


def means(window: MetricWindow) -> dict:
    return LogLine(1, dict(window.flush())).values()


def gone_on() -> MetricWindow:
    """A window that continues from one step with a=2, b=10."""
    first = MetricWindow(CPU)
    step(first, a=2.0, b=10.0)
    window = MetricWindow(CPU)
    window.load_state_dict(first.state_dict())
    return window


def test_the_order_of_names_does_not_matter() -> None:
    window = gone_on()
    step(window, b=20.0, a=4.0)
    assert means(window) == {"b": 15.0, "a": 3.0}


@pytest.mark.parametrize("values", [{"a": 4.0}, {"a": 4.0, "b": 5.0, "c": 6.0}, {"x": 1.0, "y": 2.0}])
def test_other_metrics_begin_the_window_anew(values: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    window = gone_on()
    step(window, **values)
    step(window, **values)
    assert means(window) == values
    output = "".join(capsys.readouterr())
    assert output.count("warning: the checkpoint's log window has other metrics") == 1


def test_within_a_run_names_never_change() -> None:
    window = gone_on()
    step(window, a=1.0, b=2.0)
    with pytest.raises(KeyError, match="names must not change"):
        window.add(pairs(a=1.0))
