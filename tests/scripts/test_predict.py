"""scripts/predict.py on a tiny run, and an evaluation that is killed and made again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.recursive_reasoning.prediction import mean_row
from tests.conftest import Result, run_forked, run_script
from tests.evaluators.arc_data import make_tasks
from tests.viewer.test_tasks import content as other_record

RUN = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "data_paths=[data]",
    "verify=off",
    "max_steps=3",
    "run_name=tiny",
    "project_name=arc",
    "evaluators=[{name: arc@ARC}]",
    "arch.hidden_size=16",
    "arch.num_heads=2",
    "arch.mlp_t=false",
    "arch.pos_encodings=rope",
    "arch.puzzle_emb_ndim=16",
    "arch.puzzle_emb_len=1",
    "eval_max_examples=null",
    "final_eval_max_examples=null",
)
RUN_DIR = "checkpoints/arc/tiny"


def build_data(folder: Path) -> None:
    from dataset.build_arc_dataset import main

    tasks = make_tasks(np.random.default_rng(4), 6)
    for name, task in tasks.items():
        place = folder / "tasks" / ("evaluation" if name in ("task0", "task2") else "training") / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(task))
    arguments = ["--dataset-dirs", str(folder / "tasks"), "--num-aug", "3", "--canvas", "6"]
    main([*arguments, "--output-dir", str(folder / "data"), "--workers", "1"])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    assert run_forked(build_data, folder, cwd=folder).code == 0
    trained = run_script("pretrain", *RUN, cwd=folder)
    assert trained.code == 0, trained.output
    unseen = make_tasks(np.random.default_rng(5), 3)["task1"]
    del unseen["test"][1]["output"]
    (folder / "unseen.json").write_text(json.dumps(unseen))
    return folder


def predict(folder: Path, task: str, *words: str, run: str = RUN_DIR) -> Result:
    small = ("--device", "cpu", "--augmentations", "2", "--steps", "2", "--batch-size", "4")
    return run_script("scripts/predict", run, task, *small, *words, cwd=folder)


def test_a_task_is_printed_written_and_drawn(workplace: Path) -> None:
    result = predict(workplace, "unseen.json")
    assert result.code == 0, result.output
    assert "protocol class (ii), test-time training" in result.output
    assert "unseen: solution not known" in result.output  # of one of its two tests
    record = json.loads((workplace / "unseen_prediction.json").read_text())
    assert (record["protocol"], record["leakage"]) == ("ii", "clean")
    assert [test["votes"] for test in record["tasks"]["unseen"]["test"]] == [3, 3]
    assert record["fit"]["copies"] == 3
    with Image.open(workplace / "unseen_prediction.png") as picture:
        assert picture.width > 400
    shown = run_script("scripts/visualize", "unseen_prediction.json", cwd=workplace)
    assert "protocol class (ii)" in shown.output
    assert predict(workplace, "unseen.json", "--adapt", "full", "--lr", "1e-3").code == 0  # its own files are replaced


def test_only_what_is_asked_for_is_trained(workplace: Path, tmp_path: Path) -> None:
    """Without steps the answers are those of the mean embedding; the run itself is never touched."""
    before = {path: path.read_bytes() for path in (workplace / RUN_DIR / "checkpoints").rglob("*") if path.is_file()}
    out = str(tmp_path / "new" / "answer.json")
    result = predict(workplace, "unseen.json", "--steps", "0", "--act-steps", "3", "--out", out)
    assert result.code == 0, result.output
    assert "step " not in result.output
    assert json.loads(Path(out).read_text())["fit"]["steps"] == 0
    assert json.loads(Path(out).read_text())["fit"]["act_steps"] == 3
    assert {path: path.read_bytes() for path in before} == before


def test_the_budget_of_the_training_is_not_that_of_the_fit(workplace: Path, tmp_path: Path) -> None:
    short = ("max_seconds=1e-9", "total_steps=2", "stats_interval=1", "run_name=short")
    words = [word for word in RUN if word != "run_name=tiny"]
    trained = run_script("pretrain", *words, *short, cwd=workplace)
    assert "max_seconds=1e-09 is up" in trained.output, trained.output
    out = str(tmp_path / "answer.json")
    result = predict(workplace, "unseen.json", "--steps", "3", "--out", out, run="checkpoints/arc/short")
    assert result.code == 0, result.output
    assert "step 3/3" in result.output
    assert "max_seconds" not in result.output


@pytest.mark.parametrize(("task", "leakage"), [("training/task1", "leak"), ("evaluation/task0", "clean")])
def test_a_task_that_was_trained_on_says_so(workplace: Path, tmp_path: Path, task: str, leakage: str) -> None:
    """Of an evaluated task only the demonstrations were trained on, of a training task the tests too. Turned around
    and recoloured it is the same task."""
    changed = json.loads((workplace / f"tasks/{task}.json").read_text())
    for pair in (*changed["train"], *changed["test"]):
        for kind, grid in pair.items():
            pair[kind] = np.rot90((np.array(grid) * 7) % 10).tolist()
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    for path in (f"tasks/{task}.json", str(tmp_path / "changed.json")):
        result = predict(workplace, path, "--out", str(tmp_path / "seen.json"))
        assert result.code == 0, result.output
        assert "note: demonstrations of" in result.output
        assert ("note: tests of" in result.output) is (leakage == "leak")
        assert "protocol class (iii)" in result.output
        assert json.loads((tmp_path / "seen.json").read_text())["leakage"] == leakage


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{", "bad.json"),
        ({"train": [], "test": []}, "task bad has no demonstrations"),
        ({"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{"input": [[1]]}]}, "row 1 has 2 cells"),
        ({"train": [{"input": [[10]], "output": [[1]]}], "test": [{"input": [[1]]}]}, "holds 10, expected"),
        ({"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1] * 7]}]}, "does not fit the canvas"),
        ({"train": [{"input": [[1] * 31], "output": [[1]]}], "test": [{"input": [[1]]}]}, "at most 30x30"),
        (None, "bad.json"),
    ],
)
def test_bad_tasks_end_with_one_line(workplace: Path, tmp_path: Path, task, message: str) -> None:
    if task is not None:
        (tmp_path / "bad.json").write_text(task if isinstance(task, str) else json.dumps(task))
    result = predict(workplace, str(tmp_path / "bad.json"), "--out", str(tmp_path / "x.json"))
    assert (result.code, result.output.count("\n")) == (2, 1), result.output
    assert message in result.output
    assert not (tmp_path / "x.json").exists()


def test_files_of_others_are_left_alone(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[1]")
    (tmp_path / "ours.json").write_text(json.dumps(other_record()))
    (tmp_path / "ours.png").write_bytes(b"a photo")
    for name in ("mine", "ours"):
        result = predict(workplace, "unseen.json", "--out", str(tmp_path / f"{name}.json"))
        assert (result.code, result.output.count("\n")) == (2, 1), result.output
    assert (tmp_path / "mine.json").read_text() == "[1]"
    assert (tmp_path / "ours.png").read_bytes() == b"a photo"


def test_other_runs_and_words_are_refused(workplace: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--lr", "1"), "only --adapt full trains"),
        (("--out", "x.txt"), "a name that ends in .json"),
        (("--embedding-lr", "-1"), "expected a number from 0"),
        (("--canvas", "31"), "--canvas must be 1 to 30"),
        (("--out", "unseen.json/x.json"), "unseen.json is not a folder"),
    ):
        result = predict(workplace, "unseen.json", *words)
        assert result.code == 2
        assert message in result.output
    missing = predict(workplace, "unseen.json", run="nowhere")
    assert (missing.code, missing.output.count("\n")) == (2, 1)


def test_the_mean_is_of_trained_rows() -> None:
    table = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    assert mean_row(table).tolist() == [[2.0, 1.0]]
    assert mean_row(table[:1]).tolist() == [[0.0, 0.0]]


# --- what is evaluated ------------------------------------------------------------------------------------------------


def test_keys_and_flags_bound_an_evaluation(workplace: Path) -> None:
    """The test split has 2 tasks with 1 and 3 test grids, each task with 3 copies beside itself."""
    argv = (*RUN, "run_name=bounded", "epochs=8", "eval_interval=1", "max_steps=null", "select_on=test")
    run = run_script("pretrain", *argv, "eval_max_augmentations=1", "final_eval_max_augmentations=2", cwd=workplace)
    assert run.code == 0, run.output
    votes = [
        line.split(" tasks, ")[1] for line in run.output.splitlines() if line.startswith("ARC ") and "votes" in line
    ]
    assert votes[-1] == "8 votes"
    assert set(votes[:-1]) == {"4 votes"}
    flags = ("--max-groups", "1", "--max-augmentations", "3", "--device", "cpu")
    bounded = run_script("scripts/evaluate", RUN_DIR, *flags, cwd=workplace)
    assert bounded.code == 0, bounded.output
    assert "; 1 of 2 tasks, 3 votes" in bounded.output or "; 1 of 2 tasks, 9 votes" in bounded.output
    left = {path.name for path in (workplace / RUN_DIR).glob("evaluation_step_3_tasks-1_aug-3*")}
    assert left == {
        f"evaluation_step_3_tasks-1_aug-3{end}" for end in (".json", "_arc_tasks.json", "_arc_submission.json")
    }


# --- an evaluation that is killed -------------------------------------------------------------------------------------


def _killed_while_evaluating(argv: tuple[str, ...]) -> None:
    from evaluators.arc import ARC
    from tests.conftest import _entry

    update, calls = ARC.update, []

    def dying(self, *args):
        update(self, *args)
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    ARC.update = dying
    _entry("pretrain", list(argv))


def test_a_killed_evaluation_is_made_again_as_if_nothing_had_happened(workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(workplace / "data")
    argv = (*RUN, "checkpoint_interval=1")
    killed = run_forked(_killed_while_evaluating, argv, cwd=tmp_path)
    assert killed.code == -signal.SIGKILL
    files = tmp_path / RUN_DIR / "evaluations"
    assert not files.exists()
    resumed = run_script("pretrain", *argv, cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    whole = workplace / RUN_DIR / "evaluations"
    assert sorted(path.name for path in files.iterdir()) == [
        "step_3_arc_submission.json",
        "step_3_arc_tasks.json",
    ]
    for path in files.iterdir():
        assert path.read_text() == (whole / path.name).read_text()
