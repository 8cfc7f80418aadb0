"""launch.py: what it would submit (golden files), runs here, refusals, and a Slurm job that is preempted once.

The golden files are written anew by `python -m tests.launcher.test_launch`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from engine.errors import UsageError
from launcher.destination import as_name, bucket, gigabytes, meeting_point, minutes, queue_name
from launcher.once import run_once
from launcher.ranks import Ranks
from scripts import launch
from tests.conftest import ROOT, metrics, run_forked, run_ranks, run_script
from tests.launcher.job_cases import count, events, marks, write
from tests.launcher.slurm_stand_in import install

GOLDEN = Path(__file__).parent / "golden"
JOBS = """\
# a job of a file
#@ intent: mode=embedding act=dynamic encoder=none purpose=demo
[ ] OMP_NUM_THREADS=1 python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu project_name=p run_name=small
#@ id: large
[ ] torchrun --standalone --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp run_name=a
"""
TWO = "--nodes 2 --ranks 8"
CASES = {
    "local": "--to local HERE/jobs.txt:small",
    "local_command": "--to local -- python train.py --config-name=cfg_train_cpu run_name='a b'",
    "torchrun": "--to torchrun --ranks 2 HERE/jobs.txt:small",
    "torchrun_second_node": f"--to torchrun {TWO} --node-rank 1 --head node-0:29500 HERE/jobs.txt:large",
    "slurm": f"--to slurm {TWO} --partition gpu --time 12:00:00 --account lab --qos long --mem 64G --cpus 32"
    " --slurm slurm_constraint=a100 HERE/jobs.txt:large",
    "slurm_one_process": "--to slurm --grace 30 --time 90 HERE/jobs.txt:small",
    "skypilot": f"--to skypilot {TWO} --accelerator H100 --spot --infra aws/us-east-1 --checkpoints s3://runs"
    " --prepare 'python -m dataset.build_sudoku_dataset' --cpus 32 --mem 256G --restarts 2 HERE/jobs.txt:large",
    "skypilot_cpu": "--to skypilot --ranks 2 --cpus 4 HERE/jobs.txt:small",
}


def dry_run(words: str, here: Path, *more: str) -> tuple[int, str]:
    """(exit code, what is printed, with names in place of this machine's paths)."""
    (here / "jobs.txt").write_text(JOBS)
    (here / "none.txt").write_text("python pretrain.py\n")
    (here / "shell.txt").write_text("[ ] python pretrain.py > log\n")
    argv = shlex.split(words.replace("HERE", str(here)))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = launch.main(["--cwd", str(ROOT), "--dry-run", *more, *argv])
    paths = {sys.executable: "PYTHON", str(ROOT): "ROOT", str(here): "HERE"}
    text = out.getvalue()
    for path, name in paths.items():
        text = text.replace(path, name)
    return code, text


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_what_would_be_submitted(case: str, tmp_path: Path) -> None:
    if case.startswith("slurm"):
        pytest.importorskip("submitit")
    assert dry_run(CASES[case], tmp_path) == (0, (GOLDEN / f"{case}.txt").read_text())
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("case", ["skypilot", "skypilot_cpu"])
def test_skypilots_own_schema_accepts_the_task(case: str) -> None:
    if importlib.util.find_spec("sky") is None:
        pytest.skip("skypilot is not installed")
    from launcher.skypilot import check

    task = yaml.safe_load((GOLDEN / f"{case}.txt").read_text())
    assert check(task) == ""
    task["resources"]["job_recovery"]["recover_on_exit_codes"] = ["three"]
    with pytest.raises(UsageError, match="SkyPilot refuses the task"):
        check(task)


def test_skypilots_variables_become_ranks(tmp_path: Path) -> None:
    """The `run` of the task in a shell, with the variables of the second of two nodes."""
    run = yaml.safe_load((GOLDEN / "skypilot.txt").read_text())["run"]
    shown = "conda() { :; }; python() { printf '%s\\n' \"$@\"; }\n"
    node = {"NUM_NODES": "2", "NODE_RANK": "1", "NUM_GPUS_PER_NODE": "8", "NODE_IPS": "10.0.0.4\n10.0.0.7"}
    environment = os.environ | {f"SKYPILOT_{name}": value for name, value in node.items()}
    done = subprocess.run(["bash", "-c", shown + run], env=environment, capture_output=True, text=True, check=True)
    script, *words = done.stdout.splitlines()
    assert script == "scripts/launch.py"
    args = launch.parse(words)
    assert (args.to, args.nodes, args.node_rank, args.ranks, args.head) == ("torchrun", 2, 1, 8, "10.0.0.4")
    ranks = Ranks(str(args.ranks), args.nodes, args.node_rank, args.head)
    assert ranks.words(args.command)[:6] == (
        "torchrun",
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=8",
        "--master-addr=10.0.0.4",
        "--master-port=29400",
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python pretrain.py -m a=1", "torchrun --standalone --nproc-per-node=2 pretrain.py -m a=1"),
        ("python -u a.py", "torchrun --standalone --nproc-per-node=2 a.py"),
        ("python -m a.b x=1", "torchrun --standalone --nproc-per-node=2 -m a.b x=1"),
        ("torchrun -m a.b x=1", "torchrun --standalone --nproc-per-node=2 -m a.b x=1"),
        (
            "torchrun --nnodes 4 --rdzv-backend=c10d --rdzv-endpoint=h:1 --max-restarts 3 --tee=3 a.py --tee=4",
            "torchrun --standalone --nproc-per-node=2 --max-restarts=3 --tee=3 a.py --tee=4",
        ),
    ],
)
def test_ranks_take_the_place_of_those_that_the_command_has(command: str, words: str) -> None:
    assert shlex.join(Ranks("2").words(command.split())) == words


@pytest.mark.parametrize("text", ["90", "1:30:00", "0-01:30", "1:29:01", "0-1:30:00"])
def test_time_limits_are_read_as_slurm_reads_them(text: str) -> None:
    assert minutes(text) == 90


def test_memory() -> None:
    assert [gigabytes(text) for text in ("64G", "64gb", "512M", "1.5T")] == [64, 64, 0.5, 1536]


@pytest.mark.parametrize("text", ["12:30", "12h", "0", "", "-5", "1:2:3"])
def test_a_time_limit_that_could_be_misread_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"HH:MM:SS|at least one minute"):
        minutes(text)


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (
            meeting_point,
            ["node-0", "10.0.0.4:1", "[fd00::1]", "[::1]:29400"],
            ["", ":1", "n:", "n:x", "n:0", "n:70000"],
        ),
        (queue_name, ["a", "L3", "x.1_b-2"], ["", "a b", "a/b", "a\nb", "4x4", "a-", "é"]),
        (bucket, ["s3://runs", "gs://a/b"], ["", "runs", "s3://", "s3:runs", "s3://a b"]),
    ],
)
def test_hosts_names_and_buckets(read: Callable[[str], str], good: list[str], bad: list[str]) -> None:
    assert [read(text) for text in good] == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            read(text)


def test_a_job_of_any_name_has_one_that_a_queue_takes() -> None:
    names = ("small", "lr=1e-3 é", "4x4", "é")
    assert [as_name(name) for name in names] == ["small", "lr-1e-3", "job-4x4", "job"]


@pytest.mark.parametrize(
    ("head", "meets"),
    [("a", ["a", "29400"]), ("a:1", ["a", "1"]), ("[::1]", ["::1", "29400"]), ("[::1]:2", ["::1", "2"])],
)
def test_where_the_machines_meet(head: str, meets: list[str]) -> None:
    words = Ranks("2", nodes=2, head=head).words(["python", "a.py"])
    assert [word.partition("=")[2] for word in words[4:6]] == meets


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--to local --ranks 2 HERE/jobs.txt:small",
            "--ranks is for --to torchrun or slurm or skypilot, not for local",
        ),
        ("--to skypilot --partition gpu HERE/jobs.txt:small", "--partition is for --to slurm, not for skypilot"),
        ("--to slurm HERE/jobs.txt:smal", "jobs.txt has no job smal: did you mean 'small'?"),
        ("--to slurm trm", "which job? trm:NAME, with one of sudoku_4x4"),
        ("--to slurm", "name one job, as FILE:NAME, or give a command after --"),
        ("--to local HERE/jobs.txt:small -- python a.py", "name one job"),
        ("--to slurm --ranks 2 -- bash -c true", "expected python SCRIPT.py"),
        ("--to slurm -- torchrun --nproc-per-node=gpu a.py", "The command says gpu: give --ranks N"),
        ("--to torchrun --nodes 2 HERE/jobs.txt:large", "--node-rank (0 to 1) and --head"),
        ("--to torchrun --nodes 2 --head a --node-rank 2 HERE/jobs.txt:large", "--node-rank 2: expected 0 to 1"),
        ("--to torchrun --ranks 5 HERE/jobs.txt:small", "JOB012 HERE/jobs.txt:3: global_batch_size=64 does not divide"),
        ("--to local -- python pretrain.py lrr=3", "lrr"),
        ("--to local --cwd HERE HERE/jobs.txt:small", "there is no pretrain.py in HERE: --cwd DIR says where"),
        ("--to slurm HERE/jobs.txt:small", "Give --time HH:MM:SS"),
        ("--to slurm --time 60 --slurm nonsense=3 HERE/jobs.txt:small", "nonsense"),
        (
            "--to slurm --time 1 HERE/jobs.txt:small",
            "a limit of 60 s with a warning 90 s ahead (--grace) leaves no time",
        ),
        ("--to local HERE/jobs.txt:", "which job? HERE/jobs.txt:NAME, with one of small, large"),
        ("--to local HERE/none.txt:a", "HERE/none.txt has no job: a job is a line that begins with '[ ] '"),
        ("--to local HERE/shell.txt:L1", "shell.txt line 1: '>' is for a shell, which does not read this line"),
        ("--to skypilot --ranks 1 -- python pretrain.py", "1 GPU(s) on each node, of which kind? Give --accelerator"),
        ("--to skypilot --out HERE HERE/jobs.txt:small", "HERE is a folder: name a file in it"),
        ("--to skypilot --cwd HERE HERE/jobs.txt:small", "--to skypilot copies the folder in which the command runs"),
    ],
)
def test_refusals_are_one_line(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with the command is found before anything is started or submitted."""
    assert dry_run(words, tmp_path) == (2, "")
    error = capsys.readouterr().err
    assert message.replace("HERE", str(tmp_path)) in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "verify=warn" not in error or "JOB012" in error  # no hint where the run itself would refuse its config


def test_without_a_cluster_nothing_is_submitted(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place))
    path = write(place, "[ ] python job.py a run_name=a")
    assert launch.main(["--to", "slurm", "--time", "60", "--cwd", str(place), f"{path}:a"]) == 2
    assert "error: there is no srun here: submit where the cluster's commands are" in capsys.readouterr().err
    assert (marks(place), (place / "logs").exists()) == (" ", False)


def test_a_job_of_a_file_is_run_here_and_marked(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(place, "[ ] python job.py a run_name=a", "[ ] python job.py b run_name=b exit=1")
    for name, code in (("a", 0), ("b", 1), ("a", 0)):
        assert launch.main(["--to", "local", "--cwd", str(place), f"{path}:{name}"]) == code
    assert (marks(place), count(place, "a start")) == ("x!", 1)
    printed = capfd.readouterr()
    assert "a is done (put [ ] to run it again)" in printed.out
    assert "note: nothing to review: python job.py a run_name=a launches nothing of ours" in printed.err
    pytest.importorskip("submitit")
    assert launch.main(["--to", "slurm", "--time", "60", "--cwd", str(place), f"{path}:a"]) == 2
    assert "a is done" in capfd.readouterr().err
    for to in (["local"], ["slurm", "--time", "60"]):
        assert launch.main(["--to", *to, "--dry-run", "--cwd", str(place), f"{path}:a"]) == 0
        assert "note: without --dry-run: nothing to do in jobs-a.txt; a is done" in capfd.readouterr().err


def test_a_command_is_run_here_with_the_exit_code_of_its_run(place: Path) -> None:
    """torchrun says 1, status.json says interrupted: 3. The job asks its parent for a signal, which passes it on."""
    asks = "import os, signal\\nos.kill(os.getppid(), signal.SIGUSR1)\\n"
    (place / "asks.py").write_text(
        (place / "job.py").read_text().replace('note("start")', f'exec("{asks}")\nnote("start")')
    )

    def command(*words: str) -> int:
        return launch.main(["--to", "local", "--cwd", str(place), "--no-verify", "--", "python", *words])

    assert run_forked(command_code, command, "job.py", "a", "status=interrupted,3,7").code == 3
    assert run_forked(command_code, command, "job.py", "b", "exit=2").code == 2
    stopped = run_forked(command_code, command, "asks.py", "c", "torchrun", "sleep=60")
    assert stopped.code == 3
    assert count(place, "c signalled") == 1
    with pytest.raises(UsageError, match="nowhere"):
        run_once(["nowhere"], cwd=place, env={})
    assert events(place)


def command_code(command: Callable[..., int], *words: str) -> None:
    sys.exit(command(*words))


# --- Slurm ------------------------------------------------------------------------------------------------------------

SMALL = (
    "--config-name=cfg_pretrain_sudoku_4x4 +debug=tiny device=cpu max_steps=12 epochs=6 global_batch_size=8"
    " log_interval=1 checkpoint_interval=4 project_name=p"
)
# pretrain.py which at its fifth step, in the job's first life, has Slurm signal every process of every task
PREEMPTED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
import pretrain
from engine.cli.main import main
from engine.distributed import Polls
from engine.signals import StopSignal
from tasks.recursive_reasoning.task import RecursiveReasoningTask

inner, count = RecursiveReasoningTask.after_step, []
def after_step(self):
    count.append(1)
    if len(count) == 5 and os.environ.get("RANK", "0") == "0" and os.environ["SLURM_RESTART_COUNT"] == "0":
        slurm = pathlib.Path(os.environ["STAND_IN_SLURM"])
        if {term}:
            (slurm / "preempted").touch()
        for group in slurm.glob("group_*"):
            os.killpg(int(group.read_text()), signal.SIGTERM if {term} else signal.SIGUSR2)
        while StopSignal.current.received is None:
            time.sleep(0.01)
    inner(self)
RecursiveReasoningTask.after_step = after_step
Polls.MOST = 1  # ranks ask each other after every step, so the run stops at the fifth
main(pretrain.launch, pretrain.FAMILY)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["warned before its limit, two nodes", "preempted, a job of a file"])
def test_a_preempted_slurm_job_ends_as_an_undisturbed_run(how: str, workplace: Path) -> None:
    pytest.importorskip("submitit")
    two = "two" in how
    slurm, script = workplace / "slurm", workplace / "stopped.py"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= install(slurm) | {"OMP_NUM_THREADS": "1"}
    script.write_text(PREEMPTED.format(root=str(ROOT), term=not two))
    command = f"python stopped.py {SMALL} run_name=r"
    jobs = workplace / "jobs.txt"
    jobs.write_text(f"[ ] {command}\n")
    what = ["--nodes", "2", "--", *command.split()] if two else [f"{jobs}:r"]
    argv = [sys.executable, str(ROOT / "scripts/launch.py"), "--to", "slurm", "--time", "60"]
    shown, queued = (
        subprocess.run(
            [*argv, *more, *what], cwd=workplace, env=environment, capture_output=True, text=True, check=False
        )
        for more in (["--dry-run"], [])
    )
    number = environment["STAND_IN_JOB"]
    assert f"r: queued as Slurm job {number}" in queued.stdout, queued.stderr
    deadline = time.monotonic() + 240
    while not (slurm / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    logs = "".join(path.read_text() for path in workplace.glob("logs/**/*log*") if path.is_file())
    logs += (slurm / "printed").read_text()
    assert (slurm / "ended").exists(), logs
    assert (slurm / "ended").read_text() == "0\n", logs
    assert (slurm / "lives").read_text() == "0\n1\n", logs
    assert (slurm / "submitted.sh").read_text().strip() == shown.stdout.strip()
    assert "resuming from step_5" in logs
    if not two:
        assert jobs.read_text() == f"[x] {command}\n"
    whole = [*SMALL.split(), "run_name=whole"]
    alone = run_ranks("pretrain", *whole, cwd=workplace) if two else [run_script("pretrain", *whole, cwd=workplace)]
    assert {result.code for result in alone} == {0}, alone
    ours, theirs = workplace / "checkpoints/p/r", workplace / "checkpoints/p/whole"
    assert timeless(ours) == timeless(theirs)
    last = "checkpoints/step_12/model.safetensors"
    assert (ours / last).read_bytes() == (theirs / last).read_bytes()


def timeless(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in metrics(run)]


def write_golden_files() -> None:
    """After a change that is meant: look at what `git diff` shows."""
    for case, words in CASES.items():
        with tempfile.TemporaryDirectory() as here:
            code, text = dry_run(words, Path(here))
        assert code == 0, case
        (GOLDEN / f"{case}.txt").write_text(re.sub(r"[ \t]+$", "", text, flags=re.M))


if __name__ == "__main__":
    write_golden_files()
