"""The page and the film, read back: what a browser would be given, and what it shows after the keys of a reader."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from reports.page import COLOURS
from tests.viewer.test_trajectory import SOLUTION, trajectory
from viewer import picture as still
from viewer.animation import HOLD_MS, MAX_EXAMPLES, MAX_WIDTH, STEP_MS, animation_capacity, draw_animation, draw_frame
from viewer.cards import LEVELS
from viewer.output import MARK
from viewer.page import COLOURS as BOARD_COLOURS, FIRST, MAX_BYTES, draw_page, page_capacity
from viewer.trajectory import Headline, Trajectory, cropped, layout_of

WORDS = Headline("project/<run>", "what", (("Run", "project/<run>"), ("Data", "a & b")))
THOUGHTS = [trajectory(3, 6, 9, 16, q_halt=(0.1, 0.3, 0.9)), trajectory(7, 5, 12, 15)]


class Reader(HTMLParser):
    """Collects the cells of each answer and all attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.boards: list[list[tuple[str, str]]] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.links += [given[name] for name in ("src", "href", "action", "srcset") if name in given]
        if tag == "table":
            self.boards.append([])
        elif tag == "td":
            self.boards[-1].append((given.get("class", ""), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td" and data.strip():
            self.boards[-1][-1] = (self.boards[-1][-1][0], data.strip())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def data_of(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match
    return json.loads(match[1])


def test_page_holds_every_step_of_every_example() -> None:
    page = draw_page(THOUGHTS, WORDS)
    data = data_of(page)
    assert len(data["examples"]) == 2
    for example, one in zip(data["examples"], THOUGHTS, strict=True):
        answers = np.array([[ord(cell) - FIRST for cell in step] for step in example["answers"]])
        assert (answers == one.answers).all()
        assert [ord(cell) - FIRST for cell in example["labels"]] == SOLUTION.tolist()
        assert example["kind"] == "g" * 6 + "f" * 10
        assert {ord(cell) - FIRST for step in example["sure"] for cell in step} == {round(0.75 * LEVELS)}
    assert data["examples"][0]["halt"] == [0.1, 0.3, 0.9]
    assert data["examples"][0]["found"] == [0, 3, 10]
    assert data["examples"][1]["wrong"] == [11, 4, 1]


def test_page_shows_the_last_step_without_javascript() -> None:
    reader = read(draw_page(THOUGHTS, WORDS))
    first, second = reader.boards[-2:]
    assert [symbol for _, symbol in first] == [str(token - 1) for token in SOLUTION]
    assert [classes for classes, _ in first] == ["g"] * 6 + ["r"] * 3 + ["r c"] * 7
    assert second[15][0] == "w"
    wrong_clue = read(draw_page([trajectory(0, 3)], WORDS)).boards[-1]
    assert wrong_clue[4][0] == "w g"


def test_page_loads_nothing() -> None:
    page = draw_page(THOUGHTS, WORDS)
    assert read(page).links == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|<link[^>]*stylesheet|import\(", page)
    assert "default-src 'none'" in page
    assert MARK in page.encode()[:8192]


def test_names_are_escaped() -> None:
    page = draw_page(THOUGHTS, WORDS)
    assert "project/&lt;run&gt;" in page
    assert "<run>" not in page
    assert "a &amp; b" in page


def test_controls_are_there_and_named() -> None:
    page = draw_page(THOUGHTS, WORDS)
    for control in ("back", "play", "on", "step", "solution", "theme"):
        assert f'id="{control}"' in page
    assert 'type="range" min="1" max="3"' in page
    assert "Solved 1" in page
    assert "Not solved 1" in page
    script = page[page.rindex("<script>") :]
    for key in ("ArrowLeft", "ArrowRight", "Home", "End"):
        assert key in script


def relative_luminance(colour: str) -> float:
    parts = [value / 255 for value in ImageColor.getrgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [("ink", "card"), ("muted", "page"), ("ink", "given"), ("right-note", "card"), ("wrong-mark", "card")],
)
def test_text_can_be_read_in_both_themes(ink: str, ground: str, mode: int) -> None:
    """WCAG 2.2, contrast (minimum): 4.5 to 1."""
    light, dark = sorted(
        (relative_luminance({**COLOURS, **BOARD_COLOURS}[name][mode]) for name in (ink, ground)), reverse=True
    )
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def arc(side: int, out: int) -> Trajectory:
    canvas = np.zeros((2, 30, 30), int)
    canvas[0, :side, :side], canvas[1, :out, :out] = 4, 7
    inputs, labels = canvas.reshape(2, 900)
    answers = np.stack([inputs, labels])
    return cropped(
        0, layout_of(900, 12), inputs, np.where(labels, labels, -100), answers, np.array([0.1, 0.9]), answers / 12
    )


def test_arc_cards_show_puzzle_and_answer_of_their_own_size() -> None:
    page = draw_page([arc(3, 5), arc(4, 2)], WORDS)
    boards = read(page).boards[-4:]
    assert [len(board) for board in boards] == [25, 25, 16, 16]
    assert boards[0][0] == ("t4", "2")
    assert boards[1][0] == ("r c t7", "5")
    assert ".board .t7{background-color:#aaaaaa" in page  # token 7 is colour 5, grey


def test_a_full_page_is_as_large_as_said() -> None:
    layout = layout_of(81, 11)
    cells = np.full((16, 81), 5)
    example = cropped(0, layout, cells[0], cells[0], cells, np.zeros(16), np.ones(cells.shape))
    size = len(draw_page([example] * 20, WORDS)) - len(draw_page([example], WORDS))
    assert size / 19 * page_capacity(layout, 16) < MAX_BYTES * 1.1
    assert page_capacity(layout, 16) >= 300


def frames(film: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(film)) as image:
        images = []
        for number in range(image.n_frames):
            image.seek(number)
            images.append(image.convert("RGB"))
            assert image.info["duration"] == (HOLD_MS if number == image.n_frames - 1 else STEP_MS)
        assert image.info["loop"] == 0
    return images


def test_film_has_a_frame_for_each_step() -> None:
    film = draw_animation(THOUGHTS, WORDS)
    assert MARK in film[:8192]
    shots = frames(film)
    assert len(shots) == 3
    assert len({shot.size for shot in shots}) == 1
    assert len({shot.tobytes() for shot in shots}) == 3
    colour = ImageColor.getrgb(still.WRONG)

    def boards(shot: Image.Image) -> np.ndarray:
        return (np.asarray(shot)[150:-100] == colour).all(axis=-1).sum()

    assert boards(shots[0]) > boards(shots[1]) > boards(shots[2]) > 0
    assert len(frames(draw_animation([trajectory(0, 16)], WORDS))) == 1


@pytest.mark.parametrize("example", [THOUGHTS[0], arc(20, 30)], ids=["sudoku", "arc"])
def test_a_full_film_keeps_to_a_size(example: Trajectory) -> None:
    shot = draw_frame([example] * MAX_EXAMPLES, WORDS, 0)
    assert shot.width <= 1.5 * (MAX_WIDTH + 2 * still.MARGIN)
    assert shot.height <= 4000
    assert animation_capacity(16) == MAX_EXAMPLES
    assert animation_capacity(1000) == 0


KEYS = """<script>
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
document.dispatchEvent = ((send) => (event) => send.call(document.body, event))(document.body.dispatchEvent);
for (const key of KEYS) press(key);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("keys", "says", "classes"),
    [
        (["Home"], "step 1 of 3 · 0 of 2 boards right", ["g"] * 6 + ["w"] * 10),
        (["Home", "ArrowRight"], "step 2 of 3 · 0 of 2 boards right", ["g"] * 6 + ["r c"] * 3 + ["w"] * 7),
        (["Home", "End"], "step 3 of 3 · 1 of 2 boards right", ["g"] * 6 + ["r"] * 3 + ["r c"] * 7),
        (["Home", "s"], "step 1 of 3 · 0 of 2 boards right", ["g"] * 6 + ["r"] * 10),
    ],
)
def test_keys_in_a_browser(tmp_path: Path, keys: list[str], says: str, classes: list[str]) -> None:
    page = draw_page(THOUGHTS, WORDS).replace("</body>", KEYS.replace("KEYS", json.dumps(keys)))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=500",
            "--dump-dom",
            f"file://{tmp_path / 'page.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f">{says}</output>" in done.stdout
    assert [classes_of for classes_of, _ in read(done.stdout).boards[-2]] == classes
