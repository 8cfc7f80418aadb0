"""What the evaluations of a run have said: which were made, the best, what early stopping and a plateau wait for.

Like is compared with like: a final evaluation may cover something else than the others (a whole split and not a subset
of it). Then its figures are the run's result, and play no part in what is best and when to stop.
"""

from __future__ import annotations

import math
from typing import Any

from engine.config import RunConfig
from engine.distributed import broadcast_object
from engine.io import print_rank0
from engine.loop.stopping import EarlyStop
from engine.task import TrainingPlan


class Evaluations:
    """Of one run; part of its checkpoints. `step` is that of the newest evaluation, -1 before the first."""

    def __init__(self, plan: TrainingPlan, config: RunConfig) -> None:
        self._plan, self._config = plan, config
        self.results: dict[str, float | None] = {}
        self.forget()

    def forget(self) -> None:
        """None was made: for a branch off another run."""
        self.step = self.final_step = -1
        self.judged: dict[str, Any] = {}  # the newest value of the primary metric: step, value, final
        self.early_stop = EarlyStop(self._config, direction=self._plan.metric_mode)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an ordinary one is to be made now. The final one takes its place where it covers the same."""
        replaced = last and self._plan.final_eval and self._plan.final_like_others
        already_stopped = self.early_stop.due and not last  # so only after a resume
        return step in self._plan.eval_steps and self.step != step and not already_stopped and not replaced

    def final_due(self, step: int) -> bool:
        """Whether the final evaluation is still to be made, at the last step."""
        made = self.step if self._plan.final_like_others else self.final_step
        return self._plan.final_eval and made != step

    def record(self, step: int, results: dict[str, float | None], *, final: bool) -> None:
        """Take the results of an evaluation. A collective: the primary metric of rank 0 decides for all."""
        plan = self._plan
        value = broadcast_object(results.get(plan.primary_metric))
        apart = final and not plan.final_like_others
        # What only belongs to an end (of max_steps, say) does not count: a run that goes on must not know of it.
        counts = step in plan.eval_steps and not self.early_stop.due and not apart
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
            "evaluated_step": self.step, "final_step": self.final_step, "results": dict(self.results),
            "covers": self._plan.covers, "judged": self.judged, "early_stop": self.early_stop.state_dict(),
            "plateau": None if plateau is None else plateau.state_dict(),
        }  # fmt: skip

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
        covered = state.get("covers", self._plan.covers)  # an earlier version did not say
        if covered != self._plan.covers:
            print_rank0(f"note: evaluations cover {self._plan.covers} now, not {covered}: what is best is judged anew")
            self.early_stop.restart()
            if self._plan.plateau is not None:
                self._plan.plateau.best, self._plan.plateau.waited = None, 0
