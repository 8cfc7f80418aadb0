"""Public TRM and HRM checkpoints: imported, they answer like an independent double; exported, they are the same bits."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from engine.errors import RunFailure, UsageError
from engine.run.load_run import open_checkpoint
from scripts.convert import parse
from tasks.recursive_reasoning.public.convert import export_run, import_run
from tasks.recursive_reasoning.public.layout import read_public, write_public
from tests.conftest import files_of_at_most, run_script
from tests.tasks import public_files

SHAPE = {"words": 11, "length": 16, "identifiers": 4}
VARIANTS = [
    ("trm", {}),
    ("trm", {"mlp_t": True, "pos_encodings": "none"}),
    ("trm", {"pos_encodings": "learned", "expansion": 3.9}),
    ("singlez", {}),
    ("hier6", {}),
    ("hrm", {}),
    ("hrm", {"pos_encodings": "learned"}),
    ("baseline", {"num_heads": 3}),  # as published: heads that do not make up the width
]
IDS = [f"{kind}-{'-'.join(changes) or 'usual'}" for kind, changes in VARIANTS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four puzzles with identifiers of their own and blank cells."""
    from dataset.writing import SplitArrays, write_dataset

    folder = tmp_path_factory.mktemp("sets") / "grids"
    rng = np.random.default_rng(0)
    split = SplitArrays(
        rng.integers(1, 11, (3, 16)).astype(np.uint8),
        rng.integers(1, 11, (3, 16)).astype(np.uint8),
        np.arange(1, 4),
        np.arange(4),
        np.arange(4),
    )
    names = ["<blank>", "a", "b", "c"]
    write_dataset(
        folder, {"train": split, "test": split}, vocab_size=11, seq_len=16, card={"name": "grids"}, identifiers=names
    )
    return folder


def arguments(action: str, source: Path, folder: Path, *more: str) -> Namespace:
    return parse([action, str(source), str(folder), *more])


def imported(tmp_path: Path, data: Path, config, state, *more: str, **how) -> Path:
    source = public_files.write(tmp_path / "public", config, state, **how)
    import_run(arguments("import", source, tmp_path / "run", *more, "--data", str(data)))
    return tmp_path / "run"


def batch() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 11, (5, 16), generator=g, dtype=torch.int32)
    return {"inputs": inputs, "labels": inputs, "puzzle_identifiers": torch.tensor([0, 1, 2, 3, 1], dtype=torch.int32)}


@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=IDS)
def test_an_imported_model_answers_like_an_independent_one_and_exports_the_same_bits(
    kind: str, changes: dict, data: Path, tmp_path: Path
) -> None:
    config, state = public_files.make(kind, **SHAPE, **changes, forward_dtype="float64")
    run = imported(tmp_path, data, config, state)
    opened = open_checkpoint(run, device="cpu")
    assert opened.weights == ("raw" if kind == "hrm" else "ema")
    assert opened.checkpoint.step == 70
    output = opened.plan.task.model(batch())
    expected = public_files.answer(kind, config, state, batch())
    for ours, theirs in zip((output.logits, output.q_halt_logits, output.q_continue_logits), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    export_run(arguments("export", run, tmp_path / "back"))
    before, after = (torch.load(tmp_path / f / "step_70", weights_only=True) for f in ("public", "back"))
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert yaml.safe_load((tmp_path / "back/all_config.yaml").read_text()) == config


@pytest.mark.parametrize("name", ["trm_att_rope", "hrm_rope"])
def test_recorded_outputs_of_the_published_code(name: str, golden, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = golden(name)
    meta = json.loads((folder / "meta.json").read_text())["config"]
    shape = {key: meta.pop(key) for key in ("seq_len", "vocab_size", "num_puzzle_identifiers", "batch_size")}
    kind = "hrm" if name.startswith("hrm") else "trm"
    config = {
        "arch": {"name": public_files.CLASSES[kind][0], **meta},
        "data_paths": ["not/here"],
        "global_batch_size": shape["batch_size"],
        "epochs": 1,
    }
    public = public_files.write(tmp_path / "public", config, {})
    (public / "step_70").unlink()
    (public / "model.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    import_run(arguments("import", public, tmp_path / "run", "--step", "9"))  # without its data
    from engine.checkpoint.manifest import load_checkpoint
    from models.recursive_reasoning.act import PuzzleShape
    from tasks.recursive_reasoning.family import FAMILY

    checkpoint = load_checkpoint(tmp_path / "run/step_9")
    arch = FAMILY.read_arch(SimpleNamespace(arch=checkpoint.config["arch"]))
    model = arch.model_class(arch.model_config, PuzzleShape(16, 11, 6))
    model.load_state_dict(checkpoint.model)
    outputs, raw = np.load(folder / "outputs.npz"), np.load(folder / "batches.npz")
    assert {n: list(t.shape) for n, t in load_file(folder / "weights.safetensors").items()} == {
        n: list(t.shape) for n, t in checkpoint.model.items()
    }
    given = {f: torch.from_numpy(raw[f"b0_{f}"]) for f in ("inputs", "labels", "puzzle_identifiers")}
    for number, output in enumerate(model.eval().think(given)):
        for value in ("logits", "q_halt_logits", "q_continue_logits"):
            np.testing.assert_allclose(getattr(output, value), outputs[f"eval{number}_{value}"], rtol=1e-4, atol=1e-4)


def test_it_is_a_run_like_any_other(data: Path, tmp_path: Path) -> None:
    config, state = public_files.make("trm", **SHAPE)
    source = public_files.write(tmp_path / "public", config, state)
    asked = ["import", str(source), "runs/mine", "--data", str(data)]
    done = run_script("scripts/convert", *asked, cwd=tmp_path)
    assert done.code == 0, done.output
    trained = sum(t.numel() for name, t in state.items() if "_init" not in name and "puzzle_emb" not in name)
    assert f"recursive_reasoning.trm@TRM, {trained:,} parameters, 4 puzzles" in done.output
    shown = run_script("scripts/evaluate", "runs/mine", "--device", "cpu", cwd=tmp_path)
    assert shown.code == 0, shown.output
    assert "step 70, ema weights" in shown.output
    # 20 epochs of 3 groups are too few for 70 steps of 8 rows: more, and the run resumes where it was imported.
    more = ("epochs=400", "eval_interval=null", "max_steps=72", "device=cpu", "final_eval=false")
    resumed = run_script("pretrain", "resume=true", "run_dir=runs/mine", *more, cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert "resuming from step_70" in resumed.output
    assert (tmp_path / "runs/mine/step_72/model.safetensors").is_file()
    judged = run_script("scripts/verify_path", "--checkpoint", "runs/mine", cwd=tmp_path)
    assert judged.code == 0, judged.output
    again = run_script("scripts/convert", *asked, cwd=tmp_path)
    assert again.code == 2
    assert again.output == "error: runs/mine exists already: remove it or choose another folder\n"
    out = run_script("scripts/convert", "export", "runs/mine", "out", cwd=tmp_path)
    assert out.code == 0, out.output
    exported = torch.load(tmp_path / "out/step_72", weights_only=True)
    assert exported.keys() == {f"_orig_mod.model.{name}" for name in state}
    assert exported["_orig_mod.model.inner.H_init"].dtype == torch.float32  # what the config computes in


def test_shapes_that_contradict_are_all_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, state = public_files.make("trm", **SHAPE)
    config["arch"]["L_layers"] = 3
    with pytest.raises(UsageError, match=r"4 of 19 tensors do not fit .*L_layers is 3, the file has 2"):
        imported(tmp_path, data, config, state)
    report = capsys.readouterr().out
    assert "inner.L_level.layers.2.mlp.down_proj.weight" in report
    assert report.count("missing") == 4
    assert report.count("\n") == 20
    assert not (tmp_path / "run").exists()


def test_a_table_of_other_data_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, state = public_files.make("hrm", **{**SHAPE, "identifiers": 9})
    with pytest.raises(UsageError, match="1 of"):
        imported(tmp_path, data, config, state)
    assert "inner.puzzle_emb.weights" in capsys.readouterr().out


def test_what_shapes_cannot_tell_comes_from_the_user(data: Path, tmp_path: Path) -> None:
    config, state = public_files.make("trm", **SHAPE)
    with pytest.raises(
        UsageError, match=r"do not reveal H_cycles, L_cycles, halt_max_steps, num_heads, .* all_config.yaml is missing"
    ):
        imported(tmp_path / "a", data, None, state)
    with pytest.raises(UsageError, match=r"puzzle_emb_len, and all_config\.yaml is empty: put the file"):
        imported(tmp_path / "empty", data, {}, state)
    values = [f"arch.{key}={config['arch'][key]}" for key in ("H_cycles", "L_cycles", "halt_max_steps", "num_heads")]
    values += ["arch.pos_encodings=rope", "arch.puzzle_emb_len=4", "arch.forward_dtype=float32", "global_batch_size=2"]
    run = imported(tmp_path / "b", data, None, state, *values, name="checkpoint", prefix="module.model.")
    opened = open_checkpoint(run, device="cpu")
    assert opened.checkpoint.step == 0
    theirs = public_files.answer("trm", config, state, batch())[0]
    torch.testing.assert_close(opened.plan.task.model(batch()).logits.double(), theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="no such key: did you mean 'H_cycles'"):
        imported(tmp_path / "c", data, None, state, "arch.H_cycle=3")


def test_keys_behind_the_data_are_keys(tmp_path: Path) -> None:
    """argparse gives every word behind --data to it: they became data sets, and their values were lost."""
    odd = tmp_path / "a=b"
    odd.mkdir()
    asked = arguments("import", "x", "y", "lr=1", "--data", str(odd), "data/z=1", "arch.H_cycles=3", "--step", "4")
    assert asked.data == [odd, Path("data/z=1")]
    assert asked.values == ["lr=1", "arch.H_cycles=3"]
    assert arguments("import", "x", "y").data is None


@pytest.mark.parametrize("prefix", ["_orig_mod.model.", "model.", "module._orig_mod.model.", "_orig_mod.", ""])
def test_prefixes(prefix: str, tmp_path: Path) -> None:
    _, state = public_files.make("trm", **SHAPE)
    if prefix == "":
        state = {name.removeprefix("inner."): tensor for name, tensor in state.items()}
    checkpoint = read_public(public_files.write(tmp_path / "public", None, state, prefix=prefix))
    assert all(name.startswith("inner.") for name in checkpoint.tensors)
    assert list(checkpoint.keys.values()) == [prefix + name for name in state]


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("crater"),))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with files_of_at_most(4096), pytest.raises(RunFailure, match="x cannot be written: is its disk full"):
        write_public(tmp_path / "x", config={}, tensors={"a": torch.zeros(9999)}, name="step_1", card="")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (content, words) in enumerate(
        [
            (b"", "damaged"),
            (b"\x80\x02]q\x00.", "damaged"),
            (pickle.dumps(Bomb()), "may run code"),
            (b"PK\x03\x04 cut off", "damaged"),
        ]
    ):
        file = tmp_path / f"step_{number}"
        file.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            read_public(file)
    assert not (tmp_path / "crater").exists()
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested")
    with pytest.raises(UsageError, match="'model' is not one"):
        read_public(tmp_path / "nested")
    with pytest.raises(UsageError, match="several state dicts: name one"):
        read_public(tmp_path)
    torch.save({"model.a": torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "twice")
    with pytest.raises(UsageError, match=r"model\.a and a are both inner\.a"):
        read_public(tmp_path / "twice")


def test_a_config_with_python_objects_is_refused(data: Path, tmp_path: Path) -> None:
    config, state = public_files.make("trm", **SHAPE)
    source = public_files.write(tmp_path / "public", config, state)
    (source / "all_config.yaml").write_text("arch: !!python/object:omegaconf.DictConfig {}\n")
    with pytest.raises(UsageError, match=r"all_config\.yaml is not plain YAML"):
        import_run(arguments("import", source, tmp_path / "run", "--data", str(data)))


def test_models_that_the_public_code_has_not(data: Path, tmp_path: Path) -> None:
    config, state = public_files.make("trm", **SHAPE)
    run = imported(tmp_path, data, config, state)
    manifest = json.loads((run / "step_70/manifest.json").read_text())
    from tasks.recursive_reasoning.public.configs import public_config

    stored = manifest["config"]
    assert public_config(stored)["arch"]["name"] == config["arch"]["name"]
    assert public_config(stored)["arch"].keys() == {*config["arch"], "H_layers", "rms_norm_eps", "rope_theta"}, (
        "no key that the public class lacks"
    )
    ours = {"pos_encodings": "rope_2d", "eval_halting": "latched", "gate_norm": True, "inner_multiple": 64, "chains": 2}
    for key, value in {**ours, "latent_init": "random", "damping": 0.1, "update_noise": 0.1}.items():
        with pytest.raises(UsageError, match=rf"arch\.{key}={value} has no counterpart"):
            public_config({**stored, "arch": {**stored["arch"], key: value}})
    without = {**stored["arch"], "puzzle_emb_ndim": 0}
    assert public_config({**stored, "arch": without})["arch"]["puzzle_emb_len"] == 0, "no prefix, and no room for one"
    with pytest.raises(UsageError, match=r"arch\.registers=2 has no counterpart"):
        public_config({**stored, "arch": {**without, "registers": 2}})
    with pytest.raises(UsageError, match="has no counterpart"):
        public_config({**stored, "arch": {"name": "recursive_reasoning.hrm_feudal@HRMFeudal"}})


ODD = (None, True, 0, -1, 0.5, 2**40, "", "x", [], {}, [[1]], {"a": 1}, "${arch.x}", float("nan"))


def test_odd_values_cost_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every key of all_config.yaml with values of other kinds: it is imported, or refused in one line."""
    monkeypatch.setattr("tasks.recursive_reasoning.public.convert._write_run", lambda *_: None)
    config, state = public_files.make("trm", **SHAPE)
    source = public_files.write(tmp_path / "public", config, state)
    keys = [("arch", key) for key in config["arch"]] + [(key,) for key in config]
    chance, refused = np.random.default_rng(0), []
    for number in range(50):
        changed = json.loads(json.dumps(config))
        *outer, last = keys[number % len(keys)]
        (changed[outer[0]] if outer else changed)[last] = ODD[chance.integers(len(ODD))]
        (source / "all_config.yaml").write_text(yaml.dump(changed))
        try:
            import_run(arguments("import", source, tmp_path / f"run{number}", "--data", str(data)))
        except UsageError as error:
            refused.append(str(error))
    assert 10 < len(refused) < 50
    assert not [text for text in refused if "\n" in text]


def test_a_manifest_that_somebody_edited_is_refused_at_export(data: Path, tmp_path: Path) -> None:
    from engine.checkpoint.store import CheckpointStore

    config, state = public_files.make("trm", **SHAPE)
    run = imported(tmp_path, data, config, state)
    manifest = json.loads((run / "step_70/manifest.json").read_text())
    public, model = manifest["extra"]["public"], {name: tensor.float() for name, tensor in state.items()}
    first = next(iter(public["tensors"]))
    for changed in (
        [],
        {**public, "file": "../x"},
        {**public, "file": "all_config.yaml"},
        {**public, "config": 3},
        {"file": "a"},
        {**public, "tensors": {**public["tensors"], first: ["k", "load"]}},
        {**public, "tensors": {"a": ["b", "float32"]}},
        {**public, "tensors": {name: ["same", "float32"] for name in public["tensors"]}},
    ):
        store = CheckpointStore(run, "pretrain")
        store.save(70, model=model, state={}, config=manifest["config"], extra={"public": changed})
        with pytest.raises(UsageError, match="does not record how it was imported"):
            export_run(arguments("export", run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
