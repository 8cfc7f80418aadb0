"""Votes over augmentations against the public evaluator's rules in plain loops, and against published figures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.arc.augment import parse_name
from dataset.format import load_splits
from dataset.sampler import EvalBudget, EvalSampler
from engine.errors import UsageError
from evaluators.arc import ARC, ARCConfig
from evaluators.voting.grids import decode, keys_of, undo_augmentation
from evaluators.voting.votes import Votes
from tests.conftest import fork_ranks
from tests.evaluators import arc_data
from tests.evaluators.arc_data import SIDE, naive_scores, write_arc

KS = (1, 2, 3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[str]]:
    root = tmp_path_factory.mktemp("arc") / "small"
    return (root, *write_arc(root))


def answers_for(arrays: dict[str, np.ndarray], seed: int, error: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Predicted tokens and q logits of a batch: right, the question itself, or junk. Rows, not batches, decide."""
    answers, logits = [], []
    for row, (asked, label) in enumerate(zip(arrays["inputs"], arrays["labels"], strict=True)):
        rng = np.random.default_rng([seed, *asked.tolist(), int(arrays["puzzle_identifiers"][row])])
        answer = np.where(label == -100, 0, label)
        if rng.random() < error:
            answer = asked
        if rng.random() < 0.15:
            answer = rng.integers(0, 12, len(answer))
        answers.append(answer)
        logits.append(np.float32(rng.integers(-3, 4)))  # equal ones happen
    return np.stack(answers), np.array(logits, dtype=np.float32)


def run(evaluator: ARC, root: Path, *, batch: int = 7, seed: int = 0, budget: EvalBudget | None = None):
    """One evaluation; returns its metrics and the rows it saw."""
    sampler = EvalSampler(load_splits([root], "test"), batch, budget=budget)
    seen = []
    evaluator.begin(sampler.splits)
    for _, arrays, valid in sampler:
        answers, logits = answers_for(arrays, seed)
        step = SimpleNamespace(q_halt_logits=torch.from_numpy(logits), logits=None)
        batch_of = {name: torch.from_numpy(values) for name, values in arrays.items()}
        evaluator.update(batch_of, [step], torch.from_numpy(answers), valid)
        for row in range(valid):
            seen.append((int(arrays["puzzle_identifiers"][row]), arrays["inputs"][row], answers[row], logits[row]))
    return evaluator.result(), seen


def test_scores_and_submission_are_those_of_the_public_rules(built) -> None:
    root, tasks, names = built
    evaluator = ARC(ARCConfig(pass_Ks=list(KS)))
    metrics, rows = run(evaluator, root)
    expected = naive_scores(tasks, names, rows, KS)
    for rule in ("pass", "all_pairs"):
        for k in KS:
            assert metrics[f"ARC_iii_clean/{rule}@{k}"] == expected[rule][k]
    assert 0 < expected["pass"][1] < expected["pass"][3]
    assert expected["all_pairs"][1] < expected["pass"][1]  # the two rules differ on this data
    assert json.loads(evaluator.files["arc_submission.json"]) == expected["submission"]
    low, high = metrics["ARC_iii_clean/pass@2_low"], metrics["ARC_iii_clean/pass@2_high"]
    assert low < metrics["ARC_iii_clean/pass@2"] <= high
    assert (metrics["ARC_iii_clean/tasks"], metrics["ARC_iii_clean/tasks_total"]) == (5, 5)
    assert metrics["ARC_iii_clean/votes"] == len(rows)
    assert metrics["ARC_iii_clean/unmatched_examples"] == 0


def test_votes_of_one_evaluation_do_not_reach_the_next(built) -> None:
    root, tasks, names = built
    evaluator, pooled = ARC(ARCConfig(pass_Ks=[1])), ARC(ARCConfig(pass_Ks=[1], pooled=True))
    first, rows = run(evaluator, root)
    run(evaluator, root, seed=1)
    again, _ = run(evaluator, root)
    assert again == first
    run(pooled, root)
    second, more = run(pooled, root, seed=1)
    assert second["ARC_iii_clean/pooled_evaluations"] == 2
    assert second["ARC_iii_clean/pass@1"] == naive_scores(tasks, names, rows + more, [1])["pass"][1]


def test_an_evaluation_that_was_broken_off_leaves_no_votes(built) -> None:
    root, *_ = built
    evaluator = ARC(ARCConfig())
    expected, _ = run(evaluator, root)
    sampler = EvalSampler(load_splits([root], "test"), 7)
    evaluator.begin(sampler.splits)
    _, arrays, valid = next(iter(sampler))
    answers, logits = answers_for(arrays, 5)
    step = SimpleNamespace(q_halt_logits=torch.from_numpy(logits), logits=None)
    evaluator.update({k: torch.from_numpy(v) for k, v in arrays.items()}, [step], torch.from_numpy(answers), valid)
    assert run(evaluator, root)[0] == expected
    assert set(evaluator.files) == {"arc_submission.json", "arc_tasks.json"}


def _ranked(root: Path, out: Path) -> None:
    evaluator = ARC(ARCConfig(pass_Ks=list(KS)))
    metrics, _ = run(evaluator, root, batch=8)
    (out / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps([metrics, evaluator.files]))


def test_many_processes_count_as_one_does(built, tmp_path: Path) -> None:
    root, *_ = built
    _ranked(root, tmp_path)
    results = fork_ranks(_ranked, root, tmp_path, cwd=tmp_path)
    assert [one.code for one in results] == [0, 0], results[0].output + results[1].output
    metrics, files = json.loads((tmp_path / "alone.json").read_text())
    for number in (0, 1):
        theirs, left = json.loads((tmp_path / f"{number}.json").read_text())
        assert theirs == metrics
        assert left == (files if number == 0 else {})


@pytest.mark.parametrize(
    ("budget", "tasks", "votes"),
    [(EvalBudget(groups=2), 2, 12), (EvalBudget(puzzles=1), 5, 9), (EvalBudget(2, 2), 2, 6)],
)
def test_a_budget_takes_the_first_tasks_and_augmentations(
    built, budget: EvalBudget, tasks: int, votes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root, *_ = built
    metrics, rows = run(ARC(ARCConfig()), root, budget=budget)
    assert (metrics["ARC_iii_clean/tasks"], len(rows)) == (tasks, votes)
    assert {identifier for identifier, *_ in rows} <= set(range(1, 4 * tasks + 1))
    assert metrics["ARC_iii_clean/tasks_total"] == 5
    assert f"; {'2 of 5' if tasks == 2 else '5'} tasks, {votes} votes" in capsys.readouterr().out


def test_a_task_whose_solution_is_hidden_is_submitted_and_not_scored(tmp_path: Path) -> None:
    write_arc(tmp_path / "hidden", hidden=True)
    evaluator = ARC(ARCConfig())
    metrics, _ = run(evaluator, tmp_path / "hidden")
    assert (metrics["ARC_iii_clean/tasks"], metrics["ARC_iii_clean/tasks_total"]) == (4, 4)
    assert len(json.loads(evaluator.files["arc_submission.json"])["task0"]) == 1
    assert json.loads(evaluator.files["arc_tasks.json"])["tasks"]["task0"]["solved"] is None


def test_a_set_that_asks_nothing_has_no_score(tmp_path: Path) -> None:
    """The boards of path verification are such a set."""
    write_arc(tmp_path / "set")
    (tmp_path / "set/test_puzzles.json").write_text("{}")
    metrics, rows = run(ARC(ARCConfig()), tmp_path / "set")
    assert metrics["ARC_iii_clean/pass@2"] is None
    assert metrics["ARC_iii_clean/unmatched_examples"] == len(rows)


@pytest.mark.parametrize(("leakage", "mark"), [(True, "iii_leak"), (False, "iii_clean"), (None, "iii_unchecked")])
def test_every_score_says_its_protocol_and_leakage(tmp_path: Path, leakage, mark: str, capsys) -> None:
    write_arc(tmp_path / "set", leakage=leakage)
    evaluator = ARC(ARCConfig())
    metrics, _ = run(evaluator, tmp_path / "set")
    assert all(name.startswith(f"ARC_{mark}/") for name in metrics)
    assert "protocol class (iii), joint transductive" in capsys.readouterr().out
    record = json.loads(evaluator.files["arc_tasks.json"])
    assert (record["protocol"], record["leakage"]) == tuple(mark.split("_"))


def test_tasks_that_were_not_trained_on_are_of_another_class(tmp_path: Path) -> None:
    write_arc(tmp_path / "set")
    np.save(tmp_path / "set/train/all__puzzle_identifiers.npy", np.zeros(20, dtype=np.int32))
    metrics, _ = run(ARC(ARCConfig()), tmp_path / "set")
    assert all(name.startswith("ARC_i_clean/") for name in metrics)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_puzzles.json", None, "test_puzzles.json does not exist"),
        ("test_puzzles.json", "[]", "test_puzzles.json: expected an object"),
        ("test_puzzles.json", '{"task1": {"train": []}}', "task 'task1' is not an object with train and test pairs"),
        ("identifiers.json", "rename", "identifiers.json: t9.*expected t0 to t7"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    root = tmp_path / "set"
    _, names = write_arc(root)
    if content is None:
        (root / file).unlink()
    else:
        renamed = json.dumps([names[0], "task0|||t9|||0123456789", *names[2:]])
        (root / file).write_text(renamed if content == "rename" else content)
    with pytest.raises(UsageError, match=message):
        ARC(ARCConfig()).begin(load_splits([root], "test"))


@pytest.mark.parametrize("listed", [True, False])
def test_identifiers_beyond_the_embedding_table_are_named(tmp_path: Path, listed: bool) -> None:
    root = tmp_path / "set"
    write_arc(root)
    for split, count in (("train", 15), ("test", 21)):
        path = root / split / "dataset.json"
        metadata = json.loads(path.read_text())
        path.write_text(json.dumps({**metadata, "num_puzzle_identifiers": count}))
    np.save(root / "train/all__puzzle_identifiers.npy", np.arange(20, dtype=np.int32) % 15)
    if not listed:
        (root / "identifiers.json").unlink()
    (root / "card.json").unlink()
    message = (
        "identifiers.json: holds 21 names, train/dataset.json counts 15"
        if listed
        else ("all__puzzle_identifiers.npy: puzzle 20 lies beyond the embedding table, which has 15 rows")
    )

    def load() -> None:
        load_splits([root], "test", like=load_splits([root], "train"))

    with pytest.raises(UsageError, match=message):
        load()


# --- grids and votes --------------------------------------------------------------------------------------------------


def grid_of(tokens: np.ndarray, name: str) -> list[list[int]]:
    """The grid on one canvas, as it was before the augmentation of this name."""
    _, augmentation = parse_name(name)
    codes, _ = undo_augmentation(tokens[None], np.array([augmentation.tid]), augmentation.table[None])
    return decode(codes[0], round(len(tokens) ** 0.5))


def test_published_crops_and_inverses(golden) -> None:
    codec = np.load(golden("arc_codec/codec.npz"))
    meta = json.loads(golden("arc_codec/meta.json").read_text())
    pairs = [("crop_of_seq_in", "seq_in"), ("crop_of_full30", "full30_seq"), ("crop_junk_out", "crop_junk_in")]
    for cropped, sequence in pairs:
        assert grid_of(codec[sequence], "abc") == codec[cropped].tolist()
    assert grid_of(np.zeros(900, dtype=np.uint8), "abc") == []
    asked = arc_data.tokens(codec["inverse_aug_in"], 30)
    assert grid_of(asked, meta["inverse_aug"]["name"]) == codec["inverse_aug_out"].tolist()


def test_documented_inverse() -> None:
    asked = arc_data.tokens(np.array([[1, 2], [3, 4], [5, 6]]))
    assert grid_of(asked, "abc|||t1|||0987654321") == [[5, 7, 9], [4, 6, 8]]


def test_holes_cut_the_crop() -> None:
    for hole, shape in (((0, 5), (30, 5)), ((10, 0), (10, 30)), ((20, 20), (20, 30))):
        canvas = np.full((30, 30), 5, dtype=np.uint8)
        canvas[hole] = 0
        assert np.array(grid_of(canvas.ravel(), "abc")).shape == shape


def test_random_canvases_as_in_plain_loops() -> None:
    rng = np.random.default_rng(3)
    canvases = rng.choice(np.arange(12, dtype=np.uint8), (300, SIDE * SIDE), p=[0.03, 0.03, *[0.094] * 10])
    tids = rng.integers(0, 8, 300)
    colours = ["0" + "".join(map(str, rng.permutation(np.arange(1, 10)))) for _ in range(300)]
    codes, keys = undo_augmentation(canvases, tids, np.array([[int(c) for c in one] for one in colours]))
    for row, (code, tokens) in enumerate(zip(codes, canvases, strict=True)):
        expected = arc_data.restored(arc_data.naive_crop(tokens, SIDE), tids[row], colours[row])
        assert decode(code, SIDE) == expected.tolist()
    assert keys_of([decode(code, SIDE) for code in codes], SIDE).tolist() == keys.tolist()
    assert keys_of([[[1] * (SIDE + 1)], []], SIDE).tolist()[0] not in keys.tolist()


def test_leading_grids_are_kept_whatever_the_order_of_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.voting.votes.PENDING", 5)
    rng = np.random.default_rng(0)
    votes, cast = Votes(length=4, keep=2), []
    for _ in range(80):
        question, answer = int(rng.integers(3)), int(rng.zipf(1.3)) % 40
        cast.append((question, answer, float(rng.integers(4)) / 4))
        key = np.array([[answer, 7]], dtype=np.uint64)
        votes.add(np.array([question]), key, np.array([cast[-1][2]]), np.full((1, 4), answer, dtype=np.uint8))
    answers = votes.answers()
    for question in range(3):
        table: dict[int, list[float]] = {}
        for asked, answer, confidence in cast:
            if asked == question:
                table.setdefault(answer, []).append(confidence)
        ranking = sorted(table, key=lambda a: (len(table[a]), sum(table[a]) / len(table[a])), reverse=True)
        mine = np.flatnonzero(answers.question == question)
        assert answers.key[mine, 0].tolist() == ranking
        assert answers.votes[mine].tolist() == [len(table[a]) for a in ranking]
        assert (answers.grid[mine][:2] >= 0).all()
        assert (answers.grid[mine][2:] == -1).all()
        assert [int(answers.grids[place][0]) for place in answers.grid[mine][:2]] == ranking[:2]
    assert len(answers.grids) == 6


def test_a_second_choice_stands_behind_every_answer_that_got_a_vote() -> None:
    votes = Votes(length=4, keep=2)

    def cast(answer: int, confidence: float, **how: bool) -> None:
        key = np.array([[answer, answer]], dtype=np.uint64)
        grid = np.full((1, 4), answer, dtype=np.uint8)
        votes.add(np.array([7]), key, np.array([confidence]), grid, **how)

    for _ in range(3):
        cast(1, 0.9, second=True)
    cast(2, 0.1)
    cast(3, 0.2, second=True)
    answers = votes.answers()
    assert answers.key[:, 0].tolist() == [2, 1, 3]
    assert answers.votes.tolist() == [1, 0, 0]
    assert answers.confidence.tolist() == [0.1, 0.0, 0.0]
    assert answers.grids[answers.grid[:2]][:, 0].tolist() == [2, 1]
    cast(3, 0.4)
    cast(3, 0.4)
    answers = votes.answers()
    assert (answers.key[:, 0].tolist(), answers.votes.tolist()) == ([3, 2, 1], [2, 1, 0])
