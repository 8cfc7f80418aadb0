"""Finds held-out tests that also occur in training: the same task, the same pair, the same test grid.

In encoder mode whole tasks are held out: their demonstrations are searched, too, and `drop_overlap` leaves out the
training tasks that share anything with them.

To a model trained with augmentation a pair and its turned or recoloured copies are the same, so grids are compared both
exactly and up to the eight transforms and a renaming of the colours 1 to 9. Training on the demonstrations of held-out
tasks is the (transductive) protocol of the public code and no leak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataset.arc.augment import dihedral
from dataset.arc.tasks import Pair, Subset

RELATIONS = ("pair", "pair_transformed", "input", "input_transformed")
"""From strongest to weakest: question and answer, both transformed, the question alone, the question transformed."""
_COLOURS = bytes(range(1, 10))


def plain_key(*grids: np.ndarray) -> bytes:
    """Shapes and cells of grids as bytes: equal for equal grids only."""
    return b"".join(bytes(grid.shape) + grid.tobytes() for grid in grids)


def symmetric_key(*grids: np.ndarray) -> bytes:
    """A key that the eight transforms and a renaming of the colours, applied to all grids together, do not change."""
    keys = []
    for tid in range(8):
        turned = [dihedral(grid, tid) for grid in grids]
        cells = b"".join(grid.tobytes() for grid in turned)
        # colours are renumbered in the order in which they first occur; 0 is the background
        colours = bytes(colour for colour in dict.fromkeys(cells) if colour)
        shapes = b"".join(bytes(grid.shape) for grid in turned)
        keys.append(shapes + cells.translate(bytes.maketrans(colours, _COLOURS[: len(colours)])))
    return min(keys)


def _keys(pair: Pair, relations: Sequence[str]) -> dict[str, bytes]:
    both = (pair.input,) if pair.output is None else (pair.input, pair.output)
    return {
        relation: (symmetric_key if relation.endswith("transformed") else plain_key)(
            *(both if relation.startswith("pair") else both[:1])
        )
        for relation in relations
    }


def _trained(subsets: Sequence[Subset], test_sets: Sequence[str], whole_tasks: bool) -> Iterator[tuple[str, str, Pair]]:
    """(subset, task, pair) of every pair that is trained on."""
    for subset in subsets:
        for task in subset.tasks:
            for pair in task.pairs:
                if subset.name not in test_sets or (pair.kind == "train" and not whole_tasks):
                    yield subset.name, task.name, pair


def drop_overlap(
    subsets: Sequence[Subset], test_sets: Sequence[str], report: Mapping[str, Any]
) -> tuple[list[Subset], list[str]]:
    """The subsets without the training tasks in a report of `whole_tasks`, and the names of those tasks, sorted."""
    shared = {place for entry in (*report["tests"], *report["demonstrations"]) for place in entry["in"]}
    shared |= {f"{name}/{task}" for task, names in report["ids"].items() for name in names if name not in test_sets}
    kept, removed = [], []
    for subset in subsets:
        gone = [task.name for task in subset.tasks if f"{subset.name}/{task.name}" in shared]
        removed += gone
        tasks = tuple(task for task in subset.tasks if task.name not in gone)
        kept.append(replace(subset, tasks=tasks))
    return kept, sorted(removed)


def leakage_report(
    subsets: Sequence[Subset],
    test_sets: Sequence[str],
    *,
    whole_tasks: bool = False,
    relations: Sequence[str] = RELATIONS,
) -> dict[str, Any]:
    """Report which held-out tasks and tests occur in training (leakage.json).

    `empty`: nothing was found. `counts`: tasks, tests, tasks whose id is in another subset, tests by their strongest
    relation of RELATIONS. `ids`: {task: subsets}. `tests`: an entry for each test found, with the places where.
    With `whole_tasks` the demonstrations of held-out tasks are not trained on, and `demonstrations` lists those found
    nevertheless; they do not count for `empty`, which is about answers. `relations`: those that are checked.
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
    places: dict[str, dict[bytes, list[str]]] = {relation: defaultdict(list) for relation in relations}
    for name, title, pair in _trained(subsets, test_sets, whole_tasks):
        for relation, key in _keys(pair, relations).items():
            if (place := f"{name}/{title}") not in (known := places[relation][key]):
                known.append(place)

    def leaks_of(kind: str, label: str) -> list[dict[str, Any]]:
        entries = []
        for subset, task in held_out:
            for number, pair in enumerate(task.of(kind)):
                for relation, key in _keys(pair, relations).items():
                    if key in places[relation] and (pair.output is not None or relation.startswith("input")):
                        entry = {"subset": subset.name, "task": task.name, label: number, "relation": relation}
                        entries.append({**entry, "in": places[relation][key]})
                        break
        return entries

    tests = leaks_of("test", "test")
    counts: dict[str, Any] = {
        "held_out_tasks": len(held_out),
        "held_out_tests": sum(len(task.of("test")) for _, task in held_out),
        "ids": len(ids),
        **{relation: sum(test["relation"] == relation for test in tests) for relation in RELATIONS},
    }
    report: dict[str, Any] = {"empty": not ids and not tests, "counts": counts, "ids": ids, "tests": tests}
    if whole_tasks:
        report["demonstrations"] = leaks_of("train", "demonstration")
        counts["demonstrations"] = len(report["demonstrations"])
    return report
