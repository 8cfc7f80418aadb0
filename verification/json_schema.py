"""JSON schemas of the recipes for editors: completion, meaning and range of each key while a YAML file is edited.

    python -m verification.json_schema

writes config/schemas/SCRIPT-MODEL.json, one for each script and model class of a recipe; the recipe names its schema in
a comment, `# yaml-language-server: $schema=schemas/SCRIPT-MODEL.json`. Everything is derived from the dataclasses.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from engine.cli.keys import Key, is_list, is_union, keys_of
from engine.cli.resolve import resolve as trace_of
from engine.fields import Range
from engine.io import atomic_write_text
from engine.registry import ROOT, family_of, resolve
from verification.static import recipe_command, recipes

Schema = dict[str, Any]
OPEN: Schema = {"type": "string", "pattern": r"^(\$\{.*\}|\?\?\?)$"}
"""A value that is not known yet: an interpolation, or ??? for one that the command line gives."""
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
PLAIN = {bool: "boolean", int: "integer", float: "number"}
COMMENT = "# yaml-language-server: $schema=schemas/"


def describe_recipe(recipe: Path) -> tuple[str, Schema]:
    """(file name, schema) of a recipe: the keys of its script, with those of its model and loss."""
    script, *words = recipe_command(ROOT, recipe)
    schema = family_of(Path(script).stem, "script").schema
    trace = trace_of(ROOT / script, words, root=ROOT)
    assert trace.resolved is not None, trace.problems
    arch = trace.resolved["arch"]
    loss = named_block(getattr(resolve(arch["loss"]["name"], "losses"), "Config", None))
    model = named_block(getattr(resolve(arch["name"], "models"), "Config", None))
    model["properties"]["loss"] = loss
    keys = properties(schema) | {"arch": model}
    keys["defaults"] = {
        "type": "array",
        "description": "What this file is built on, later entries over earlier ones.",
    }
    keys["hydra"] = {"type": "object"}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"a recipe of {script}"}
    name = f"{Path(script).stem}-{arch['name'].rpartition('@')[2].lower()}.json"
    return name, {**head, "definitions": {"open": OPEN}, **closed(keys)}


def named_block(config: type | None) -> Schema:
    """The schema of a block whose class is chosen by its `name`."""
    keys = {} if config is None else properties(config)
    return closed({**keys, "name": {"type": "string", "description": "module@Class"}})


def closed(keys: Schema) -> Schema:
    """The schema of an object with these keys and no others."""
    return {"type": "object", "properties": keys, "additionalProperties": False}


def properties(schema: type) -> Schema:
    """The schemas of a dataclass's keys, nested ones as blocks."""
    return {name: _of_key(key) for name, key in keys_of(schema).items() if "." not in name}


def _of_key(key: Key) -> Schema:
    value = of_kind(key.kind)
    for mark in key.marks:
        if isinstance(mark, Range) and value.get("type") in ("integer", "number"):
            bounds = zip(BOUNDS, (mark.low, mark.high, mark.above, mark.below), strict=True)
            value |= {name: bound for name, bound in bounds if bound is not None}
    described: Schema = {"description": key.meaning} if key.meaning else {}
    if key.default is not MISSING and isinstance(key.default, bool | int | float | str | None):
        described["default"] = key.default
    if not value:
        return described
    return {
        **described,
        "anyOf": [value, *([{"type": "null"}] if key.optional else []), {"$ref": "#/definitions/open"}],
    }


def of_kind(kind: Any) -> Schema:
    """The schema of a declared type; {} accepts anything."""
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        return {"enum": [*choices, *(word == "true" for word in choices if word in ("true", "false"))]}
    if is_union(kind):
        return {"anyOf": [of_kind(part) if part is not type(None) else {"type": "null"} for part in get_args(kind)]}
    if is_list(kind):
        return {"type": "array", "items": of_kind((*get_args(kind), Any)[0])}
    if is_dataclass(kind):
        return closed(properties(kind))  # type: ignore[arg-type]
    if kind is str:
        return {"type": ["string", "number", "boolean"]}  # YAML numbers and booleans are accepted as text
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    return {"type": "object"} if dict in (kind, get_origin(kind)) else {}


def as_text(schema: Schema) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def with_comment(text: str, name: str) -> str:
    """A recipe's text with the comment that names its schema at the end of the header."""
    lines = [line for line in text.split("\n") if not line.startswith(COMMENT)]
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join([*lines[:end], COMMENT + name, *lines[end:]])


def main() -> None:
    """Write the schemas, and the comments that name them into the recipes."""
    folder = ROOT / "config/schemas"
    folder.mkdir(exist_ok=True)
    for recipe in recipes(ROOT):
        name, schema = describe_recipe(recipe)
        atomic_write_text(folder / name, as_text(schema))
        text = recipe.read_text(encoding="utf-8")
        if (changed := with_comment(text, name)) != text:
            atomic_write_text(recipe, changed)


if __name__ == "__main__":
    main()
