"""Files of before and after."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from dataset.text.pets import in_grammar
from engine.errors import UsageError
from tasks.animal.comparison import read_samples
from tasks.animal.embedder import HashEmbedder
from tasks.animal.evaluation import Evaluation
from tasks.animal.pages import reports, rows
from tests.animal.test_evaluation import sample, sentences

pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")
FACTS = {"model": "data/animal_lm", "prompt": "<b>dog</b> or cat;", "loss": "0.8 concept + 0.2 open block"}


@pytest.fixture(scope="module")
def files() -> dict[str, str | bytes]:
    before = sentences(120)
    figures = Evaluation(HashEmbedder(), ["cat", "dog"], n_clusters=5, checker=in_grammar)
    figures.fit(before)
    after = [*sentences(118, cats=0.5, stream="after"), sample("a | pipe\nand <i>tags</i>"), sample("")]
    return reports(figures, before, after, facts=FACTS)


def test_figures_and_samples_are_there_to_be_read_again(files: dict[str, str | bytes]) -> None:
    before, after = (json.loads(files[f"eval_{when}.json"]) for when in ("before", "after"))
    assert (before["samples"], after["samples"]) == (120, 120)
    assert after["v_eff"] > before["v_eff"]
    assert after["in_grammar"] == pytest.approx(118 / 120)
    lines = str(files["eval_samples_after.jsonl"]).splitlines()
    assert len(lines) == 120
    assert json.loads(lines[-2])["text"] == "a | pipe\nand <i>tags</i>"
    names = [name for name, *_ in rows(before, after)]
    assert len(names) == len(set(names))
    assert {"option_share_cat", "cluster_kl_dog", "concept_kl"} <= set(names)


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\r"])
def test_samples_with_any_line_separator_are_read_again(tmp_path: Path, separator: str) -> None:
    before = [sample(f"cats{separator}dogs"), sample("dogs")]
    figures = Evaluation(HashEmbedder(), ["cat", "dog"], n_clusters=2)
    written = reports(figures, before, None, facts=FACTS)
    (file := tmp_path / "samples.jsonl").write_text(str(written["eval_samples_before.jsonl"]), encoding="utf-8")
    assert read_samples(file) == before
    file.write_text("")
    with pytest.raises(UsageError, match=r"samples\.jsonl is empty"):
        read_samples(file)


def test_table_and_page_hold_texts_as_texts(files: dict[str, str | bytes]) -> None:
    table, page = str(files["report.md"]), str(files["report.html"])
    assert "| v_eff " in table
    assert "<b>dog</b>" not in page
    assert "&lt;b&gt;dog&lt;/b&gt; or cat;" in page
    assert 'src="data:image/png;base64,' in page
    assert "Samples after" in page


def test_the_picture_opens(files: dict[str, str | bytes]) -> None:
    picture = Image.open(io.BytesIO(files["before_after.png"]))
    assert picture.size[0] > 1000
    assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 3


def test_before_training_there_is_no_after() -> None:
    before = sentences(20)
    figures = Evaluation(HashEmbedder(), ["cat", "dog"], n_clusters=2)
    figures.fit(before)
    assert set(reports(figures, before, None, facts=FACTS)) == {"eval_before.json", "eval_samples_before.jsonl"}
