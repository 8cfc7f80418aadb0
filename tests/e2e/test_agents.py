"""Several torchrun agents, and ranks that die: the others end soon, the cause is shown, a restart resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from engine.distributed import _agree_on_prefix
from tasks.recursive_reasoning.task import RecursiveReasoningTask
from tests.conftest import ROOT, free_port, last_checkpoint, run_ranks, status_of

SMALL = (
    "--config-name=cfg_pretrain_sudoku_4x4",
    "+debug=tiny",
    "device=cpu",
    "max_steps=16",
    "epochs=8",
    "global_batch_size=8",
    "checkpoint_interval=2",
    "project_name=p",
)
# pretrain.py in which rank 1 dies at its fifth step, in its first life only
FATAL = """
import os, sys
sys.path.insert(0, {root!r})
import pretrain
from engine.cli.main import main
from tasks.recursive_reasoning.task import RecursiveReasoningTask

inner, count = RecursiveReasoningTask.after_step, []
def after_step(self):
    count.append(1)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and len(count) == 5:
        os.kill(os.getpid(), 9) if {kill} else exec('raise ValueError("the cause")')
    inner(self)
RecursiveReasoningTask.after_step = after_step
main(pretrain.launch, pretrain.FAMILY)
"""


def agent(*argv: str, cwd: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", *argv]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def weights(run: Path) -> dict:
    last = last_checkpoint(run)
    return load_file(last / "model.safetensors")


@pytest.mark.slow
def test_two_agents_train_as_two_machines_would(workplace: Path) -> None:
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=loopforge"]
    words = ["--nnodes=2", "--nproc-per-node=1", *rendezvous, str(ROOT / "pretrain.py"), *SMALL, "run_name=two"]
    agents = [agent(*words, cwd=workplace) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in agents]
    assert [process.returncode for process in agents] == [0, 0], outputs
    assert sum(output.count("done:") for output in outputs) == 1  # one rank 0 over both machines
    one = agent("--standalone", "--nproc-per-node=2", str(ROOT / "pretrain.py"), *SMALL, "run_name=one", cwd=workplace)
    assert one.wait(timeout=120) == 0
    theirs = weights(workplace / "checkpoints/p/one")
    for name, value in weights(workplace / "checkpoints/p/two").items():
        assert value.equal(theirs[name]), name


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_within_a_minute_and_shows_its_traceback(workplace: Path) -> None:
    script = workplace / "fatal.py"
    script.write_text(FATAL.format(root=str(ROOT), kill=False))
    process = agent("--standalone", "--nproc-per-node=2", str(script), *SMALL, "run_name=r", cwd=workplace)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    own, _, summary = output.partition("Root Cause")
    assert "ValueError: the cause" in own  # as it happens
    assert "ValueError: the cause" in summary  # and in torchrun's summary
    assert "after_step" in summary
    assert own.count("Traceback") - own.count("torch/distributed/run.py") <= 2  # no transport errors of the survivor
    assert "another rank stopped" in own


@pytest.mark.slow
def test_torchruns_restart_goes_on_from_the_last_checkpoint(workplace: Path) -> None:
    script = workplace / "fatal.py"
    script.write_text(FATAL.format(root=str(ROOT), kill=True))
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = agent(*words, str(script), *SMALL, "run_name=r", cwd=workplace)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "resuming from step_4" in output
    plain = agent(*words, str(ROOT / "pretrain.py"), *SMALL, "run_name=whole", cwd=workplace)
    assert plain.wait(timeout=120) == 0
    whole = weights(workplace / "checkpoints/p/whole")
    for name, value in weights(workplace / "checkpoints/p/r").items():
        assert value.equal(whole[name]), name


@pytest.mark.parametrize(  # ddp meets the dead in the backward pass
    "parallel", ["flat", pytest.param("ddp", marks=pytest.mark.slow)]
)
def test_survivors_say_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch, parallel: str) -> None:
    inner = RecursiveReasoningTask.loss

    def loss(self: RecursiveReasoningTask, micro_batch):
        if os.environ["RANK"] == "1":
            raise ValueError("the cause")
        return inner(self, micro_batch)

    monkeypatch.setattr(RecursiveReasoningTask, "loss", loss)
    first, second = run_ranks("pretrain", *SMALL, "run_name=r", f"parallel={parallel}", cwd=workplace)
    assert (first.code, second.code) == (1, 1)
    assert "ValueError: the cause" in second.output
    assert "another rank stopped" in first.output
    assert "Traceback" not in first.output
    status = status_of(workplace / "checkpoints/p/r")
    assert (status["state"], status["exit_code"]) == ("failed", 1)


@pytest.mark.parametrize("first", [0, 1])
def test_a_restarted_rank_does_not_meet_the_dead(first: int) -> None:
    """The store still holds everything that two earlier ranks wrote; whichever comes first must wait for the other."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=30))
    old = "dead0,dead1"
    for key, value in {"life/0": "dead0", "life/1": "dead1", "lives": old, "signed/1": old, "begin": old}.items():
        store.set(key, value)
    agreed: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: agreed.update({i: _agree_on_prefix(store, i, 2)}), daemon=True)
        for i in (first, 1 - first)
    ]
    threads[0].start()
    threads[0].join(0.1)
    assert threads[0].is_alive()
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert agreed[0] == agreed[1]
    assert "dead" not in agreed[0]
