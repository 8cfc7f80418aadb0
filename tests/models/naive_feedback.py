"""The base of the feedback models in numpy, row by row and head by head, float64, no line in common with the model."""

from __future__ import annotations

import math

import numpy as np

_ERF = np.vectorize(math.erf)


def normed(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def turned(x: np.ndarray, theta: float) -> np.ndarray:
    """x [T, d]: number i and number i + d/2 are a point of the plane, turned by t·theta^(-2i/d)."""
    y = x.copy()
    half = x.shape[1] // 2
    for t in range(len(x)):
        for i in range(half):
            angle = t * theta ** (-i / half)
            c, s = math.cos(angle), math.sin(angle)
            y[t, i], y[t, i + half] = c * x[t, i] - s * x[t, i + half], s * x[t, i] + c * x[t, i + half]
    return y


def block(x: np.ndarray, w: dict, config, causal: bool) -> np.ndarray:
    """x [T, C]; w: weights q, k, v, o, fc, proj of this row."""
    n, d = normed(x), config.n_embd // config.n_head
    heads = []
    for j in range(config.n_head):
        cut = slice(j * d, (j + 1) * d)
        q, k = (turned(n @ w[name][cut].T, config.rope_theta) for name in "qk")
        scores = q @ k.T / math.sqrt(d)
        if causal:
            scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(p / p.sum(-1, keepdims=True) @ (n @ w["v"][cut].T))
    x = x + np.concatenate(heads, -1) @ w["o"].T
    h = normed(x) @ w["fc"].T
    return x + (0.5 * h * (1 + _ERF(h / math.sqrt(2)))) @ w["proj"].T


def weights_of(base, number: int, changes: dict | None = None) -> dict:
    """The six matrices of a block, with a row's changes added."""
    names = ("q", "k", "v", "o", "fc", "proj")
    own = {name: base.linear(number, name).detach().double().numpy() for name in names}
    return {name: weight + (changes or {}).get(name, 0.0) for name, weight in own.items()}


def naive_row(base, ids: np.ndarray, changes: list[dict] | None = None) -> np.ndarray:
    """ids [T] of text alone -> hidden [T, C]. changes: for each block {target: ΔW}."""
    config = base.config
    x = base.wte.embedding_weight.detach().double().numpy()[ids]
    order = list(range(config.n_layer))
    e = None
    if hasattr(config, "loops"):
        inner = order[config.loop_start : config.loop_start + config.loop_layers]
        order = (
            order[: config.loop_start] + [-1, *inner] * config.loops + order[config.loop_start + config.loop_layers :]
        )
        a, b, mix = (getattr(base.injection, name).detach().double().numpy() for name in ("a", "b", "mix"))
        step = np.log1p(np.exp(b))
    for number in order:
        if number < 0:
            e = x if e is None else e
            x = np.exp(-step * np.exp(a)) * x + step * (e @ mix.T)
        else:
            x = block(x, weights_of(base, number, changes and changes[number]), config, config.causal)
    return normed(x)
