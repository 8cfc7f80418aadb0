"""What counts as reading a key of a config, in whatever way it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import pytest

from verification.probes.reads import track, unread


@dataclass(kw_only=True)
class Head:
    period: int = 1


@dataclass(kw_only=True)
class Config:
    low: int = 1
    high: int = 2
    head: Head = field(default_factory=Head)

    @property
    def twice(self) -> int:
        return 2 * self.low


def matched(config: Any) -> None:
    match config:
        case Config(low=1):
            return
    raise AssertionError(config)


ALL = ["low", "high", "head.period"]
WAYS: tuple[tuple[str, Callable[[Config], Any], list[str]], ...] = (
    ("attribute", lambda c: c.low, ["high", "head.period"]),
    ("property", lambda c: c.twice, ["high", "head.period"]),
    ("f-string", lambda c: getattr(c, f"{'lo'}w"), ["high", "head.period"]),
    ("attrgetter", attrgetter("low"), ["high", "head.period"]),
    ("match", matched, ["high", "head.period"]),
    ("nested", lambda c: c.head.period, ["low", "high"]),
    ("vars", lambda c: vars(c)["low"], ["high", "head.period"]),
    ("vars().get", lambda c: vars(c).get("low"), ["high", "head.period"]),
    ("unpacked", lambda c: dict(**vars(c)), ["head.period"]),
    ("items", lambda c: list(vars(c).items()), ["head.period"]),
    ("asdict", asdict, []),
    ("loop over fields", lambda c: [getattr(c, one.name) for one in fields(c)], ["head.period"]),
    ("names alone", lambda c: list(vars(c)), ALL),
    ("written beside", lambda c: vars(c).update(source=1), ALL),
    ("a copy", lambda c: replace(c, low=3), ALL),
    ("read from a copy", lambda c: replace(c, low=3).high, ["low", "head.period"]),
)


@pytest.mark.parametrize(("way", "missing"), [row[1:] for row in WAYS], ids=[row[0] for row in WAYS])
def test_what_is_read(way: Callable[[Config], Any], missing: list[str]) -> None:
    config = track(Config())
    way(config)
    assert [key for key in unread(config) if key != "source"] == missing
    assert config == Config() or "source" in vars(config)
