"""A manager for HRM's two levels: the slow latent sets a direction as goal, and the fast latent should move along it.

After FeUdal Networks (Vezhnevets et al. 2017, arXiv 1703.01161). The carry holds the manager's state h, not its goal:
goal and gate are recomputed from h at every pass, so every pass that uses a goal gives the manager a gradient.

    g = unit(W_g h + b_g)      a = sigmoid((w_a h + b_a) / temperature)      input of z_L:  z_H + x + a·scale·√G·V_L g

Shapes: B rows, S positions, D width, G goal_dim, C remembered worker states. A pass is one ACT step of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import trunc_normal_
from models.recursive_reasoning.subgoal_config import SubgoalConfig

__all__ = ["SubgoalConfig", "SubgoalHead", "alignment"]

State = dict[str, Tensor]
SMALL = 1e-4  # shorter vectors count as without direction: the gradient of normalising them would explode
EPISODE = ("active", "cos", "cos_own", "gate", "gated_cos")


class SubgoalHead(nn.Module):
    """Goal, gate and injection, and the manager state of each row, all in at least float32.

    State, zero for fresh rows: `subgoal_pass` [B] passes taken, `subgoal_active` [B] whether there is a goal,
    `subgoal_h` [B,D] manager state when the goal was set, `subgoal_goal` [B,G] its value then, `subgoal_dwell` [B]
    passes since, `subgoal_past` [B,C,G] worker states from which displacements are measured, `subgoal_episode` [B,5]
    sums over the passes of an evaluation (`EPISODE`). If the manager has its own objective also `subgoal_loss` [B], the
    token loss of the row when its goal was set, which the loss head writes.
    """

    def __init__(self, config: SubgoalConfig, *, max_steps: int) -> None:
        super().__init__()
        size, dim = config.hidden_size, config.goal_dim
        self.config, self.max_steps = config, max_steps
        self.eval_source: str = config.eval_goal_source
        longest = max_steps if config.schedule else min(config.manager_period, max_steps)
        self.remembered = longest if config.displacement == "fun" else 1
        self.goal_proj = _linear(size, dim, bias=config.projection_bias)
        self.gate_proj, self.temperature, logit = None, config.temperature, config.gate_bias_init
        if config.gating:
            self.gate_proj = _linear(size, 1, bias=config.projection_bias, std=0.0)
            if config.projection_bias:
                nn.init.constant_(self.gate_proj.bias, logit)
        std = 0.0 if config.inject_init == "zero" else None
        self.inject_L = _linear(dim, size, bias=False, std=std)
        self.inject_H = _linear(dim, size, bias=False, std=std) if config.inject_at == "LH" else None
        self.register_buffer("state_proj", _orthonormal(dim, size) if dim != size else None)
        self.scale = config.goal_scale * (math.sqrt(dim) if config.normalize_goal else 1.0)

    @property
    def source(self) -> str:
        """Source of the goals in the current mode (training or evaluation)."""
        own = self.config.goal_source
        return own if self.training or self.eval_source == "same" else self.eval_source

    @property
    def samples_goals(self) -> bool:
        """Whether rows draw random goals; also in controls that alter the random goals of training."""
        return self.source == "random" or (self.config.goal_source == "random" and self.source != "learned")

    def initial(self, rows: int) -> State:
        """State of fresh rows, on the device of the weights."""
        weight, config = self.goal_proj.weight, self.config

        def zeros(*shape: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=weight.device)

        return {
            "subgoal_pass": zeros(dtype=torch.int32),
            "subgoal_active": zeros(dtype=torch.bool),
            "subgoal_h": zeros(config.hidden_size),
            "subgoal_goal": zeros(config.goal_dim),
            "subgoal_dwell": zeros(dtype=torch.int32),
            "subgoal_past": zeros(self.remembered, config.goal_dim),
            "subgoal_episode": zeros(len(EPISODE)),
            **({"subgoal_loss": zeros()} if config.aims else {}),
        }

    # Before a pass: the goals of the worker

    def goals(self, h: Tensor) -> Tensor:
        """Manager states [B, D] -> goals [B, G]."""
        goal = self.goal_proj(h)
        return _unit(goal) if self.config.normalize_goal else goal

    def steer(self, state: Mapping[str, Tensor], real: Tensor) -> State:
        """State before a pass -> `active` [B], `own` [B,G] the row's goal, `goal` [B,G] the one used (another in
        controls), `gate` [B]; if the manager has its own objective also `aim` [B,G], the goal with its gradient.
        `real` [B]: false for padding rows, which come last."""
        h, active = state["subgoal_h"], state["subgoal_active"]
        own, gate = self._own(state), torch.ones_like(h[:, 0])
        if self.gate_proj is not None:
            gate = torch.sigmoid(self.gate_proj(h).squeeze(-1) / self.temperature)
        aim = {"aim": own} if self.config.aims and self.training else {}
        if self.config.goal_credit == "none":
            own, gate = own.detach(), gate.detach()
        goal = self._select(own, state, active & real, real)
        return {"active": active, "own": own.detach(), "goal": goal, "gate": gate, **aim}

    def _own(self, state: Mapping[str, Tensor]) -> Tensor:
        """Each row's own goal [B, G], from the source used in training; mean, shuffle and stale alter it."""
        source = "learned" if self.source == "learned" else self.config.goal_source
        if source in ("learned", "mean"):
            return self.goals(state["subgoal_h"])
        return state["subgoal_goal"] if source == "random" else torch.zeros_like(state["subgoal_goal"])

    def _select(self, own: Tensor, state: Mapping[str, Tensor], counted: Tensor, real: Tensor) -> Tensor:
        """The goals [B, G] that are used: `own`, or those of a control. The mean is over the `counted` rows [B]."""
        source = self.source
        if source == "random":
            return state["subgoal_goal"]
        if source == "zero":
            return torch.zeros_like(own)
        if source == "mean":
            return _unit((own * counted[:, None]).sum(0, keepdim=True)).expand_as(own)
        if source == "shuffle":  # by half a batch: neighbours may be variants of one puzzle
            rows, count = torch.arange(len(own), device=own.device), real.sum().clamp(min=1)
            return own[torch.where(rows < count, (rows + count // 2) % count, rows)]
        return own

    def injections(self, steering: Mapping[str, Tensor], dtype: torch.dtype) -> State:
        """Goals to add to the input of each level, [B, 1, D] in the compute dtype; zero in rows without a goal."""
        push = (steering["gate"] * self.scale)[:, None]
        layers = {"subgoal_L": self.inject_L, "subgoal_H": self.inject_H}
        active, goal = steering["active"][:, None], steering["goal"]
        if self.config.aims and self.config.manager_mode == "fun":
            goal = goal.detach()  # the manager gets no gradient from the worker
        return {
            name: torch.where(active, push * layer(goal), 0.0).to(dtype)[:, None]
            for name, layer in layers.items()
            if layer is not None
        }

    # After a pass: the worker's displacement, and the next goal

    def pool(self, latent: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of a latent [B, S, D] by `weights` [B, S] -> [B, D], cast to the state's dtype first."""
        return torch.einsum("bs,bsd->bd", weights, latent.to(weights.dtype))

    def due(self, passes: Tensor) -> Tensor:
        """Which rows get a goal after pass `passes` [B]. In training none is set after the last pass."""
        if self.config.schedule is None:
            due = (passes - 1) % self.config.manager_period == 0
        else:
            due = torch.stack([passes == at for at in self.config.schedule]).any(0)  # avoids a host-to-device copy
        return due & (passes < self.max_steps) if self.training else due

    def advance(
        self,
        state: State,
        steering: State,
        worker: Tensor,
        manager: Tensor,
        *,
        noise: Tensor | None,
        update: Tensor | None = None,
    ) -> tuple[State, State]:
        """End a pass: (the new state, detached; tensors for the loss, [B, ...]).

        `worker`, `manager` [B, D] are the pooled states after the pass, `noise` [B, G] standard normal numbers of each
        example; `update` [B], if given, replaces the schedule.
        """
        if isinstance(self.state_proj, Tensor):
            worker = F.linear(worker, self.state_proj)  # [B, G]
        active, before = steering["active"], state["subgoal_dwell"]
        passes, dwell = state["subgoal_pass"] + 1, before + active
        emit = self.due(passes) if update is None else update
        displacements = worker[:, None] - state["subgoal_past"]  # [B, C, G]
        valid = torch.arange(self.remembered, device=before.device) <= before.clamp(max=self.remembered - 1)[:, None]
        aux = {
            **steering,
            "displacements": displacements,
            "valid": valid,
            "emitted": emit,
            "dwell": dwell,
            "worker": worker,
        }
        with torch.no_grad():
            manager = manager.detach()
            replace = emit & ~active if self.source == "stale" else emit
            fresh = self._random_goals(noise, passes) if self.samples_goals else self.goals(manager)
            aux["change"] = (_unit(state["subgoal_goal"]) * _unit(fresh)).sum(-1)
            aux["drift"] = 1 - (_unit(state["subgoal_goal"]) * _unit(steering["own"])).sum(-1)
            after = {
                "subgoal_pass": passes,
                "subgoal_active": active | emit,
                "subgoal_h": torch.where(replace[:, None], manager, state["subgoal_h"]),
                "subgoal_goal": torch.where(replace[:, None], fresh, state["subgoal_goal"]),
                "subgoal_dwell": dwell.masked_fill(emit, 0),
                "subgoal_past": self._remember(state["subgoal_past"], worker.detach(), active, emit, dwell),
                "subgoal_episode": state["subgoal_episode"] if self.training else _summed(state, aux),
                **({"subgoal_loss": state["subgoal_loss"]} if self.config.aims else {}),
            }
        return after, aux

    def _remember(self, past: Tensor, worker: Tensor, active: Tensor, emit: Tensor, dwell: Tensor) -> Tensor:
        """The remembered worker states [B, C, G] after a pass; slot 0 is the anchor, the state when the goal was
        set."""
        kind = self.config.displacement
        if kind == "absolute":
            return past
        slots = torch.arange(self.remembered, device=past.device)
        slot = dwell.clamp(max=self.remembered - 1).masked_fill(emit, 0)[:, None]
        write = {"anchor": emit, "step": torch.ones_like(emit), "fun": emit | active}[kind]
        here = (slots == slot) & write[:, None]
        return torch.where(here[:, :, None], worker[:, None], past)

    def _random_goals(self, noise: Tensor | None, passes: Tensor) -> Tensor:
        """A random direction [B, G] for each window: the noise of the example, rolled by one position per pass."""
        if noise is None:
            raise ValueError("arch.subgoal_head.goal_source=random needs noise [B, goal_dim] in the batch")
        index = torch.arange(noise.shape[1], device=noise.device)
        return _unit(noise.gather(1, (index + passes[:, None]) % noise.shape[1]))


def alignment(displacements: Tensor, valid: Tensor, goal: Tensor) -> Tensor:
    """Mean cosine [B] between the goal [B, G] and the displacements `displacements` [B, C, G] marked `valid` [B, C].

    The intrinsic reward of FeUdal Networks, eq. 8. Displacements shorter than SMALL have cosine 0; they are replaced
    before the division, since masking its result would still give NaN gradients.
    """
    length = torch.linalg.vector_norm(displacements.detach(), dim=-1) >= SMALL
    displacements = torch.where(length[..., None], displacements, torch.ones_like(displacements))
    cos = (displacements * _unit(goal)[:, None]).sum(-1) / torch.linalg.vector_norm(displacements, dim=-1)
    cos = torch.where(valid & length, cos, torch.zeros_like(cos))
    return cos.sum(-1) / valid.sum(-1).clamp(min=1)


def _summed(state: State, aux: State) -> Tensor:
    """The sums of `EPISODE` including this pass, [B, 5]."""
    cos = alignment(aux["displacements"], aux["valid"], aux["goal"])
    own = alignment(aux["displacements"], aux["valid"], aux["own"])
    now = torch.stack([torch.ones_like(cos), cos, own, aux["gate"], aux["gate"] * cos], dim=-1)
    return state["subgoal_episode"] + now * aux["active"][:, None]


def _unit(vector: Tensor) -> Tensor:
    """Normalise [..., G] to length 1; vectors shorter than SMALL stay shorter."""
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / length.clamp(min=SMALL)


def _linear(ins: int, outs: int, *, bias: bool, std: float | None = None) -> nn.Linear:
    """A float32 layer; weight std 1/sqrt(ins) (LeCun) or `std`, bias zero."""
    layer = nn.Linear(ins, outs, bias=bias)
    trunc_normal_(layer.weight, 1.0 / math.sqrt(ins) if std is None else std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _orthonormal(rows: int, columns: int) -> Tensor:
    """A random projection [rows, columns] with orthonormal rows, or columns if there are fewer of them."""
    basis: Tensor = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns)))[0]
    return basis if rows > columns else basis.T.contiguous()
