"""The options of run_jobs.py, its GPUs, Slurm through a stand-in for submitit, refusals, and the shipped job file."""

from __future__ import annotations

import re
import signal
import sys
import types
from pathlib import Path

import pytest

from launcher import runner
from launcher.gpus import gpus_needed
from launcher.jobs import command_job, read
from launcher.slurm import NodeRunner
from tests.conftest import ROOT, run_forked
from tests.launcher.job_cases import count, events, marks, run, write


def test_gpus_are_shared_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = "python job.py {} env=CUDA_VISIBLE_DEVICES sleep=0.3"
    write(place, *(f"[ ] {job.format(name)}" for name in "abc"), f"[ ] {job.format('d')} device=cpu")
    assert run(place, capsys, "--gpus", "4,7", "--jobs", "4")[0] == 0
    seen = {line.split()[0]: line.split()[1].removeprefix("env:") for line in events(place) if "env:" in line}
    assert {seen["a"], seen["b"]} == {"4", "7"}
    assert seen["c"] in {"4", "7"}
    assert seen["d"] == ""
    order = [tuple(line.split()[:2]) for line in events(place)]
    assert order.index(("c", "start")) > min(order.index(("a", "end")), order.index(("b", "end")))
    write(place, "[ ] torchrun --nproc-per-node=3 job.py a")
    code, output = run(place, capsys, "--gpus", "0,1")
    assert code == 2
    assert "needs 3 GPUs" in output


def test_jobs_at_once_share_the_cores(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(*words: str) -> list[str]:
        job = "python job.py {} env=OMP_NUM_THREADS"
        write(place, f"[ ] {job.format('a')}", f"[ ] OMP_NUM_THREADS=9 {job.format('b')}")
        (place / "events").unlink(missing_ok=True)
        assert run(place, capsys, *words)[0] == 0
        return sorted(line.split()[1].removeprefix("env:") for line in events(place) if "env:" in line)

    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads("--jobs", "2") == ["4", "9"]
    assert threads("--jobs", "20") == ["1", "9"]
    assert threads() == ["9", "none"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads("--jobs", "2") == ["2", "9"]


@pytest.mark.parametrize(
    ("command", "gpus"),
    [
        ("python a.py", 1),
        ("python a.py device=cpu", 0),
        ("python a.py --device cpu", 0),
        ("torchrun --nproc-per-node=4 a.py", 4),
        ("torchrun --nproc_per_node 2 a.py", 2),
        ("torchrun --nproc-per-node=gpu a.py", 8),
        ("torchrun --nproc-per-node=2 a.py --device=cpu", 0),
        (f"python {ROOT}/train.py --config-name=cfg_train_cpu", 0),  # its recipe has device: cpu
        (f"python {ROOT}/train.py --config-name=cfg_train_cpu device=cuda", 1),
        (f"python {ROOT}/pretrain.py --use_cpu", 1),  # no flag of this script: the run will refuse it
    ],
)
def test_how_many_gpus_a_job_takes(command: str, gpus: int) -> None:
    assert gpus_needed(command_job(command).argv, 8, Path.cwd()) == gpus


def test_only_once_dry_run_and_status(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        place,
        "#@ id: A1",
        "[ ] python job.py a",
        "[ ] python job.py b",
        "[!] python job.py c",
        "[ ] X=1 python job.py d",
    )
    before = (place / "jobs/jobs-a.txt").read_text()
    code, output = run(place, capsys, "--dry-run", "--failed", "--gpus", "0")
    assert code == 0
    assert [line.split()[1] for line in output.splitlines()] == ["A1", "L3", "L4", "L5"]
    assert "gpus=1: X=1 " in output
    assert sys.executable in output
    assert (place / "jobs/jobs-a.txt").read_text() == before
    assert events(place) == []
    assert run(place, capsys, "--only", "L5")[0] == 0
    assert run(place, capsys, "--once")[0] == 0
    assert marks(place) == "x !x"
    code, output = run(place, capsys, "--only", "L4")
    assert "L4 is failed (--failed takes it)" in output
    assert run(place, capsys, "--only", "L4", "--failed")[0] == 0
    code, output = run(place, capsys, "--status")
    assert code == 0
    assert re.search(r"^A1 +\[x\] done +- +1 +0:00:0\d +checkpoints/p/a$", output, re.MULTILINE)
    assert "1 todo, 0 running, 3 done, 0 failed" in output


def test_a_line_may_resume_the_run_of_an_earlier_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("resume=true", "--resume True", "--init_from resume"):
        write(place, "[ ] python job.py a run_dir=o run_name=a", f"[ ] python job.py b run_dir=o run_name=b {words}")
        assert run(place, capsys, "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        (["[ ] python job.py a", "python job.py b"], [], "line 2: 'python job.py b'"),
        (["[ ] python 'job.py"], [], "line 1: the command cannot be split"),
        (["[ ] python job.py \\", "  x=1"], [], "line 1: a job is one line: write it without \\ at the end"),
        (["[ ] python job.py > log"], [], "line 1: '>' is for a shell, which does not read this line: write bash -c"),
        (["[ ] python job.py 2>log"], [], "line 1: '2>log' is for a shell"),
        (["[ ] python job.py; python job.py x"], [], "line 1: 'job.py;' is for a shell"),
        (["[ ] python job.py run_dir=$HOME/a"], [], "line 1: $HOME is for a shell"),
        (["[ ] python job.py run_name=$(date)"], [], "line 1: $( is for a shell"),
        (["[ ] python job.py '#' a#b # a note"], [], "line 1: '#' begins no comment behind a command: write"),
        (["[ ] python job.py\r[ ] python job.py x"], [], "line 1: its lines end with a carriage return alone"),
        (["#@ id: a", "#@ id: b", "[ ] python job.py"], [], "line 2: '#@ id:' appears twice above one job"),
        (
            ["[ ] python job.py run_dir=a run_name=x", "[ ] python job.py --run_dir a run_name=y"],
            [],
            "lines 1 and 2 both write to a: one each",
        ),
        (
            ["[ ] python train_animal.py output_dir=a seed=1", "[ ] python train_animal.py --output_dir ./a seed=2"],
            [],
            "lines 1 and 2 both write to a: one each",
        ),
        (
            ["[ ] python train.py -m seed=1,2", "[ ] python train.py seed=1", "[ ] python train.py seed=2"],
            [],
            "lines 2 and 3 both write to the out_dir of train.py: one each",
        ),
        (["[ ] python job.py run_name=a", "[ ] python job.py run_name=a x"], [], "lines 1 and 2 are both a"),
        (
            ["[ ] python job.py project_name=p run_name=a", "[ ] python b.py ++run_name=a project_name=p"],
            [],
            "are both a",
        ),
        (["[ ] python job.py"], ["--only", "L2"], "has no such job"),
        (["[ ] python job.py"], ["--slurm", "timeout_min=1"], "--launcher slurm"),
        (["[ ] python job.py"], ["--cwd", "/nowhere"], "no such folder"),
        (["[ ] python job.py"], ["--launcher", "slurm"], "pip install -e '.[slurm]'"),
    ],
)
def test_refusals_are_one_line(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    path = write(place, *lines)
    before = path.read_text()
    code, output = run(place, capsys, *words)
    assert code == 2
    assert message in output
    assert output.count("\n") == 1
    assert path.read_text() == before


def test_slurm_gets_one_runner_for_each_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for submitit: what is submitted is executed here, and marks the file as on a node."""
    queued: list[tuple[dict, object]] = []

    class Executor:
        def __init__(self, folder: Path, cluster: str) -> None:
            assert cluster == "slurm"
            self.parameters: dict = {}

        def update_parameters(self, **parameters: object) -> None:
            self.parameters = {**self.parameters, **parameters}

        def submit(self, task: object) -> types.SimpleNamespace:
            queued.append((self.parameters, task))
            return types.SimpleNamespace(job_id=f"70{len(queued)}")

    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor))
    write(place, "[ ] python job.py a run_name=ra", "[x] python job.py b", "[ ] torchrun --nproc-per-node=4 job.py c")
    code, output = run(
        place, capsys, "--launcher", "slurm", "--slurm", "timeout_min=60", "--slurm", "slurm_partition=gpu"
    )
    assert code == 0
    assert "ra: queued as Slurm job 701" in output
    first, second = (parameters for parameters, _ in queued)
    assert first == {"name": "ra", "gpus_per_node": 1, "timeout_min": 60, "slurm_partition": "gpu"}
    assert (second["name"], second["gpus_per_node"]) == ("L3", 4)
    assert marks(place) == " x "
    task = queued[0][1]
    assert callable(task)
    assert task() == task() == 0  # the second finds it done
    assert marks(place) == "xx "
    assert count(place, "a start") == 1


def test_a_slurm_job_that_is_preempted_stops_its_runner_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitit does: `checkpoint` is called by a signal handler, while `__call__` waits in the same thread."""
    helpers = types.SimpleNamespace(DelayedSubmission=lambda task: ("again", task))
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(helpers=helpers))
    asks = "import os, signal, time\nwhile True: os.kill(os.getppid(), signal.SIGUSR2); time.sleep(1)"
    task = NodeRunner([sys.executable, "-c", asks], str(tmp_path))

    def node() -> None:
        def preempted(*_: object) -> None:
            word, again = task.checkpoint()
            print(word, again.command == task.command, again.cwd == task.cwd)

        signal.alarm(120)  # a wait that hangs ends the test
        signal.signal(signal.SIGUSR2, preempted)
        with pytest.raises(SystemExit, match=str(-signal.SIGTERM)):  # Slurm is to call such a job failed
            task()

    result = run_forked(node)
    assert result.code == 0
    assert result.output.endswith("again True True\n")


def test_the_shipped_jobs_are_complete() -> None:
    jobs = read(ROOT / "jobs" / "jobs-trm.txt").jobs
    assert len({job.run_name for job in jobs}) == len(jobs) >= 4
    for job in jobs:
        assert job.mark == " "
        assert job.argv[:2] == ("torchrun", "--standalone")
        assert {"mode", "act", "encoder", "purpose"} <= job.intent.keys(), job.id
        assert {comment.split()[0] for comment in job.comments} >= {"hypothesis", "expected"}, job.id


@pytest.mark.parametrize("logs", ["file", "file/logs", "/dev/null"])
def test_logs_that_cannot_be_written_mark_no_job(place: Path, logs: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").touch()
    write(place, "[ ] python job.py a")
    code, output = run(place, capsys, "--logs", logs if logs.startswith("/") else str(place / logs))
    assert code == 2
    assert "cannot be written" in output
    assert (marks(place), events(place)) == (" ", [])
