"""HRM's manager written out row by row (docs/decisions/0008), float64, no module of ours."""

from __future__ import annotations

import math

import torch

from tests.models import naive

HEAD = "inner.subgoal_head."


def cos(a, b):
    if a.detach().norm() < 1e-4 or b.detach().norm() < 1e-4:
        return torch.zeros((), dtype=a.dtype)
    return (a @ b) / (a.norm() * b.norm())


class Manager:
    """The state of every row: None, or {h, past (worker states since the goal, the first its anchor), loss (of its
    tokens, at that pass)}; and its pass."""

    def __init__(self, config, w, rows):
        self.config, self.head, self.w = config, config.subgoal_head, w
        self.rows, self.passes = [None] * rows, [0] * rows

    def reset(self, row):
        self.rows[row], self.passes[row] = None, 0

    def linear(self, name, x):
        y, bias = self.w[f"{HEAD}{name}.weight"] @ x, f"{HEAD}{name}.bias"
        return y + self.w[bias] if bias in self.w else y

    def goal_and_gate(self, row):
        h = self.rows[row]["h"]
        g = self.linear("goal_proj", h)
        if self.head.normalize_goal:
            g = g / g.norm()
        if self.head.goal_source == "mean":  # of all rows with a goal
            all_h = [state["h"] for state in self.rows if state is not None]
            g = sum(self.linear("goal_proj", h) / self.linear("goal_proj", h).norm() for h in all_h)
            g = g / g.norm()
        a = torch.ones((), dtype=h.dtype)
        if self.head.gating:
            a = 1 / (1 + torch.exp(-self.linear("gate_proj", h)[0] / self.head.temperature))
        return (g.detach(), a.detach()) if self.head.goal_credit == "none" else (g, a)

    def pushes(self):
        """(to L, to H), [B, 1, D] each."""
        D, G = self.config.hidden_size, self.head.goal_dim
        out = {"L": [], "H": []}
        for row, state in enumerate(self.rows):
            for level, values in out.items():
                value = torch.zeros(D, dtype=torch.float64)
                if state is not None and self.head.inject_subgoal and level in self.head.inject_at:
                    g, a = self.goal_and_gate(row)
                    g = g.detach() if self.head.manager_mode == "fun" else g
                    size = math.sqrt(G) if self.head.normalize_goal else 1
                    value = a * self.head.goal_scale * size * self.linear(f"inject_{level}", g)
                values.append(value)
        return tuple(torch.stack(values)[:, None] for values in out.values())

    def pooled(self, z, inputs, row):
        """The mean of one row's latent over the positions that count."""
        prefix = self.config.prefix_len
        places = list(range(z.shape[1]))
        if self.head.worker_pool == "first":
            places = [0]
        elif self.head.worker_pool == "mean_nonpad":
            words = [t for t in range(inputs.shape[1]) if inputs[row, t] != 0] or range(inputs.shape[1])
            places = [prefix + t for t in words]
        return sum(z[row, place] for place in places) / len(places)

    def worker(self, z, inputs, row):
        s = self.pooled(z["z_L"], inputs, row)
        projection = self.w.get(f"{HEAD}state_proj")
        return s if projection is None else projection.detach() @ s

    def loss(self, z, inputs, grad, gate):
        """Σ over rows with a goal of gate · (1 − r)."""
        total = torch.zeros((), dtype=torch.float64)
        for row, state in enumerate(self.rows):
            if state is None:
                continue
            g, a = self.goal_and_gate(row)
            s, past = self.worker(z, inputs, row), state["past"]
            g, s = (g.detach() if grad == "worker" else g), (s.detach() if grad == "manager" else s)
            kind = self.head.displacement
            before = {"anchor": past[:1], "step": past[-1:], "fun": past, "absolute": [0 * s.detach()]}[kind]
            r = sum(cos(s - old, g) for old in before) / len(before)
            total = total + {"detach": a.detach(), "none": 1.0, "live": a}[gate] * (1 - r)
        return total

    def aim(self, z, inputs, losses, halted):
        """−Σ over rows whose goal ends of A · cos(way since it was given, goal): what the manager learns by itself."""
        ending, fallen = [], []
        for row, state in enumerate(self.rows):
            if state is not None and (halted[row] or self.gives_goal(self.passes[row] + 1)):
                ending.append(row)
                fallen.append(float(state["loss"] - losses[row]))
        total = torch.zeros((), dtype=torch.float64)
        if len(ending) < 2:
            return total, len(ending)
        mean = sum(fallen) / len(fallen)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in fallen) / (len(fallen) - 1))
        for row, value in zip(ending, fallen, strict=True):
            way = (self.worker(z, inputs, row) - self.rows[row]["past"][0]).detach()
            goal = self.linear("goal_proj", self.rows[row]["h"])
            total = total - max(-3.0, min(3.0, (value - mean) / deviation)) * cos(way, goal)
        return total, len(ending)

    def gives_goal(self, k):
        """Whether a row gets a goal after its pass k."""
        most = self.config.halt_max_steps
        return k in (self.head.schedule or range(1, most, self.head.manager_period)) and k < most

    def end(self, z, inputs, losses):
        """After a pass: the next goals."""
        for row, state in enumerate(self.rows):
            self.passes[row] += 1
            k, s = self.passes[row], self.worker(z, inputs, row).detach()
            if self.gives_goal(k):
                h = z["z_H"][row, 0] if self.config.prefix_len else self.pooled(z["z_H"], inputs, row)
                self.rows[row] = {"h": h.detach(), "past": [s], "loss": losses[row]}
            elif state is not None:
                state["past"].append(s)


def step(manager, z, data, w, config, rows):
    """naive.step under the manager's present goals."""
    return naive.step("hrm", z, data, w, config, rows, *manager.pushes())


def token_losses(logits, labels):
    """The stablemax loss of each row, mean over its labelled tokens."""
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    rows = []
    for row, words in enumerate(labels):
        kept = [t for t in range(len(words)) if words[t] != -100]
        p = s[row] / s[row].sum(-1, keepdim=True)
        rows.append(sum(float(-p[t, words[t].long()].log()) for t in kept) / len(kept))
    return rows
