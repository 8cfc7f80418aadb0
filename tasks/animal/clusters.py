"""Clusters of texts of one kind, in numpy: KMeans of scikit-learn finds them, everything else is here.

n texts, d numbers each of unit length, k clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.distributed import broadcast_object, is_main
from engine.errors import UsageError
from models.animal.adapter import INSTALL

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Fit = Callable[[Vectors, int, int], Vectors]
"""(points [n, d], k, seed) -> centroids [k, d]"""
STARTS = 10
"""Of each fit; the best one is taken."""
SILHOUETTE = 500
"""Points that the number of clusters is judged by."""


def kmeans(points: Vectors, k: int, seed: int) -> Vectors:
    """Centroids [k, d] of points [n, d]. Raises: UsageError: scikit-learn is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise UsageError(f"clusters need scikit-learn: {INSTALL}") from None
    fitted = KMeans(n_clusters=k, n_init=STARTS, random_state=seed % 2**32).fit(np.ascontiguousarray(points))
    centroids: Vectors = fitted.cluster_centers_.astype(np.float32)
    return centroids


def best_kmeans(least: int) -> Fit:
    """KMeans with as many clusters between `least` and the k asked for as give the highest mean silhouette (Rousseeuw
    1987) of at most 500 points; with the fewest of those that are alike.
    """

    def fit(points: Vectors, k: int, seed: int) -> Vectors:
        from sklearn.metrics import silhouette_score

        made = {count: kmeans(points, count, seed) for count in range(min(least, k), k + 1)}
        some = points[:: -(-len(points) // SILHOUETTE)]
        scores = {}
        for count, centroids in made.items():
            labels = nearest(some, centroids)
            if 2 <= len(set(labels.tolist())) < len(some):  # elsewhere it is not defined
                scores[count] = silhouette_score(some, labels)
        return made[max(scores, key=lambda count: scores[count]) if scores else min(made)]

    return fit


def shared(fit: Fit) -> Fit:
    """The same on every rank: rank 0's, since machines round differently."""

    def of_main(points: Vectors, k: int, seed: int) -> Vectors:
        centroids: Vectors = broadcast_object(fit(points, k, seed) if is_main() else None)
        return centroids

    return of_main


def nearest(points: Vectors, centroids: Vectors) -> Labels:
    """Number of the nearest centroid of each point: [n]."""
    # |p - c|² = |p|² - 2 p·c + |c|², the first of which is the same for all c
    labels: Labels = (np.square(centroids).sum(-1) - 2 * points @ centroids.T).argmin(-1).astype(np.int64)
    return labels


def aligned(new: Vectors, old: Vectors | None) -> Vectors:
    """`new` centroids in the order of the `old` ones, so that a number keeps its meaning: of all orders the one with
    the least sum of squared distances. Those without an old one come last.
    """
    if old is None:
        return new
    from scipy.optimize import linear_sum_assignment  # scikit-learn needs it as well

    distances = np.square(new[:, None] - old[None, : len(new)]).sum(-1)
    rows, places = linear_sum_assignment(distances)
    order = [*rows[np.argsort(places)], *sorted(set(range(len(new))) - set(rows.tolist()))]
    return new[order]


def entropy(counts: Any) -> float:
    """Of a histogram, in nats; 0 of nothing."""
    counts = np.asarray(counts, dtype=np.float64)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum()) + 0.0
