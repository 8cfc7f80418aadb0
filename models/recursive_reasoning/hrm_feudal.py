"""HRM with a manager (models/recursive_reasoning/subgoal.py): z_H sets goals, and z_L is trained to follow them.

    repeat H_cycles times:  repeat L_cycles times: z_L <- L(z_L, z_H + x + b);   z_H <- H(z_H, z_L)

b [B,1,D] is the injected goal: constant within a pass, zero until a row has its first goal. Without `subgoal_head` this
is exactly HRM, bit for bit. Shapes: B rows, T tokens, S = prefix + T positions, D width, G goal_dim.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.recursive_reasoning.act import Aux, Latents, PuzzleShape
from models.recursive_reasoning.hrm import HRM
from models.recursive_reasoning.inner import INPUT, RecursiveInner
from models.recursive_reasoning.recursion import Depth
from models.recursive_reasoning.subgoal import SubgoalHead
from models.recursive_reasoning.subgoal_config import HRMFeudalConfig

__all__ = ["HRMFeudal", "HRMFeudalConfig"]


class SubgoalInner(RecursiveInner):
    """RecursiveInner with a manager, whose state is kept with the latents: carried, reset and saved like them."""

    def __init__(self, config: HRMFeudalConfig, shape: PuzzleShape, **kwargs: Any) -> None:
        super().__init__(config, shape, **kwargs)
        self.pad_id, self.subgoal_head = shape.pad_id, None
        if config.subgoal_head is not None:
            seed = torch.initial_seed() ^ zlib.crc32(b"subgoal")
            with torch.random.fork_rng(devices=[]):  # so that the rest is initialised exactly as plain HRM
                torch.default_generator.manual_seed(seed % 2**63)
                steps = config.fixed_refinement_steps or config.halt_max_steps
                self.subgoal_head = SubgoalHead(config.subgoal_head, max_steps=steps)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """Initial latents, and the initial state of the manager."""
        head = self.subgoal_head
        return super().initial(rows) | ({} if head is None else head.initial(rows))

    def embed(self, data: Mapping[str, Tensor]) -> Any:
        """inputs [B, T] -> x [B, S, D]. With a manager, a dict that also has `weights` [B, S] for pooling the worker
        state, `real` [B] (false for padding rows), and `noise` [B, G] for random goals."""
        x = super().embed(data)
        head = self.subgoal_head
        if head is None:
            return x
        tokens = data["inputs"] != self.pad_id
        real = tokens.any(dim=1)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        mask[:, self.prefix_len :] = tokens | ~real[:, None]
        mask = {"mean_nonpad": mask, "mean": torch.ones_like(mask), "first": _first(mask)}[head.config.worker_pool]
        weights = mask.to(head.goal_proj.weight.dtype)
        return {
            INPUT: x,
            "weights": weights / weights.sum(dim=1, keepdim=True),
            "real": real,
            "noise": self._noise(data, head),
        }

    def _noise(self, data: Mapping[str, Tensor], head: SubgoalHead) -> Tensor | None:
        if not head.samples_goals:
            return None
        if "noise" in data:
            return data["noise"].to(head.goal_proj.weight.dtype)
        rows, device = data["inputs"].shape[0], head.goal_proj.weight.device  # evaluation: the same in every batch
        noise = torch.randn(rows, head.config.goal_dim, generator=torch.Generator().manual_seed(0), device="cpu")
        return noise.to(device, head.goal_proj.weight.dtype)

    def recur(self, latents: Mapping[str, Tensor], x: Any) -> tuple[Latents, Aux]:
        """One pass under the current goals, then the manager's update; `aux` is what the feudal loss reads."""
        head = self.subgoal_head
        if head is None:
            return super().recur(latents, x)
        state = {name: value for name, value in latents.items() if name not in self.latent_names}
        steering = head.steer(state, x["real"])
        pushes = head.injections(steering, self.dtype) if head.config.inject_subgoal else {}
        values = self.run_plan({**latents, INPUT: x[INPUT], **pushes})
        after = self.next_latents(values)
        worker = head.pool(after["z_L"], x["weights"])
        slow = after["z_H"].detach()
        manager = slow[:, 0].to(worker.dtype) if self.prefix_len else head.pool(slow, x["weights"])
        new_state, aux = head.advance(state, steering, worker, manager, noise=x["noise"])
        aux["push"] = _push_ratio(pushes, latents["z_H"] + x[INPUT])
        return {**new_state, **after}, aux

    def episode_aux(self, latents: Mapping[str, Tensor]) -> Aux:
        """`episode` [B, 5]: the sums of `EPISODE` over a whole episode."""
        return {} if self.subgoal_head is None else {"episode": latents["subgoal_episode"]}


class HRMFeudal(HRM):
    """HRM whose fast level follows goals. Set `inner.subgoal_head.eval_source` for a control evaluation."""

    Config: ClassVar = HRMFeudalConfig
    Inner: ClassVar = SubgoalInner

    def __init__(self, config: HRMFeudalConfig, shape: PuzzleShape, **kwargs: Any) -> None:
        super().__init__(config, shape, **kwargs)
        self.fixed = config.fixed_refinement_steps is not None
        self.halt_max_steps = config.fixed_refinement_steps or config.halt_max_steps

    @staticmethod
    def cycles(config: Any) -> Depth:
        plan, window = HRM.cycles(config)
        head = config.subgoal_head
        if head is None or not head.inject_subgoal:
            return plan, window
        pushed = {"L_level": ("subgoal_L",), "H_level": ("subgoal_H",) if head.inject_at == "LH" else ()}
        return [replace(update, injection=update.injection + pushed[update.stack]) for update in plan], window

    def _wants_halt(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        wants_halt = super()._wants_halt(q_halt, q_continue)
        return torch.zeros_like(wants_halt) if self.fixed else wants_halt

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trunk, and each projection of the manager as its own group, so that `stats_interval` shows its
        gradient."""
        head = self.inner.subgoal_head
        projections = {} if head is None else {name: list(layer.parameters()) for name, layer in head.named_children()}
        own = {id(param) for params in projections.values() for param in params}
        return {"trunk": [param for param in self.parameters() if id(param) not in own], **projections}

    @property
    def idle_parameters(self) -> list[str]:
        """Parameters that may get no gradient in a control (other goals, no injection, no credit)."""
        head = self.inner.subgoal_head
        if head is None:
            return []
        config = head.config
        if config.goal_source == "learned" and config.goal_credit == "window" and config.inject_subgoal:
            return []
        return [name for name, _ in self.named_parameters() if name.startswith("inner.subgoal_head.")]

    @property
    def noise_width(self) -> int:
        """Standard normal numbers per fresh training example, for random goals."""
        head = self.inner.subgoal_head
        return 0 if head is None or head.config.goal_source != "random" else head.config.goal_dim


def _first(mask: Tensor) -> Tensor:
    """A mask [B, S] of position 0 alone."""
    return (torch.arange(mask.shape[1], device=mask.device) == 0).expand_as(mask)


@torch.no_grad()
def _push_ratio(pushes: Mapping[str, Tensor], entry: Tensor) -> Tensor:
    """RMS of the injected goal over that of the input z_H + x [B,S,D] that it is added to: [B] float32."""
    size = entry.float().square().mean(dim=(1, 2)).sqrt()
    if not pushes:
        return torch.zeros_like(size)
    return pushes["subgoal_L"].float().square().mean(dim=(1, 2)).sqrt() / size.clamp(min=1e-12)
