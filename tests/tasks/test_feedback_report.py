"""scripts/feedback_report.py on made-up run folders: sections, names, baselines, pairs; and the plan of the comparison.
tests/feedback has it on real runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from models.feedback.adapter_config import AdapterShape, HyperConfig, StaticLoraConfig
from models.feedback.config import BaseConfig, TextShape
from models.feedback.hypernetwork import HyperNetwork
from models.feedback.static_lora import StaticLora
from reports.runs import find_runs
from reports.study import group
from scripts.feedback_report import main, parse
from tasks.feedback.feedback_report.plan import EQUAL_RANK, SETTINGS, Sizes, write_plan
from tasks.feedback.feedback_report.study import METRIC, FeedbackStudy, section, with_base
from tasks.feedback.feedback_report.tables import pairs, rank_sweep
from tests.reports import made_up

DATASETS = {"gsm8k": {"name": "gsm8k"}, "wikitext": {"name": "wikitext"}}
HYPER = {"name": "feedback.hypernetwork@HyperNetwork", "mode": "distinct", "lora_rank": 4, "conditioning": "hidden"}
HYPER |= {"n_passes": 1, "feedback_reverse": False, "hyper_dim": 16}
LORA = {"name": "feedback.static_lora@StaticLora"}
CELLS: dict[str, tuple[dict[str, Any], float]] = {
    "lora_small": ({**LORA, "lora_rank": 4}, 3.3),
    "lora": ({**LORA, "lora_rank": 27}, 3.0),
    "distinct": (HYPER, 2.9),
    "recurrent": ({**HYPER, "mode": "recurrent", "hyper_dim": 24}, 2.95),
    "reverse": ({**HYPER, "feedback_reverse": True}, 2.8),
    "rank1": ({**HYPER, "lora_rank": 1}, 3.1),
    "passes2": ({**HYPER, "n_passes": 2}, 2.7),
}


def base(folder: Path, dataset: str, *, seed: int = 1, loss: float = 2.0, **arch: Any) -> None:
    config = {"seed": seed, "active_dataset": dataset, "datasets": DATASETS, "total_steps": 9, "out_dir": ".out"}
    config["arch"] = {"name": "feedback.base@BaseLM", "n_layer": 3, **arch}
    made_up.write_run(folder, config, {METRIC: loss, "eval/parameters": 100.0, "eval/flops": 10.0})
    (folder / "checkpoints/step_9").mkdir(parents=True, exist_ok=True)


def adapter(folder: Path, on: Path, arch: dict[str, Any], loss: float, *, seed: int = 1, size: float = 30.0) -> None:
    config = {"seed": seed, "active_dataset": "gsm8k", "datasets": DATASETS, "total_steps": 5, "out_dir": ".out"}
    config |= {"arch": arch, "ff_checkpoint_dir": str(on), "ff_checkpoint_name": "step_9"}
    results = {METRIC: loss, "eval/base_loss": 3.5, "eval/nll_pass0": 3.5, "eval/nll_pass1": loss}
    results |= {"eval/nll_pass2": loss} if arch.get("n_passes") == 2 else {}
    results |= {"eval/shuffled_nll": loss + 0.1, "eval/mean_nll": loss} if "mode" in arch else {}
    results |= {"eval/gap_closed": 0.25} if arch.get("accumulate") else {}
    made_up.write_run(folder, config, {**results, "eval/parameters": size, "eval/flops": 20.0})


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    place = tmp_path / "runs"
    for seed in (1, 2):
        for dataset in ("wikitext", "gsm8k"):
            base(place / f"{dataset}_{seed}", dataset, seed=seed)
        for name, (arch, loss) in CELLS.items():
            size = 5.0 if name == "lora_small" else 30.0
            adapter(place / f"{name}_{seed}", place / f"wikitext_{seed}", arch, loss + seed / 100, seed=seed, size=size)
        adapter(place / f"own_{seed}", place / f"gsm8k_{seed}", HYPER, 1.9, seed=seed)
    return place


def test_cells_lie_in_sections_and_have_the_nearest_lora(runs: Path) -> None:
    study = FeedbackStudy()
    cells, doubles = group([with_base(run) for run in find_runs([runs], METRIC, study)[0]], study)
    assert not doubles
    named = {cell.name: cell for cell in cells}
    assert len(cells) == len(CELLS) + 3
    assert all(sorted(cell.runs) == [1, 2] for cell in cells)  # the folders of the bases differ, the cells do not
    distinct = named["wikitext -> gsm8k: distinct, rank 4"]
    assert study.baseline_of(distinct, cells) is named["wikitext -> gsm8k: static LoRA, rank 27"]
    assert study.baseline_of(named["gsm8k -> gsm8k: distinct, rank 4"], cells) is None
    assert section(named["gsm8k: base"]) == section(named["gsm8k -> gsm8k: distinct, rank 4"]) == "gsm8k, base of gsm8k"
    paired = {(other.name.partition(": ")[2], one.name.partition(": ")[2]) for other, one in pairs(cells)}
    assert paired == {
        ("distinct, rank 4, reversed", "distinct, rank 4"),
        ("recurrent, rank 4", "distinct, rank 4"),
        ("distinct, rank 4, 2 passes", "distinct, rank 4"),
    }
    assert [cell.settings["arch.lora_rank"] for cell in rank_sweep(cells)] == [1, 4]


def test_the_report_is_written(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(runs / "orphan", tmp_path / "gone", HYPER, 1.0, seed=3)
    newer = {"accumulate": False, "scale_rule": "sqrt"}
    adapter(runs / "newer", runs / "wikitext_1", HYPER | newer, 2.9, seed=3)
    adapter(runs / "added", runs / "wikitext_1", HYPER | {"n_passes": 2, "accumulate": True}, 2.6)
    adapter(runs / "scaled", runs / "wikitext_1", {**LORA, "lora_rank": 4, "scale_rule": "rank"}, 3.2, size=900.0)
    main(parse([str(runs), "--out", str(tmp_path / "report")]))
    text = (tmp_path / "report/report.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "## gsm8k, base of wikitext" in text
    row = next(line for line in text.splitlines() if "2 passes" in line and line.count("|") > 9)
    assert [cell.strip() for cell in row.split("|")][2:8] == ["2", "30", "20", "2.715", "0.007", "3.500"]
    assert "-0.300" in row
    losses = (line.split("|") for line in text.partition("## Passes")[0].splitlines() if line.startswith("| wikitext"))
    rows = {line[1].strip(): line for line in losses}
    assert rows["wikitext -> gsm8k: distinct, rank 4"][2].strip() == "3"  # older runs lack the keys of the newer one
    assert rows["wikitext -> gsm8k: distinct, rank 4, 2 passes that add up"][-2].strip() == "0.25"
    assert "wikitext -> gsm8k: static LoRA, rank 4, scale rank" in rows
    assert "orphan cannot be placed: ff_checkpoint_dir=" in text
    listed = json.loads((tmp_path / "report/report.json").read_text())["cells"]
    assert listed["gsm8k: base"]["score"]["mean"] == 2.0
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"cells_1.png", "cells_2.png", "cells_3.png", "passes.png", "ranks.png"}
    made_up.write_run(tmp_path / "other", {"seed": 1, "arch": {"name": "recursive_reasoning.trm@TRM"}}, {METRIC: 1.0})
    with pytest.raises(UsageError, match="is a run of recursive_reasoning"):
        main(parse([str(tmp_path / "other")]))


def test_the_plan_quotes_its_folder(tmp_path: Path) -> None:
    *_, adapters = write_plan(tmp_path / "a folder", 1, Sizes())
    words = shlex.split(adapters.read_text().splitlines()[0])
    assert {f"run_dir='{tmp_path}/a folder/seed1/on_wikitext_base_lora'"} < set(words)
    assert f"ff_checkpoint_dir='{tmp_path}/a folder/seed1/wikitext_base'" in words


def test_the_plan_of_the_comparison(tmp_path: Path) -> None:
    """As many runs as the page says, bases before what stands on them, equal parameters; marks are kept."""
    files = write_plan(tmp_path, 3, Sizes())
    jobs = [shlex.split(line[4:]) for path in files for line in path.read_text().splitlines()]
    assert len(jobs) == 3 * (7 + 14) + 2
    places = [next(word for word in job if word.startswith("run_dir=")) for job in jobs]
    assert len(set(places)) == len(jobs)
    for number, job in enumerate(jobs):
        for word in job:
            if word.startswith("ff_checkpoint_dir="):
                assert word.replace("ff_checkpoint_dir", "run_dir") in places[:number]
    settings = json.loads(SETTINGS.read_text())["model"]
    shape = AdapterShape(BaseConfig(**settings), TextShape(257, 257, 258))
    sizes = [
        HyperNetwork(HyperConfig(mode=mode, lora_rank=4, hyper_dim=width), shape).num_parameters()
        for mode, width in (("distinct", 16), ("recurrent", 24))
    ]
    sizes.append(StaticLora(StaticLoraConfig(lora_rank=EQUAL_RANK), shape).num_parameters())
    assert sizes == [31_504, 29_656, 31_104]
    assert abs(sizes[0] - sizes[2]) < sizes[2] / EQUAL_RANK / 2  # no other rank is nearer
    files[0].write_text(files[0].read_text().replace("[ ]", "[x]", 1))
    write_plan(tmp_path, 3, Sizes())
    assert files[0].read_text().startswith("[x]")
    with pytest.raises(UsageError, match="another comparison"):
        write_plan(tmp_path, 2, Sizes())
