"""What goes wrong on real machines: a full disk, no memory, no wandb, a run already going, a bomb in a checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from engine.io import sha256_file, sha256_json
from tests.conftest import _entry, finish, metrics, run_forked, run_script, start_forked, status_of

RUN = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "project_name=p", "run_name=r")


def status(folder: Path) -> dict:
    return status_of(folder / "checkpoints/p/r")


def small_disk(argv: list[str], after: int) -> None:
    """From the checkpoint of step `after` on, no file may grow beyond 4 kB: what a full disk does to a save."""
    from engine.checkpoint.store import CheckpointStore

    save = CheckpointStore.save

    def limited(self, step, **keys):
        if step >= after:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            return save(self, step, **keys)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    CheckpointStore.save = limited
    _entry("pretrain", argv)


def test_a_full_disk_loses_nothing(workplace: Path) -> None:
    argv = [*RUN, "max_steps=8", "checkpoint_interval=2"]
    whole = run_script("pretrain", *argv, "run_name=whole", cwd=workplace)
    assert whole.code == 0
    result = run_forked(small_disk, argv, 4, cwd=workplace)
    assert result.code == 1, result.output
    assert "could not be written" in result.output
    assert "Traceback" not in result.output
    assert status(workplace)["state"] == "failed"
    folder = workplace / "checkpoints/p/r/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_2"]
    # Space was made: the same command resumes from the good one and ends where the whole run ended.
    result = run_script("pretrain", *argv, cwd=workplace)
    assert result.code == 0, result.output
    assert metrics(workplace / "checkpoints/p/r") == metrics(workplace / "checkpoints/p/whole")


def out_of_memory(argv: list[str]) -> None:
    from models.recursive_reasoning.act import ACTModel

    forward, calls = ACTModel.forward, []

    def failing(self, batch, carry=None):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")
        return forward(self, batch, carry)

    ACTModel.forward = failing
    _entry("pretrain", argv)


def test_out_of_memory_is_one_line_and_the_last_checkpoint_stays(workplace: Path) -> None:
    argv = [*RUN, "max_steps=8", "checkpoint_interval=2", "global_batch_size=4"]
    result = run_forked(out_of_memory, argv, cwd=workplace)
    assert result.code == 1
    error = [line for line in result.output.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert "global_batch_size (now 4)" in error[0]
    assert "accumulation=2" in error[0]
    assert "Traceback" not in result.output
    assert status(workplace)["step"] == 4
    assert run_script("pretrain", *argv, "accumulation=2", cwd=workplace).code == 0


def test_wandb_that_is_not_there_changes_nothing(workplace: Path) -> None:
    result = run_forked(_without_wandb, [*RUN, "enable_wandb=true"], cwd=workplace)
    assert result.code == 0, result.output
    assert result.output.count("warning: no wandb metrics") == 1
    assert "pip install -e '.[wandb]'" in result.output


def _without_wandb(argv: list[str]) -> None:
    import sys

    sys.modules["wandb"] = None  # type: ignore[assignment]
    _entry("pretrain", argv)


def test_a_second_process_in_the_same_run_is_refused(workplace: Path) -> None:
    long = [*RUN, "max_steps=100000", "epochs=100000", "log_interval=1"]
    process, connection = start_forked(_entry, "pretrain", long, cwd=workplace)
    file = workplace / "checkpoints/p/r/metrics.jsonl"
    while process.is_alive() and not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    second = run_script("pretrain", *long, cwd=workplace)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, connection).code == 3
    assert second.code == 2
    assert str(process.pid) in second.output


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_pickle_bomb_with_matching_checksums_is_refused_by_name(workplace: Path) -> None:
    argv = [*RUN, "max_steps=4", "checkpoint_interval=2", "keep_last=3"]
    assert run_script("pretrain", *argv, cwd=workplace).code == 0
    step = workplace / "checkpoints/p/r/checkpoints/step_4"
    bomb = step / "state.safetensors"
    bomb.write_bytes(pickle.dumps(Bomb(workplace / "owned")))
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"][bomb.name] = {"sha256": sha256_file(bomb), "size": bomb.stat().st_size}
    manifest["sha256"] = sha256_json({key: value for key, value in manifest.items() if key != "sha256"})
    (step / "manifest.json").write_text(json.dumps(manifest))
    result = run_script("pretrain", *argv, "resume=true", "max_steps=6", cwd=workplace)
    assert result.code == 2
    assert "state.safetensors" in result.output
    assert "resume_from=step_2" in result.output
    assert not (workplace / "owned").exists()


def test_a_bug_keeps_its_traceback_and_says_failed(workplace: Path) -> None:
    result = run_forked(_with_a_bug, [*RUN], cwd=workplace)
    assert result.code == 1
    assert "Traceback" in result.output
    assert "ZeroDivisionError" in result.output
    assert status(workplace)["state"] == "failed"


def _with_a_bug(argv: list[str]) -> None:
    from tasks.recursive_reasoning.task import RecursiveReasoningTask

    RecursiveReasoningTask.after_step = lambda self: 1 / 0
    _entry("pretrain", argv)


def nobody_reads(script: str, argv: list[str]) -> None:
    """Standard output and error are pipes whose reader has left."""
    for descriptor in (1, 2):
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, descriptor)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
    _entry(script, argv)


def test_a_run_outlives_its_terminal(workplace: Path) -> None:
    result = run_forked(nobody_reads, "pretrain", [*RUN, "max_steps=3"], cwd=workplace)
    assert result.code == 0
    assert status(workplace)["state"] == "done"
    assert [line["step"] for line in metrics(workplace / "checkpoints/p/r") if "train/loss" in line] == [1, 2, 3]
    refused = run_forked(nobody_reads, "pretrain", [*RUN, "lrr=3"], cwd=workplace)
    assert refused.code == 2
    written = run_forked(nobody_reads, "scripts/evaluate", ["checkpoints/p/r"], cwd=workplace)
    assert written.code == 0
    assert (workplace / "checkpoints/p/r/evaluation_step_3.json").exists()
