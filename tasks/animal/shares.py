"""Shares of the options among samples: metrics of a step, and the frequencies of the base.

Shapes: B rows, K options of the first concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from evaluators.diversity import entropy
from losses.diversity import Frequencies
from models.animal.completions import Completions
from tasks.animal.sampler import Rollouts

NOT_MEASURED = math.nan


def option_figures(
    batch: Completions, options: Sequence[str], further: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Metrics of a step's new samples; those of `further` concepts (name -> options) follow the first concept's."""
    valid = int(batch.valid.sum())
    figures = {"valid_fraction": valid / len(batch.ids)}
    shares: dict[str, float] = {}
    entropies: dict[str, float] = {}
    named = (batch.option, *batch.further_option.unbind(1))
    for number, (concept, names) in enumerate({"": options, **further}.items()):
        counts = [int((named[number] == place).sum()) for place in range(len(names))]
        for option, count in zip(names, counts, strict=True):
            shares[f"option_share/{option}"] = count / valid if valid else NOT_MEASURED
        if concept:
            entropies[f"concept_entropy/{concept}"] = entropy(counts)
        else:
            figures |= {"options_seen": float(sum(count > 0 for count in counts)), "concept_entropy": entropy(counts)}
    return {**figures, **shares, **entropies}


def option_counts(drawn: Rollouts, concepts: Sequence[Sequence[str]]) -> str:
    """The number of valid samples that name each option of each concept, as text: `cat 12, dog 240`."""
    named = [(block.option, *(option for option, _ in block.further)) for block in drawn.blocks if block.valid]
    parts = []
    for place, options in enumerate(concepts):
        parts.append(", ".join(f"{option} {sum(each[place] == option for each in named)}" for option in options))
    return "; ".join(parts)


def frequencies(batch: Completions, clusters: list[int], further: Sequence[int] = ()) -> Frequencies:
    """Frequencies of options and of each option's clusters among the base's valid samples, with add-one smoothing."""
    options = range(len(clusters))
    counts, *others = (
        torch.tensor([(named == option).sum() + 1 for option in range(size)], device=batch.ids.device)
        for named, size in zip((batch.option, *batch.further_option.unbind(1)), (len(clusters), *further), strict=True)
    )
    inside = torch.zeros(len(clusters), max(*clusters, 1), device=batch.ids.device)
    for option in options:
        for cluster in range(clusters[option]):
            inside[option, cluster] = ((batch.option == option) & (batch.cluster == cluster)).sum() + 1
    return Frequencies(
        option=counts / counts.sum(),
        cluster=inside / inside.sum(-1, keepdim=True).clamp(min=1),
        further=[each / each.sum() for each in others],
    )
