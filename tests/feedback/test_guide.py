"""The documented commands, verbatim and in sequence, on the stand-ins and on real data: only the date of a run's folder
is put in place of the one that they name."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dataset.build_text_dataset import main
from tasks.feedback.args import FeedforwardConfig
from tests.conftest import ROOT, SHARED, run_script
from tests.feedback.conftest import BASES, CONFIG, runs

COMMANDS = [
    shlex.split(command)
    for command in re.search(r"<!-- guide -->\n```bash\n(.*?)```", (ROOT / "docs/feedback.md").read_text(), re.S)[1]
    .replace("\\\n", " ")
    .splitlines()
]


def config_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root config.json for a few steps: the settings file is the user's, the commands are the guide's."""
    training = {**CONFIG["training"], "max_steps": 2, "log_interval": 1}
    (place / "config.json").write_text(json.dumps({**CONFIG, "training": training}))
    monkeypatch.setattr(FeedforwardConfig, "CONFIG_FILE", str(place / "config.json"))


def run_guide(place: Path) -> list[str]:
    """What each command printed. Before the one that resumes a run of wikitext there has to be one."""
    printed = []
    for words in [COMMANDS[0], [*COMMANDS[1][:-2]], *COMMANDS[1:]]:
        result = run_script(words[1].removesuffix(".py"), *words[2:], cwd=place)
        assert result.code == 0, f"{shlex.join(words)}\n{result.output}"
        printed.append(result.output)
        if words[1] == "feedforward_train.py":
            name = words[words.index("--active_dataset") + 1]
            (made,) = runs(place, name, "ff_model")
            if "--resume" in words or name == "gsm8k":
                made.rename(made.with_name(BASES[name]))
    return printed


def test_the_guide_on_the_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_of(tmp_path, monkeypatch)
    first, _, resumed, recurrent, distinct = run_guide(tmp_path)
    assert first.count("STAND-IN DATA: data/gsm8k_byte is arithmetic") == 1
    assert "pieces of test of data/gsm8k_byte, at the end" in first
    assert "resuming from step_2" in resumed
    assert f"base        .out/gsm8k/{BASES['gsm8k']}/checkpoints/step_2" in recurrent
    assert f"base        .out/wikitext/{BASES['wikitext']}/checkpoints/step_2" in distinct
    (run,) = runs(tmp_path, "wikitext", "fb_model")
    assert json.loads((run / "summary.json").read_text())["stand_in"] is True
    assert (run / "epoch_ckpt_wikitext.pt").exists()
    assert runs(tmp_path, "gsm8k", "fb_rec_model")


@pytest.mark.slow
def test_the_guide_on_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SHARED / "data"
    if not (source / "gsm8k").is_dir():
        pytest.skip(f"GSM8K and WikiText-2 are not here: {source}")
    config_of(tmp_path, monkeypatch)
    splits = ("--train-split", "valid", "--val-split", "test")
    for name, folder, more in (("gsm8k", "gsm8k", ()), ("wikitext", "wikitext-2", splits)):
        place = str(tmp_path / f"data/{name}_byte")
        assert main([f"{name}_byte", "--input", str(source / folder), "--output-dir", place, *more]) == 0
    printed = run_guide(tmp_path)
    assert not any("STAND-IN" in output for output in printed)
    assert "data/gsm8k_byte: GSM8K; tokenizer byte with 257 tokens" in printed[0]
    assert "trained on its split valid, tested on test" in printed[1]
    (run,) = runs(tmp_path, "wikitext", "fb_model")
    assert "stand_in" not in json.loads((run / "summary.json").read_text())
