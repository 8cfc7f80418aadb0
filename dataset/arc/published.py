"""The published collections of tasks: how they are recognised, and which data sets claim to be made of them.

A subset is recognised by the names of its tasks, whatever its folder or file is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.arc.tasks import Subset

# first 16 hexadecimal digits of the sha256 of the sorted task names -> name, licence
COLLECTIONS = {
    "b9f6a0eff1e51366": ("ARC-AGI-1 training", "Apache-2.0"),
    "a79dc015732912d8": ("ARC-AGI-1 evaluation", "Apache-2.0"),
    "8f735c6d10f05654": ("ARC-AGI-2 training", "Apache-2.0"),
    "5801e57e7883eb8b": ("ARC-AGI-2 evaluation", "Apache-2.0"),
    "5433c60bfc5f2d6f": ("ConceptARC", "MIT"),
}
NAMED = {
    "arc1concept": ("ARC-AGI-1 training", "ARC-AGI-1 evaluation", "ConceptARC"),
    "arc2concept": ("ARC-AGI-2 training", "ARC-AGI-2 evaluation", "ConceptARC"),
}
"""Prefix of a data set's name -> the collections it claims to have."""


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def collections_of(subsets: Sequence[Subset]) -> dict[str, str]:
    """Name -> licence of the published collections among the subsets, singly or (ConceptARC's folders) together."""
    known: dict[str, str] = {}
    rest = []
    for subset in subsets:
        entry = COLLECTIONS.get(_digest(task.name for task in subset.tasks))
        if entry:
            known[entry[0]] = entry[1]
        else:
            rest += [task.name for task in subset.tasks]
    together = COLLECTIONS.get(_digest(rest))
    return {**known, together[0]: together[1]} if together else known


def claims_to_be_published(root: str | Path) -> str | None:
    """The key of NAMED with which a folder's name begins, in any spelling; None if there is none."""
    name = "".join(char for char in Path(root).absolute().name.lower() if char.isalnum())
    return next((claim for claim in NAMED if name.startswith(claim)), None)


def stand_in_reason(root: str | Path, card: Mapping[str, Any]) -> str | None:
    """Why the data set at `root` is not what its name claims; None if it is, or its card lists no collections."""
    claim = claims_to_be_published(root)
    if claim is None or "collections" not in card:
        return None
    missing = [name for name in NAMED[claim] if name not in card["collections"]]
    if not missing:
        return None
    return "made of generated tasks, not of ARC-AGI" if card.get("source") == "generated" else f"without {missing[0]}"
