"""The log window of a checkpoint, taken up by a task that reports other metrics or the same in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.loop.metrics import LogLine, MetricWindow, learning_rates
from engine.task import ParamGroup

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


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"matrix": 0.02, "embedding": 3e-4, "head": 3e-4}, {"train/lr": 0.01, "train/lr_embedding": 1.5e-4}),
        ({"encoder": 1e-5, "trunk": 1e-4}, {"train/lr": 5e-5, "train/lr_encoder": 5e-6}),
        ({"puzzle_emb": 0.2, "trunk": 0.1}, {"train/lr": 0.05, "train/lr_puzzle_emb": 0.1}),
        ({"puzzle_emb": 0.2}, {"train/lr_puzzle_emb": 0.1}),
        ({"matrix": 0.0}, {"train/lr": 0.0}),
    ],
)
def test_groups_with_other_rates_have_their_own_column(rates: dict[str, float], expected: dict[str, float]) -> None:
    """train/lr was that of the last group: of the rest, beside Muon."""

    def group(name: str, lr: float) -> ParamGroup:
        params: Any = object() if name == "puzzle_emb" else {}  # a sparse table is no dict
        return ParamGroup(name=name, optimizer="adamw", lr=lr, params=params)

    assert learning_rates({name: group(name, lr) for name, lr in rates.items()}, 0.5) == pytest.approx(expected)
