"""How diverse the samples of a model are, and whether they still make sense: metrics of a list of `Sample`s.

Clusters of open texts and the plausibility threshold are fitted once, on samples of the base, so that metrics before
and after training are comparable. Compared sets have the same size: Vendi, distinct-n and others depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evaluators.diversity import (
    classes,
    compression_ratio,
    distinct,
    entropy,
    kl_interval,
    kl_to_uniform,
    mean_distance,
    self_bleu,
    utility,
    vendi,
)
from tasks.animal.animals import animals_in
from tasks.animal.clusters import Fit, Vectors, kmeans, nearest
from tasks.animal.embedder import Embedder
from tasks.animal.samples import Sample

READER = 10
"""Samples per reader, for utility_10 and distinct_10."""
PLAUSIBLE = 0.99
"""Share of the base's own samples that count as plausible."""
FIRST = ("utility_10", "v_eff", "valid_fraction", "ref_kl", "concept_kl", "in_grammar")
"""Metrics that come first, since a console line has no room for more."""
Figures = dict[str, float | None]
MEANINGS = {
    "valid_fraction": "samples that name an option and continue",
    "in_grammar": "samples that are sentences of the grammar that the tiny model was trained on",
    "plausible_fraction": "samples that are valid and at least as likely under the base, per token, as 99 % of its own",
    "ref_kl": "KL from the base, nats per sample",
    "base_perplexity": "perplexity of the samples under the base, per token",
    "concept_kl": "KL of the options named from equal shares, nats; with a 95 % interval",
    "concept_entropy": "entropy of the options named, nats",
    "options_seen": "options named at all",
    "animals_named": "different animals in the samples, whether options or not",
    "cluster_entropy": "entropy of an option's clusters of open texts, nats; mean over the options",
    "cluster_kl": "KL of these clusters from equal shares, nats; mean over the options",
    "semantic_entropy": "entropy over all clusters of all options, nats",
    "v_eff": "valid_fraction x Vendi score of the valid samples",
    "utility_10": "worth of 10 samples to a reader: plausible ones of a new class count, later ones less",
    "distinct_10": "classes of plausible samples among 10 samples",
    "vendi": "Vendi score of all samples, whether they make sense or not",
    "cosine_distance": "mean cosine distance of two samples",
    "distinct_1": "distinct words over all words",
    "distinct_2": "different pairs of words over all pairs",
    "self_bleu": "mean BLEU of a sample against the others; lower is more diverse",
    "compression_ratio": "how far zlib shrinks the samples; lower is more diverse",
    "mean_length": "tokens of a sample",
}
"""Metric -> meaning, in the order of reports."""


class Evaluation:
    """Metrics of samples, with clusters and thresholds from the samples given to `fit`.

    Args:
        options: options of the concept.
        further: name -> options of each further concept.
        n_clusters: most clusters per option.
        fit: clustering algorithm.
        checker: decides whether a text makes sense; None: `in_grammar` is not measured.
    """

    def __init__(
        self,
        embedder: Embedder,
        options: Sequence[str],
        *,
        n_clusters: int,
        seed: int = 0,
        fit: Fit = kmeans,
        checker: Callable[[str], bool] | None = None,
        further: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.further = {name: list(names) for name, names in (further or {}).items()}
        self.embedder, self.options, self.n_clusters = embedder, list(options), n_clusters
        self.seed, self.find, self.checker = seed, fit, checker
        self.centroids: dict[str, Vectors] = {}
        """Option -> centroids [k, d] of its open texts; options that the base never names are missing."""
        self.typical: dict[str, list[str]] = {}
        """Option -> the base's text nearest to each centroid."""
        self.max_nats = math.inf
        """Nats per token under the base above which a sample is not plausible."""

    def fit(self, samples: Sequence[Sample]) -> None:
        """Fit clusters and the plausibility threshold to the base's samples."""
        self.centroids, self.typical = {}, {}
        for number, option in enumerate(self.options):
            texts = [sample.open_text for sample in samples if sample.valid and sample.option == option]
            if texts:
                vectors = self.embedder.encode(texts)
                k = min(self.n_clusters, len(np.unique(vectors, axis=0)))
                self.centroids[option] = centroids = self.find(vectors, k, self.seed + 1000 * number)
                self.typical[option] = [texts[row] for row in (vectors @ centroids.T).argmax(axis=0)]
        nats = [_nats_per_token(sample) for sample in samples if sample.valid]
        self.max_nats = float(np.quantile(nats, PLAUSIBLE)) if nats else math.inf

    def measure(self, samples: Sequence[Sample]) -> Figures:
        """Metric -> value; None if the samples leave it undefined."""
        if not samples:
            return {}
        texts = [sample.text for sample in samples]
        vectors = self.embedder.encode(texts)
        valid = [row for row, sample in enumerate(samples) if sample.valid]
        plausible = [sample.valid and _nats_per_token(sample) <= self.max_nats for sample in samples]
        tokens = sum(sample.tokens for sample in samples)
        figures: Figures = {"valid_fraction": len(valid) / len(samples)}
        if self.checker is not None:
            figures["in_grammar"] = sum(map(self.checker, texts)) / len(samples)
        figures |= {
            "plausible_fraction": sum(plausible) / len(samples),
            "ref_kl": sum(sample.logp - sample.ref_logp for sample in samples) / len(samples),
            "base_perplexity": math.exp(min(700.0, -sum(sample.ref_logp for sample in samples) / max(tokens, 1))),
            **self._concept(samples),
            "animals_named": float(len(animals_in(texts))),
            **self._clusters(samples),
            "v_eff": len(valid) / len(samples) * vendi(vectors[valid]),
            **self._readers(samples, plausible),
            "vendi": vendi(vectors),
            "cosine_distance": mean_distance(vectors),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "self_bleu": self_bleu(texts),
            "compression_ratio": compression_ratio(texts),
            "mean_length": tokens / len(samples),
        }
        return {name: figures[name] for name in FIRST if name in figures} | figures

    def _concept(self, samples: Sequence[Sample]) -> Figures:
        counts = [sum(sample.valid and sample.option == option for sample in samples) for option in self.options]
        low, high = kl_interval(counts) or (None, None)
        total = sum(counts)
        more = self.further_counts(samples)
        shares = dict(zip(self.options, counts, strict=True)) | {
            o: n for each in more.values() for o, n in each.items()
        }
        return {
            "concept_kl": kl_to_uniform(counts),
            "concept_kl_low": low,
            "concept_kl_high": high,
            "concept_entropy": entropy(counts) if total else None,
            "options_seen": float(sum(count > 0 for count in counts)),
            **{f"concept_kl_of_{name}": kl_to_uniform(list(each.values())) for name, each in more.items()},
            **{f"option_share_{option}": count / total if total else None for option, count in shares.items()},
        }

    def further_counts(self, samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
        """Further concept -> option -> number of valid samples that name it."""
        named = [sample.further for sample in samples if sample.valid]
        return {
            name: {option: sum(each[place] == option for each in named) for option in options}
            for place, (name, options) in enumerate(self.further.items())
        }

    def _clusters(self, samples: Sequence[Sample]) -> Figures:
        figures: Figures = {}
        entropies: list[float] = []
        divergences: list[float] = []
        every: list[int] = []
        for option, counts in self.histograms(samples).items():
            every += counts
            figures[f"cluster_entropy_{option}"] = entropy(counts) if sum(counts) else None
            figures[f"cluster_kl_{option}"] = divergence = kl_to_uniform(counts)
            if divergence is not None:
                entropies.append(entropy(counts))
                divergences.append(divergence)
        return {
            "cluster_entropy": sum(entropies) / len(entropies) if entropies else None,
            "cluster_kl": sum(divergences) / len(divergences) if divergences else None,
            **figures,
            "semantic_entropy": entropy(every) if sum(every) else None,
        }

    def histograms(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """Option -> number of valid samples in each of its clusters; options without clusters are left out."""
        histograms = {}
        for option, centroids in self.centroids.items():
            texts = [sample.open_text for sample in samples if sample.valid and sample.option == option]
            labels = nearest(self.embedder.encode(texts), centroids) if texts else np.zeros(0, dtype=np.int64)
            histograms[option] = np.bincount(labels, minlength=len(centroids)).tolist()
        return histograms

    def _readers(self, samples: Sequence[Sample], plausible: Sequence[bool]) -> Figures:
        """Means over readers, each of whom sees the next 10 samples; an implausible sample has no utility."""
        open_texts = self.embedder.encode([sample.open_text for sample in samples])
        worth, distinct = [], []
        for start in range(0, len(samples) - READER + 1, READER):
            rows = range(start, start + READER)
            labels = classes(open_texts[start : start + READER], [samples[row].option for row in rows])
            worth.append(utility(labels, [float(plausible[row]) for row in rows]))
            distinct.append(len({label for label, row in zip(labels, rows, strict=True) if plausible[row]}))
        return {
            f"utility_{READER}": sum(worth) / len(worth) if worth else None,
            f"distinct_{READER}": sum(distinct) / len(distinct) if distinct else None,
        }


def _nats_per_token(sample: Sample) -> float:
    """Negative log-probability per token under the base."""
    return -sample.ref_logp / max(sample.tokens, 1)
