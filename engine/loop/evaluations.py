"""Evaluations of a run: when one is due, the best result, early stopping, and the averaged weights they use.

A final evaluation may cover other data than the others (a whole split, not a subset of it). Its results are then the
run's, but they are not compared with the others' and do not count for early stopping.
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
    """State of a run's evaluations, saved in checkpoints. `step` is that of the newest one, -1 before the first."""

    def __init__(self, plan: TrainingPlan, config: RunConfig) -> None:
        self._plan, self._config = plan, config
        self.results: dict[str, float | None] = {}
        self.reset()

    def reset(self) -> None:
        """Drop all results, for a run that branches off another."""
        self.step = self.final_step = -1
        self.judged: dict[str, Any] = {}  # the newest value of the primary metric: step, value, final
        self.early_stop = EarlyStop(self._config, direction=self._plan.metric_mode)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an ordinary evaluation is due; a final one that covers the same data replaces it."""
        replaced = last and self._plan.final_eval and self._plan.final_like_others
        already_stopped = self.early_stop.due and not last  # only after a resume
        return step in self._plan.eval_steps and self.step != step and not already_stopped and not replaced

    def final_due(self, step: int) -> bool:
        """Whether the final evaluation is still missing at the last step."""
        plan = self._plan
        newest = self.step if plan.final_like_others and not plan.final_adds else self.final_step
        return plan.final_eval and newest != step

    def record(self, step: int, results: dict[str, float | None], *, final: bool) -> None:
        """Record the results of an evaluation. A collective: rank 0's primary metric decides on all ranks."""
        plan = self._plan
        value = broadcast_object(results.get(plan.primary_metric))
        if bad := [f"{name} is {x}" for name, x in results.items() if x is not None and not math.isfinite(x)]:
            print_rank0(f"warning: step {step}: {bad[0]}: the model may have diverged")
        apart = final and not plan.final_like_others
        # An evaluation made only because the run ends (at max_steps, e.g.) does not count: a resume continues as if
        # there had been no end.
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
        """Name, value and goal of the primary metric, if it was evaluated after `step`. `final` marks a value over
        other data than the other evaluations'."""
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
        """The inverse. Older checkpoints have the plateau in the `task` state, and no `judged` or `final_step`."""
        self.step, self.results = state["evaluated_step"], dict(state["results"])
        self.final_step = state.get("final_step", self.step)
        default = {"step": self.step, "value": self.results.get(self._plan.primary_metric), "final": False}
        self.judged = state.get("judged", default)
        self.early_stop.load_state_dict(state.get("early_stop", {}))
        plateau = state.get("plateau") or task.get("plateau")
        if self._plan.plateau is not None and plateau:
            self._plan.plateau.load_state_dict(plateau)
        covered = state.get("covers", self._plan.covers)  # missing in older checkpoints
        if covered != self._plan.covers:
            print_rank0(
                f"note: evaluations cover {self._plan.covers} now, not {covered}: the best result is selected afresh"
            )
            self.early_stop.restart()
            if self._plan.plateau is not None:
                self._plan.plateau.best, self._plan.plateau.waited = None, 0


# --- early stopping: the run ends after some evaluations without a better primary metric ------------------------------


class EarlyStop:
    """Counts evaluations without progress; the count and the best value are part of the checkpoint.

    It counts in every run, so that a resume can turn on early stopping with the past evaluations counted.
    """

    def __init__(self, config: RunConfig, *, direction: str) -> None:
        self.patience, self.min_delta = config.early_stop_patience, config.early_stop_min_delta
        self.sign = 1.0 if direction == "max" else -1.0
        self.restart()

    def restart(self) -> None:
        """Start counting afresh, with no value to compare with."""
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_apart = False  # the best value is of a final evaluation over other data than the others
        self.mark: float | None = None  # what the next value has to exceed by min_delta
        self.waited = 0

    def update(self, value: float | None, step: int, *, counts: bool, apart: bool = False) -> None:
        """Record the primary metric of one evaluation; None or a non-finite value is no progress.

        `counts` is false for an evaluation made only because the run ends (at max_steps, e.g.): a run resumed from
        there stops where an uninterrupted one would. `apart` marks one over other data than the others (a whole split,
        not a subset of it): it is compared only with others of its kind, and any ordinary one replaces it as best.
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
        """Whether `patience` evaluations in a row brought no progress."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        best = {"best": self.best, "best_step": self.best_step, "best_apart": self.best_apart}
        return {**best, "mark": self.mark, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; an empty state (of a checkpoint from before early stopping) changes nothing."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])


def check_early_stop(config: RunConfig, plan: TrainingPlan) -> None:
    """Raises: UsageError if early stopping has no evaluations to count."""
    if config.early_stop_patience is not None and not plan.eval_steps:
        raise UsageError(
            f"early_stop_patience={config.early_stop_patience} needs evaluations before the end and this run has none: "
            "set eval_interval, or early_stop_patience=null"
        )


# --- averaged weights, swapped in for an evaluation: the EMA, or an optimizer's own average ---------------------------


class EMA:
    """Exponential moving average of the parameters that require gradients, without bias correction:
    shadow <- rate · shadow + (1 - rate) · parameter, with a rate in [0, 1)."""

    def __init__(self, params: Mapping[str, Tensor], rate: float) -> None:
        self.params = {name: param for name, param in params.items() if param.requires_grad}
        self.rate = rate
        self.shadow = {name: param.detach().clone() for name, param in self.params.items()}

    @torch.no_grad()
    def update(self, ok: Tensor) -> None:
        """Update the averages in place; a skipped step (`ok` is 0) leaves them unchanged."""
        if self.shadow:
            shadows = list(self.shadow.values())
            deltas = torch._foreach_sub(self._values(), shadows)
            torch._foreach_mul_(deltas, ok.to(deltas[0].dtype))
            torch._foreach_add_(shadows, deltas, alpha=1.0 - self.rate)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the parameters hold the averages; on exit their own values are restored exactly.

        Values are copied, not pointers: views into the parameters (flat buffers, captured graphs) stay valid.
        """
        values = self._values()
        with torch.no_grad():
            saved = [value.clone() for value in values]
            for value, shadow in zip(values, self.shadow.values(), strict=True):
                value.copy_(shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(values, saved, strict=True):
                    value.copy_(old)

    def state_dict(self) -> dict[str, Tensor]:
        """The shadows by parameter name (no copies)."""
        return dict(self.shadow)

    @torch.no_grad()
    def restart(self, state: Mapping[str, Tensor]) -> None:
        """Set the averages to those in `state`; parameters missing there start at their current values.

        Raises: ValueError naming an average of another shape.
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
    """Context managers that swap in the weights to evaluate: the EMA's, else those of optimizers that average."""
    if ema is not None:
        return [ema.swapped()]
    return [o.evaluating() for o in optimizers.values() if getattr(o, "has_eval_weights", False)]


def averaged_weights(module: nn.Module, ema: EMA | None, optimizers: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights that evaluations use, by clean name; None if these are the trained weights themselves."""
    if ema is not None:
        return ema.state_dict()
    swaps = averages(None, optimizers)
    with ExitStack() as weights:
        for swap in swaps:
            weights.enter_context(swap)
        named = [(clean_name(name), p) for name, p in module.named_parameters() if p.requires_grad]
        return {name: p.detach().clone() for name, p in named} if swaps else None
