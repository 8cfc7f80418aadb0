"""The evaluations of a run: which were made, the best, what early stopping waits for, and the weights they are made of.

Like is compared with like: a final evaluation may cover something else than the others (a whole split and not a subset
of it). Then its figures are the run's result, and play no part in what is best and when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import clean_name
from engine.config import RunConfig
from engine.distributed import broadcast_object
from engine.errors import UsageError
from engine.io import print_rank0
from engine.task import TrainingPlan


class Evaluations:
    """The evaluations of one run; part of its checkpoints. `step` is that of the newest one, -1 before the first."""

    def __init__(self, plan: TrainingPlan, config: RunConfig) -> None:
        self._plan, self._config = plan, config
        self.results: dict[str, float | None] = {}
        self.forget()

    def forget(self) -> None:
        """Start without any: for a run that branches off another."""
        self.step = self.final_step = -1
        self.judged: dict[str, Any] = {}  # the newest value of the primary metric: step, value, final
        self.early_stop = EarlyStop(self._config, direction=self._plan.metric_mode)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an ordinary one is due now. The final one takes its place where it covers the same."""
        replaced = last and self._plan.final_eval and self._plan.final_like_others
        already_stopped = self.early_stop.due and not last  # so only after a resume
        return step in self._plan.eval_steps and self.step != step and not already_stopped and not replaced

    def final_due(self, step: int) -> bool:
        """Whether the final evaluation is still to be made, at the last step."""
        plan = self._plan
        made = self.step if plan.final_like_others and not plan.final_adds else self.final_step
        return plan.final_eval and made != step

    def record(self, step: int, results: dict[str, float | None], *, final: bool) -> None:
        """Take the results of an evaluation. A collective: the primary metric of rank 0 decides for all."""
        plan = self._plan
        value = broadcast_object(results.get(plan.primary_metric))
        if odd := [f"{name} is {x}" for name, x in results.items() if x is not None and not math.isfinite(x)]:
            print_rank0(f"warning: step {step}: {odd[0]}: the model may have diverged")
        apart = final and not plan.final_like_others
        # What only belongs to an end (of max_steps, e.g.) does not count: a run that resumes must not know of it.
        measured = step in (plan.eval_steps if plan.metric_steps is None else plan.metric_steps)
        counts = measured and self.step != step and not self.early_stop.due and not apart
        self.early_stop.update(value, step, counts=counts, apart=apart)
        if counts and plan.plateau is not None:
            plan.plateau.observe(value)
        if not apart or self.judged.get("step") != step:
            self.judged = {"step": step, "value": value, "final": apart}
        self.results = results
        self.final_step = step if final else self.final_step
        self.step = self.step if apart else step

    def metric(self, step: int) -> dict[str, Any] | None:
        """Name, value and goal of the primary metric, if it was evaluated after `step`. `final` marks a value that
        covers something else than those of the other evaluations."""
        value = self.judged.get("value") if self.judged.get("step") == step else None
        if value is None or not math.isfinite(value):
            return None
        final = {"final": True} if self.judged["final"] else {}
        head = {"name": self._plan.primary_metric, "value": value, "goal": self._plan.metric_mode}
        return {**head, **final, "covers": self._plan.covers}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        plateau = self._plan.plateau
        return {
            "evaluated_step": self.step,
            "final_step": self.final_step,
            "results": dict(self.results),
            "covers": self._plan.covers,
            "judged": self.judged,
            "early_stop": self.early_stop.state_dict(),
            "plateau": None if plateau is None else plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, task: dict[str, Any]) -> None:
        """The inverse. An earlier version kept a plateau with the `task`, and neither `judged` nor `final_step`."""
        self.step, self.results = state["evaluated_step"], dict(state["results"])
        self.final_step = state.get("final_step", self.step)
        before = {"step": self.step, "value": self.results.get(self._plan.primary_metric), "final": False}
        self.judged = state.get("judged", before)
        self.early_stop.load_state_dict(state.get("early_stop", {}))
        plateau = state.get("plateau") or task.get("plateau")
        if self._plan.plateau is not None and plateau:
            self._plan.plateau.load_state_dict(plateau)
        covered = state.get("covers", self._plan.covers)  # an earlier version did not store it
        if covered != self._plan.covers:
            print_rank0(
                f"note: evaluations cover {self._plan.covers} now, not {covered}: the best result is selected afresh"
            )
            self.early_stop.restart()
            if self._plan.plateau is not None:
                self._plan.plateau.best, self._plan.plateau.waited = None, 0


# --- early stopping: the run ends once its primary metric has not become better for some evaluations ------------------


class EarlyStop:
    """Counts evaluations without progress; the count and the best value are part of the checkpoint.

    It counts in every run, so that a resume may ask for early stopping and has the past before it.
    """

    def __init__(self, config: RunConfig, *, direction: str) -> None:
        self.patience, self.min_delta = config.early_stop_patience, config.early_stop_min_delta
        self.sign = 1.0 if direction == "max" else -1.0
        self.restart()

    def restart(self) -> None:
        """Begin to count: no value was seen that the coming ones compare with."""
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_apart = False  # the best value is of a final evaluation that covers something else than the others
        self.mark: float | None = None  # what the next value has to exceed by min_delta
        self.waited = 0

    def update(self, value: float | None, step: int, *, counts: bool, apart: bool = False) -> None:
        """Take the primary metric of one evaluation; none, or one that is not finite, is not progress.

        `counts` is false for one that only belongs to an end (of max_steps, e.g.), so that a run that resumes from
        there stops where it would have stopped without that end. `apart` is one that covers something else than the
        others (a whole split, not a subset of it): it is compared with its like only, and gives way to the others.
        """
        usable = value if value is not None and math.isfinite(value) else None
        if usable is not None and (
            self.best is None
            or (self.best_apart and not apart)
            or (self.best_apart == apart and self.sign * (usable - self.best) > 0)
        ):
            self.best, self.best_step, self.best_apart = usable, step, apart
        if not counts:
            return
        self.waited += 1
        if usable is not None and (self.mark is None or self.sign * (usable - self.mark) > self.min_delta):
            self.mark, self.waited = usable, 0

    @property
    def due(self) -> bool:
        """Whether the run has waited long enough."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        best = {"best": self.best, "best_step": self.best_step, "best_apart": self.best_apart}
        return {**best, "mark": self.mark, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; an empty state, of a checkpoint that knew no early stopping, begins to count."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])


def check_early_stop(config: RunConfig, plan: TrainingPlan) -> None:
    """Raises UsageError where early stopping could never happen."""
    if config.early_stop_patience is not None and not plan.eval_steps:
        raise UsageError(
            f"early_stop_patience={config.early_stop_patience} needs evaluations before the end and this run has none: "
            "set eval_interval, or early_stop_patience=null"
        )


# --- the weights of an evaluation: averages, ours or those that optimizers keep, in exchange for the trained ones -----


class EMA:
    """shadow <- rate · shadow + (1 - rate) · parameter, no bias correction; parameters that need no gradient
    are left out.

    Raises ValueError for a rate outside [0, 1).
    """

    def __init__(self, params: Mapping[str, Tensor], rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"ema_rate={rate}: expected a number from 0 up to, not including, 1")
        self.params = {name: param for name, param in params.items() if param.requires_grad}
        self.rate = rate
        self.shadow = {name: param.detach().clone() for name, param in self.params.items()}

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Move the shadows towards the parameters, in place; where a step is called off (`ok` is 0) both stay."""
        if self.shadow:
            shadows = list(self.shadow.values())
            way = torch._foreach_sub(self._values(), shadows)
            torch._foreach_mul_(way, ok.to(way[0].dtype))
            torch._foreach_add_(shadows, way, alpha=1.0 - self.rate)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages; afterwards exactly what they held before.

        Values are copied, not pointers: views into the parameters (flat buffers, recorded graphs) stay valid.
        """
        values = self._values()
        with torch.no_grad():
            kept = [value.clone() for value in values]
            for value, shadow in zip(values, self.shadow.values(), strict=True):
                value.copy_(shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(values, kept, strict=True):
                    value.copy_(old)

    def state_dict(self) -> dict[str, Tensor]:
        """The shadows by parameter name (no copies)."""
        return dict(self.shadow)

    @torch.no_grad()
    def restart(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the averages in `state`; a parameter that it lacks begins with its present value.

        Raises ValueError that names an average of another shape.
        """
        for name, shadow in self.shadow.items():
            value = state.get(name, self.params[name].detach())
            if value.shape != shadow.shape:
                raise ValueError(
                    f"EMA state of {name!r} has shape {tuple(value.shape)}, expected {tuple(shadow.shape)}"
                )
            shadow.copy_(value)

    def _values(self) -> list[Tensor]:
        return [param.detach() for param in self.params.values()]


def averages(ema: EMA | None, optimizers: Mapping[str, Any]) -> list[AbstractContextManager[None]]:
    """Exchanges of weights that an evaluation enters: for our average, else for those that optimizers keep."""
    if ema is not None:
        return [ema.swapped()]
    return [o.evaluating() for o in optimizers.values() if getattr(o, "evaluates_others", False)]


def averaged_weights(module: nn.Module, ema: EMA | None, optimizers: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights that evaluations use, by clean name, where they are not the trained ones themselves."""
    if ema is not None:
        return ema.state_dict()
    swaps = averages(None, optimizers)
    with ExitStack() as weights:
        for swap in swaps:
            weights.enter_context(swap)
        named = [(clean_name(name), p) for name, p in module.named_parameters() if p.requires_grad]
        return {name: p.detach().clone() for name, p in named} if swaps else None
