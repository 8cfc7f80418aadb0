"""Infer a model's sizes from the tensor shapes of a public state dict, and report how they fit an architecture.

Shapes: V vocabulary size, D width, N puzzle identifiers, E width of the puzzle vector, S positions with the prefix, h
heads of width d, I inner width of a SwiGLU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import UsageError

Shapes = Mapping[str, Sequence[int]]
_BLOCK = re.compile(r"inner\.(H|L)_level\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Sizes:
    """Sizes inferred from shapes; None if they do not determine one."""

    kind: str
    """Module under models/recursive_reasoning/ that has these tensors."""
    vocab_size: int
    num_puzzle_identifiers: int
    positions: int | None
    """S, from the MLP over positions or the learned positions."""
    mixed: int | None
    """h·d, for a model with attention."""
    inner: int
    """I of the channel MLP."""
    arch: dict[str, Any]
    """Keys of the architecture."""


def read_sizes(shapes: Shapes) -> Sizes:
    """Infer the sizes of a model from the shapes of its `inner.NAME` tensors. Raises: UsageError."""
    depth = {level: len({m[2] for m in map(_BLOCK.match, shapes) if m and m[1] == level}) for level in "HL"}
    level = "L" if depth["L"] else "H"
    block = f"inner.{level}_level.layers.0"
    vocab_size, width = _shape(shapes, "inner.embed_tokens.embedding_weight")
    inner = _shape(shapes, f"{block}.mlp.down_proj.weight")[1]
    mlp_t = f"{block}.mlp_t.down_proj.weight" in shapes
    learned = "inner.embed_pos.embedding_weight" in shapes
    identifiers, ndim = 1, 0
    if "inner.puzzle_emb.weights" in shapes:
        identifiers, ndim = _shape(shapes, "inner.puzzle_emb.weights")
    positions = mixed = None
    if mlp_t:
        positions = _shape(shapes, f"{block}.mlp_t.down_proj.weight")[0]
    elif learned:
        positions = _shape(shapes, "inner.embed_pos.embedding_weight")[0]
    if not mlp_t:
        mixed = _shape(shapes, f"{block}.self_attn.o_proj.weight")[1]
    arch: dict[str, Any] = {"hidden_size": width, "mlp_t": mlp_t, "puzzle_emb_ndim": ndim}
    arch |= {f"{name}_layers": count for name, count in depth.items() if count}
    if learned:
        arch["pos_encodings"] = "learned"
    return Sizes(_kind(shapes, depth), vocab_size, identifiers, positions, mixed, inner, arch)


def _kind(shapes: Shapes, depth: Mapping[str, int]) -> str:
    if depth["H"]:
        return "hrm" if depth["L"] else "transformers_baseline"
    if "inner.L1_init" in shapes:
        return "trm_hier6"
    return "trm" if "inner.H_init" in shapes else "trm_singlez"


def _shape(shapes: Shapes, name: str) -> Sequence[int]:
    """The shape of a matrix."""
    if name not in shapes:
        near = ", ".join(list(shapes)[:3])
        raise UsageError(f"this is not a TRM or HRM: its state dict has no {name}, but {near}, ...")
    if len(shapes[name]) != 2:
        raise UsageError(f"this is not a TRM or HRM: {name} has shape {list(shapes[name])}, expected 2 dimensions")
    return shapes[name]


def shape_report(actual: Shapes, expected: Shapes) -> tuple[list[str], int]:
    """(lines with name, shape in the file, shape in the model and verdict of each tensor; number of misfits)."""
    names = [*expected, *(name for name in actual if name not in expected)]
    rows: list[tuple[str, ...]] = [("tensor", "file", "model", "")]
    misfits = 0
    for name in names:
        theirs, ours = actual.get(name), expected.get(name)
        fits = theirs is not None and ours is not None and list(theirs) == list(ours)
        verdict = "" if fits else "unknown" if ours is None else "missing" if theirs is None else "differs"
        misfits += not fits
        rows.append((name, *("-" if shape is None else str(list(shape)) for shape in (theirs, ours)), verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows], misfits
