"""From votes to scores, to the file that a competition takes, and to a record of every task."""

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
"""Stands in the submission for a question that got no vote, or whose answer is not a grid."""


@dataclass(frozen=True)
class Outcome:
    """The answers to one question."""

    question: Question
    votes: int
    different: int
    """How many different answers got votes."""
    rank: int | None
    """Place of the right answer, from 0; None where it got no vote or is not known."""
    answers: list[dict[str, Any]]
    """The leading ones: grid, votes, confidence, and whether it is right where that is known."""

    def right_within(self, k: int) -> bool:
        return self.rank is not None and self.rank < k


def outcomes_of(tasks: Tasks, answers: Answers) -> dict[str, list[Outcome]]:
    """The outcomes of each task that got a vote; of such a task all questions, those without votes too."""
    table: dict[str, list[Outcome]] = {}
    begins = np.searchsorted(answers.question, tasks.same_as, side="left")
    ends = np.searchsorted(answers.question, tasks.same_as, side="right")
    confidence = answers.confidence
    for number, question in enumerate(tasks.questions):
        rows = slice(int(begins[number]), int(ends[number]))
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


def metrics_of(
    table: dict[str, list[Outcome]], ks: Sequence[int], submission_k: int, confidence: float
) -> dict[str, float | None]:
    """Both rules for each K, over tasks whose solutions are all known.

    `pass@K`: mean over tasks of the share of test grids with the right answer among the first K (the public
    evaluator's rule). `all_pairs@K`: share of tasks with all of their test grids right (the rule of HRM's notebook).
    Wilson intervals at K = 1 and `submission_k`; for `pass@K`, whose shares vary less than a yes or no, it is on the
    safe side.
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


def submission_of(table: dict[str, list[Outcome]], attempts: int) -> dict[str, list[dict[str, list[list[int]]]]]:
    """{task: [{"attempt_1": grid, ...}, ...]}: for each test grid, in order, its leading answers.

    Where there are fewer answers than attempts the best is repeated.
    """
    content: dict[str, list[dict[str, list[list[int]]]]] = {}
    for task, outcomes in table.items():
        content[task] = []
        for outcome in outcomes:
            grids = [answer["grid"] or NO_ANSWER for answer in outcome.answers[:attempts]] or [NO_ANSWER]
            grids += grids[:1] * (attempts - len(grids))
            content[task].append({f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)})
    return content


def record_of(tasks: Tasks, table: dict[str, list[Outcome]], k: int) -> dict[str, Any]:
    """Each task with its demonstrations, test grids, solutions, leading answers, and whether K attempts solve it."""
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
