"""The model card of an exported run: its header, what is read from the run, and what it must not say."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.checkpoint.manifest import Checkpoint
from reports.model_card import add_card_arguments, model_card
from tests.reports.made_up import write_run

CARD = {
    "path": "/home/me/data/maze",
    "name": "maze",
    "source": "generated",
    "content_hash": "0123456789abcdef",
    "counts": {"test": {"groups": 50, "examples": 50}},
    "names": ["x" * 50] * 100,
}
SCORES = {"eval/exact_accuracy": 0.9, "eval/ARC_i_clean/pass@2": 0.5, "val/exact_accuracy": 0.8}
ENDS = {"eval/ARC_i_clean/pass@2_low": 0.4, "eval/ARC_i_clean/pass@2_high": 0.6}


def made(folder: Path, seed: int, score: float, **config: Any) -> Checkpoint:
    """A finished run of 100 steps; its checkpoint is of step 100."""
    own = {"seed": seed, "lr": 0.1, "arch": {"name": "m@M", "layers": 2}, **config}
    summary = {"name": "val/exact_accuracy", "splits": {"eval": "of the test split"}, "seconds": 3}
    write_run(folder, own, {**SCORES, **ENDS, "eval/exact_accuracy": score}, summary=summary)
    (folder / "identity.json").write_text(json.dumps({"entry": "pretrain", "config": own}))
    (folder / "environment.json").write_text(json.dumps({"data_cards": [CARD], "torch": "9.9", "cpu_count": 2}))
    (folder / "config.yaml").write_text('# composed from {"config_name": "cfg_x", "choices": {}}\n')
    (folder / "overrides.txt").write_text(f"seed={seed}\nlr=0.1\n++hydra.job.name=pretrain\n")
    return Checkpoint(
        folder / "checkpoints/step_100", {"files": {"ema.safetensors": {}}}, 100, "pretrain", own, None, {}
    )


@pytest.fixture
def card(tmp_path: Path) -> str:
    made(tmp_path / "b", 1, 0.7)
    made(tmp_path / "other", 2, 0.1, lr=0.2)
    checkpoint = made(tmp_path / "a", 0, 0.9)
    (tmp_path / "a/evaluations").mkdir()
    (tmp_path / "a/evaluations/step_100_arc_tasks.json").write_text('{"meaning": "protocol class (i), zero-shot"}')
    return model_card(
        checkpoint,
        name="mine",
        weights="raw",
        model={"class": "m.M", "parameters": "7"},
        loading='M.from_pretrained("mine")\n',
        tags=["puzzles"],
        license="mit",
        verify=lambda run: ("WARN", [f"CKP610 {run}/config.yaml: older"]),
    )


def test_the_header_is_what_the_hub_reads(card: str) -> None:
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["library_name"], header["tags"]) == ("mit", "loopforge", ["loopforge", "puzzles"])
    [result] = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "maze"
    assert {"type": "exact_accuracy", "value": 0.9} in result["metrics"]
    assert card.count("\n# ") == 1


def test_everything_is_read_from_the_run(card: str, tmp_path: Path) -> None:
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == [
        "Loading",
        "Training",
        "Data",
        "Results",
        "Seeds",
        "Verification",
        "Licence",
    ]
    for words in (
        r"\| recipe +\| cfg_x ",
        r"- `seed=0`\n- `lr=0.1`\n\n",
        r"\| layers +\| 2 ",
        r"\| content hash +\| 0123456789ab ",
        r"\| eval/exact_accuracy +\| 0.9000 \| 0.7864 to 0.9565 ",  # Wilson, 45 of 50
        r"\| eval/ARC_i_clean/pass@2 +\| 0.5000 \| 0.4000 to 0.6000 ",  # as the evaluator gave it
        r"Protocol: protocol class \(i\), zero-shot\.",
        r"figures of the averaged weights, and the exported ones are raw",
        r"eval/exact_accuracy over seeds 0, 1: mean 0.8000, 95 % interval -0.4706 to 2.0706",
        r"\*\*WARN\*\*\n\n- CKP610 a/config.yaml: older",
        r"Data: maze: none: generated\.",
    ):
        assert re.search(words, card), words
    assert "hydra" not in card
    assert str(tmp_path) not in card  # nor where it lay
    assert "/home/me" not in card
    assert "x" * 50 not in card  # lists of names stay in the run


def test_figures_of_a_part_of_the_split_say_so(tmp_path: Path) -> None:
    checkpoint = made(tmp_path / "a", 0, 0.9, final_eval_max_examples=8, final_eval_max_groups=None)
    text = model_card(checkpoint, name="r", weights="ema", model={}, loading="")
    assert "`eval/`: of the test split, at most 8 examples.\n" in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"] == (
        "maze (at most 8 examples)"
    )
    assert not re.search(r"\| eval/exact_accuracy +\| 0.9000 \| \d", text)  # no interval of the whole split


def test_a_licence_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_card_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--license", " "])
    assert "argument --license: expected an identifier of the Hub, such as mit" in capsys.readouterr().err


def test_a_checkpoint_without_its_run(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "r/checkpoints/step_5", {"files": {}}, 5, "train", {"seed": 3}, None, {})
    text = model_card(checkpoint, name="r", weights="raw", model={}, loading="")
    for words in ("keeps no data card", "No evaluation of step 5", "One run, seed 3", "Not asked for", "not stated"):
        assert words in text
    assert "license: unknown\n" in text
