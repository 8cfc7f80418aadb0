"""Keys of HRM with a manager: those of HRM and the block `arch.subgoal_head`. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from engine.fields import Inert, Range, check_fields
from models.recursive_reasoning.config import HRMConfig

__all__ = ["HRMFeudalConfig", "SubgoalConfig"]

BLOCK, WEIGHT = "arch.subgoal_head", "arch.loss.feudal_loss_weight"
MEANT = "if intended, nothing; otherwise "
_NOT_GATED = Inert("arch.subgoal_head.gating=false", "arch.subgoal_head.gating=false: there is no gate")
_STEERED = Inert("arch.subgoal_head!=null", "a manager steers one chain, from the start of each episode")
_NOT_INJECTED = Inert(
    "arch.subgoal_head.inject_subgoal=false", "arch.subgoal_head.inject_subgoal=false: goals are not injected"
)


@dataclass(kw_only=True)
class SubgoalConfig:
    """Keys of the manager. Raises ValueError for invalid values; the message names the override."""

    hidden_size: Annotated[int, Range(1)] = 512
    """Width D of the model; must equal arch.hidden_size."""
    goal_dim: Annotated[int, Range(1)] = 512
    """Dimensions of a goal; if it differs from hidden_size, a fixed projection maps worker states to it."""
    manager_period: Annotated[
        int, Range(1), Inert("arch.subgoal_head.schedule!=null", "arch.subgoal_head.schedule takes its place")
    ] = 4
    """Passes for which a goal is held. A row gets its first goal after its first pass, then a new one after every
    period."""
    schedule: list[int] | None = None
    """Passes after which goals are set, instead of a period; [1]: one goal for the whole episode."""
    gating: bool = True
    """Learn a gate for the strength of each goal; false: full strength."""
    temperature: Annotated[float, Range(above=0), _NOT_GATED] = 1.0
    """Divides the logit of the gate."""
    gate_bias_init: Annotated[
        float,
        _NOT_GATED,
        Inert(
            "arch.subgoal_head.projection_bias=false", "arch.subgoal_head.projection_bias=false: the gate has no bias"
        ),
    ] = 2.0
    """Initial logit of every gate (2: a gate of 0.88)."""
    normalize_goal: bool = True
    """Normalise goals to directions, scaled by sqrt(goal_dim) when injected; false: use them as projected."""
    goal_scale: Annotated[float, _NOT_INJECTED] = 1.0
    """Factor on the injected goal."""
    projection_bias: bool = True
    """Use a bias in the projections to goal and gate (without it gate_bias_init has no effect)."""
    inject_subgoal: bool = True
    """Add the goal to the input of the fast level; false: only the intrinsic loss."""
    inject_at: Annotated[Literal["L", "LH"], _NOT_INJECTED] = "L"
    """Levels to which the goal is added; LH lets the manager bypass the worker."""
    inject_init: Annotated[Literal["zero", "normal"], _NOT_INJECTED] = "zero"
    """Initialisation of the injection; with zero a fresh model is plain HRM."""
    worker_pool: Literal["mean_nonpad", "mean", "first"] = "mean_nonpad"
    """Worker state: mean of z_L where the input is not padding, mean over all positions, or position 0."""
    displacement: Literal["anchor", "step", "fun", "absolute"] = "anchor"
    """What is compared with the goal: the change of the worker state since the goal was set, that of the last pass, the
    mean over all spans within it (FeUdal Networks), or the state itself."""
    goal_credit: Literal["window", "none"] = "window"
    """Whether gradients of task and intrinsic loss reach the manager (none: they do not)."""
    goal_source: Literal["learned", "random", "zero", "mean"] = "learned"
    """Source of the goals in training; random draws a direction for each window, mean gives all rows of a micro-batch
    the mean of their goals."""
    manager_mode: Annotated[
        Literal["task", "fun", "both"],
        Inert("arch.subgoal_head.goal_source!=learned", "arch.subgoal_head.goal_source!=learned: it gives none itself"),
    ] = "task"
    """What trains the manager: the task, through the injected goal; fun: progress that lowered the loss of its row more
    than that of others (FeUdal Networks' transition policy gradient); or both."""
    eval_goal_source: Literal["same", "learned", "random", "zero", "mean", "shuffle", "stale"] = "same"
    """Source of the goals in evaluation (same: as in training; mean: of the batch; shuffle: goals of another row;
    stale: the first goal of the episode, held to its end)."""

    def __post_init__(self) -> None:
        check_fields(self, "arch.subgoal_head")
        passes = self.schedule
        if passes is not None and (not passes or passes != sorted({p for p in passes if p >= 1})):
            raise ValueError(f"arch.subgoal_head.schedule={passes}: expected ascending passes from 1, e.g. [1,4]")
        if self.aims and self.displacement not in ("anchor", "fun"):
            raise ValueError(
                f"arch.subgoal_head.manager_mode={self.manager_mode} with displacement={self.displacement}: expected "
                "displacement=anchor or fun, which keep the state that a goal began with"
            )

    @property
    def aims(self) -> bool:
        """Whether the manager has its own objective."""
        return self.manager_mode != "task" and self.goal_source == "learned"


@dataclass(kw_only=True)
class HRMFeudalConfig(HRMConfig):
    """HRM's keys, and a block for the manager."""

    subgoal_head: SubgoalConfig | None = None
    """The manager; null (or `~arch.subgoal_head`): plain HRM."""
    late_states: Annotated[float, Range(0, 1), _STEERED] = 0.0
    """0 with a manager, who steers from the start of each episode; else as in HRM."""
    chains: Annotated[int, Range(1), _STEERED] = 1
    """1 with a manager, who steers one chain; else as in HRM."""
    fixed_refinement_steps: Annotated[int | None, Range(1)] = None
    """Every episode has exactly this many passes, whatever the q values; null: halting as in HRM."""

    def __post_init__(self) -> None:
        head = self.subgoal_head
        for key, given, expected in (("late_states", self.late_states, 0), ("chains", self.chains, 1)):
            if head is not None and given != expected:
                raise ValueError(f"arch.{key}={given}: expected {expected}; {_STEERED.why}")
        super().__post_init__()
        if head is not None and head.hidden_size != self.hidden_size:
            raise ValueError(
                f"arch.subgoal_head.hidden_size={head.hidden_size}: expected arch.hidden_size={self.hidden_size}; "
                "goals of another size are arch.subgoal_head.goal_dim"
            )


def unusual(arch: Mapping[str, Any], weight: float) -> Iterator[tuple[str, str, str, str]]:
    """Unusual settings of the manager in a resolved `arch` and of the weight of its loss, for warnings.

    Yields (key, intent that confirms it or "", what is unusual, what to do).
    """
    head = arch.get("subgoal_head")
    if not head:
        if weight > 0:
            text = f"feudal_loss_weight={weight} without arch.subgoal_head: the feudal loss will not be computed"
            yield (
                WEIGHT,
                "manager",
                text,
                "meant as plain HRM? Then nothing; else leave arch.subgoal_head in the config",
            )
        return
    if weight >= 0.2:
        text = f"feudal_loss_weight={weight}: every published sweep found harm from 0.2 on"
        yield WEIGHT, "feudal_weight", text, "meant as a cell of a sweep? Then nothing; else 0.02 to 0.05"
    if weight > 0 and head.get("inject_subgoal") is False:
        fix = "meant as the ablation of the loss alone? Then nothing; else set the weight to 0"
        text = f"inject_subgoal=false with feudal_loss_weight={weight}: the worker is scored by goals it is never given"
        yield f"{BLOCK}.inject_subgoal", "injection", text, fix
    dim, size = head.get("goal_dim"), arch.get("hidden_size")
    if isinstance(dim, int) and isinstance(size, int) and dim > size:
        text = f"goal_dim={dim} > hidden_size={size}: works, adds parameters, but worker states span {size} directions"
        yield f"{BLOCK}.goal_dim", f"{BLOCK}.goal_dim", text, f"{MEANT}a goal_dim of at most {size}"
    name = "fixed_refinement_steps" if arch.get("fixed_refinement_steps") else "halt_max_steps"
    most, period, schedule = arch.get(name), head.get("manager_period"), head.get("schedule")
    if not isinstance(most, int) or not isinstance(period, int):
        return
    if most == 1:
        text = f"{name}=1: a goal comes after the first pass and is never used, the feudal loss is always 0"
        yield f"{BLOCK}.manager_period", "", text, f"at least {name}=2"
    elif schedule and min(schedule) >= most:
        text = f"schedule={schedule} with {name}={most}: no goal is ever used, the feudal loss is always 0"
        yield f"{BLOCK}.schedule", "", text, f"a first pass below {most}"
    elif not schedule and period >= most - 1:
        text = f"manager_period={period} with {name}={most}: one goal for the whole episode"
        yield f"{BLOCK}.manager_period", "period", text, f"{MEANT}a shorter period or more passes"
