"""The goals of a trained manager exchanged, taken away or held in evaluation: what does the answer lose?

B rows of a batch, T sequence length, G goal_dim, N held-out examples.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.io import atomic_write_json, print_rank0
from engine.run.rundir import read_json
from scripts._feudal_runs import Cell, Run
from scripts._feudal_stats import reading, summary

SOURCES = ("same", "zero", "shuffle", "random", "stale", "mean")
VERSION = 2
"""Of the stored measurements; another one is measured again."""


class _Answers:
    """An evaluator that keeps which answers were right, and how goals spread."""

    needs_steps = False

    def begin(self) -> None:
        self.scores: dict[str, list[Any]] = {"exact_accuracy": [], "accuracy": []}
        self.answers: list[Any] = []
        self.scored: list[Any] = []
        self.count, self.first, self.second, self.units = 0, 0.0, 0.0, 0.0

    def update(self, batch: Mapping[str, Any], steps: Sequence[Any], preds: Any, valid_rows: int) -> None:
        """labels [B, T] of the batch (-100 not scored), preds [B, T]; the goals [B, G] are the episode's last ones."""
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
        return {}

    def participation(self) -> float | None:
        """(Σλ)² / Σλ² of the covariance of all goals: about how many directions they fill. 1 where all are one."""
        if not self.count:
            return None
        mean = np.asarray(self.first) / self.count
        covariance = np.asarray(self.second) / self.count - np.outer(mean, mean)
        spread = float(np.square(covariance).sum())
        return float(np.trace(covariance)) ** 2 / spread if spread > 1e-24 else 1.0

    def alike(self) -> float | None:
        """Mean cosine between the goals of two examples: 1 where all have one goal. None for fewer than two goals."""
        n = self.count
        return float(np.square(self.units).sum() - n) / (n * (n - 1)) if n > 1 else None

    def drop(self, other: _Answers, name: str) -> list[float]:
        """[mean, standard error] of other's score minus this one's, paired by example."""
        gap = np.concatenate(other.scores[name]) - np.concatenate(self.scores[name])
        return [float(gap.mean()), float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else 0.0]

    def changed(self, other: _Answers) -> float:
        """Share of scored positions that are answered otherwise."""
        scored = np.concatenate([one.ravel() for one in self.scored])
        ours, theirs = (np.concatenate([a.ravel() for a in one.answers]) for one in (self, other))
        return float((ours != theirs)[scored].mean())


def measure(run: Run, device: str) -> dict[str, dict[str, Any]]:
    """Source of goals -> measurements, of the run's own weights, examples and batches; stored in the run's folder.

    Raises:
        UsageError: the run has no usable checkpoint or its data are gone.
    """
    checkpoint = CheckpointStore(run.path, "").latest()
    if checkpoint is None:
        raise UsageError(f"{run.path} holds no checkpoint")
    weights = read_json(checkpoint / "manifest.json").get("sha256")
    key = {"version": VERSION, "checkpoint": checkpoint.name, "sha256": weights, "data": list(run.data)}
    file = run.path / f"feudal_goals_{checkpoint.name}.json"
    stored = read_json(file)
    if stored.get("key") == key:
        return stored["sources"]
    sources = _measured(run, device)
    try:
        atomic_write_json(file, {"key": key, "sources": sources})
    except OSError as error:
        print_rank0(
            f"warning: {file} cannot be written ({error.strerror}): these goals will be measured again next time"
        )
    return sources


def _measured(run: Run, device: str) -> dict[str, dict[str, Any]]:
    from tasks.recursive_reasoning.loading import load_puzzle_run

    loaded = load_puzzle_run(
        argparse.Namespace(checkpoint=run.path, split="test", data=None, steps=None, weights=None, device=device)
    )
    task, head = loaded.task, loaded.task.model.inner.subgoal_head
    answers: dict[str, _Answers] = {}
    found: dict[str, dict[str, Any]] = {}
    for source in SOURCES:
        answers[source] = _Answers()
        head.eval_source, task.evaluators = source, [answers[source]]
        values = {name.removeprefix("eval/"): value for name, value in task.evaluate(final=True).items()}
        names = ("exact_accuracy", "accuracy", "lm_loss", "feudal_cos", "feudal_cos_own", "subgoal_gate_mean")
        found[source] = {
            **{name: values.get(name) for name in names},
            "goal_pr": answers[source].participation(),
            "goal_alike": answers[source].alike(),
            "changed": answers[source].changed(answers["same"]),
            "drop": {name: answers[source].drop(answers["same"], name) for name in ("exact_accuracy", "accuracy")},
        }
    ours = run.results.get("eval/accuracy")
    if ours is not None and abs(ours - (found["same"]["accuracy"] or 0.0)) > 1e-3:
        print_rank0(
            f"warning: {run.path} evaluates to {found['same']['accuracy']:.4f} accuracy now, {ours:.4f} at its end"
        )
    return found


def of_cell(cell: Cell, measured: Mapping[Path, Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """The measurements of a cell's runs together: `summary` over seeds (over examples where there is one seed), the
    score under each source, and the word for it. None where no run was measured."""
    runs = [measured[run.path] for run in cell.runs.values() if run.path in measured]
    if not runs:
        return None
    found: dict[str, Any] = {
        "control": summary([_cos(one["shuffle"], "") - _cos(one["shuffle"], "_own") for one in runs]),
        "cos": summary([_cos(one["same"], "") for one in runs]),
        "cos_random": summary([_cos(one["random"], "") for one in runs]),
    }
    for name, source in (("content", "shuffle"), ("presence", "zero")):
        drops = [one[source]["drop"][metric] for one in runs]
        found[name] = summary([mean for mean, _ in drops])
        if len(drops) == 1:
            mean, se = drops[0]
            found[name] |= {"se": se, "t": (mean - 1.96 * se, mean + 1.96 * se)}
    found["alike"] = _mean([one["same"]["goal_alike"] for one in runs])
    found["pr"] = _mean([one["same"]["goal_pr"] for one in runs])
    found["gate"] = _mean([one["same"]["subgoal_gate_mean"] for one in runs])
    found["changed"] = {source: _mean([one[source]["changed"] for one in runs]) for source in SOURCES}
    found["scores"] = {source: summary([one[source][metric] for one in runs]) for source in SOURCES}
    found["word"], found["reason"] = reading(found)
    return found


def _cos(values: Mapping[str, Any], which: str) -> float:
    return values[f"feudal_cos{which}"] or 0.0  # None where no pass had a goal


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
