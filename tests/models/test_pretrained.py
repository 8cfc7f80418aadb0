"""save_pretrained and from_pretrained: the same answers, the table apart and mapped into memory, nothing half-written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.hrm_feudal import HRMFeudal, HRMFeudalConfig
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.subgoal_config import SubgoalConfig
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.conftest import files_of_at_most, run_script
from tests.models.parity import BASE, batch, make

FILES = {"config.json", "model.safetensors", "puzzle_table.safetensors", "README.md"}


def trm() -> TRM:
    return make(TRM, TRMConfig(**{**BASE, "puzzle_emb_len": 2}))


@pytest.mark.parametrize("kind", ["trm", "hrm", "feudal", "without table"])
def test_a_loaded_model_answers_the_same(kind: str, tmp_path: Path) -> None:
    goals = SubgoalConfig(hidden_size=16, goal_dim=8, manager_period=2)
    model = {
        "trm": trm,
        "hrm": lambda: make(HRM, HRMConfig(**BASE)),
        "feudal": lambda: make(HRMFeudal, HRMFeudalConfig(**BASE, subgoal_head=goals)),
        "without table": lambda: make(TRM, TRMConfig(**{**BASE, "puzzle_emb_ndim": 0})),
    }[kind]()
    model.save_pretrained(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == (
        FILES if model.puzzle_emb is not None else FILES - {"puzzle_table.safetensors"}
    )
    loaded = RecursiveModel.from_pretrained(tmp_path / "m")
    assert type(loaded) is type(model)
    assert (loaded.config, loaded.shape) == (model.config, model.shape)
    ours, theirs = loaded(batch(3)), model.eval()(batch(3))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.q_halt_logits, theirs.q_halt_logits)
    assert "inner.puzzle_emb.weights" not in load_file(tmp_path / "m/model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_a_large_table_is_mapped_and_training_it_leaves_the_file_alone(tmp_path: Path) -> None:
    trm().save_pretrained(tmp_path / "m")
    rows = 1_500_000  # 96 MB
    about = json.loads((tmp_path / "m/config.json").read_text())
    about["shape"]["num_puzzle_identifiers"] = rows
    (tmp_path / "m/config.json").write_text(json.dumps(about))
    file = tmp_path / "m/puzzle_table.safetensors"
    save_file({"inner.puzzle_emb.weights": torch.ones(rows, 16)}, file)
    before = resident()
    model = TRM.from_pretrained(tmp_path / "m")
    model({**batch(3), "puzzle_identifiers": torch.tensor([1, 7, rows - 1, rows // 2], dtype=torch.int32)})
    assert resident() - before < 30 << 20
    model.puzzle_emb.weights[5] = 3.0
    assert load_file(file)["inner.puzzle_emb.weights"][5].tolist() == [1.0] * 16


def test_new_puzzles_begin_with_the_mean_of_the_old(tmp_path: Path) -> None:
    model = trm()
    model.save_pretrained(tmp_path / "m")
    loaded = TRM.from_pretrained(tmp_path / "m", puzzle_identifiers=9)
    mean = model.puzzle_emb.weights.mean(0)
    torch.testing.assert_close(loaded.puzzle_emb.weights, mean.expand(9, -1))
    assert loaded.shape.num_puzzle_identifiers == 9
    model.save_pretrained(tmp_path / "trunk", puzzle_table=False)
    assert TRM.from_pretrained(tmp_path / "trunk", puzzle_identifiers=2).puzzle_emb.weights.tolist() == [[0.0] * 16] * 2
    assert TRM.from_pretrained(tmp_path / "trunk").puzzle_emb.weights.shape == (4, 16)


def broken(folder: Path, how: str) -> None:
    config = folder / "config.json"
    about = json.loads(config.read_text())
    if how == "class":
        about["class"] = "os@system"
    elif how == "other class":
        about["class"] = "recursive_reasoning.act@ACTModel"
    elif how == "format":
        about["format"] = 2
    elif how == "key":
        about["config"]["nope"] = 1
    elif how == "value":
        about["config"]["num_heads"] = 5
    elif how == "size":
        about["config"]["L_layers"] = 3
    elif how == "rows":
        about["shape"]["num_puzzle_identifiers"] = 5
    elif how == "huge":
        about["config"]["hidden_size"] = 1 << 40
    elif how == "long":
        about["shape"]["seq_len"] = 1 << 40
    elif how == "json":
        config.write_text("[")
        return
    elif how == "weights":
        (folder / "model.safetensors").write_bytes(b"PK\x03\x04")
    config.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("class", "'os@system', which is not a model of models.recursive_reasoning"),
        ("other class", "which is not a model"),
        ("format", "reads up to 1: update the program"),
        ("key", "belongs to no model: .*nope"),
        ("huge", "belongs to no model"),
        ("long", "seq_len is 1099511627776, expected a whole number up to 1048576"),
        ("value", "num_heads=5 does not divide"),
        ("size", "4 tensors differ, the first is inner.L_level.layers.2"),
        ("rows", r"holds a table \[4, 16\], .*config.json says \[5, 16\]"),
        ("json", "is not the config of a model"),
        ("weights", "cannot be read"),
    ],
)
def test_folders_that_are_none_are_refused_in_one_line(how: str, words: str, tmp_path: Path) -> None:
    trm().save_pretrained(tmp_path / "m")
    broken(tmp_path / "m", how)
    with pytest.raises(ValueError, match=words) as caught:
        TRM.from_pretrained(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_another_class_a_file_and_an_existing_folder(tmp_path: Path) -> None:
    model = trm()
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="holds a TRM, not a HRM"):
        HRM.from_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="is neither a model's folder"):
        TRM.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        model.save_pretrained(tmp_path / "m")


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("models.recursive_reasoning.pretrained.save_file", full)
    with pytest.raises(OSError, match="No space"):
        trm().save_pretrained(tmp_path / "m")
    monkeypatch.undo()
    with files_of_at_most(4096), pytest.raises(OSError, match=r"File too large.*safetensors"):
        trm().save_pretrained(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    with pytest.raises(ImportError, match=r"pip install -e '\.\[hub\]'"):
        TRM.from_pretrained("somebody/model")
    model, kept = trm(), tmp_path / "kept"
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, repo_id, folder_path):
            Path(folder_path).rename(kept)
            return f"https://huggingface.co/{repo_id}"

    def download(name, *, revision, allow_patterns):
        assert (name, revision, set(allow_patterns)) == ("somebody/model", "v1", FILES)
        return str(kept)

    fake = SimpleNamespace(HfApi=Api, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert model.push_to_hub("somebody/model", private=True) == "https://huggingface.co/somebody/model"
    assert calls == [("somebody/model", {"exist_ok": True, "private": True})]
    loaded = TRM.from_pretrained("somebody/model", revision="v1")
    assert torch.equal(loaded(batch(3)).logits, model.eval()(batch(3)).logits)
    assert "# somebody/model\n" in (kept / "README.md").read_text()


def test_a_run_becomes_such_a_folder(workplace: Path) -> None:
    argv = (
        "--config-name=cfg_pretrain_sudoku_4x4",
        "+debug=tiny",
        "device=cpu",
        "run_dir=run",
        "arch.puzzle_emb_ndim=32",
        "arch.puzzle_emb_len=1",
        "puzzle_emb_lr=0.1",
    )
    assert run_script("pretrain", *argv, cwd=workplace).code == 0
    done = run_script("scripts/convert", "pretrained", "run", "published/mine", cwd=workplace)
    assert done.code == 0, done.output
    assert "published/mine (ema weights of step 2)" in done.output
    averaged = load_file(workplace / "run/step_2/ema.safetensors")
    model = RecursiveModel.from_pretrained(workplace / "published/mine")
    assert model.shape == PuzzleShape(16, model.shape.vocab_size, 1, model.shape.pad_id)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, averaged[name])
    card = (workplace / "published/mine/README.md").read_text()
    summary = json.loads((workplace / "run/summary.json").read_text())["results"]["eval/accuracy"]
    assert re.search(rf"\| eval/accuracy +\| {summary:.4f} ", card)
    assert "averaged over training (EMA), step 2 " in card
    assert "model = " + type(model).__name__ + '.from_pretrained("mine")' in card
    again = run_script("scripts/convert", "pretrained", "run", "published/mine", cwd=workplace)
    assert (again.code, again.output.splitlines()[-1]) == (
        2,
        "error: published/mine exists already: remove it or choose another folder",
    )
    assert run_script("scripts/convert", "pretrained", "run", "trunk", "--no-table", cwd=workplace).code == 0
    assert not (workplace / "trunk/puzzle_table.safetensors").exists()
