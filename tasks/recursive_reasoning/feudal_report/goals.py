"""Interventions on the goals of a trained manager in evaluation (exchanged, removed, held): how much score is lost?

Shapes: B rows of a batch, T sequence length, G goal_dim, N held-out examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.io import atomic_write_json, print_rank0
from engine.run.files import read_json
from reports.runs import Run

SOURCES = ("same", "zero", "shuffle", "random", "stale", "mean")
VERSION = 2
"""Version of the stored measurements; others are measured again."""


class AnswerTally:
    """An evaluator that records the score of each example and the spread of the goals."""

    needs_steps = False

    def begin(self, splits: Sequence[Any] = ()) -> None:
        """Reset all records."""
        self.scores: dict[str, list[Any]] = {"exact_accuracy": [], "accuracy": []}
        self.answers: list[Any] = []
        self.scored: list[Any] = []
        self.count, self.first, self.second, self.units = 0, 0.0, 0.0, 0.0

    def update(self, batch: Mapping[str, Any], steps: Sequence[Any], preds: Any, valid_rows: int) -> None:
        """labels [B, T] of the batch (-100: not scored), preds [B, T]; goals [B, G] are those of the last ACT step."""
        labels, answer = batch["labels"][:valid_rows], preds[:valid_rows]
        scored = labels != -100
        some = scored.any(dim=1)
        labels, answer, scored = labels[some], answer[some], scored[some]
        right = ((answer == labels) & scored).sum(dim=1) / scored.sum(dim=1)
        self.scores["accuracy"].append(right.double().cpu().numpy())
        self.scores["exact_accuracy"].append((right == 1).double().cpu().numpy())
        self.answers.append(answer.cpu().numpy())
        self.scored.append(scored.cpu().numpy())
        latents = steps[-1].carry.latents
        goals = latents["subgoal_goal"][:valid_rows][latents["subgoal_active"][:valid_rows]].double().cpu().numpy()
        self.count += len(goals)
        self.first = self.first + goals.sum(axis=0)
        self.units = self.units + (goals / np.linalg.norm(goals, axis=1, keepdims=True).clip(1e-12)).sum(axis=0)
        self.second = self.second + goals.T @ goals

    def result(self) -> dict[str, float | None]:
        """No metrics: the records are read after the evaluation."""
        return {}

    def participation(self) -> float | None:
        """(Σλ)² / Σλ² of the goals' covariance: their effective number of directions. 1 if all goals are equal."""
        if not self.count:
            return None
        mean = np.asarray(self.first) / self.count
        covariance = np.asarray(self.second) / self.count - np.outer(mean, mean)
        spread = float(np.square(covariance).sum())
        return float(np.trace(covariance)) ** 2 / spread if spread > 1e-24 else 1.0

    def alike(self) -> float | None:
        """Mean cosine between the goals of two examples: 1 if all are equal. None for fewer than two goals."""
        n = self.count
        return float(np.square(self.units).sum() - n) / (n * (n - 1)) if n > 1 else None

    def drop(self, other: AnswerTally, name: str) -> list[float]:
        """[mean, standard error] of the other's score minus this one's, paired by example."""
        gap = np.concatenate(other.scores[name]) - np.concatenate(self.scores[name])
        return [float(gap.mean()), float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else 0.0]

    def changed(self, other: AnswerTally) -> float:
        """Share of scored positions whose prediction differs."""
        scored = np.concatenate([one.ravel() for one in self.scored])
        ours, theirs = (np.concatenate([a.ravel() for a in one.answers]) for one in (self, other))
        return float((ours != theirs)[scored].mean())


def measure(run: Run, device: str) -> dict[str, dict[str, Any]]:
    """Source of goals -> measurements, with the run's own weights, examples and batches; cached in the run's folder.

    Raises:
        UsageError: the run has no usable checkpoint or its data is gone.
    """
    checkpoint = CheckpointStore(run.path, "").latest()
    if checkpoint is None:
        raise UsageError(f"{run.path} holds no checkpoint")
    weights = read_json(checkpoint / "manifest.json").get("sha256")
    key = {"version": VERSION, "checkpoint": checkpoint.name, "sha256": weights, "data": list(run.data)}
    file = run.path / f"feudal_goals_{checkpoint.name}.json"
    stored = read_json(file)
    sources = stored.get("sources")
    if stored.get("key") == key and isinstance(sources, dict) and sources.keys() >= set(SOURCES):
        return sources
    sources = _evaluate_sources(run, device)
    try:
        atomic_write_json(file, {"key": key, "sources": sources})
    except OSError as error:
        print_rank0(
            f"warning: {file} cannot be written ({error.strerror}): these goals will be measured again next time"
        )
    return sources


def _evaluate_sources(run: Run, device: str) -> dict[str, dict[str, Any]]:
    from tasks.recursive_reasoning.loading import load_puzzle_run

    loaded = load_puzzle_run(run.path, device=device)
    task, head = loaded.task, loaded.task.model.inner.subgoal_head
    answers: dict[str, AnswerTally] = {}
    measured: dict[str, dict[str, Any]] = {}
    for source in SOURCES:
        answers[source] = AnswerTally()
        head.eval_source, task.evaluators = source, [answers[source]]
        values = {name.removeprefix("eval/"): value for name, value in task.evaluate(final=True).items()}
        names = ("exact_accuracy", "accuracy", "lm_loss", "feudal_cos", "feudal_cos_own", "subgoal_gate_mean")
        measured[source] = {
            **{name: values.get(name) for name in names},
            "goal_pr": answers[source].participation(),
            "goal_alike": answers[source].alike(),
            "changed": answers[source].changed(answers["same"]),
            "drop": {name: answers[source].drop(answers["same"], name) for name in ("exact_accuracy", "accuracy")},
        }
    ours = run.results.get("eval/accuracy")
    if ours is not None and abs(ours - (measured["same"]["accuracy"] or 0.0)) > 1e-3:
        print_rank0(
            f"warning: {run.path} evaluates to {measured['same']['accuracy']:.4f} accuracy now, {ours:.4f} at its end"
        )
    return measured
