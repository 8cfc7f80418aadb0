"""The report on any runs: cells, what is compared, curves and their smoothing, and a page that loads nothing."""

from __future__ import annotations

import html.parser
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import UsageError
from engine.run.environment import describe_environment
from launcher.jobs import parse_text
from launcher.ledger import Ledger, Record
from launcher.status import expand_places
from reports.overview.charts import MOST, Line, chosen_metrics, draw_chart, histograms, lines_of, smooth, thin
from reports.overview.collect import Overview, collect, differing
from reports.overview.page import report_page
from reports.overview.tables import as_text, comparison_table, run_table
from tests.reports.made_up import write_run

SCORE = "eval/accuracy"
PRIMARY = {"name": "val/accuracy", "goal": "max", "best": {"value": 0.5, "step": 50}, "seconds": 30}


def config(lr: float, seed: int, **more: object) -> dict[str, object]:
    return {"arch": {"name": "m@M", "layers": 2}, "lr": lr, "seed": seed, "device": "cpu", **more}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two cells of two seeds each, and a run that is still training."""
    for number, (lr, seed, score) in enumerate(((0.1, 0, 0.5), (0.1, 1, 0.7), (0.2, 0, 0.6), (0.2, 1, 0.9))):
        folder = write_run(tmp_path / f"r{number}", config(lr, seed), {SCORE: score}, summary=PRIMARY)
        lines = [{"step": s, "train/loss": 2.0 / s, "time/step_ms": 10.0 * s, "x/zero": 0.0} for s in (1, 2, 3)]
        lines += [{"step": s, SCORE: score - 1 / s, "time/examples_per_s": 50.0} for s in (2, 3)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "train/lo')
    write_run(tmp_path / "r9", config(0.3, 0), {}, state="running", step=7)
    return tmp_path


def test_cells_are_compared_seed_by_seed(runs: Path) -> None:
    overview = collect([runs])
    assert overview.names == ["lr=0.1", "lr=0.2", "lr=0.3"]
    assert (overview.metric, overview.goal, overview.reference) == (SCORE, "max", "lr=0.1")  # reported, not selected by
    rows = {row[0]: row for row in comparison_table(overview).rows}
    assert rows["lr=0.2"][1] == 2
    assert rows["lr=0.2"][2] == pytest.approx(0.75)
    assert rows["lr=0.2"][4] == pytest.approx(0.15)
    assert rows["lr=0.1"][4] is None
    assert any("r9 is not finished (running, step 7)" in line for line in overview.notes)
    assert differing(overview) == {"lr": {"lr=0.1": "0.1", "lr=0.2": "0.2", "lr=0.3": "0.3"}}


@pytest.mark.parametrize("baseline", ["lr=0.2", "r2", "r3"])
def test_another_baseline(runs: Path, baseline: str) -> None:
    overview = collect([runs], baseline=baseline)
    assert overview.names[0] == overview.reference == "lr=0.2"
    assert comparison_table(overview).rows[1][4] == pytest.approx(-0.15)


def test_tables_for_the_terminal(runs: Path) -> None:
    overview = collect([runs])
    text = as_text(overview)
    assert re.search(r"\| r1 +\| lr=0.1 \| 1 +\| done +\| 100 +\| 0.7000 +\| 0.5000 \| 20.0 +\| 50 ", text)
    assert "+0.1500" in text
    assert re.search(r"all on: torch -; device -; commit -", text)
    assert run_table(overview).csv().splitlines()[0].startswith(f"run,cell,seed,state,step,{SCORE},best")


def test_stand_in_data_are_named_where_nothing_is_compared(runs: Path) -> None:
    def mark(run: Path) -> None:
        card = {"path": "x", "content_hash": "d", "stand_in": True}
        (run / "environment.json").write_text(json.dumps({"data_cards": [card]}))

    assert "stand-in" not in as_text(collect([runs / "r0"]))
    for name in ("r0", "r9"):  # finished, and still training
        mark(runs / name)
        assert f"\non stand-in data (stand_in: true): {name}\n" in as_text(collect([runs / name]))
    assert collect([runs]).notes[-1] == "on stand-in data (stand_in: true): r9"


def test_where_runs_ran_stands_beside_them_only_where_it_differs(runs: Path) -> None:
    environment = {**describe_environment(), "torch": "9.9", "accelerators": ["H100"], "world_size": 4}
    (runs / "r0/environment.json").write_text(json.dumps(environment))
    rows = run_table(collect([runs])).rows
    assert rows[0][-3:-1] == ("9.9", "4 x CPU, " + str(environment["cpu_count"]) + " cores")  # its config says cpu


def test_runs_of_two_scripts_and_of_long_names(runs: Path) -> None:
    for number, text in enumerate(("a" * 50, "b" * 50)):
        folder = write_run(runs / f"s{number}", config(0.1, 0), {SCORE: 0.1})
        stored = {"entry": "other", "config": {"lr": 0.1, "long_setting_with_a_name": text, "seed": 0, "also": text}}
        (folder / "identity.json").write_text(json.dumps(stored))
    names = collect([runs]).names
    assert "other: s0" in names  # what differs is longer than a name should be
    assert ": lr=0.1" in names


def test_what_cannot_be_compared_is_one_line(runs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, arguments, message in (
        (tmp_path / "none", {}, "is not a folder: expected a run"),
        (empty, {}, "has no run in it"),
        (runs, {"metric": "acuracy"}, f"did you mean '{SCORE}'"),
        (runs, {"baseline": "r7"}, "--baseline r7: expected a run or a cell"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            collect([place], **arguments)
    (runs / "r0/config.resolved.yaml").write_text("[")
    with pytest.raises(UsageError, match="no run with a readable config"):
        collect([runs / "r0"])
    assert any("r0 has no readable config" in line for line in collect([runs]).notes)


def test_smoothing_has_no_pull_to_zero() -> None:
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0] * 3)
    assert smooth([1.0, 5.0], 0.0) == [1.0, 5.0]
    assert smooth([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    short = thin(points)
    assert len(short) <= MOST
    assert short[0] == (12.0, 12 / 25)
    assert thin(points[:10]) == points[:10]


def test_which_curves_are_drawn(runs: Path) -> None:
    overview = collect([runs])
    drawn, left_out = chosen_metrics(overview, [])
    assert drawn == [SCORE, "train/loss"]
    assert left_out == ["x/zero"]  # nothing but zeros
    assert chosen_metrics(overview, ["ze.o"]) == (["x/zero"], [])
    with pytest.raises(
        UsageError, match=f"--curves zzz: no run has such a metric: choose one of {SCORE}, train/loss, x/zero"
    ):
        chosen_metrics(overview, ["zzz"])
    assert chosen_metrics(collect([runs / "r9"]), ["zzz"]) == ([], [])  # it has just begun
    html, data = draw_chart("train/loss", lines_of(overview, "train/loss"), 0.5)
    assert html.count("data-smooth") == len(data["lines"]) == 4
    assert "<title>r0: 0.666667 at the end</title>" in html


def test_the_axis_of_a_constant_does_not_show_rounding() -> None:
    html, _ = draw_chart("x", [Line("r", 0, [(float(x), 4.0) for x in range(20)])], 0.6)
    assert re.findall(r'text-anchor="end">(.*?)<', html) == ["3.8", "3.9", "4.0", "4.1", "4.2"]


class Reader(html.parser.HTMLParser):
    """What a page would load, and the nesting of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":  # a link loads nothing
            self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_loads_nothing_and_shows_everything(runs: Path) -> None:
    Image.new("RGB", (4, 4)).save(runs / "r0/thinking_step_3.png")
    (runs / "r1/samples").mkdir()
    (runs / "r1/samples/step_3.txt").write_text("<script>alert(1)</script>")
    (runs / "r1/a page.html").write_text("")
    overview = collect([runs])
    page = report_page(overview, verdicts={runs / "r0": ("WARN", ["CKP611 <commit>"])}, place=runs / "below")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(value.startswith("data:") for value in reader.loads)
    assert not re.search(r"https?://|url\(|@import|fetch\(", page)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Runs",
        "Comparison",
        "Settings that differ",
        "Curves",
        "Throughput",
        "Samples and thinking",
        "Data",
        "Verification",
        "Final figures",
        "Notes",
    ]
    assert "CKP611 &lt;commit&gt;" in page
    assert 'src="data:image/png;base64,' in page
    assert '<a href="../r1/a%20page.html">a page.html</a>' in page
    assert "<img" not in report_page(overview, pictures=False)
    drawn = report_page(overview, pictures=False, drawings={runs / "r2": [("mine", b"x")]}, notes=["not <drawn>"])
    assert 'src="data:image/png;base64,eA==" alt="mine"' in drawn
    assert "not &lt;drawn&gt;" in drawn
    lines = [{"step": 4, "train/halted_step_01": 0.25, "train/halted_step_02": 0.75, "train/halted_step_03": 0.0}]
    with (runs / "r2/metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in [{**lines[0], "step": 3, "train/loss": 1.0}, *lines])
    [(name, [line])] = histograms(halting := collect([runs])).items()
    assert (name, line.name, line.points) == ("train/halted", "r2", [(1.0, 0.25), (2.0, 0.75), (3.0, 0.0)])
    with_bars = report_page(halting)
    assert "<h2>Halting</h2>" in with_bars
    assert "<title>r2: 1: 0.25, 2: 0.75, 3: 0</title>" in with_bars
    assert not [name for names in chosen_metrics(halting, []) for name in names if "halted" in name]
    charts = json.loads(page.split('id="data">')[1].split("</script>")[0])["charts"]
    assert len(charts) == page.count('<figure class="chart">')
    assert report_page(overview, verdicts={}) == report_page(overview, verdicts={})


def test_a_single_run_that_has_just_begun(runs: Path) -> None:
    overview: Overview = collect([runs / "r9"])
    assert overview.metric is None
    assert "<h1>r9</h1>" in report_page(overview)
    assert "running" in as_text(overview)


def test_a_job_file_stands_for_the_runs_that_it_started(runs: Path) -> None:
    file = runs / "jobs-mine.txt"
    file.write_text("[x] python pretrain.py run_name=a\n[ ] python pretrain.py run_name=b\n")
    ledger = Ledger(file)
    with pytest.raises(UsageError, match=r"metrics\.jsonl has no job: expected a run, a folder of runs"):
        expand_places([runs / "r0/metrics.jsonl"], roots=(runs,), cwd=runs)
    with pytest.raises(UsageError, match="no job of this file has a run directory"):
        expand_places([file], roots=(runs,), cwd=runs)
    jobs, _ = parse_text(file.read_text())
    ledger.write_record(jobs[0], Record(log="a.log", run_dir="r2", started=time.time()))
    assert expand_places([file, runs / "r0"], roots=(runs,), cwd=runs) == [runs / "r2", runs / "r0"]
