"""A storm: an undisturbed run, then attempts with faults, each in its own folder and compared with that run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos.child import Child, Outcome, broke, clone, end, import_all, judge, start, wait
from chaos.faults import SINGLE_PROCESS, SURVIVED, Attempt, Fault
from chaos.inject import VARIABLE, Injection, Injector, Strike
from chaos.state import differences, finished, runs_in, state_of
from engine.checkpoint.manifest import step_folders
from engine.errors import RunFailure, UsageError
from engine.registry import ROOT
from engine.run.files import is_finished

OFFER = re.compile(r"add (resume_from=\S+)")
LIMIT_S = 300


@dataclass(frozen=True)
class Command:
    """A command of this project, to be started again and again."""

    script: str
    """A path in the project, or `-m MODULE`."""
    words: tuple[str, ...]
    ranks: int = 1

    @staticmethod
    def of(words: Sequence[str], ranks: int = 1) -> Command:
        """Parse a command line. Raises: UsageError unless it is `python SCRIPT ...` or `python -m MODULE ...`."""
        head = Path(words[0]).name if words else ""
        if head == "torchrun":
            raise UsageError("torchrun: give the command itself, python SCRIPT ..., and --ranks N")
        if not head.startswith("python") or len(words) < 2:
            raise UsageError(f"{' '.join(words) or 'no command'}: expected -- python SCRIPT.py ..., below {ROOT}")
        if words[1] == "-m":
            if len(words) < 3:
                raise UsageError(f"{' '.join(words)}: expected -- python -m MODULE ...")
            return Command(f"-m {words[2]}", tuple(words[3:]), ranks)
        path = (ROOT / words[1]).resolve()
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise UsageError(f"{words[1]}: there is no such script below {ROOT}")
        return Command(str(path.relative_to(ROOT)), tuple(words[2:]), ranks)

    def default_kinds(self) -> tuple[str, ...]:
        """The kinds of faults that it can meet, judging by its script and ranks."""
        return ("queue",) if self.is_queue else (*SINGLE_PROCESS, "rank") if self.ranks > 1 else SINGLE_PROCESS

    @property
    def is_queue(self) -> bool:
        """Whether it starts other commands, and restarts them itself."""
        return Path(self.script).name == "run_jobs.py"

    def launch(
        self,
        place: Path,
        injections: Mapping[int, Injection],
        more: Sequence[str] = (),
        job: Path | None = None,
        after: Callable[[], None] | None = None,
    ) -> list[Outcome]:
        """Run it in `place` on all ranks, with an injection for each, and that in the file `job` for its jobs.

        None of its processes outlives this call, however it ends.
        """
        shared = {}
        if self.is_queue and job is not None:
            shared = {VARIABLE: str(job), "PYTHONPATH": os.pathsep.join((str(SITE), str(ROOT)))}
        started: list[Child] = []
        port = _free_port()
        try:
            for rank in range(self.ranks):
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks}
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                ranked = {**address, **{k: str(v) for k, v in numbers.items()}} if self.ranks > 1 else {}
                before = Injector(injections[rank]).install if rank in injections else None
                started.append(
                    start(
                        self.script,
                        [*self.words, *more],
                        place,
                        before=before,
                        after=after,
                        environment={**shared, **ranked},
                        limit_s=LIMIT_S,
                    )
                )
            return wait(started)
        finally:
            end(started)


SITE = Path(__file__).parent / "site"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Report:
    """The result of one attempt."""

    number: int
    faults: tuple[Fault, ...]
    struck: list[bool] = field(default_factory=list)
    """Whether each fault struck: a run may end before it does."""
    launches: int = 0
    problems: list[str] = field(default_factory=list)
    """Empty if it ends like the undisturbed run."""


class Storm:
    """Attempts with one command. `scratch` is a temporary folder, `begin` the initial contents of working folders."""

    def __init__(self, command: Command, scratch: Path, begin: Path | None = None) -> None:
        self.command, self.scratch, self.begin = command, scratch, begin
        self.reference, self.notes, self.steps = scratch / "reference", scratch / "notes", 0
        self.expected: dict[str, Any] = {}

    def undisturbed(self) -> None:
        """Make the run that all others must equal, and import its modules for later children.

        Raises: RunFailure; UsageError if the command itself is refused.
        """
        place, modules = self.scratch / "place", self.scratch / "modules"
        self._fresh(place)
        injection, job = replace(self._injection(()), counts_steps=True), self.scratch / "job.json"
        injection.write(job)

        def store_modules() -> None:
            modules.write_text("\n".join(name for name in list(sys.modules) if name != "__main__"))

        outcomes = self.command.launch(place, {0: injection}, job=job, after=store_modules)
        place.rename(self.reference)  # made in the same place as the others: a run stores its working folder
        if failed := [each for each in outcomes if each.code]:
            kind = UsageError if failed[0].code == UsageError.exit_code else RunFailure
            raise kind(f"without any fault the command ends with {failed[0].code}: {failed[0].last}")
        if modules.exists():
            import_all(modules.read_text().split("\n"))
        steps = self.notes / "steps"
        self.steps = int(steps.read_text()) if steps.exists() else 0
        self.expected = state_of(self.reference)
        if bad := [f"{part} {self.expected[part]}" for part in ("leftovers", "locks held") if self.expected[part]]:
            raise RunFailure(f"without any fault the command leaves behind {bad[0]}")

    def run(self, attempts: Sequence[Attempt]) -> Iterator[Report]:
        """Yield a report for each attempt."""
        if not self.expected:
            self.undisturbed()
        for number, attempt in enumerate(attempts, 1):
            yield self._attempt(Report(number, attempt.faults, [False] * len(attempt.faults)))

    # --- one attempt

    def _attempt(self, report: Report) -> Report:
        place = self.scratch / "place"
        self._fresh(place, with_data=not any(fault.kind == "data" for fault in report.faults))
        rest, damaged = list(enumerate(report.faults)), False
        while True:
            now = _until_the_end(rest)
            outcomes = self._launch(report, place, [fault for _, fault in now], damaged)
            for index, (number, _) in enumerate(now):
                report.struck[number] = (self.notes / f"struck-{index}").exists()
            report.problems += self._problems_of(outcomes, [fault for number, fault in now if report.struck[number]])
            if report.problems:
                return report
            rest = rest[len(now) :]
            ended_well = all(outcome.code == 0 for outcome in outcomes)
            if ended_well or (not self.command.is_queue and finished(place, self.reference)):
                break
            if not now:
                report.problems.append(f"the same command ends with {outcomes[0].code}: {outcomes[0].last}")
                return report
            number, fault = now[-1]
            if fault.kind == "damage" and report.struck[number]:
                report.struck[number] = _damage(place, fault)
                damaged = damaged or report.struck[number]
        full = any(struck and fault.kind == "disk" for struck, fault in zip(report.struck, report.faults, strict=True))
        report.problems += differences(self.expected, state_of(place), self.reference, place, with_best=not full)
        return report

    def _launch(self, report: Report, place: Path, faults: Sequence[Fault], damaged: bool) -> list[Outcome]:
        """Launch once; if the newest checkpoint is damaged, again with the earlier one that the error offers."""
        more: tuple[str, ...] = ()
        while True:
            shutil.rmtree(self.notes, ignore_errors=True)
            injection, job = self._injection(faults), self.scratch / "job.json"
            injections = {rank: replace(injection, rank=rank) for rank in range(self.command.ranks)}
            if self.command.is_queue:
                self._injection([fault for fault in faults if fault.amount]).write(job)
                injections = {0: self._injection([fault for fault in faults if not fault.amount])}
            report.launches += 1
            outcomes = self.command.launch(place, injections, more, job)
            offered = OFFER.search(outcomes[0].last)
            if more or not damaged or outcomes[0].code != 2 or offered is None:
                return outcomes
            more = (offered[1],)

    def _problems_of(self, outcomes: Sequence[Outcome], struck: Sequence[Fault]) -> list[str]:
        """What is wrong with how the processes that met these faults ended."""
        last = struck[-1] if struck else None
        killed = (
            last is not None
            and last.kind not in ("stop", "disk", "term")
            and not (last.kind == "queue" and last.amount)
        )
        problems = []
        for rank, outcome in enumerate(outcomes):
            if killed and last is not None and rank == last.rank:
                if outcome.code != -signal.SIGKILL:
                    problems.append(f"{last} did not end the process: {outcome.code}: {outcome.last}")
                continue
            if problem := (broke if self.command.is_queue else judge)(outcome, LIMIT_S):
                met = ", ".join(map(str, struck)) or "no fault"
                problems.append(f"after {met}, rank {rank}: {problem}: ...{outcome.output[-600:]}")
        return problems

    def _fresh(self, place: Path, *, with_data: bool = True) -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(self.notes, ignore_errors=True)
        if self.begin is not None:
            clone(self.begin, place)
        place.mkdir(parents=True, exist_ok=True)
        data = self.reference / "data"
        if with_data and data.is_dir() and not (place / "data").exists():
            clone(data, place / "data")

    def _injection(self, faults: Sequence[Fault]) -> Injection:
        self.notes.mkdir(exist_ok=True)
        strikes = [
            Strike(
                each.kind,
                min(self.steps, 1 + int(each.at * self.steps)) if each.at else 0,
                each.count,
                each.rank,
                each.amount,
                each.cut,
            )
            for each in faults
        ]
        return Injection(str(self.scratch / "place"), str(self.notes), strikes)


def _until_the_end(rest: Sequence[tuple[int, Fault]]) -> list[tuple[int, Fault]]:
    """The faults that one process meets: up to and including the first that ends it."""
    for number, (_, fault) in enumerate(rest, 1):
        if fault.kind not in SURVIVED:
            return list(rest[:number])
    return list(rest)


def _damage(place: Path, fault: Fault) -> bool:
    """Damage a file of the newest checkpoint, if there is an earlier one; return whether it was done."""
    stores = [run / "checkpoints" for run in runs_in(place) if not is_finished(run)]
    folders = list(step_folders(stores[0]).values()) if stores else []
    if len(folders) < 2:
        return False
    files = sorted(path for path in folders[-1].iterdir() if path.is_file() and path.stat().st_size)
    path = files[int(fault.file * len(files))]
    data = bytearray(path.read_bytes())
    at = int(fault.amount * len(data))
    if fault.cut:
        path.write_bytes(data[:at])
    else:
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
    return True
