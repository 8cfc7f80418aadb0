"""Both scripts on a real, tiny run: trained here, examined from another folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reports.overview.collect import collect
from tests.conftest import run_script
from viewer.output import check_target
from viewer.run_pictures import draw_missing

STEP = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    done = run_script(
        "pretrain",
        "--config-name=cfg_pretrain_sudoku_4x4",
        "+debug=tiny",
        "device=cpu",
        f"max_steps={STEP}",
        "lr=0.01",
        "lr_warmup_steps=0",
        "project_name=p",
        "run_name=r",
        cwd=home,
    )
    assert done.code == 0, done.output
    return home / "checkpoints/p/r"


def results(file: Path) -> dict:
    return json.loads(file.read_text())


def test_evaluation_repeats_that_of_the_run(run: Path, tmp_path: Path) -> None:
    shown = run_script("scripts/evaluate", str(run), "--device", "cpu", cwd=tmp_path)
    assert shown.code == 0, shown.output
    written = results(run / f"evaluation_step_{STEP}.json")
    trained = results(run / "summary.json")["results"]
    assert {f"eval/{name}": value for name, value in written["results"].items() if f"eval/{name}" in trained} == trained
    assert written["results"]["accuracy/step_02"] == pytest.approx(trained["eval/accuracy"])
    assert written["settings"]["weights"] == "ema"
    card = results(run.parents[2] / "data/debug-sudoku-4x4/card.json")
    assert written["settings"]["data"][0]["content_hash"] == card["content_hash"]
    assert f"step {STEP}, ema weights" in shown.output
    assert f"{100 * trained['eval/accuracy']:.2f} %" in shown.output
    assert card["content_hash"][:12] in shown.output
    assert not list(tmp_path.iterdir())  # nothing is built or written where the user stands


def test_latched_halting_of_a_run_that_was_evaluated_without(run: Path) -> None:
    shown = run_script("scripts/evaluate", str(run), "--device", "cpu", "--halting", "latched")
    assert shown.code == 0, shown.output
    written = results(run / f"evaluation_step_{STEP}_latched.json")
    assert written["settings"]["halting"] == "latched"
    assert 1 <= written["results"]["steps"] <= 2
    assert f"latched, {written['results']['steps']:.2f} of 2 steps" in shown.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["scripts/evaluate", "scripts/visualize"])
def test_a_gpu_that_is_not_here_is_refused(run: Path, tmp_path: Path, script: str) -> None:
    shown = run_script(script, str(run), "--device", "cuda:7", cwd=tmp_path)
    assert shown.code == 2
    assert shown.output.splitlines()[-1].startswith("error: device=cuda:7: ")
    assert not list(tmp_path.iterdir())


def test_other_settings(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    asked = ["--steps", "5", "--weights", "raw", "--split", "train", "--max-examples", "10"]
    more = ["--batch-size", "3", "--json", "deep.json"]
    shown = run_script("scripts/evaluate", f"{run}/checkpoints/step_{STEP}", *asked, *more, cwd=tmp_path)
    assert shown.code == 0, shown.output
    written = results(file)
    assert written["results"]["examples"] == 10
    assert "exact_accuracy/step_05" in written["results"]
    assert written["results"]["accuracy/step_05"] == pytest.approx(written["results"]["accuracy"])
    assert written["settings"]["split"] == "train"
    assert written["settings"]["weights"] == "raw"
    again = run_script("scripts/evaluate", str(run), *asked, "--json", str(tmp_path / "again.json"))
    assert again.code == 0, again.output
    # The subset and the numbers do not depend on the batch size, up to rounding in sums.
    assert results(tmp_path / "again.json")["results"] == pytest.approx(written["results"], rel=1e-5)
    assert "more than there are" not in again.output
    all_of_them = run_script(
        "scripts/evaluate", str(run), "--max-examples", "5000", "--json", str(tmp_path / "all.json")
    )
    assert "note: --max-examples 5000 is more than there are: all were taken" in all_of_them.output


def test_rollouts(run: Path, tmp_path: Path) -> None:
    asked = ["scripts/evaluate", str(run), "--device", "cpu", "--max-examples", "7"]
    shown = run_script(*asked, "--rollouts", "3", "--vary", "symmetry", "--select", "first")
    assert shown.code == 0, shown.output
    file = run / f"evaluation_step_{STEP}_examples-7_rollouts-3_symmetry_first.json"
    written = results(file)
    kept = {(row["rule"], row["rollouts"], row["steps"]): row for row in written["rollouts"]}
    assert kept["oracle", 1, 2]["exact"] == written["results"]["exact_accuracy"] == written["results"]["rollouts/plain"]
    assert kept["first", 3, 2]["exact"] == written["results"]["rollouts/exact_accuracy"]
    assert written["settings"]["rollouts"]["vary"] == "symmetry"
    assert "first chooses" in shown.output
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.format == "PNG"


def test_rollouts_left_to_the_defaults_vote_over_symmetries(run: Path) -> None:
    shown = run_script("scripts/evaluate", str(run), "--device", "cpu", "--max-examples", "7", "--rollouts", "3")
    assert shown.code == 0, shown.output
    written = results(run / f"evaluation_step_{STEP}_examples-7_rollouts-3.json")
    chosen = written["settings"]["rollouts"]
    assert (chosen["vary"], chosen["select"]) == ("symmetry", "vote")
    worse = written["results"]["rollouts/exact_accuracy"] < written["results"]["rollouts/plain"]
    assert ("below the model's own answer" in shown.output) == worse


@pytest.mark.parametrize("target", ["shown.png", "folder", "file/x.json", "/proc/x.json"])
def test_a_result_that_cannot_be_written_is_refused_before_the_work(run: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for more in ((), ("--rollouts", "2")):
        shown = run_script("scripts/evaluate", str(run), "--device", "cpu", "--json", target, *more, cwd=tmp_path)
        assert shown.code == 2
        (line,) = shown.output.splitlines()
        assert line.startswith("error: ")
        assert target in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_picture_and_text(run: Path, tmp_path: Path) -> None:
    shown = run_script("scripts/visualize", str(run), "--examples", "3", "--steps", "4", cwd=tmp_path)
    assert shown.code == 0, shown.output
    assert shown.output.count("cells to find") == 3
    assert "of 16 examined" in shown.output
    with Image.open(run / f"thinking_step_{STEP}_steps-4.png") as picture:
        assert min(picture.size) > 400
    one = run_script("scripts/visualize", str(run), "--example", "15", "--out", "one.png", "--no-color", cwd=tmp_path)
    assert one.code == 0, one.output
    assert "example 15:" in one.output
    assert (tmp_path / "one.png").is_file()


def test_page_film_and_terminal(run: Path, tmp_path: Path) -> None:
    page = run_script("scripts/visualize", str(run), "--out", "page.html", "--split", "train", cwd=tmp_path)
    assert page.code == 0, page.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<article ") == 32
    assert "train split" in text
    assert "cells to find" not in page.output  # 32 boards are for the page
    film = run_script("scripts/visualize", str(run), "--out", "film.gif", "--steps", "3", cwd=tmp_path)
    assert film.code == 0, film.output
    with Image.open(tmp_path / "film.gif") as image:
        assert (image.format, image.n_frames) == ("GIF", 3)
    for own in ("page.html", "film.gif"):
        check_target(tmp_path / own)  # may be drawn again
    shown = run_script("scripts/visualize", str(run), "--terminal", "--examples", "10", "--steps", "3", cwd=tmp_path)
    assert shown.code == 0, shown.output
    assert shown.output.count("cells to find") == 10
    assert shown.output.count("step 3 ") + shown.output.count("step 3\n") >= 10
    assert "written" not in shown.output


def test_pictures_of_other_settings_have_other_names(run: Path) -> None:
    done = run_script(
        "scripts/visualize", str(run), "--split", "train", "--weights", "raw", "--example", "3", "--steps", "5"
    )
    assert done.code == 0, done.output
    assert (run / f"thinking_step_{STEP}_train_example-3_steps-5_raw.png").is_file()


def test_a_file_that_is_no_drawing_is_kept(run: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter.html"
    letter.write_text("<p>dear all</p>")
    refused = run_script("scripts/visualize", str(run), "--out", "letter.html", cwd=tmp_path)
    assert refused.code == 2, refused.output
    assert "letter.html exists and is not a drawing" in refused.output
    assert letter.read_text() == "<p>dear all</p>"


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        ("visualize", ["--example", "16"], "examples 0 to 15"),
        ("visualize", ["--data", "nowhere"], "nowhere"),
        ("visualize", ["--examples", "300"], "holds at most"),
        ("visualize", ["--examples", "300", "--out", "film.gif"], "a .gif of 4x4 boards over 2 steps holds at most 16"),
        ("visualize", ["--examples", "9999", "--out", "page.html"], "holds at most 500"),
        ("visualize", ["--steps", "100", "--out", "film.gif"], "--steps 100: a .gif has no room"),
        ("visualize", ["--out", "/proc/no/such/page.html"], "page.html cannot be written"),
        ("evaluate", ["--device", "abacus"], "abacus"),
        ("evaluate", ["--json", "/proc/no/such.json"], "--json"),
    ],
)
def test_what_cannot_be_used_exits_2(run: Path, script: str, argv: list[str], says: str, tmp_path: Path) -> None:
    shown = run_script(f"scripts/{script}", str(run), *argv, cwd=tmp_path)
    assert shown.code == 2, shown.output
    last = shown.output.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in shown.output


def test_a_run_without_averages_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "p" / "copy"
    shutil.copytree(run, copy, symlinks=True)
    checkpoint = copy / f"checkpoints/step_{STEP}"
    from engine.io import atomic_write_json, sha256_json

    manifest = results(checkpoint / "manifest.json")
    del manifest["files"]["ema.safetensors"], manifest["sha256"]
    (checkpoint / "ema.safetensors").unlink()
    atomic_write_json(checkpoint / "manifest.json", {**manifest, "sha256": sha256_json(manifest)})
    asked = run_script("scripts/evaluate", str(copy), "--weights", "ema")
    assert asked.code == 2, asked.output
    assert "--weights raw" in asked.output
    default = run_script("scripts/evaluate", str(copy))
    assert default.code == 0, default.output
    assert "raw weights" in default.output


def test_a_checkpoint_copied_without_its_run_knows_its_data(run: Path, workplace: Path) -> None:
    copy = workplace / "copy/checkpoints/step_12"
    shutil.copytree(run / "checkpoints/step_12", copy)
    assert [sorted(entry) for entry in results(copy / "manifest.json")["extra"]["data"]] == [
        ["content_hash", "metadata_hash", "path"]
    ]
    (workplace / "data").unlink()
    shutil.copytree(run.parents[2] / "data", workplace / "data")
    file = workplace / "data/debug-sudoku-4x4/test/all__labels.npy"
    labels = np.load(file)
    np.save(file, labels[::-1])
    shown = run_script("scripts/evaluate", str(copy), cwd=workplace)
    assert shown.code == 0, shown.output
    assert "warning: data/debug-sudoku-4x4 is not the data that the run saw (content hash" in shown.output


def test_other_data_than_trained_on_is_said(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "p" / "copy"
    shutil.copytree(run, copy, symlinks=True)
    environment = results(copy / "environment.json")
    environment["data_cards"][0]["content_hash"] = "0" * 64
    (copy / "environment.json").write_text(json.dumps(environment))
    shown = run_script("scripts/evaluate", str(copy))
    assert shown.code == 0, shown.output
    assert "warning: data/debug-sudoku-4x4 is not the data that the run saw" in shown.output


def test_the_run_on_a_page_and_on_the_terminal(run: Path, tmp_path: Path) -> None:
    page, original = tmp_path / "report.html", run
    run = shutil.copytree(run, tmp_path / "copy/r", symlinks=True, ignore=shutil.ignore_patterns("*.png", "*.html"))
    done = run_script("scripts/report", str(run), "--out", str(page))
    assert done.code == 0, done.output
    assert done.output == f"written     {page} ({page.stat().st_size / 1e6:.2f} MB)\n"  # and nothing about devices
    text = page.read_text()
    assert text.count("<img ") == 1
    assert f"thinking step {STEP}" in text
    assert not list(run.glob("*.png"))  # drawn for the page, the run stays as it is
    score = results(run / "summary.json")["results"]["eval/exact_accuracy"]
    assert f"{score:.4f}" in text
    assert "<li>r: PASS" in text or "<li>r: WARN" in text  # a commit since then is a warning
    assert results(run / "environment.json")["data_cards"][0]["content_hash"][:12] in text
    again = run_script("scripts/report", str(run), "--out", str(page), "--no-verification", "--curves", "train/lr")
    assert again.code == 0, again.output  # a report may be replaced
    assert "Verification" not in page.read_text()
    assert run_script("scripts/report", str(run), "--out", str(page), "--no-pictures", "--no-verification").code == 0
    assert "<img " not in page.read_text()
    shutil.rmtree(run / "checkpoints")
    [view] = collect([run, original]).runs[:1]
    drawings, notes = draw_missing([view])
    assert drawings[run] == []
    assert len(notes) == 1
    assert "holds no checkpoint" in notes[0]
    page.write_text("notes")
    refused = run_script("scripts/report", str(run), "--out", str(page))
    assert refused.code == 2
    assert "is not a report of report.py" in refused.output
    shown = run_script("scripts/compare_runs", str(run))
    assert shown.code == 0, shown.output
    assert f"| {score:.4f}" in shown.output
