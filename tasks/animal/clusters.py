"""Clustering of text embeddings, in numpy, around scikit-learn's KMeans.

Shapes: n texts with embeddings of width d and unit length, k clusters.
"""

from __future__ import annotations

from collections.abc import Callable

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
"""Initialisations per fit; the best one is kept."""
SILHOUETTE = 500
"""Most points for a silhouette score."""


def kmeans(points: Vectors, k: int, seed: int) -> Vectors:
    """Centroids [k, d] of points [n, d]. Raises: UsageError without scikit-learn."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise UsageError(f"clusters need scikit-learn: {INSTALL}") from None
    fitted = KMeans(n_clusters=k, n_init=STARTS, random_state=seed % 2**32).fit(np.ascontiguousarray(points))
    centroids: Vectors = fitted.cluster_centers_.astype(np.float32)
    return centroids


def best_kmeans(least: int) -> Fit:
    """KMeans that chooses the number of clusters between `least` and k with the highest mean silhouette (Rousseeuw
    1987) of at most 500 points; ties go to the fewest clusters.
    """

    def fit(points: Vectors, k: int, seed: int) -> Vectors:
        from sklearn.metrics import silhouette_score

        fits = {count: kmeans(points, count, seed) for count in range(min(least, k), k + 1)}
        subset = points[:: -(-len(points) // SILHOUETTE)]
        scores = {}
        for count, centroids in fits.items():
            labels = nearest(subset, centroids)
            if 2 <= len(set(labels.tolist())) < len(subset):  # otherwise the silhouette is undefined
                scores[count] = silhouette_score(subset, labels)
        return fits[max(scores, key=lambda count: scores[count]) if scores else min(fits)]

    return fit


def fit_on_main(fit: Fit) -> Fit:
    """Fit on rank 0 and broadcast the centroids, since machines round differently."""

    def broadcast_fit(points: Vectors, k: int, seed: int) -> Vectors:
        centroids: Vectors = broadcast_object(fit(points, k, seed) if is_main() else None)
        return centroids

    return broadcast_fit


def nearest(points: Vectors, centroids: Vectors) -> Labels:
    """Index of the nearest centroid of each point: [n]."""
    # |p - c|² = |p|² - 2 p·c + |c|², whose first term does not depend on c
    labels: Labels = (np.square(centroids).sum(-1) - 2 * points @ centroids.T).argmin(-1).astype(np.int64)
    return labels


def align(new: Vectors, old: Vectors | None) -> Vectors:
    """Reorder `new` centroids to match the `old` ones, so that a label keeps its meaning: the assignment with the least
    sum of squared distances. Centroids without an old one come last.
    """
    if old is None:
        return new
    from scipy.optimize import linear_sum_assignment  # a dependency of scikit-learn

    distances = np.square(new[:, None] - old[None, : len(new)]).sum(-1)
    rows, places = linear_sum_assignment(distances)
    order = [*rows[np.argsort(places)], *sorted(set(range(len(new))) - set(rows.tolist()))]
    return new[order]
