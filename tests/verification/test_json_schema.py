"""The JSON schemas for editors are current, each recipe names its own and fits it, and what editors should mark does not."""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli.recipes import read_file
from tests.conftest import ROOT
from verification.json_schema import BOUNDS, COMMENT, OPEN, as_text, describe_recipe, with_comment
from verification.static import recipes

FOLDER = ROOT / "config/schemas"
described = functools.cache(describe_recipe)


COMPARE = dict(zip(BOUNDS, (operator.ge, operator.le, operator.gt, operator.lt), strict=True))
KINDS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: type(value) in (int, float),
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
}


def errors(value: Any, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """How a value does not fit a schema, with the dotted place: what an editor marks, of what is in our schemas."""
    schema = OPEN if "$ref" in schema else schema
    if "anyOf" in schema:
        branches = [list(errors(value, one, place)) for one in schema["anyOf"]]
        if all(branches):
            yield from min(branches, key=len)
        return
    declared = schema.get("type", [])
    named = [declared] if isinstance(declared, str) else declared
    if named and not any(KINDS[one](value) for one in named):
        yield f"{place}: {value!r} is not {' or '.join(named)}"
        return
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        yield f"{place}: {value!r} is not one of {schema['enum']}"
    if "pattern" in schema and not re.match(schema["pattern"], value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    for name in COMPARE.keys() & schema.keys():
        if not COMPARE[name](value, schema[name]):
            yield f"{place}: {value!r} is out of range ({name} {schema[name]})"
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            yield from errors(item, schema["items"], f"{place}[{number}]")
    if isinstance(value, Mapping) and "properties" in schema:
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            if key in schema["properties"]:
                yield from errors(item, schema["properties"][key], below)
            elif schema.get("additionalProperties") is False:
                yield f"{below}: no such key"


@pytest.mark.parametrize("recipe", recipes(ROOT), ids=lambda path: path.stem)
def test_a_recipe_names_its_schema_and_fits_it(recipe: Path) -> None:
    name, schema = described(recipe)
    text = recipe.read_text()
    assert text == with_comment(text, name), "stale: python -m verification.json_schema"
    assert (FOLDER / name).read_text() == as_text(schema), "stale: python -m verification.json_schema"
    assert list(errors(read_file(recipe), schema)) == []


def test_no_schema_is_left_over() -> None:
    named = {
        line.removeprefix(COMMENT)
        for path in recipes(ROOT)
        for line in path.read_text().splitlines()
        if COMMENT in line
    }
    assert {path.name for path in FOLDER.iterdir()} == named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 1", "lrr: no such key"),
        ("arch: {hidden_sise: 8}", "arch.hidden_sise: no such key"),
        ("arch: {loss: {loss_typ: x}}", "arch.loss.loss_typ: no such key"),
        ("lr: fast", "lr: 'fast' is not number"),
        ("lr: -1", "lr: -1 is out of range"),
        ("epochs: 1.5", "epochs: 1.5 is not integer"),
        ("ema: 1", "ema: 1 is not boolean"),
        ("select_on: tests", "select_on: 'tests' is not one of"),
        ("data_paths: data/x", "data_paths: 'data/x' is not array"),
        ("arch: {pos_encodings: rop}", "arch.pos_encodings: 'rop' is not one of"),
        ("lr: ${oc.env:LR}", ""),
        ("run_name: 7", ""),
        ("grad_clip: null", ""),
        ("resume: true", ""),
        ("epochs: ???", ""),
    ],
)
def test_what_an_editor_marks(text: str, message: str) -> None:
    _, schema = described(ROOT / "config/cfg_pretrain_sudoku_4x4.yaml")
    marked = list(errors(yaml.safe_load(text), schema))
    assert len(marked) == bool(message)
    assert message in "".join(marked)


def test_meaning_default_and_range_are_in_it() -> None:
    schema = json.loads((FOLDER / "pretrain-trm.json").read_text())
    rate = schema["properties"]["ema_rate"]
    assert rate["default"] == 0.999
    assert "No effect if ema=false" in rate["description"]
    assert rate["anyOf"][0] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
