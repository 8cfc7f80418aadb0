"""From votes to scores, to a competition submission, and to a record of every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.intervals import wilson
from evaluators.voting.grids import decode
from evaluators.voting.tasks import Question, Tasks
from evaluators.voting.votes import Answers

NO_ANSWER = [[0]]
"""Placeholder in the submission for questions without votes, or whose answer is not a grid."""


@dataclass(frozen=True)
class Outcome:
    """The voted answers to one question."""

    question: Question
    votes: int
    different: int
    """Number of different answers."""
    rank: int | None
    """Rank of the correct answer, from 0; None if it got no vote or is unknown."""
    answers: list[dict[str, Any]]
    """The top answers: grid, votes, confidence, and whether it is right, if known."""

    def right_within(self, k: int) -> bool:
        return self.rank is not None and self.rank < k


def compute_outcomes(tasks: Tasks, answers: Answers) -> dict[str, list[Outcome]]:
    """Outcomes of all questions of each task that got at least one vote."""
    table: dict[str, list[Outcome]] = {}
    starts = np.searchsorted(answers.question, tasks.same_as, side="left")
    ends = np.searchsorted(answers.question, tasks.same_as, side="right")
    confidence = answers.confidence
    for number, question in enumerate(tasks.questions):
        rows = slice(int(starts[number]), int(ends[number]))
        known = question.solution is not None
        right = (answers.key[rows] == tasks.solutions[number]).all(axis=1) & known
        hits = np.flatnonzero(right)
        leading = [
            {
                "grid": decode(answers.grids[answers.grid[row]], tasks.side),
                "votes": int(answers.votes[row]),
                "confidence": round(float(confidence[row]), 6),
                **({"right": bool(right[row - rows.start])} if known else {}),
            }
            for row in range(rows.start, rows.stop)
            if answers.grid[row] >= 0
        ]
        outcome = Outcome(
            question,
            int(answers.votes[rows].sum()),
            rows.stop - rows.start,
            int(hits[0]) if len(hits) else None,
            leading,
        )
        table.setdefault(question.task, []).append(outcome)
    return {task: outcomes for task, outcomes in table.items() if any(one.votes for one in outcomes)}


def compute_metrics(
    table: dict[str, list[Outcome]], ks: Sequence[int], submission_k: int, confidence: float
) -> dict[str, float | None]:
    """Both scores for each K, over tasks whose solutions are all known.

    `pass@K`: share of test grids with the correct answer among the top K, averaged over tasks (the public evaluator's
    rule). `all_pairs@K`: share of tasks with all test grids correct (the rule of HRM's notebook). Wilson intervals at
    K = 1 and `submission_k`; for `pass@K`, whose per-task shares vary less than 0 or 1, they are conservative.
    """
    scored = [outcomes for outcomes in table.values() if all(one.question.solution is not None for one in outcomes)]
    values: dict[str, float | None] = {}
    for k in sorted({*ks, submission_k}):
        shares = [sum(one.right_within(k) for one in outcomes) / len(outcomes) for outcomes in scored]
        for name, parts in (("pass", shares), ("all_pairs", [float(share == 1.0) for share in shares])):
            total = float(sum(parts))
            values[f"{name}@{k}"] = total / len(parts) if parts else None
            if k in (1, submission_k):
                low, high = wilson(min(total, len(parts)), len(parts), confidence) if parts else (None, None)
                values[f"{name}@{k}_low"], values[f"{name}@{k}_high"] = low, high
    values["tasks"] = float(len(scored))
    values["votes"] = float(sum(one.votes for outcomes in table.values() for one in outcomes))
    values["questions_without_votes"] = float(sum(not one.votes for outcomes in table.values() for one in outcomes))
    return values


def build_submission(table: dict[str, list[Outcome]], attempts: int) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Build {task: [{"attempt_1": grid, ...}, ...]} with the top answers for each test grid, in order.

    If there are fewer answers than attempts, the best is repeated.
    """
    content: dict[str, list[dict[str, list[list[int]]]]] = {}
    for task, outcomes in table.items():
        content[task] = []
        for outcome in outcomes:
            grids = [answer["grid"] or NO_ANSWER for answer in outcome.answers[:attempts]] or [NO_ANSWER]
            grids += grids[:1] * (attempts - len(grids))
            content[task].append({f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)})
    return content


def build_record(tasks: Tasks, table: dict[str, list[Outcome]], k: int) -> dict[str, Any]:
    """Each task with its demonstrations, test grids, solutions, top answers, and whether K attempts solve it."""
    record = {}
    for task, outcomes in table.items():
        known = all(one.question.solution is not None for one in outcomes)
        record[task] = {
            "solved": all(one.right_within(k) for one in outcomes) if known else None,
            "share": sum(one.right_within(k) for one in outcomes) / len(outcomes) if known else None,
            "train": tasks.demonstrations[task],
            "test": [
                {
                    "input": one.question.grid,
                    "output": one.question.solution,
                    "votes": one.votes,
                    "different": one.different,
                    "rank": None if one.rank is None else one.rank + 1,
                    "answers": one.answers,
                }
                for one in outcomes
            ],
        }
    return record
