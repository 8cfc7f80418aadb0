"""Strictness, plain dataclasses, and one-line errors with a dotted path and a suggestion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from engine.errors import UsageError
from engine.schema import structure


@dataclass(kw_only=True)
class Inner:
    lr: float = 1.0
    kind: Literal["adam", "sgd"] = "adam"


@dataclass(kw_only=True)
class Outer:
    size: int
    name: str | None = None
    paths: list[str] = field(default_factory=list)
    arch: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    several: list[Inner] = field(default_factory=list)
    resume: Literal["auto", "true", "false"] = "auto"
    flag: bool = False
    workers: int | Literal["auto"] = 1
    levels: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size} is negative:\nchoose size=1")


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"size": 3}, "size", 3),
        ({"name": None}, "name", None),
        ({"name": 7}, "name", "7"),
        ({"inner": {"lr": 2}}, "inner", Inner(lr=2.0)),
        ({"several": [{"lr": 2}, {}]}, "several", [Inner(lr=2.0), Inner()]),
        ({"paths": ["a", 1]}, "paths", ["a", "1"]),
        ({"rates": {"a": 1}}, "rates", {"a": 1.0}),
        ({"arch": {"a": [1, {"b": None}]}}, "arch", {"a": [1, {"b": None}]}),
        ({"resume": True}, "resume", "true"),
        ({"resume": "False"}, "resume", "false"),
        ({"workers": "auto"}, "workers", "auto"),
        ({"workers": 3}, "workers", 3),
        ({"levels": 2}, "levels", 2),
    ],
)
def test_accepted(given: dict[str, Any], key: str, value: Any) -> None:
    made = structure(Outer, {"size": 1} | given)
    assert isinstance(made, Outer)
    plain = vars(made)[key]
    if isinstance(value, Inner):
        assert vars(plain) == vars(value)
    elif key == "several":
        assert [vars(item) for item in plain] == [vars(item) for item in value]
    else:
        assert plain == value
        assert type(plain) is type(value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sise": 1}, ["unknown key 'sise'", "did you mean 'size'"]),
        ({"size": 1, "zzz": 1}, ["unknown key 'zzz'", "choose one of"]),
        ({"size": 1, "inner": {"lrr": 1}}, ["unknown key 'inner.lrr'", "did you mean 'inner.lr'"]),
        ({"size": 1, "several": [{}, {"lrr": 1}]}, ["unknown key 'several[1].lrr'", "'several[1].lr'"]),
        ({"size": 1, "inner.lr": 1}, ["unknown key 'inner.lr': a file has a block for it, inner: {lr: ...}"]),
        ({}, ["size is required"]),
        ({"size": 1.0}, ["size: expected integer, got 1.0"]),
        ({"size": True}, ["size: expected integer, got true"]),
        ({"size": None}, ["size: expected integer, got null"]),
        ({"size": 1, "flag": 1}, ["flag: expected true or false, got 1"]),
        ({"size": 1, "flag": "true"}, ["flag: expected true or false"]),
        ({"size": 1, "inner": {"lr": "1e-4"}}, ["inner.lr: expected number, got '1e-4'"]),
        ({"size": 1, "inner": {"lr": True}}, ["inner.lr: expected number"]),
        ({"size": 1, "inner": 3}, ["inner: expected a block of keys, got 3"]),
        ({"size": 1, "inner": {"kind": "adm"}}, ["inner.kind", "adam|sgd", "did you mean 'adam'"]),
        ({"size": 1, "paths": "data"}, ["paths: expected a list of text, got 'data'; write [data]"]),
        ({"size": 1, "paths": ["a", 1.5]}, ["paths[1]: expected text, got 1.5"]),
        ({"size": 1, "rates": {"a": "b"}}, ["rates.a: expected number"]),
        ({"size": 1, "arch": 3}, ["arch: expected a block of keys"]),
        ({"size": 1, "resume": "no"}, ["resume", "auto|true|false"]),
        ({"size": 1, "workers": "aut"}, ["workers: expected integer or auto, got 'aut'"]),
        ({"size": 1, "levels": True}, ["levels", "1|2"]),
        ({"size": -1}, ["size=-1 is negative: choose size=1"]),
        ({"size": "x", "flag": 3}, ["size", "(and 1 more)"]),
    ],
)
def test_refused_in_one_line(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        structure(Outer, given)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@dataclass(kw_only=True)
class Pair:
    left: int
    right: int


def test_a_few_missing_keys_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        structure(Pair, {})
    one, other = str(caught.value).split("; ")
    assert one == "left is required and has no value: set left=..."
    assert other == one.replace("left", "right")


def test_where_is_part_of_the_path() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'arch.opt.lrr': did you mean 'arch.opt.lr'"):
        structure(Inner, {"lrr": 1}, "arch.opt")
    with pytest.raises(UsageError, match=r"^arch: expected a block of keys, got null"):
        structure(Inner, None, "arch")


def test_the_result_is_of_the_declared_class() -> None:
    """A dynamic subclass that records reads is what torch.compile once followed into an endless recursion."""
    made = structure(Outer, {"size": 1, "several": [{}]})
    assert type(made) is Outer
    assert type(made.inner) is type(made.several[0]) is Inner


def test_a_check_within_an_entry_of_a_mapping_names_the_entry() -> None:
    @dataclass(kw_only=True)
    class Entry:
        size: int = 2

        def __post_init__(self) -> None:
            if self.size < 2:
                raise ValueError(f"datasets.*.size={self.size}: expected at least 2")

    @dataclass(kw_only=True)
    class Config:
        datasets: dict[str, Entry] = field(default_factory=dict)

    Config.__annotations__["datasets"] = dict[str, Entry]
    with pytest.raises(UsageError, match=r"^datasets\.b\.size=1: expected at least 2$"):
        structure(Config, {"datasets": {"a": {}, "b": {"size": 1}}})
