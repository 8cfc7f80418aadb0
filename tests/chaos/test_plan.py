"""The plan of a storm: the same for the same seed, every kind in it, and nothing that cannot be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

import chaos.child
import chaos.storm
from chaos.child import Child
from chaos.faults import KINDS, SINGLE_PROCESS, plan
from chaos.storm import Command
from engine.errors import UsageError
from scripts.chaos import main, parse


def test_the_same_seed_is_the_same_plan() -> None:
    assert plan(3, 50, SINGLE_PROCESS) == plan(3, 50, SINGLE_PROCESS)
    assert plan(3, 50, SINGLE_PROCESS) != plan(4, 50, SINGLE_PROCESS)
    assert Counter(fault.kind for attempt in plan(3, 60, SINGLE_PROCESS) for fault in attempt.faults) == dict.fromkeys(
        SINGLE_PROCESS, 10
    )


def test_faults_come_in_the_order_of_the_steps() -> None:
    for attempt in plan(1, 200, tuple(KINDS), ranks=2):
        kinds, shares = [fault.kind for fault in attempt.faults], [fault.at for fault in attempt.faults]
        assert shares == sorted(shares) or "data" in kinds
        assert "data" not in kinds[1:] or kinds[0] == "data"


def test_only_the_first_rank_has_file_operations() -> None:
    faults = [fault for attempt in plan(1, 300, tuple(KINDS), ranks=3) for fault in attempt.faults]
    assert {fault.rank for fault in faults} == {0, 1, 2}
    assert not [fault for fault in faults if fault.rank and fault.count and fault.kind != "evaluation"]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'kill'"):
        plan(0, 3, ["kil"])
    with pytest.raises(UsageError, match="add --ranks 2"):
        plan(0, 3, ["rank"])
    for words, match in (
        ([], "no command: expected"),
        (["ls"], "expected -- python"),
        (["python", "nope.py"], "no such script"),
        (["python", "/bin/sh"], "no such script"),
        (["python", "-m"], "expected -- python -m MODULE"),
        (["torchrun", "pretrain.py"], "--ranks N"),
    ):
        with pytest.raises(UsageError, match=match):
            Command.of(words)


def test_the_kinds_that_suit_a_command() -> None:
    assert Command.of(["python", "pretrain.py"]).default_kinds() == SINGLE_PROCESS
    assert Command.of(["python", "train.py", "seed=1"], ranks=2).default_kinds() == (*SINGLE_PROCESS, "rank")
    assert Command.of(["python", "scripts/run_jobs.py", "x"]).default_kinds() == ("queue",)


def test_the_plan_is_printed_and_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--plan", "--seed", "5", "--faults", "9", "--", "python", "pretrain.py", "--seed", "3", "nonsense=1"]
    printed = []
    for _ in range(2):
        assert main(parse(words)) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert sum(line.lstrip("0123456789. ").partition(":")[0] in KINDS for line in printed[0].splitlines()) == 9
    assert main(parse(["--kinds", "fire", "--", "python", "pretrain.py"])) == 2
    assert "error: --kinds fire: choose one of" in capsys.readouterr().err
    assert main(parse(["--kinds", "queue", "--", "python", "pretrain.py"])) == 2
    assert "error: --kinds queue is for a runner of jobs" in capsys.readouterr().err


def test_where_the_result_goes_is_looked_at_before_the_storm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(parse(["--out", str(tmp_path), "--", "python", "pretrain.py"])) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path} is a folder: name a file in it, such as {tmp_path}/chaos.json\n"
    )


@pytest.mark.parametrize("heeds", [True, False])
def test_no_process_outlives_a_storm_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds: bool
) -> None:
    started: list[int] = []

    def stopped(children: Sequence[Child]) -> NoReturn:
        started.extend(child.pid for child in children)
        for child in children:
            assert os.read(child.pipe, 5) == b"ready"
            os.close(child.pipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(chaos.storm, "wait", stopped)
    monkeypatch.setattr(chaos.child, "PATIENCE_S", 60.0 if heeds else 0.0)
    how = "SIG_DFL" if heeds else "SIG_IGN"
    code = f"import os, signal, time; signal.signal(15, signal.{how}); os.write(1, b'ready'); time.sleep(100)"
    with pytest.raises(KeyboardInterrupt):
        Command("-m timeit", ("-n1", "-r1", code), ranks=2).launch(tmp_path, {})
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
