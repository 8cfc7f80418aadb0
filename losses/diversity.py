"""Diversity loss of sampled text: the options of a concept, and the clusters of the text after it, should be uniform.

A completion has tokens C that name option o of K, and open tokens O in cluster k of the K_o that the option has.
With l_t = log pi(token t) at temperature 1 over the whole vocabulary:

    p = exp Σ_C l_t                S_o  = Σ_rows p       P_o    = S_o / ΣS        L_c    = Σ_o P_o log(P_o K)
    g = exp mean_O l_t             S_ok = Σ_rows g       P_k|o  likewise          L_open = Σ_o Σ_k P_k|o log(P_k|o K_o)
    L_kl = mean_t exp(r_t - l_t) - (r_t - l_t) - 1       r: under the base (Schulman's k3 estimator of KL(pi | base))

    kl        w_c L_c + w_o L_open + w_kl L_kl           over all K options, seen or not; invalid rows are in L_kl only
    kl_exact  the same, with P_o from the model's probability of every option in place of the sampled one
    tb        mean_i (D_i - mean D)²,  D_i = Σ_t l_t - log R_i          (VarGrad form of trajectory balance, no log Z)
              log R = log p_base - alpha_c log(f_o K) - alpha_o log(f_k|o K_o), invalid: log p_base - invalid_penalty

Of several concepts L_c is the sum over them, and so is alpha_c log(f_o K); clusters are those of the first one's
options. f are the base's own frequencies. With alpha 1 and one concept, R is the distribution nearest to the base, in
KL(. | base), whose options and clusters are uniform (of several: where the base names them independently of one
another). Every objective depends on l through sums over the whole batch, so the gradient with
respect to each l_t is computed here in closed form, and the trainer back-propagates Σ coefficient · l_t in chunks.
B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from losses.config import DiversityLossConfig
from models.animal.completions import NONE, Completions

MAX_LOG_RATIO = 20.0
"""Clamp on the log-ratio of base and model at one token, in nats; beyond it L_kl is constant, without gradient."""


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """All options in place of the sampled one: A rows, for objective=kl_exact."""

    logp: Tensor
    """[A] log-probability of the tokens of the alternative, given the text before it."""
    option: Tensor
    """int64 [A]"""
    concept: Tensor
    """int64 [A]: index of the concept, 0 for the first."""


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """Add-one smoothed frequencies of each option and cluster under the base, fixed before training."""

    option: Tensor
    """[K]"""
    cluster: Tensor
    """[K, max clusters]: share within the option; 0 where there is no such cluster."""
    further: Sequence[Tensor] = ()
    """[K] for each further concept."""


@dataclass(frozen=True, kw_only=True)
class DiversityResult:
    """The loss of a batch and its gradients with respect to the log-probabilities."""

    total: Tensor
    """Loss, scalar."""
    coefficients: Tensor
    """[B, T] gradient with respect to logp."""
    alternatives: Tensor | None
    """[A] gradient with respect to the alternatives, if given."""
    concept: Tensor
    """L_c, scalar; NaN without valid rows."""
    open: Tensor
    """L_open, scalar; NaN if no option has clusters."""
    ref_kl: Tensor
    """L_kl, scalar."""


class DiversityLoss(nn.Module):
    """`head(logp, ref, completions, clusters)` -> DiversityResult; no gradient flows through it."""

    Config: ClassVar = DiversityLossConfig

    def __init__(self, config: DiversityLossConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(
        self,
        logp: Tensor,
        ref: Tensor,
        batch: Completions,
        clusters: Tensor,
        *,
        alternatives: Alternatives | None = None,
        frequencies: Frequencies | None = None,
        further: Sequence[int] = (),
    ) -> DiversityResult:
        """logp, ref [B, T]: log-probabilities under model and base; clusters int64 [K]: K_o, 0 if there are none yet;
        `further`: K of each further concept."""
        config, sizes = self.config, (len(clusters), *further)
        concept, of_concept = concept_loss(logp, batch, sizes)
        opened, of_open = open_loss(logp, batch, clusters)
        ref_kl, of_kl = reference_kl(logp, ref, batch.mask)
        of_alternatives = None
        if config.objective == "tb":
            if frequencies is None:
                raise ValueError("objective=tb needs the frequencies of the base")
            reward = self.log_reward(ref, batch, frequencies, clusters)
            total, coefficients = trajectory_balance(logp, reward, batch.mask)
        else:
            if config.objective == "kl_exact":
                if alternatives is None:
                    raise ValueError("objective=kl_exact needs alternatives")
                concept, of_rows = exact_concept_loss(alternatives, sizes)
                of_alternatives, of_concept = config.w_c * of_rows, torch.zeros_like(logp)
            terms = ((config.w_c, concept), (config.w_o, opened), (config.w_kl, ref_kl))
            total = torch.stack([weight * value.nan_to_num(0.0) for weight, value in terms]).sum()
            coefficients = config.w_c * of_concept + config.w_o * of_open + config.w_kl * of_kl
        return DiversityResult(
            total=total,
            coefficients=coefficients,
            alternatives=of_alternatives,
            concept=concept,
            open=opened,
            ref_kl=ref_kl,
        )

    def log_reward(self, ref: Tensor, batch: Completions, frequencies: Frequencies, clusters: Tensor) -> Tensor:
        """log R [B] of completions with log-probabilities ref [B, T] under the base."""
        config, valid = self.config, batch.valid
        base = (ref * batch.mask).sum(-1)
        option, cluster = batch.option.clamp(min=0), batch.cluster.clamp(min=0)
        even = config.alpha_c * (frequencies.option[option] * len(clusters)).log()
        for number, shares in enumerate(frequencies.further):
            named = batch.further_option[:, number].clamp(min=0)
            even = even + config.alpha_c * (shares[named] * len(shares)).log()
        inside = frequencies.cluster[option, cluster] * clusters[option]
        even = even + config.alpha_o * inside.log().where(batch.cluster >= 0, 0.0)
        return base - even.where(valid, config.invalid_penalty)


def to_uniform(log_weights: Tensor, bucket: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """KL from the histogram of weights [N] over `buckets` to uniform, and its gradient [N] with respect to the log
    weights; bucket int64 [N], -1 is ignored.

    NaN and zeros if all are ignored. dL/d log w_i = w_i (log(P_b · buckets) - L) / ΣS.
    """
    counted = bucket >= 0
    if not counted.any():
        return log_weights.new_tensor(math.nan), torch.zeros_like(log_weights)
    members = (bucket.unsqueeze(0) == torch.arange(buckets, device=bucket.device).unsqueeze(1)) & counted
    sums = log_weights.masked_fill(~members, -math.inf).logsumexp(-1)  # [buckets]
    total = sums.logsumexp(-1)
    log_share = sums - total
    excess = (log_share + math.log(buckets)).where(log_share > -math.inf, 0.0)
    value = (log_share.exp() * excess).sum()
    slope = (log_weights - total).exp() * (excess[bucket.clamp(min=0)] - value)
    return value, slope.where(counted, 0.0)


def concept_loss(logp: Tensor, batch: Completions, options: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(L_c, its gradient [B, T] with respect to logp [B, T]); `options`: K of each concept."""
    value, slope = to_uniform((logp * batch.concept).sum(-1), batch.option, options[0])
    gradient = slope.unsqueeze(-1) * batch.concept
    for number, count in enumerate(options[1:]):
        named = batch.further[:, number]
        more, slope = to_uniform((logp * named).sum(-1), batch.further_option[:, number], count)
        value, gradient = value + more, gradient + slope.unsqueeze(-1) * named
    return value, gradient


def exact_concept_loss(alternatives: Alternatives, options: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(L_c from the probabilities of all options, its gradient [A] with respect to `alternatives.logp`)."""
    parts = [
        to_uniform(alternatives.logp, alternatives.option.where(alternatives.concept == number, NONE), count)
        for number, count in enumerate(options)
    ]
    values, slopes = zip(*parts, strict=True)
    return torch.stack(values).sum(), torch.stack(slopes).sum(0)


def open_loss(logp: Tensor, batch: Completions, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """(L_open, its gradient [B, T] with respect to logp [B, T]); clusters int64 [K].

    Summed over options, not weighted by their shares. Options without clusters or without rows are left out.
    """
    length = batch.open.sum(-1).clamp(min=1)
    log_mean = (logp * batch.open).sum(-1) / length
    values, slopes = [], torch.zeros_like(log_mean)
    for option, count in enumerate(clusters.tolist()):
        own = (batch.option == option) & (batch.cluster >= 0)
        if count and own.any():
            value, slope = to_uniform(log_mean, batch.cluster.where(own, NONE), count)
            values.append(value)
            slopes = slopes + slope
    total = torch.stack(values).sum() if values else logp.new_tensor(math.nan)
    return total, (slopes / length).unsqueeze(-1) * batch.open


def reference_kl(logp: Tensor, ref: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(L_kl, its gradient [B, T] with respect to logp [B, T]), over the sampled tokens, mask bool [B, T]."""
    log_ratio = (ref - logp).where(mask, 0.0)
    clamped = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    count = mask.sum().clamp(min=1)
    slope = (1 - clamped.exp()).where(mask & (log_ratio.abs() < MAX_LOG_RATIO), 0.0)
    return (clamped.exp() - clamped - 1).sum() / count, slope / count


def trajectory_balance(logp: Tensor, log_reward: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(L_tb, its gradient [B, T] with respect to logp [B, T]); log_reward [B].

    The batch mean estimates log Z and has no gradient (VarGrad, arXiv 2010.10436).
    """
    excess = (logp * mask).sum(-1) - log_reward
    centred = excess - excess.mean()
    return centred.square().mean(), (2 * centred / len(centred)).unsqueeze(-1) * mask
