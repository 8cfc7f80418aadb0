"""Keyed random numbers and the row layout, without a process group."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import distributed
from engine.errors import Interrupted, OutOfMemory, RankLost, RunFailure, UsageError
from engine.signals import StopSignal
from tests.conftest import fork_ranks, run_forked


def test_keyed_numbers_depend_on_every_key_and_on_nothing_else() -> None:
    def draw(*key) -> list[float]:
        return distributed.keyed_numpy(*key).random(4).tolist()

    assert draw(1, "halting", 5) == draw(1, "halting", 5)
    keys = [(1, "halting", 5), (2, "halting", 5), (1, "noise", 5), (1, "halting", 6)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = torch.rand(3, generator=distributed.keyed_generator(1, "x", 2))
    assert torch.equal(first, torch.rand(3, generator=distributed.keyed_generator(1, "x", 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_keyed_numbers_are_uniform() -> None:
    values = np.array([distributed.keyed_numpy(0, "x", step).random() for step in range(2000)])
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.08


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_cut_the_batch_into_contiguous_rows(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    rows = []
    for number in range(ranks):
        monkeypatch.setenv("RANK", str(number))
        rows += range(*distributed.local_rows(8))
    assert rows == list(range(8))


def test_collectives_are_the_identity_alone() -> None:
    tensor = torch.arange(3.0)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_gather_rows(tensor) is tensor
    assert distributed.broadcast_object("x") == "x"


def _speak(error: BaseException, *, ended: bool) -> None:
    """speaks() on this rank; `ended`: torchrun sends SIGTERM while it waits."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if ended:
            os.kill(os.getpid(), signal.SIGTERM)

    distributed.time.sleep = sleep  # type: ignore[method-assign]
    print(distributed.should_report(error, 2), bool(waited), end="")
    sys.exit(0)


@pytest.mark.parametrize(
    ("rank", "error", "ended", "message"),
    [
        ("0", UsageError("no"), False, "True False"),
        ("1", UsageError("no"), True, None),
        ("1", UsageError("no"), False, "True True"),  # this rank's own: nobody has ended it
        ("1", RunFailure("out of memory"), False, "True False"),
        ("1", RankLost("gone"), True, None),
        ("0", RankLost("gone"), True, None),
        ("1", Interrupted("stopped"), False, "False False"),
        ("0", Interrupted("stopped"), False, "True False"),
    ],
)
def test_what_all_ranks_meet_rank_0_says(rank: str, error: BaseException, ended: bool, message: str | None) -> None:
    env = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "2"}
    result = run_forked(_speak, error, ended=ended, env=env)
    assert (result.code, result.output) == ((2, "") if message is None else (0, message))


def test_without_torchrun_every_rank_says_its_error_at_once() -> None:
    result = run_forked(_speak, UsageError("no"), ended=False, env={"RANK": "1", "WORLD_SIZE": "2"})
    assert result.output == "True False"


def test_the_summary_of_torchrun_shows_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    distributed.report_to_launcher(UsageError("unknown key 'lrr'"), "unknown key 'lrr': did you mean 'lr'?")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    summary = str(ChildFailedError("pretrain.py", {0: failure}))
    assert summary.splitlines()[-2].endswith("traceback : error: unknown key 'lrr': did you mean 'lr'?")


def _stops(paces: tuple[float, float], at: int) -> None:
    """Train until a signal that only the last rank receives, after step `at`; `paces` are the ranks' seconds a step."""
    polls, asked, rank = distributed.Polls(), [], distributed.rank()
    with StopSignal() as stop:
        stop.training = True
        for step in range(1, 1000):
            if step == at and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if polls.due(step, step * paces[rank]):
                asked.append(step)
                if stop.agreed():
                    break
    distributed.shutdown()
    print(*asked, end="")
    sys.exit(0)


@pytest.mark.parametrize(
    ("paces", "at", "asked"),
    [
        ((0.001, 0.004), 120, [1, 51, 101, 151]),  # short steps: every 50th
        ((0.1, 0.1), 23, [1, 11, 21, 31]),  # ten a second
        ((0.02, 0.18), 1, [1]),
        ((3.0, 1.0), 4, [1, 2, 3, 4]),  # each takes longer than a second
    ],
)
def test_ranks_ask_about_once_a_second_and_at_the_same_steps(
    paces: tuple[float, float], at: int, asked: list[int]
) -> None:
    results = fork_ranks(_stops, paces, at)
    assert [(result.code, result.output) for result in results] == [(0, " ".join(map(str, asked)))] * 2


def test_alone_every_step_asks() -> None:
    polls = distributed.Polls()
    assert all(polls.due(step, 1e-6 * step) for step in range(5))


class _Refused(UsageError):
    pass


def _fails_on_main(error: BaseException) -> None:
    def work() -> None:
        raise error from KeyError("why")

    try:
        print("returned", distributed.on_main(work), end="")
    except (UsageError, RunFailure) as caught:
        print(type(caught).__name__, caught, repr(caught.__cause__), end="")
    distributed.shutdown()
    sys.exit(0)


@pytest.mark.parametrize(
    ("error", "here", "elsewhere"),
    [
        (_Refused("no such key"), "_Refused", "UsageError"),
        (OutOfMemory("no such key", "batch_size", 8), "OutOfMemory", "RunFailure"),
        (RunFailure("no such key"), "RunFailure", "RunFailure"),
    ],
)
def test_an_error_of_rank_0_stops_every_rank(error: BaseException, here: str, elsewhere: str) -> None:
    outputs = [result.output for result in fork_ranks(_fails_on_main, error)]
    assert outputs == [f"{here} no such key KeyError('why')", f"{elsewhere} no such key None"]


def test_alone_an_error_keeps_its_cause() -> None:
    result = run_forked(_fails_on_main, _Refused("no such key"))
    assert result.output == "_Refused no such key KeyError('why')"


def test_global_draws_are_those_after_manual_seed() -> None:
    distributed.key_global_draws(7, "forward/0", 3)
    state = torch.get_rng_state()
    torch.manual_seed(distributed._key(7, "forward/0", 3))
    assert torch.equal(state, torch.get_rng_state())
    distributed.key_global_draws(7, "forward/0", 4)
    assert not torch.equal(state, torch.get_rng_state())
