"""The replay buffer: completions by option, with their embeddings and clusters.

Each option has at most `capacity` completions. Beyond that, the oldest of the largest cluster is evicted first, so that
rare clusters are kept; without clusters the oldest. In a step new completions are labelled with the current clusters,
then added, then clusters may be refitted: labels of a batch do not depend on the batch.

With a pool, an option with too few completions for its own clusters uses clusters of all options together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from evaluators.diversity import entropy
from models.animal.completions import NONE
from tasks.animal.clusters import Fit, Labels, Vectors, align, kmeans, nearest


@dataclass(frozen=True)
class Entry:
    """A valid completion."""

    text: str
    """Its open block, which is clustered."""
    ids: tuple[int, ...]
    """Its tokens, including the one that ended it, which are replayed."""
    step: int
    """Step at which it was sampled; 0: before training."""


@dataclass
class Bank:
    """The completions of one option, oldest first."""

    entries: list[Entry] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    """[d] each"""
    labels: list[int] = field(default_factory=list)
    centroids: Vectors | None = None
    """[k, d]"""
    fits: int = 0
    since_fit: int = 0
    """Completions added since the last fit."""

    @property
    def k(self) -> int:
        """Number of clusters; 0 before the first fit."""
        return 0 if self.centroids is None else len(self.centroids)

    def counts(self) -> Labels:
        """Completions in each cluster, [k]."""
        return np.bincount([label for label in self.labels if label >= 0], minlength=self.k)

    def evict(self, capacity: int) -> None:
        """Shrink to `capacity`, removing the oldest of the largest cluster first."""
        while len(self.entries) > capacity:
            counts = np.bincount([label + 1 for label in self.labels])  # index 0: without a cluster
            oldest = self.labels.index(int(counts.argmax()) - 1)
            for column in (self.entries, self.vectors, self.labels):
                del column[oldest]  # type: ignore[attr-defined]


class ReplayBuffer:
    """Completions of each option. `fit`: the clustering algorithm; `pooled`: whether there is a pool."""

    def __init__(
        self,
        options: Iterable[str],
        *,
        capacity: int,
        n_clusters: int,
        update_every: int,
        min_samples: int,
        seed: int,
        fit: Fit = kmeans,
        pooled: bool = False,
    ) -> None:
        self.banks = {option: Bank() for option in options}
        self.pool = Bank() if pooled else None
        """Clusters of all completions; it stores no completions itself."""
        self.capacity, self.n_clusters, self.seed, self.fit = capacity, n_clusters, seed, fit
        self.update_every, self.min_samples = update_every, min_samples

    def __len__(self) -> int:
        return sum(len(bank.entries) for bank in self.banks.values())

    def assign(self, option: str, vectors: Vectors) -> Labels:
        """Labels [n] of vectors [n, d]; -1 if the option has no clusters yet."""
        centroids = self.banks[option].centroids
        if centroids is None and self.pool is not None:
            centroids = self.pool.centroids
        return np.full(len(vectors), NONE) if centroids is None else nearest(vectors, centroids)

    def add(self, option: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Append completions with their vectors [n, d]; evict others beyond the capacity."""
        bank = self.banks[option]
        bank.labels += self.assign(option, vectors).tolist()
        bank.entries += entries
        bank.vectors += list(np.asarray(vectors, np.float32))
        bank.since_fit += len(entries)
        bank.evict(self.capacity)
        if self.pool is not None:
            self.pool.since_fit += len(entries)

    def update(self, option: str) -> bool:
        """Refit the clusters of `option` if due and possible; returns whether it was done."""
        bank = self.banks[option]
        texts = [entry.text for entry in bank.entries]
        centroids = self._refit(bank, texts, bank.vectors, sorted(self.banks).index(option))
        if centroids is None:
            return False
        bank.labels = nearest(np.stack(bank.vectors), centroids).tolist()
        return True

    def update_pool(self) -> bool:
        """Refit the pool's clusters if an option uses them and it is due; returns whether it was done."""
        banks = list(self.banks.values())
        if self.pool is None or all(bank.k for bank in banks):
            return False
        texts = [entry.text for bank in banks for entry in bank.entries]
        centroids = self._refit(self.pool, texts, [vector for bank in banks for vector in bank.vectors], len(banks))
        if centroids is None:
            return False
        for bank in banks:
            if not bank.k and bank.vectors:
                bank.labels = nearest(np.stack(bank.vectors), centroids).tolist()
        return True

    def _refit(self, bank: Bank, texts: Sequence[str], vectors: Sequence[Vectors], number: int) -> Vectors | None:
        """Refit the clusters of `bank` to texts with vectors [d] each, and return the centroids; None if they are not
        due, or there are too few texts. `number` gives each bank its own seeds."""
        k = min(self.n_clusters, len(set(texts)))  # KMeans would return empty clusters for equal texts
        due = bank.centroids is None or bank.since_fit >= self.update_every
        if not due or k < 2 or len(texts) < self.min_samples:
            return None
        seed = self.seed + 1000 * number + bank.fits
        bank.centroids = align(self.fit(np.stack(vectors), k, seed), bank.centroids)
        bank.fits, bank.since_fit = bank.fits + 1, 0
        return bank.centroids

    def clusters(self) -> list[int]:
        """Number of clusters of each option, its own or the pool's."""
        pooled = 0 if self.pool is None else self.pool.k
        return [bank.k or pooled for bank in self.banks.values()]

    def draw(self, random: np.random.Generator, count: int) -> list[tuple[str, int, Entry]]:
        """`count` draws (option, cluster, completion) with replacement: a uniform option, then a uniform completion."""
        filled = [option for option, bank in self.banks.items() if bank.entries]
        drawn = []
        for _ in range(count if filled else 0):
            option = filled[int(random.integers(len(filled)))]
            bank = self.banks[option]
            place = int(random.integers(len(bank.entries)))
            drawn.append((option, bank.labels[place], bank.entries[place]))
        return drawn

    def metrics(self) -> dict[str, float]:
        """Number of completions and cluster entropy by option, for the log."""
        metrics: dict[str, float] = {}
        for option, bank in self.banks.items():
            metrics[f"buffer_size/{option}"] = float(len(bank.entries))
            metrics[f"cluster_entropy/{option}"] = entropy(bank.counts())
        if self.pool is not None:
            metrics["options_pooled"] = float(sum(not bank.k for bank in self.banks.values()) if self.pool.k else 0)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The banks of all options, without settings and pool."""
        return {option: _state(bank) for option, bank in self.banks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state_dict`."""
        for option in self.banks:
            self.banks[option] = _bank(state[option])

    def pool_state(self) -> dict[str, Any]:
        """The state of the pool; {} without one."""
        return {} if self.pool is None else _state(self.pool)

    def load_pool_state(self, state: Mapping[str, Any]) -> None:
        """Load `pool_state`."""
        if self.pool is not None:
            self.pool = _bank(state)


def _bank(own: Mapping[str, Any]) -> Bank:
    return Bank(
        entries=[Entry(text, tuple(ids), step) for text, ids, step in own["entries"]],
        vectors=list(own["vectors"].cpu().numpy()) if "vectors" in own else [],
        labels=list(own["labels"]),
        centroids=own["centroids"].cpu().numpy() if "centroids" in own else None,
        fits=own["fits"],
        since_fit=own["since_fit"],
    )


def _state(bank: Bank) -> dict[str, Any]:
    return {
        "entries": [[entry.text, list(entry.ids), entry.step] for entry in bank.entries],
        **({"vectors": torch.from_numpy(np.stack(bank.vectors))} if bank.vectors else {}),
        "labels": list(bank.labels),
        **({} if bank.centroids is None else {"centroids": torch.from_numpy(bank.centroids)}),
        "fits": bank.fits,
        "since_fit": bank.since_fit,
    }
