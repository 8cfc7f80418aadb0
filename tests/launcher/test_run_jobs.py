"""run_jobs.py with real processes: states, sharing, kills, signals, retries, and torchrun lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.io import file_lock
from launcher.jobs import read
from launcher.ledger import HOST, Ledger
from scripts import run_jobs
from tests.conftest import ROOT, status_of
from tests.launcher.job_cases import count, events, marks, opens_the_lock, printed, run, wait_for, write


def test_in_order_with_state_logs_and_exit_code(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        place, "# c", "[ ] python job.py a", "[x] python job.py b", "[ ] python job.py c exit=1", "[ ] python job.py d"
    )
    code, output = run(place, capsys)
    assert code == 1
    assert marks(place) == "xx!x"
    assert [line.split()[0] for line in events(place) if " start " in line] == ["a", "c", "d"]
    assert "2 done, 1 failed, 0 interrupted" in output
    log = next((place / "logs/jobs-a").glob("*-*.log")).read_text()
    assert "=== attempt 1" in log
    assert "new run" in log
    code, output = run(place, capsys)
    assert (code, marks(place)) == (0, "xx!x")
    assert "nothing to do in jobs-a.txt; 1 failed (--failed takes it)" in output


def test_commands_arrive_as_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "show.py").write_text("import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ['A']]))\n")
    words = ["a#b", "c&d", "e,f", "it's", 'say "x"', "$HOME", "ü→", "|", ">z", "back\\slash", "[12]", ""]
    line = f"A='1 2' python show.py {shlex.join(words)}"
    path = write(place, f"[ ] {line}")
    assert run(place, capsys)[0] == 0
    assert path.read_text() == f"[x] {line}\n"
    log = next((place / "logs/jobs-a").glob("*.log")).read_text().splitlines()
    assert json.loads(log[1]) == [words, "1 2"]
    assert not (place / "z").exists()


def test_two_runners_never_run_a_job_twice(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    total = 24
    write(place, *(f"[ ] python job.py j{number} sleep=0.02" for number in range(total)))
    with file_lock(place / "jobs" / ".jobs-a.txt.state" / "lock", wait=True):  # until all of them stand before it
        runners = [start(), start("--jobs", "2"), start()]
        wait_for(lambda: all(opens_the_lock(runner.pid) for runner in runners))
    assert [runner.wait(60) for runner in runners] == [0, 0, 0]
    assert marks(place) == "x" * total
    assert [count(place, f"j{number} start") for number in range(total)] == [1] * total
    shares = [int(re.findall(r"(\d+) done", runner.communicate()[0] + "0 done")[0]) for runner in runners]
    assert sum(shares) == total
    assert sum(share > 0 for share in shares) > 1, "only one runner did anything"


def test_kill_9_of_a_runner_and_its_job(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    write(place, "[ ] python job.py a sleep=60", "[ ] python job.py b")
    first = start()
    printed(first, ": started (process")
    wait_for(lambda: count(place, "a start"))
    first.kill()
    os.kill(int(events(place)[0].split()[2]), signal.SIGKILL)
    first.wait()
    assert marks(place) == "- "
    path = place / "jobs" / "jobs-a.txt"
    assert f"[{first.pid}@{HOST}]" in path.read_text()
    second = start("--once")
    wait_for(lambda: count(place, "a start") == 2)
    second.send_signal(signal.SIGTERM)
    output = second.communicate(timeout=120)[0]
    assert "taken over" in output
    assert second.returncode == 3
    assert path.read_text() == "[ ] python job.py a sleep=60\n[ ] python job.py b\n"


def test_kill_9_of_a_runner_whose_job_lives_on(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """The job is watched, not started a second time; its own status.json says how it ended."""
    write(place, "[ ] python job.py a file=go status=done,0,9", "[ ] python job.py b")
    first = start()
    printed(first, ": started (process")
    wait_for(lambda: count(place, "a start"))
    first.kill()
    first.wait()
    second = start("--jobs", "2")
    printed(second, "watching it")
    (place / "go").touch()
    second.communicate(timeout=120)
    assert second.returncode == 0
    assert marks(place) == "xx"
    assert count(place, "a start") == 1


def test_a_signal_reaches_a_job_that_is_only_watched(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    write(place, "[ ] python job.py a sleep=60")
    first = start()
    printed(first, ": started (process")
    wait_for(lambda: count(place, "a start"))
    first.kill()
    first.wait()
    second = start()
    wait_for(lambda: f"[{second.pid}@" in (place / "jobs/jobs-a.txt").read_text())
    third = start()  # the job has a living owner again: nothing for a third
    assert third.wait(120) == 0
    second.terminate()
    assert second.wait(120) == 3
    assert marks(place) == " "
    assert (count(place, "a start"), count(place, "a signalled")) == (1, 1)


def test_a_run_that_ended_unseen_is_not_run_again(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    write(place, "[ ] python job.py a file=go status=done,0,9")
    first = start()
    printed(first, ": started (process")
    wait_for(lambda: count(place, "a start"))
    first.kill()
    first.wait()
    (place / "go").touch()
    wait_for(lambda: count(place, "a end"))
    second = start()
    assert second.wait(120) == 0
    assert marks(place) == "x"
    assert count(place, "a start") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_marks_go_back(
    place: Path, start: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    write(place, "[ ] python job.py a sleep=60", "[ ] python job.py b torchrun sleep=60", "[ ] python job.py c")
    runner = start("--jobs", "2")
    wait_for(lambda: count(place, "a start") and count(place, "b start"))
    runner.send_signal(number)
    output = runner.communicate(timeout=120)[0]
    assert runner.returncode == 3, output
    assert marks(place) == "   "
    assert count(place, "a signalled") == count(place, "b signalled") == 1
    assert count(place, "c start") == 0
    assert "waiting for its checkpoint" in output


def test_a_signal_reaches_what_a_shell_has_started(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """bash itself ends at once: the line goes back to [ ] when the job has written its checkpoint."""
    write(place, f"[ ] bash -c '{sys.executable} job.py a stubborn sleep=2 | cat; echo after'")
    runner = start()
    wait_for(lambda: count(place, "a start"))
    runner.terminate()
    output = runner.communicate(timeout=120)[0]
    assert (runner.returncode, marks(place)) == (3, " "), output
    assert (count(place, "a signalled"), count(place, "a end")) == (1, 1)


def test_an_orphan_of_which_nothing_was_written_down_is_watched(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runner was killed between starting it and writing its record."""
    path = write(place, "[ ] python job.py a exit=1")
    claim = Ledger(path, pid=2**22 + 1).claim(lambda job: True)
    assert claim is not None
    assert claim.record.started is None
    threading.Timer(2.0, os.close, [claim.handle]).start()
    code, output = run(place, capsys)
    assert "watching it" in output
    assert (code, marks(place)) == (1, "!"), "it was started again, since nobody knows how it ended"


def test_the_runner_waits_for_a_slow_checkpoint(place: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    write(place, "[ ] python job.py a stubborn sleep=2")
    runner = start()
    wait_for(lambda: count(place, "a start"))
    runner.terminate()
    wait_for(lambda: count(place, "a signalled"))
    runner.terminate()  # a second signal does not make it leave its job alone
    assert runner.wait(120) == 3
    assert count(place, "a end") == 1
    assert marks(place) == "x"


def test_retries_are_for_failures_not_for_refusals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        place,
        "[ ] python job.py a until=3",
        "[ ] python job.py b until=9",
        "[ ] python job.py c exit=2",
        "[ ] python job.py d status=refused,2,0",
        "[ ] nowhere.exe",
        "[ ] python nowhere.py",
        "[ ] python job.py e status=failed,1,4",
    )
    code, output = run(place, capsys, "--retries", "2")
    assert code == 1
    assert marks(place) == "x!!!!!!"
    assert [count(place, f"{name} start") for name in "abcde"] == [3, 3, 1, 1, 3]
    assert "No such file" in output
    assert "can't open file" in output
    assert "not yet" in output


def test_an_interrupted_run_goes_on_while_it_gets_further(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun exits 1 where the run says interrupted: back to [ ], again, and left alone when the step stands still."""
    write(place, "[ ] python job.py a status=interrupted,3,7", "[ ] python job.py b")
    code, output = run(place, capsys)
    assert code == 0
    assert marks(place) == " x"
    assert count(place, "a start") == 2
    assert "left for another runner" in output


def test_a_status_of_an_earlier_attempt_is_not_believed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place, "[ ] python job.py a exit=1")
    folder = place / "checkpoints/p/a"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "done", "time": "2020-01-01T00:00:00+00:00"}))
    assert run(place, capsys)[0] == 1
    assert marks(place) == "!"


def test_a_run_inside_a_sweep_does_not_judge_its_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep's jobs report to the sweep, so its line is judged by the exit code, the worst of its jobs."""
    write(place, "[ ] LOOPFORGE_JOB_REPORT=first.run python job.py a status=done,0,9")
    assert run(place, capsys)[0] == 1
    assert marks(place) == "!"


def test_a_job_file_that_vanishes_does_not_orphan_its_jobs(
    place: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    path = write(place, "[ ] python job.py a sleep=1", "[ ] python job.py b")
    runner = start("--jobs", "1")
    wait_for(lambda: count(place, "a start"))
    path.unlink()
    output = runner.communicate(timeout=120)[0]
    assert runner.returncode == 2
    assert count(place, "a end") == 1
    assert "no longer in jobs-a.txt" in output
    assert "cannot be read" in output


@pytest.mark.slow
def test_a_shipped_line_with_two_ranks(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = (job for job in read(ROOT / "jobs" / "jobs-trm.txt").jobs if job.id == "sudoku_4x4")
    assert job.argv[:3] == ("torchrun", "--standalone", "--nproc-per-node=2")
    line = job.command.replace(" pretrain.py ", f" {ROOT / 'pretrain.py'} ") + " +debug=tiny"
    path = workplace / "jobs-shipped.txt"
    refused = line.replace("run_name=sudoku_4x4", "run_name=odd") + " global_batch_size=5"
    path.write_text(f"[ ] {line}\n[ ] {refused}\n")
    code = run_jobs.main([str(path), "--cwd", str(workplace), "--retries", "3"])
    output = capsys.readouterr().out
    assert code == 1, output
    assert [job.mark for job in read(path).jobs] == ["x", "!"], output
    assert "trying again" not in output, "a refused run is not retried, though torchrun says 1"
    run_dir = workplace / "checkpoints/trm/sudoku_4x4"
    assert status_of(run_dir)["state"] == "done"
    assert "sudoku_4x4: done" in output
    assert "checkpoints/trm/sudoku_4x4" in output
    assert "2 rank(s)" in next((workplace / "logs/jobs-shipped").glob("sudoku_4x4-*.log")).read_text()


@pytest.mark.slow
def test_sigterm_of_the_runner_stops_torchrun_with_a_checkpoint(
    workplace: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Runner -> torchrun -> two ranks: a checkpoint, [ ], and the next runner resumes from it to the end."""
    line = (
        f"torchrun --standalone --nproc-per-node=2 {ROOT / 'pretrain.py'} --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny"
        " device=cpu project_name=p run_name=long epochs=1000 max_steps={} log_interval=1000"
    )
    path = write(workplace, f"[ ] {line.format(100000)}")
    runner = start()
    status = workplace / "checkpoints/p/long/status.json"
    logs = workplace / "logs/jobs-a"
    wait_for(lambda: any("steps " in log.read_text() for log in logs.glob("*.log")), 120)
    runner.terminate()
    output = runner.communicate(timeout=120)[0]
    assert runner.returncode == 3, output
    assert path.read_text() == f"[ ] {line.format(100000)}\n"
    stopped = json.loads(status.read_text())
    assert stopped["state"] == "interrupted"
    path.write_text(f"[ ] {line.format(stopped['step'] + 2)}\n")
    assert start().wait(120) == 0
    assert marks(workplace) == "x"
    assert any(f"resuming from step_{stopped['step']}" in log.read_text() for log in logs.glob("*.log"))
