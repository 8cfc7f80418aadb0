"""The GPT family written out in numpy: loops over tokens, heads and keys, float64, no line in common with the models.

`naive_gpt(weights, config, streams)` reads weights by the model's names. Symbols: t query, s key, j head.
"""

from __future__ import annotations

import math

import numpy as np

_ERF = np.vectorize(math.erf)


def norm(x: np.ndarray, weights: dict, name: str, c) -> np.ndarray:
    match c.norm_variant:
        case "identity":
            return x
        case "layernorm":
            y = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + c.norm_eps)
        case "rmsnorm":
            y = x / math.sqrt((x**2).mean() + c.norm_eps)
        case "dyt":
            y = np.tanh(weights[f"{name}.alpha"][0] * x)
    return y * weights.get(f"{name}.weight", 1.0) + weights.get(f"{name}.bias", 0.0)


def rms(x: np.ndarray, c) -> np.ndarray:
    return x / math.sqrt((x**2).mean() + c.norm_eps)


def linear(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def activation(x: np.ndarray, name: str) -> np.ndarray:
    match name:
        case "gelu":
            return 0.5 * x * (1 + _ERF(x / math.sqrt(2)))
        case "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "squared_relu":
            return np.where(x > 0, x * x, 0.0)
        case "relu":
            return np.where(x > 0, x, 0.0)
    return x / (1 + np.exp(-x))


def turned(x: np.ndarray, t: int, c) -> np.ndarray:
    """Rotary position t: number i and number i + r/2 are a point of the plane, turned by t·theta^(-2i/r)."""
    r = c.rope_length or len(x)
    y = x.copy()
    for i in range(r // 2):
        angle = t * c.rope_theta ** (-2 * i / r)
        a, b = x[i], x[i + r // 2]
        y[i], y[i + r // 2] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
    return y


def weighted(scores: np.ndarray, variant: str, weights: dict, name: str, j: int) -> np.ndarray:
    """Weights of the visible keys, from their scores."""
    match variant:
        case "softmax":
            return np.exp(scores) / np.exp(scores).sum()
        case "softmax1":
            return np.exp(scores) / (1 + np.exp(scores).sum())
        case "relu2max":
            return np.where(scores > 0, scores, 0.0) ** 2 / len(scores)
        case "sigmoidmax":
            return 1 / (1 + np.exp(-(scores - math.log(len(scores)))))
    return np.exp(scores - weights[f"{name}.weighting.beta"][j]) / weights[f"{name}.weighting.gamma"][j]


def attention(xs: list, weights: dict, name: str, c, extras: list) -> list:
    d, h = c.n_embd // c.n_head, c.n_head
    g = c.n_kv_group or h
    qs, ks, vs = [], [], []
    for t, x in enumerate(xs):
        parts = linear(x, weights, f"{name}.qkv").reshape(h + 2 * g, d)
        q, k, v = parts[:h], parts[h : h + g], parts[h + g :] + extras[t]
        if c.pos_encodings == "rope":
            q, k = (np.array([turned(row, t, c) for row in part]) for part in (q, k))
        if c.use_qk_norm:
            q, k = (np.array([c.qk_norm_gain * rms(row, c) for row in part]) for part in (q, k))
        if c.use_v_norm:
            v = np.array([rms(row, c) for row in v])
        qs.append(q), ks.append(k), vs.append(v)
    out = []
    for t in range(len(xs)):
        first = 0 if c.window_size is None else max(0, t - c.window_size + 1)
        heads = []
        for j in range(h):
            kv = j // (h // g)
            scores = np.array([qs[t][j] @ ks[s][kv] / math.sqrt(d) for s in range(first, t + 1)])
            if c.use_qk_norm_scale:
                scores = scores * weights[f"{name}.score_gain"][j]
            if c.attn_logit_softcapping:
                scores = c.attn_logit_softcapping * np.tanh(scores / c.attn_logit_softcapping)
            p = weighted(scores, c.softmax_variant_attn, weights, name, j)
            heads.append(sum(p[i] * vs[first + i][kv] for i in range(len(p))))
        out.append(linear(np.concatenate(heads), weights, f"{name}.proj"))
    return out


def mlp(x: np.ndarray, weights: dict, name: str, c) -> np.ndarray:
    y = linear(x, weights, f"{name}.fc")
    if c.mlp_variant == "swiglu":
        gate, up = np.split(y, 2)
        y = activation(gate, "silu") * up
    else:
        y = activation(y, c.activation_variant)
    return linear(y, weights, f"{name}.proj")


def naive_gpt(weights: dict, c, streams: list[np.ndarray], owners: dict[str, list[int]] | None = None) -> list:
    """K rows of ids [T] -> K arrays of logits [T, V_k]. owners: which block's weights each block uses."""
    owner = {"attn": list(range(c.n_layer)), "mlp": list(range(c.n_layer)), **(owners or {})}
    xs = []
    for t in range(len(streams[0])):
        x = sum(weights[f"wte.tables.{k}.embedding_weight"][ids[t]] for k, ids in enumerate(streams))
        if c.pos_encodings == "learned":
            x = x + weights["wpe.embedding_weight"][t]
        xs.append(rms(x, c) if c.norm_embedding else x)
    start = list(xs)
    for layer in range(c.n_layer):
        name = f"h.{layer}"
        if c.residual_scalars:
            a, b = weights[f"{name}.residual"]
            xs = [a * x + b * x0 for x, x0 in zip(xs, start, strict=True)]

        def attend(hs: list, layer: int = layer, name: str = name) -> list:
            extras: list = [0.0] * len(hs)
            if f"{name}.values.gate" in weights:
                gate = weights[f"{name}.values.gate"]
                for t, h in enumerate(hs):
                    rows = sum(
                        weights[f"{name}.values.words.tables.{k}.embedding_weight"][ids[t]]
                        for k, ids in enumerate(streams)
                    )
                    strength = 3 / (1 + np.exp(-(gate @ h[: gate.shape[1]])))
                    extras[t] = strength[:, None] * rows.reshape(len(gate), -1)
            return attention(hs, weights, f"h.{owner['attn'][layer]}.attn", c, extras)

        def think(hs: list, layer: int = layer) -> list:
            return [mlp(h, weights, f"h.{owner['mlp'][layer]}.mlp", c) for h in hs]

        def both(hs: list, attend=attend, think=think) -> list:
            return [a + m for a, m in zip(attend(hs), think(hs), strict=True)]

        for number, branch in enumerate([both] if c.use_parallel_mlp else [attend, think]):
            inner = f"{name}.norms_in.{number}"
            outer = f"{name}.norms_out.{number}"
            if c.norm_placement == "pre":
                changes = branch([norm(x, weights, inner, c) for x in xs])
                xs = [x + change for x, change in zip(xs, changes, strict=True)]
            elif c.norm_placement == "peri":
                changes = branch([norm(x, weights, inner, c) for x in xs])
                xs = [x + norm(change, weights, outer, c) for x, change in zip(xs, changes, strict=True)]
            else:
                xs = [norm(x + change, weights, outer, c) for x, change in zip(xs, branch(xs), strict=True)]
    xs = [norm(x, weights, "ln_f", c) for x in xs]
    outs = []
    for k in range(len(streams)):
        table = weights[f"wte.tables.{k}.embedding_weight"] if c.wte_weight_tying else weights[f"lm_head.{k}.weight"]
        logits = np.array([table @ x for x in xs])
        cap = c.final_logit_softcapping
        outs.append(cap * np.tanh(logits / cap) if cap else logits)
    return outs
