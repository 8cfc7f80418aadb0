"""Tasks with attempts as text, picture and page, and records that are not records."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from rich.console import Console

from engine.errors import UsageError
from tests.conftest import run_script
from viewer.gallery import draw_gallery
from viewer.run_pictures import draw_last_tasks
from viewer.task_picture import MARGIN, cell_of, columns_of, draw_tasks, print_tasks
from viewer.tasks import Record, read_record, record_from
from viewer.trajectory import ARC

RIGHT, WRONG = [[1, 2], [3, 0]], [[9]]


def content(**changes) -> dict:
    answers = [
        {"grid": WRONG, "votes": 3, "confidence": 0.5, "right": False},
        {"grid": RIGHT, "votes": 2, "confidence": 0.9, "right": True},
        {"grid": [], "votes": 1, "confidence": 0.1, "right": False},
    ]
    test = {"input": [[0, 1, 2]], "output": RIGHT, "votes": 6, "answers": answers}
    shown = [{"input": [[4]], "output": [[5, 6]]}]
    unseen = {"input": [[7]], "votes": 0, "answers": []}
    tasks = {
        "one": {"train": shown, "test": [test], "solved": True},
        "two": {"train": shown, "test": [{**test, "answers": answers[2:]}, unseen], "solved": False},
        "three": {"train": shown, "test": [unseen], "solved": None},
    }
    return {"attempts": 2, "meaning": "class <iii>", "scores": {"x/pass@2": 0.5}, "tasks": tasks, **changes}


@pytest.fixture
def record() -> Record:
    return record_from(content(), "here")


def test_verdicts_and_columns(record: Record) -> None:
    assert [task.verdict for task in record.tasks] == ["solved", "not solved", "solution not known"]
    captions = [[caption for caption, _, _ in column] for column in columns_of(record.tasks[0])]
    attempts = ["attempt 1: 3 of 6 votes, wrong", "attempt 2: 2 of 6 votes, right"]
    assert captions == [["example 1", "output"], ["test", "solution"], attempts]
    assert columns_of(record.tasks[1])[2][0][0] == "attempt 1: 1 of 6 votes, wrong (no grid)"
    assert columns_of(record.tasks[2])[-1][0][0] == "no answer"


def test_the_picture_has_the_colours_of_the_grids(record: Record) -> None:
    picture = np.asarray(draw_tasks(record, "title"))
    seen = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}
    assert {ImageColor.getrgb(ARC[colour][0]) for colour in (0, 1, 2, 3, 4, 5, 6, 7, 9)} <= seen
    assert ImageColor.getrgb(ARC[8][0]) not in seen
    assert picture.shape[1] / 2 > MARGIN + 3 * cell_of(record.tasks[0])


def test_text_shows_every_grid_with_its_digits(record: Record) -> None:
    stream = io.StringIO()
    print_tasks(Console(file=stream, color_system=None, width=100), record.tasks[:1])
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert "0 1 2    9                                1 2                              1 2" in lines
    coloured = io.StringIO()
    print_tasks(Console(file=coloured, force_terminal=True, color_system="truecolor", width=100), record.tasks[:1])
    assert "m2 \x1b[0m" in coloured.getvalue()  # the cell on the right has its full width


def test_the_page_has_every_task_and_filters(record: Record) -> None:
    page = draw_gallery(record, "a & b", [("Protocol", record.meaning)])
    assert re.findall(r'<article id="task-(\w+)" data-solved="(\w+)"', page) == [
        ("one", "yes"),
        ("two", "no"),
        ("three", "unknown"),
    ]
    assert re.findall(r'data-show="(\w+)" aria-pressed="\w+">', page) == ["all", "yes", "no", "unknown"]
    assert "class &lt;iii&gt;" in page
    assert "a &amp; b" in page
    match = re.search(r'width="(\d+)" height="(\d+)" src="data:image/png;base64,([^"]+)" alt="12\n30"', page)
    assert match is not None
    image = Image.open(io.BytesIO(b64decode(match[3]))).convert("RGB")
    assert image.size == (int(match[1]), int(match[2])) == (29, 29)
    assert [image.getpixel((x, y)) for y in (7, 21) for x in (7, 21)] == [
        ImageColor.getrgb(ARC[colour][0]) for colour in (1, 2, 3, 0)
    ]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("{", "not valid JSON|JSON"),
        ("[]", "is not a record of tasks"),
        (json.dumps({"tasks": {}, "attempts": 2}), "holds no tasks"),
        (json.dumps(content(attempts=0)), "attempts must be a whole number from 1, got 0"),
        (json.dumps(content(tasks={"odd": {"train": []}})), "task odd is damaged"),
        (json.dumps(content()).replace("[[9]]", "[[10]]"), "task one is damaged"),
        (json.dumps(content()).replace("[[4]]", "[[4], [1, 2]]"), "task one is damaged"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, stored: str, message: str) -> None:
    (tmp_path / "record.json").write_text(stored)
    with pytest.raises(UsageError, match=message):
        read_record(tmp_path / "record.json")


def test_the_command_prints_and_draws(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps(content()))
    printed = run_script("scripts/visualize", "tasks.json", cwd=tmp_path)
    assert printed.code == 0, printed.output
    assert "tasks: 3 tasks, 1 solved" in printed.output
    for name in ("tasks.html", "tasks.png"):
        drawn = run_script("scripts/visualize", "tasks.json", "--out", name, cwd=tmp_path)
        assert drawn.code == 0, drawn.output
        assert "class <iii>" in drawn.output
        assert (tmp_path / name).is_file()
    for words, message in (
        (["--out", "x.gif"], "drawn as .png or .html"),
        (["--steps", "3"], "--steps has no meaning"),
    ):
        refused = run_script("scripts/visualize", "tasks.json", *words, cwd=tmp_path)
        assert (refused.code, refused.output.count("\n")) == (2, 1)
        assert message in refused.output


def test_a_report_shows_the_tasks_of_the_last_evaluation(tmp_path: Path) -> None:
    assert draw_last_tasks(tmp_path) is None
    (tmp_path / "evaluations").mkdir()
    for step, name in ((900, "arc_tasks"), (1000, "arc_tasks"), (2000, "arc_submission")):
        (tmp_path / f"evaluations/step_{step}_{name}.json").write_text(json.dumps(content()))
    drawing = draw_last_tasks(tmp_path)
    assert drawing is not None
    assert drawing[0] == "step 1000 arc tasks"
    assert Image.open(io.BytesIO(drawing[1])).format == "PNG"
    (tmp_path / "evaluations/step_3000_arc_tasks.json").write_text("{")
    with pytest.raises(UsageError, match="step_3000_arc_tasks"):
        draw_last_tasks(tmp_path)
