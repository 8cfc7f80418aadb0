"""The record of which keys of a structured config were read."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from verification.probes.reads import track, unread


@dataclass(kw_only=True)
class Inner:
    lr: float = 1.0
    kind: str = "adam"


@dataclass(kw_only=True)
class Outer:
    size: int
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    several: list[Inner] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.size > 0


def test_reads_are_recorded_by_leaf() -> None:
    made = track(Outer(size=1, several=[Inner(), Inner()]))
    assert "size" in unread(made), "the checks of __post_init__ are not reads"
    assert {"inner.lr", "inner.kind", "several[0].lr", "several[1].kind"} <= set(unread(made))
    assert made.size == 1
    assert made.inner.lr == 1.0
    assert made.several[1].kind == "adam"
    left = set(unread(made, "run"))
    assert not {"run.size", "run.inner.lr", "run.several[1].kind"} & left
    assert {"run.inner.kind", "run.several[0].kind", "run.several[1].lr", "run.flag"} <= left


def test_a_copy_keeps_its_own_record() -> None:
    made = track(Outer(size=1))
    other = copy.deepcopy(made)
    assert other.size == 1
    assert "size" in unread(made)
    assert "size" not in unread(other)
