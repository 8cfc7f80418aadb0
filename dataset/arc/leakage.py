"""What of the held-out tests also stands in training: the same task, the same pair, the same test grid.

Augmentation makes a pair and its turned or recoloured copies one for a model, so grids are compared exactly and up to
the eight transforms and a renaming of the colours 1 to 9. That the demonstrations of the held-out tasks are trained on
is the protocol of the public code (transductive) and no leak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dataset.arc.augment import dihedral
from dataset.arc.tasks import Pair, Subset

RELATIONS = ("pair", "pair_transformed", "input", "input_transformed")
"""From most to least: question and answer, both transformed, the question alone, the question transformed."""
_COLOURS = bytes(range(1, 10))


def plain_key(*grids: np.ndarray) -> bytes:
    """Shapes and cells: equal for equal grids."""
    return b"".join(bytes(grid.shape) + grid.tobytes() for grid in grids)


def symmetric_key(*grids: np.ndarray) -> bytes:
    """The same for all that the eight transforms and a renaming of the colours make of these grids together."""
    keys = []
    for tid in range(8):
        turned = [dihedral(grid, tid) for grid in grids]
        cells = b"".join(grid.tobytes() for grid in turned)
        # colours get numbers in the order in which they occur; 0 is the background
        found = bytes(colour for colour in dict.fromkeys(cells) if colour)
        shapes = b"".join(bytes(grid.shape) for grid in turned)
        keys.append(shapes + cells.translate(bytes.maketrans(found, _COLOURS[: len(found)])))
    return min(keys)


def _keys(pair: Pair) -> dict[str, bytes]:
    both = (pair.input,) if pair.output is None else (pair.input, pair.output)
    return {
        "pair": plain_key(*both),
        "pair_transformed": symmetric_key(*both),
        "input": plain_key(pair.input),
        "input_transformed": symmetric_key(pair.input),
    }


def _trained(subsets: Sequence[Subset], test_sets: Sequence[str]) -> Iterator[tuple[str, str, Pair]]:
    """(subset, task, pair) of what is trained on."""
    for subset in subsets:
        for task in subset.tasks:
            for pair in task.pairs:
                if pair.kind == "train" or subset.name not in test_sets:
                    yield subset.name, task.name, pair


def leakage_report(subsets: Sequence[Subset], test_sets: Sequence[str]) -> dict[str, Any]:
    """Which held-out tasks and tests stand in training, for leakage.json.

    `empty`: nothing was found. `counts`: tasks, tests, tasks whose id another subset has, tests by the strongest of
    RELATIONS that holds. `ids`: {task: subsets}. `tests`: one entry for each test found, with where it stands.
    """
    held_out = [(subset, task) for subset in subsets if subset.name in test_sets for task in subset.tasks]
    owners = defaultdict(list)
    for subset in subsets:
        for task in subset.tasks:
            owners[task.name].append(subset.name)
    ids = {
        task.name: others
        for subset, task in held_out
        if (others := [name for name in owners[task.name] if name != subset.name])
    }
    places: dict[str, dict[bytes, list[str]]] = {relation: defaultdict(list) for relation in RELATIONS}
    for name, title, pair in _trained(subsets, test_sets):
        for relation, key in _keys(pair).items():
            if (place := f"{name}/{title}") not in (known := places[relation][key]):
                known.append(place)
    tests = []
    for subset, task in held_out:
        for number, pair in enumerate(task.of("test")):
            for relation, key in _keys(pair).items():
                if key in places[relation] and (pair.output is not None or relation.startswith("input")):
                    found = {"subset": subset.name, "task": task.name, "test": number, "relation": relation}
                    tests.append({**found, "in": places[relation][key]})
                    break
    counts = {
        "held_out_tasks": len(held_out),
        "held_out_tests": sum(len(task.of("test")) for _, task in held_out),
        "ids": len(ids),
        **{relation: sum(test["relation"] == relation for test in tests) for relation in RELATIONS},
    }
    return {"empty": not ids and not tests, "counts": counts, "ids": ids, "tests": tests}
