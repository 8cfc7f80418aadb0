"""TRM, HRM and their variants written out step by step from the papers, float64, no module of ours: the tests' second
opinion."""

from __future__ import annotations

import math

import torch


def rms(x, eps=1e-5):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def swiglu(x, w, prefix):
    gate, up = (x @ w[f"{prefix}.gate_up_proj.weight"].T).chunk(2, -1)
    return (gate / (1 + torch.exp(-gate)) * up) @ w[f"{prefix}.down_proj.weight"].T


def rotate(x, theta):
    """Each pair (i, i + d/2) turned by its own angle: x [B,S,h,d]."""
    half = x.shape[-1] // 2
    out = x.clone()
    for position in range(x.shape[1]):
        for i in range(half):
            angle = position / theta ** (2 * i / x.shape[-1])
            a, b = x[:, position, :, i], x[:, position, :, i + half]
            out[:, position, :, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, position, :, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def turn_by(position, channels, d, theta):
    """The matrix [d, d] that turns pair number j of `channels` by position * theta^(-2j/n), n channels in all."""
    matrix = torch.eye(d, dtype=torch.float64)
    for j, i in enumerate(channels):
        angle = position / theta ** (2 * j / (2 * len(channels)))
        matrix[i, i] = matrix[i + d // 2, i + d // 2] = math.cos(angle)
        matrix[i, i + d // 2], matrix[i + d // 2, i] = -math.sin(angle), math.sin(angle)
    return matrix


def rotate_grid(x, theta, prefix):
    """x [B,S,h,d]: pairs (i, i + d/2) of the first quarter by row, of the second by column; prefix on the diagonal."""
    d, side, out = x.shape[-1], math.isqrt(x.shape[1] - prefix), x.clone()
    by_row, by_column = range(d // 4), range(d // 4, d // 2)
    for position in range(x.shape[1]):
        row = column = position
        if position >= prefix:
            row, column = prefix + (position - prefix) // side, prefix + (position - prefix) % side
        matrix = turn_by(row, by_row, d, theta) @ turn_by(column, by_column, d, theta)
        out[:, position] = x[:, position] @ matrix.T
    return out


def attention(x, w, prefix, config):
    B, S, _ = x.shape
    q, k, v = (t.reshape(B, S, config.num_heads, -1) for t in (x @ w[f"{prefix}.qkv_proj.weight"].T).chunk(3, -1))
    if config.pos_encodings == "rope":
        q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
    if config.pos_encodings == "rope_2d":
        q, k = (rotate_grid(t, config.rope_theta, config.prefix_len) for t in (q, k))
    weights = (torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhst,bthd->bshd", weights, v).reshape(B, S, -1) @ w[f"{prefix}.o_proj.weight"].T


def stack(x, w, name, layers, config):
    for i in range(layers):
        prefix = f"inner.{name}.layers.{i}"
        if config.mlp_t:
            turned = x.transpose(1, 2)
            x = rms(turned + swiglu(turned, w, f"{prefix}.mlp_t")).transpose(1, 2)
        else:
            x = rms(x + attention(x, w, f"{prefix}.self_attn", config))
        x = rms(x + swiglu(x, w, f"{prefix}.mlp"))
    return x


def embed(data, w, config, rows):
    x = w["inner.embed_tokens.embedding_weight"][data["inputs"].long()]
    if config.puzzle_emb_ndim:
        P, D = config.prefix_len, config.hidden_size
        prefix = torch.zeros(x.shape[0], P * D, dtype=x.dtype)
        prefix[:, : config.puzzle_emb_ndim] = rows
        x = torch.cat((prefix.reshape(-1, P, D), x), 1)
    if config.pos_encodings == "learned":
        x = 0.707106781 * (x + w["inner.embed_pos.embedding_weight"])
    return math.sqrt(config.hidden_size) * x


def latents(kind):
    """Names of the latents of one kind of model."""
    low = [f"z_L{i}" for i in range(1, 7)] if kind == "hier6" else ["z_L"]
    return {"singlez": low, "baseline": ["z_H"]}.get(kind, ["z_H", *low])


def step(kind, z, data, w, config, rows, push_L=0.0, push_H=0.0):
    """(z, logits, q_halt, q_continue) after one ACT step, graph through the published window only.

    kind: trm, hrm, singlez, hier6 or baseline; z: latents by name; push_L, push_H [B,1,D]: what a manager adds.
    """
    x, z, graph = embed(data, w, config, rows), dict(z), torch.is_grad_enabled()

    def f(hidden, name="L_level"):
        return stack(hidden, w, name, config.H_layers if name == "H_level" else config.L_layers, config)

    def six():
        return z["z_L1"] + z["z_L2"] + z["z_L3"] + z["z_L4"] + z["z_L5"] + z["z_L6"]

    for i in range(0 if kind == "baseline" else config.H_cycles):
        last_cycle = i == config.H_cycles - 1
        for j in range(config.L_cycles):
            last = j == config.L_cycles - 1
            with torch.set_grad_enabled(graph and last_cycle and (last or kind != "hrm")):
                if kind == "singlez":
                    z["z_L"] = f(z["z_L"] + x)
                elif kind == "hier6":
                    z[f"z_L{j + 1}"] = f(six() + (z["z_H"] + x))
                else:
                    z["z_L"] = f(z["z_L"] + (z["z_H"] + x) + push_L)
        with torch.set_grad_enabled(graph and last_cycle):
            if kind == "singlez":
                z["z_L"] = f(z["z_L"])
            elif kind == "hier6":
                z["z_H"] = f(z["z_H"] + six())
            else:
                z["z_H"] = f(z["z_H"] + z["z_L"] + push_H, "H_level" if kind == "hrm" else "L_level")
    if kind == "baseline":
        z["z_H"] = f(z["z_H"] + x, "H_level")
    answer = z["z_L"] if kind == "singlez" else z["z_H"]
    logits = answer[:, config.prefix_len :] @ w["inner.lm_head.weight"].T
    q = answer[:, 0] @ w["inner.q_head.weight"].T + w["inner.q_head.bias"]
    return z, logits, q[:, 0], q[:, 1]


def loss(logits, labels, q_halt, q_continue, target):
    """Sum over rows of token loss and half the q losses, from the formulas."""
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    p = s / s.sum(-1, keepdim=True)
    total = logits.new_zeros(())
    for b in range(labels.shape[0]):
        kept = [t for t in range(labels.shape[1]) if labels[b, t] != -100]
        for t in kept:
            total = total - p[b, t, labels[b, t].long()].log() / len(kept)
        right = all(logits[b, t].argmax() == labels[b, t] for t in kept)
        y = torch.sigmoid(q_halt[b])
        total = total - 0.5 * (y.log() if right else (1 - y).log())
        if target is not None:
            y = torch.sigmoid(q_continue[b])
            total = total - 0.5 * (target[b] * y.log() + (1 - target[b]) * (1 - y).log())
    return total
