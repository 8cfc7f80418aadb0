"""TRM and HRM written out step by step from the papers, float64, no module of ours: the tests' second
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


def attention(x, w, prefix, config):
    B, S, D = x.shape
    q, k, v = (t.reshape(B, S, config.num_heads, -1) for t in (x @ w[f"{prefix}.qkv_proj.weight"].T).chunk(3, -1))
    if config.pos_encodings == "rope":
        q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
    weights = (torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhst,bthd->bshd", weights, v).reshape(B, S, D) @ w[f"{prefix}.o_proj.weight"].T


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


def step(z_H, z_L, data, w, config, rows, *, two_stacks):
    """(z_H, z_L, logits, q_halt, q_continue) after one ACT step, graph through the published window only."""
    x = embed(data, w, config, rows)
    high = ("H_level", config.H_layers) if two_stacks else ("L_level", config.L_layers)
    for i in range(config.H_cycles):
        for j in range(config.L_cycles):
            last_cycle, last = i == config.H_cycles - 1, j == config.L_cycles - 1
            with torch.set_grad_enabled(last_cycle and (last or not two_stacks) and torch.is_grad_enabled()):
                z_L = stack(z_L + (z_H + x), w, "L_level", config.L_layers, config)
        with torch.set_grad_enabled(i == config.H_cycles - 1 and torch.is_grad_enabled()):
            z_H = stack(z_H + z_L, w, high[0], high[1], config)
    logits = z_H[:, config.prefix_len :] @ w["inner.lm_head.weight"].T
    q = z_H[:, 0] @ w["inner.q_head.weight"].T + w["inner.q_head.bias"]
    return z_H, z_L, logits, q[:, 0], q[:, 1]


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
