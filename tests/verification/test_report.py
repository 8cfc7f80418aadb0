"""What people and programs are shown: steps, reasons, JSON, the Markdown page, the page of codes, exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import UsageError
from scripts.verify_path import run
from tests.conftest import ROOT
from verification.codes import CODES, with_table
from verification.finding import Report
from verification.report import CHECKLIST, as_json, markdown, summary, text
from verification.static import verify_command, verify_file

STEPS = ("job", "script", "main config", "arch config", "model", "together")
GOOD = "python pretrain.py --config-name=cfg_pretrain_sudoku_4x4"


def report_of(line: str) -> Report:
    return verify_command(shlex.split(line), root=ROOT, job="J")


def test_a_fault_comes_with_reason_and_fix() -> None:
    shown = text([report_of(f"{GOOD} lr_warmup_steps=999")])
    assert "❌ Step 3" in shown
    assert "CFG250" in shown
    assert f"why: {CODES['CFG250'].why}" in shown
    assert "fix: lr_warmup_steps=" in shown


def test_json_holds_everything() -> None:
    content = json.loads(as_json([report_of(GOOD)]))["reports"][0]
    assert content["verdict"] == "PASS"
    assert content["facts"]["act_mode"] == content["signature"]["act_mode"] == "dynamic"
    assert {"code", "level", "step", "file", "line", "message", "fix", "job"} <= content["findings"][0].keys()


def test_markdown_has_chain_table_checklist_and_questions() -> None:
    meant = verify_command(shlex.split(GOOD), root=ROOT, job="J", intent={"mode": "embedding"})
    page = markdown([meant, report_of("python pretrain.py arch.L_cyles=1")])
    for title, _ in CHECKLIST:
        assert f"- ✅ {title}" in page
    assert "| module@Class | recursive_reasoning.trm@TRM |" in page
    assert "**embedding**; found: embedding" in page
    assert "**not stated**; found: dynamic" in page
    assert "❌ JOB030" in page
    assert "commit" not in page


def test_the_review_of_a_shipped_job_prints_the_guides_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs-trm.txt", "--job", "sudoku_4x4"]) == 0
    shown = capsys.readouterr().out
    steps = [line.strip() for line in shown.splitlines() if "Step" in line]
    assert steps == [f"✅ Step {n}: {what}" for n, what in enumerate(STEPS, 1)]
    for link in (
        "pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu project_name=trm run_name=sudoku_4x4  (jobs/jobs-trm",
        "decorator: cfg_pretrain  (pretrain.py:",
        "config: cfg_pretrain_sudoku_4x4  (config/cfg_pretrain_sudoku_4x4.yaml)",
        "arch: trm  (config/arch/trm.yaml)",
        "arch.name: recursive_reasoning.trm@TRM  (models/recursive_reasoning/trm.py:",
        "training forward: _forward_train_original()  (models/recursive_reasoning/act.py:",
        "Result: TRM uses _forward_train_original() with dynamic halting, embedding mode, no encoder",
        "as intended: mode=embedding act=dynamic encoder=none purpose=new",
    ):
        assert link in shown


def test_the_page_names_the_weights_that_a_run_begins_with() -> None:
    line = "python pretrain_etrm.py --config-name=cfg_pretrain_etrm_overfit"
    assert "| Initial weights | random, seed 0 |" in markdown([report_of(line)])
    begun = report_of(f"{line} load_pretrained_decoder=checkpoints/trm")
    assert begun.signature["encoder_type"] == "standard"
    assert begun.signature["initial_weights"] == "decoder of checkpoints/trm, else random, seed 0"
    page = markdown([begun])
    assert "| Initial weights | decoder of checkpoints/trm, else random, seed 0 |" in page
    other = report_of("python pretrain.py device=cpu load_checkpoint=checkpoints/hrm")
    assert other.signature["initial_weights"] == "checkpoints/hrm"


def test_a_stale_page_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = str(tmp_path / "page.md")
    assert run(["jobs-trm.txt", "--static", "--markdown", page, "--check"]) == 1
    assert f"{page} is stale" in capsys.readouterr().out
    assert run(["jobs-trm.txt", "--static", "--markdown", page]) == 0
    assert run(["jobs-trm.txt", "--static", "--markdown", page, "--check"]) == 0
    Path(page).write_text(Path(page).read_text().replace("Exploration | 0.1", "Exploration | 0.5"))
    assert run(["jobs-trm.txt", "--static", "--markdown", page, "--check"]) == 1


def test_a_summary_has_one_row_for_equal_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert run(["jobs-feudal.txt", "--static", "--summary", "--markdown", str(page)]) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("| jobs/")]
    assert 1 < len(rows) < 10
    counts = [int(row.split("|")[2]) for row in rows]
    reports = verify_file("jobs-feudal.txt", root=ROOT, probes=False)
    assert sum(counts) == sum(bool(report.chain) for report in reports) > 50
    assert page.read_text() == summary(reports)
    with pytest.raises(UsageError, match="--markdown"):
        run(["jobs-feudal.txt", "--summary"])


def test_the_page_says_nothing_of_this_machine(tmp_path: Path) -> None:
    """The page of a copy without data sets elsewhere is the same, byte for byte."""
    (tmp_path / "r").symlink_to(ROOT)
    how = {"local_data": False, "probes": False}
    pages = [markdown(verify_file("jobs-trm.txt", root=root, **how)) for root in (ROOT, tmp_path / "r")]
    assert pages[0] == pages[1]
    assert str(ROOT) not in pages[0]
    assert "built on first use" in pages[0]


def test_the_page_of_codes_is_fresh() -> None:
    page = (ROOT / "docs/verification.md").read_text()
    assert with_table(page) == page, "run python -m verification.codes"
    assert all(f"| {code} |" in page for code in CODES)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["jobs-trm.txt", "--static"], 0),
        (["jobs-trm.txt", "--job", "sudoku_4x4", "--strict"], 0),
        (["--static", "--script", "pretrain.py", "--config-name", "cfg_pretrain", "lr=1e-3"], 0),
        (["--", *shlex.split(f"{GOOD} lrr=1")], 1),
        (["--static", "--", *shlex.split("python pretrain.py max_steps=5")], 0),
        (["--static", "--strict", "--", *shlex.split("python pretrain.py max_steps=5")], 1),
    ],
)
def test_exit_codes(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == code
    assert "report(s)" in capsys.readouterr().out


def test_outputs_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["jobs-trm.txt", "--static", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]) == 0
    )
    assert json.loads((tmp_path / "r.json").read_text())["reports"]
    assert (tmp_path / "r.md").read_text().startswith("# Training path")
    capsys.readouterr()
    for flag in ("--json", "--markdown"):
        with pytest.raises(UsageError, match=r"/r\.json/x cannot be written \(.*\): name another file"):
            run(["jobs-trm.txt", "--static", flag, str(tmp_path / "r.json/x")])
    assert run(["jobs-trm.txt", "--static", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["reports"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["jobs-nope.txt"],
        ["jobs-trm.txt", "--job", "nope"],
        ["--checkpoint", "nope"],
        ["--root", "/nope", "--all"],
        ["--", "ls"],
    ],
)
def test_unusable_commands_are_one_line(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/verify_path.py", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
