"""The base without training, sampled at other temperatures and top-p, with the metrics of a run.

A fine-tuned model has to beat these points, which cost no training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.animal.language_model import Sampling, next_logits, sampling_weights
from tasks.animal.evaluation import Evaluation, Figures
from tasks.animal.sampler import Sampler, mask_of

GRID = tuple(
    Sampling(temperature=temperature, top_p=top_p)
    for temperature in (1.0, 1.2, 1.4, 1.7)
    for top_p in (1.0, 0.95, 0.9, 0.8)
)


def tempered(sampler: Sampler, figures: Evaluation, *, rows: int, seed: int) -> Iterator[tuple[Sampling, Figures]]:
    """(sampling settings, metrics of `rows` samples) for each point of GRID. `ref_kl` is the KL of the tempered
    distribution from the base at temperature 1.
    """
    for number, sampling in enumerate(GRID):
        drawn = sampler.draw(seed, "animal/tempered", number, rows, base=True, sampling=sampling)
        mask = mask_of(drawn)
        ref = sampler.scores(drawn.ids, mask, base=True)
        with sampler.model.without_adapters(), torch.no_grad():
            parts = [
                tempered_logp(sampler.model.language_model, sampler.prompt, part, sampling)
                for part in drawn.ids.to(sampler.prompt.device).split(sampler.rows_at_once)
            ]
        logp = torch.cat(parts).where(mask.to(ref.device), 0.0)
        yield sampling, figures.measure(sampler.samples(drawn, logp, ref))


def tempered_logp(model: Any, prompt: Tensor, ids: Tensor, sampling: Sampling) -> Tensor:
    """Log-probability float32 [B, T] of ids int64 [B, T] after `prompt` [P] under the distribution of `sampling`; -inf
    for tokens that it cannot draw (padding).
    """
    weights = sampling_weights(next_logits(model, prompt, ids).float(), sampling)
    own = weights.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return (own / weights.sum(-1)).log().float()
