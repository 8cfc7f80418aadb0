"""Which signals stop a run, when, and that nothing in between takes an interrupt for an error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from engine import signals
from engine.errors import Interrupted
from engine.loggers.sinks import Sinks
from engine.signals import STOPS, StopSignal, install, restore
from tests.conftest import run_forked


@pytest.fixture(autouse=True)
def handlers(hangup: None) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    assert before == {number: signal.getsignal(number) for number in STOPS}


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_signal_is_noted_in_training_and_raised_before(number: signal.Signals) -> None:
    with StopSignal() as stop:
        stop.training = True
        os.kill(os.getpid(), number)
        assert stop.received == number.name
        assert stop.agreed()
    with StopSignal() as stop, pytest.raises(Interrupted, match=f"stopped by {number.name} before the first step"):
        os.kill(os.getpid(), number)


def test_a_second_ctrl_c_stops_at_once_but_other_signals_let_it_finish() -> None:
    with StopSignal():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # in the middle of cleaning up
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sighup_is_left_alone_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_except_exception_takes_an_interrupt() -> None:
    assert not issubclass(Interrupted, Exception)

    def interrupted_while_it_opens() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal(), pytest.raises(Interrupted):
        Sinks().add("slow", interrupted_while_it_opens)  # type: ignore[arg-type]


def _orphan(deaf: bool, training: bool) -> None:
    """A rank whose torchrun is gone; `deaf`: no signal reaches it, as inside C++."""
    signals._LAUNCHER, signals.POLL_S, signals.GRACE_S = -1, 0.01, 0.1
    with StopSignal() as stop:
        stop.training = training
        if deaf:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        signals.watch_launcher()
        time.sleep(0.5 if training else 30)
        sys.exit(7 if stop.agreed() else 8)


def test_a_rank_in_training_stops_when_torchrun_is_gone() -> None:
    assert run_forked(_orphan, False, True, env={"TORCHELASTIC_RUN_ID": "x"}).code == 7
    assert run_forked(_orphan, False, True).code == 8  # any other parent may go: a run may be disowned


@pytest.mark.parametrize("deaf", [False, True])
def test_a_rank_that_waits_for_the_store_of_a_torchrun_that_is_gone_ends(deaf: bool) -> None:
    began = time.monotonic()
    result = run_forked(_orphan, deaf, False, env={"TORCHELASTIC_RUN_ID": "x"})
    assert time.monotonic() - began < 20
    assert (result.code, "stopped by SIGTERM before the first step" in result.output) == (
        (3, False) if deaf else (1, True)
    )


def test_install_and_restore() -> None:
    seen: list[int] = []
    before = install(lambda number, _: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR2)
    restore(before)
    assert seen == [signal.SIGUSR2]


def test_a_worker_leaves_signals_to_its_parent() -> None:
    def work() -> None:
        from engine.signals import leave_to_parent

        leave_to_parent()
        for number in STOPS:
            os.kill(os.getpid(), number)

    assert run_forked(work).code == 0
