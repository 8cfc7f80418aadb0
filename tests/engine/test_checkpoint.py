"""Checkpoints: trees and weights bit for bit, the files on disk, pointers, pruning, finding, loading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoint.manifest import load_checkpoint
from engine.checkpoint.state_tree import RowSharded, gather_tree, load_weights
from engine.errors import UsageError
from tests.engine.checkpoint_cases import CONFIG, FILES, equal, metric, save, store_at, weights

# --- trees


def test_tree_round_trip_keeps_types_and_bits(tmp_path):
    base = torch.randn(6, 4, dtype=torch.float64)
    tree = {
        "tensors": {
            "bf16": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.bfloat16),
            "bool": torch.tensor([True, False]),
            "int32": torch.tensor([-(2**31), 5], dtype=torch.int32),
            "int64": torch.tensor(2**62),
            "uint8": torch.tensor([255], dtype=torch.uint8),
            "float64": torch.tensor(1e-300, dtype=torch.float64),
            "half": torch.tensor([6e-8], dtype=torch.float16),
            "empty": torch.zeros(0, 3),
            "empty_too": torch.zeros(0, 3),
            "transposed": base.t(),
            "strided": base[:, ::2],
            "part": base[1:3],
            "expanded": torch.tensor([3.0]).expand(5),
            "base": base,
        },
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        "scalars": [None, True, 3, 0.1, float("inf"), "täxt", 2**80],
        "tuple": (1, (torch.tensor(3), [])),
        "keys": {0: {"m": torch.tensor(4)}, 17: None},
        "$tensor": "a key that looks like a mark",
        "nothing": {},
    }
    final = save(store_at(tmp_path), 1, state=tree)
    back = load_checkpoint(final).state()

    def compare(one, two, path):
        assert type(one) is type(two), path
        if isinstance(one, torch.Tensor):
            assert equal(one, two), path
        elif isinstance(one, dict):
            assert list(one) == list(two), path
            for key in one:
                compare(one[key], two[key], f"{path}.{key}")
        elif isinstance(one, list | tuple):
            assert len(one) == len(two), path
            for index, pair in enumerate(zip(one, two, strict=True)):
                compare(*pair, f"{path}.{index}")
        else:
            assert one == two, path

    compare(tree, back, "")


def test_rows_are_saved_in_global_order_and_sliced(tmp_path):
    everything = torch.arange(12).reshape(6, 2)
    calls = []

    def gather_rows(tensor):
        calls.append(tensor)
        return everything

    local = {"carry": [RowSharded(everything[:3]), (RowSharded(everything[:3]), torch.tensor(7))]}
    tree = gather_tree(local, gather_rows)
    assert len(calls) == 2
    checkpoint = load_checkpoint(save(store_at(tmp_path), 1, state=tree))
    for world_size in (1, 2, 3, 6):
        for rank, part in enumerate(everything.chunk(world_size)):
            state = checkpoint.state(rank=rank, world_size=world_size)
            assert torch.equal(state["carry"][0], part)
            assert torch.equal(state["carry"][1][0], part)
            assert state["carry"][1][1] == 7
    with pytest.raises(UsageError, match=r"carry\.0.*\[6, 2\].*4 processes"):
        checkpoint.state(rank=0, world_size=4)


@pytest.mark.parametrize("leaf", [object(), b"bytes", {1, 2}, len], ids=["object", "bytes", "set", "function"])
def test_other_leaves_are_refused_and_leave_nothing(tmp_path, leaf):
    store = store_at(tmp_path)
    with pytest.raises(TypeError, match=r"deep\.0"):
        save(store, 1, state={"deep": [leaf]})
    assert list(store.folder.iterdir()) == []


# --- saving


def test_files_manifest_pointers_and_link(tmp_path):
    store = store_at(tmp_path)
    final = save(store, 10, value=0.5)
    assert final == store.folder / "step_10"
    assert sorted(p.name for p in final.iterdir()) == sorted(FILES)
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert (manifest["entry"], manifest["step"], manifest["config"]) == ("pretrain", 10, CONFIG)
    assert manifest["metric"] == metric(0.5)
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    for name, facts in manifest["files"].items():
        data = (final / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert (store.folder / "latest").read_text() == "step_10\n"
    assert (store.folder / "best").read_text() == "step_10\n"
    link = store.run_dir / "step_10"
    assert os.readlink(link) == "checkpoints/step_10"
    moved = shutil.move(store.run_dir, tmp_path / "elsewhere")
    assert load_checkpoint(Path(moved) / "step_10").step == 10


def test_loaded_checkpoint(tmp_path):
    checkpoint = load_checkpoint(save(store_at(tmp_path), 3))
    assert (checkpoint.step, checkpoint.entry, checkpoint.metric) == (3, "pretrain", None)
    assert checkpoint.config == CONFIG
    assert checkpoint.extra == {"bytes": {"metrics.jsonl": 12}}
    for name, value in weights(3).items():
        assert equal(checkpoint.model[name], value)
    assert equal(checkpoint.ema["inner.w"], weights(103)["inner.w"])
    assert load_checkpoint(save(store_at(tmp_path), 4, ema=None)).ema is None


def test_names_are_clean(tmp_path):
    dirty = {
        "module._orig_mod.inner.blocks.0._orig_mod.w": torch.ones(1),
        "_orig_mod.module.x": torch.zeros(1),
    }
    assert set(load_checkpoint(save(store_at(tmp_path), 1, model=dirty)).model) == {"inner.blocks.0.w", "x"}
    with pytest.raises(ValueError, match="'x'"):
        save(store_at(tmp_path), 2, model={"x": torch.ones(1), "module.x": torch.zeros(1)})


def test_tied_weights_are_stored_once_and_read_as_both(tmp_path):
    net = nn.ModuleDict({"emb": nn.Embedding(50, 64), "head": nn.Linear(64, 50, bias=False)})
    net["head"].weight = net["emb"].weight
    model = load_checkpoint(save(store_at(tmp_path), 1, model=net.state_dict())).model
    assert equal(model["emb.weight"], net["emb"].weight)
    assert equal(model["head.weight"], net["emb"].weight)
    size = (tmp_path / "run/checkpoints/step_1/model.safetensors").stat().st_size
    assert size < 1.5 * 50 * 64 * 4
    whole = torch.arange(10.0)
    model = load_checkpoint(save(store_at(tmp_path), 2, model={"a": whole[:5], "b": whole[3:], "c": whole})).model
    assert all(torch.equal(model[name], part) for name, part in [("a", whole[:5]), ("b", whole[3:]), ("c", whole)])


def test_best_follows_the_metric(tmp_path):
    store = store_at(tmp_path)
    expected = [(1, 0.2, 1), (2, 0.5, 2), (3, 0.5, 2), (4, float("nan"), 2), (5, None, 2), (6, 0.6, 6)]
    for step, value, best in expected:
        save(store, step, value)
        assert store.best() == store.folder / f"step_{best}", step
    save(store, 7, metric=metric(9.0, "min", "eval/loss"))  # another metric begins anew
    save(store, 8, metric=metric(8.0, "min", "eval/loss"))
    save(store, 9, metric=metric(8.5, "min", "eval/loss"))
    assert store.best() == store.folder / "step_8"
    assert store.latest() == store.folder / "step_9"


def test_saving_a_step_again_replaces_it(tmp_path):
    store = store_at(tmp_path)
    save(store, 1, model={"x": torch.zeros(1)})
    save(store, 1, model={"x": torch.ones(1)})
    assert load_checkpoint(store.latest()).model["x"] == 1
    assert store.steps() == [1]
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]


def test_prune_keeps_last_every_latest_and_best(tmp_path):
    store = store_at(tmp_path)
    for step in range(1, 9):
        save(store, step, value=1.0 if step == 2 else 0.0)
    store.prune(keep_last=2, keep_every=5)
    assert store.steps() == [2, 5, 7, 8]
    assert {p.name for p in store.run_dir.glob("step_*")} == {"step_2", "step_5", "step_7", "step_8"}
    # Back to step 2: the steps written from there on are the newest, whatever their number.
    save(store, 3)
    store.prune(keep_last=1)
    assert store.steps() == [2, 3]


def test_failed_prune_never_fails_the_run(tmp_path, monkeypatch, capsys):
    store = store_at(tmp_path)
    for step in (1, 2, 3):
        save(store, step)

    def stubborn(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("engine.checkpoint.store.remove_directory", stubborn)
    store.prune(keep_last=1)
    assert "step_1" in capsys.readouterr().out
    assert store.steps() == [1, 2, 3]


def test_a_link_that_cannot_be_made_is_only_said(tmp_path, capsys):
    store = store_at(tmp_path)
    (store.run_dir / "step_1").mkdir(parents=True)
    assert load_checkpoint(save(store, 1)).step == 1
    assert "no link" in capsys.readouterr().out


# --- finding


def test_resolve(tmp_path, monkeypatch):
    store = store_at(tmp_path)
    with pytest.raises(UsageError, match="it is empty"):
        store.resolve("latest")
    assert store.latest() is None
    save(store, 5, value=0.9)
    save(store, 10, value=0.1)
    monkeypatch.chdir(tmp_path)
    expected = {
        "latest": 10,
        "best": 5,
        "step_5": 5,
        "run": 10,
        "run/step_5": 5,
        "run/checkpoints/step_5": 5,
        str(store.folder / "step_10"): 10,
        "checkpoints/step_5": 5,
        "run/checkpoints/latest": 10,
        "run/checkpoints/best": 5,
    }
    for spec, step in expected.items():
        assert store.resolve(spec).resolve() == (store.folder / f"step_{step}").resolve(), spec
    with pytest.raises(UsageError, match=r"resume_from=step_6.*step_5"):
        store.resolve("step_6")
    with pytest.raises(UsageError, match="resume_from=nowhere"):
        store.resolve("nowhere")
    (store.folder / "latest").write_text("../../../etc\n")
    assert store.latest() == store.folder / "step_10"
    with pytest.raises(UsageError, match="no such checkpoint"):
        store.resolve("run/checkpoints/latest")


# --- weights into a module


def test_load_weights_names_every_misfit_and_copies_nothing():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    other = {
        "0.weight": torch.zeros(2, 3),
        "0.bias": torch.zeros(5),
        "1.weight": torch.zeros(2, 2),
        "x": torch.ones(1),
    }
    with pytest.raises(UsageError) as caught:
        load_weights(net, other)
    text = str(caught.value)
    assert "missing: 1.bias [2]" in text
    assert "unexpected: x [1]" in text
    assert "mismatching: 0.bias (file [5], model [2])" in text
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_load_weights_through_wrappers_and_ties():
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = inner

    tied = nn.ModuleDict({"emb": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    tied["head"].weight = tied["emb"].weight
    value = torch.randn(5, 4)
    load_weights(Wrapper(tied), {"_orig_mod.emb.weight": value})
    assert torch.equal(tied["head"].weight, value)
