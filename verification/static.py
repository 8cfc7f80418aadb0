"""Traces commands, job files, recipes, runs and the whole repository, and judges them by the rules and the probes.

The judged code must be the code of the judging process, so another source tree is judged in a child process that
imports its packages.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.cli.resolve import Trace, hydra_flags, resolve
from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.registry import FAMILIES, ROOT, family_of
from engine.run.environment import SUFFIX
from launcher import jobs as job_files
from launcher.children import process_alive
from launcher.command import parse
from launcher.ledger import HOST
from verification import rules  # noqa: F401  they register on import
from verification.codes import CODES
from verification.docs import documented, page_reports, what_is_missing
from verification.finding import Finding, Report
from verification.observed import observe_ahead, observed, observed_deeply
from verification.preflight import line_of
from verification.report import facts, links
from verification.rule import finding, run_rules, settled
from verification.rules.config import built_on
from verification.rules.stored import command_of, examine, resume, run_folder
from verification.signature import make_signature
from verification.subject import Request, Subject, text_of
from verification.tree import is_here, judge_elsewhere


def verify_command(argv: Sequence[str], *, root: Path, **how: Any) -> Report:
    """Judge one command with its launcher (`["torchrun", "--nproc-per-node=2", "pretrain.py", "lr=1e-3"]`).

    `how`, here and below: fields of a `Request`.
    """
    return judge([Request(argv=tuple(argv), **how)], root=root)[0]


def judge(requests: Sequence[Request], *, root: Path) -> list[Report]:
    """A report for each request, in order. Raises: UsageError for a path that is not a run."""
    root = Path(os.path.abspath(root))
    plain = [one for one in requests if not one.overlay]
    judged = dict(zip(map(id, plain), _judge(plain, root) if plain else [], strict=True))
    for one in requests:
        if one.overlay:
            judged[id(one)] = judge_elsewhere([replace(one, overlay={})], root, overlay=one.overlay)[0]
    return [judged[id(one)] for one in requests]


def _judge(requests: Sequence[Request], root: Path) -> list[Report]:
    if not is_here(root):
        return judge_elsewhere(requests, root)
    reports, traced = [], [trace_request(request, root) for request in requests]
    observe_ahead(subject for subject, _ in traced if subject.probes)
    for request, (subject, more) in zip(requests, traced, strict=True):
        seen = observed(subject) if request.probes else []
        deep = observed_deeply(subject) if request.dynamic else []
        reports.append(report_of(subject, more, [*seen, *deep]))
    return reports


def trace_request(request: Request, root: Path) -> tuple[Subject, list[Subject]]:
    """The subject of a request, and those of the further jobs of its sweep. Raises: UsageError for a missing run."""
    command = parse(request.argv)
    if command.script is not None:
        command = replace(command, script=script_file(command.script, root))
    subject = Subject(**vars(request), trace=Trace(root, root, command.arguments), command=command)
    if command.script is None or not (root / command.script).is_file():
        subject.trace.problems["script"] = (
            f"there is no {command.script}" if command.script else "the command names no script"
        )
        return subject, []
    job = SUFFIX in command.env
    subject.trace = resolve(root / command.script, command.arguments, root=root, sweep_job=job)
    if request.run:
        examine(subject, Path(request.run))
    elif subject.trace.resumes:
        resume(subject.trace)
    start = (f"{SUFFIX}=_job", "python", command.script, *hydra_flags(command.arguments))  # as a sweep starts its jobs
    more = [trace_request(replace(request, argv=(*start, *words)), root)[0] for words in subject.trace.jobs[1:]]
    return subject, more


def script_file(script: str, root: Path) -> str:
    """The script of a command relative to the root, if it is below it (as a path from the root or from the cwd)."""
    top = root.resolve()
    for base in (top, Path.cwd()):
        place = base / user_path(script)
        place = place.parent.resolve() / place.name
        if place.is_file() and place.is_relative_to(top):
            return place.relative_to(top).as_posix()
    return script


def report_of(subject: Subject, more: Sequence[Subject] = (), seen: Sequence[Finding] = ()) -> Report:
    """Judge a subject by the rules; `seen`: findings from observations, `more`: the further jobs of its sweep."""
    findings = settled([*run_rules(subject), *seen])
    known = {(one.code, one.message) for one in findings}
    order = {code: number for number, code in enumerate(CODES)}
    findings.sort(key=lambda one: order[one.code])
    findings += _of_sweep(subject, more, known)
    report = Report(
        subject.job,
        links(subject),
        [replace(one, job=subject.job) for one in findings],
        subject=subject,
        where=subject.where,
        intent=dict(subject.intent or {}),
        questions=subject.family.questions if subject.family else (),
    )
    if subject.resolved is not None:
        report.signature = make_signature(subject)
        report.facts = facts(subject, report.signature)
    return report


def _of_sweep(subject: Subject, more: Sequence[Subject], known: set[tuple[str, str]]) -> Iterator[Finding]:
    """Faults of the further jobs of a sweep that are not `known` from the first one."""
    for number, other in enumerate(more, 1):
        mine = subject.trace.jobs[number]
        what = " ".join(word for word in mine if word not in subject.trace.jobs[0])
        for one in run_rules(other):
            if one.level in ("FAIL", "WARN") and (one.code, one.message) not in known:
                known.add((one.code, one.message))
                yield replace(one, message=f"job {number} of the sweep ({what}): {one.message}")


# --- files ------------------------------------------------------------------------------------------------------------


def verify_file(
    path: str | Path,
    *,
    root: Path,
    job: str | None = None,
    line: int | None = None,
    pending: bool = False,
    **how: Any,
) -> list[Report]:
    """Judge every job of a job file, or the one with id `job` or at `line`; `pending` skips done and failed ones.

    Lines that are not jobs, duplicates and repeated run names are findings in a report on the file itself.

    Raises: UsageError for a file that cannot be read or a job that is not in it.
    """
    path = job_files.find(path, [root])
    file, name = job_files.read(path), path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    chosen = [one for one in file.jobs if (job is None or one.id == job) and (line is None or one.line_number == line)]
    if (job or line) and not chosen:
        hint = did_you_mean(str(job or line), [one.id for one in file.jobs])
        raise UsageError(f"{name} has no job {job or f'at line {line}'}: {hint}")
    if pending:
        chosen = [one for one in chosen if one.state in ("todo", "running")]
    requests = [
        Request(argv=one.argv, where=name, kind="job", intent=one.intent, job=one.id, line=one.line_number, **how)
        for one in chosen
        if not one.error
    ]
    judged = iter(judge(requests, root=root))
    reports = []
    for one in chosen:
        error = replace(finding("JOB001", "FAIL", one.error or "", name, one.line_number), job=one.id)
        reports.append(Report(one.id, findings=[error]) if one.error else next(judged))
    if job is None and line is None:
        reports.insert(0, Report(name, findings=file_findings(file, name, reports)))
    return reports


def file_findings(file: job_files.JobFile, name: str, reports: Sequence[Report]) -> list[Finding]:
    """JOB001, JOB002 and JOB032 of a file, given the reports of its jobs."""
    findings = [finding("JOB001", "FAIL", text, name, number) for number, text in file.problems]
    pending = [one for one in file.jobs if one.state in ("todo", "running")]
    lines = Counter(one.command for one in pending)
    twice = [one for one in pending if lines[one.command] > 1]
    owners = ((one, *(one.owner or (None, None))) for one in file.jobs if one.state == "running")
    stale = [one for one, pid, host in owners if not pid or (host in (None, HOST) and not process_alive(pid, None))]
    findings += [finding("JOB002", "WARN", "this pending job appears twice", name, one.line_number) for one in twice]
    for one in stale:
        text = f"marked as running by process {one.owner[0] if one.owner else '?'}, which is gone"
        findings.append(finding("JOB002", "WARN", text, name, one.line_number))
    folders: dict[str, list[str]] = {}
    for report in reports:
        run_name, folder = report.facts.get("run_name"), report.facts.get("run_dir")
        if run_name and folder:
            folders.setdefault(str(folder), []).append(report.job)
    same = {folder: ids for folder, ids in folders.items() if len(ids) > 1}
    findings += [finding("JOB032", "WARN", f"jobs {', '.join(ids)} write to {at}", name) for at, ids in same.items()]
    findings += [finding(code, "PASS", CODES[code].title, name) for code in ("JOB001", "JOB002", "JOB032")]
    return [replace(one, job=name) for one in settled(findings)]


def verify_recipes(paths: Sequence[Path], *, root: Path, **how: Any) -> list[Report]:
    """Judge each cfg_*.yaml as its `script:` would run it; its header states the intent in an `#@ intent:` line."""
    requests, notes = [], []
    for path in paths:
        file = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        intent: dict[str, str] = {}
        problems = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("#@") and (problem := job_files.read_directive(line, intent, {})):
                problems.append(replace(finding("JOB034", "WARN", problem, file, number), job=path.stem))
        argv = ("python", *recipe_command(root, path))
        requests.append(Request(argv=argv, intent=intent, where=file, kind="recipe", job=path.stem, **how))
        notes.append(problems)
    reports = judge(requests, root=root)
    for report, problems in zip(reports, notes, strict=True):
        report.findings += problems
    return reports


def recipe_command(root: Path, path: Path) -> list[str]:
    """The script of a recipe and its arguments: the recipe's name, and a value for each required key."""
    script = recipe_script(root, path)
    known = Path(script).stem in FAMILIES
    required = family_of(Path(script).stem, "script").schema.REQUIRED if known else {}
    return [script, f"--config-name={path.stem}", *(f"++{key}={value}" for key, value in required.items())]


def recipes(root: Path) -> list[Path]:
    """All recipes of a tree, sorted by name."""
    return sorted((root / "config").glob("cfg_*.yaml"))


def recipe_script(root: Path, path: Path) -> str:
    """The script that a recipe or one of its defaults declares; else pretrain.py."""
    for _, text in built_on(path.stem, lambda name: text_of(root / "config" / f"{name}.yaml")):
        if match := re.search(r"^script:\s*(\S+\.py)", text, re.MULTILINE):
            return match[1]
    return "pretrain.py"


def verify_run(run: Path, *, root: Path, **how: Any) -> Report:
    """Judge a run: its stored config with the current code, and what its command composes to. Raises: UsageError."""
    run = run_folder(run)
    request = Request(argv=tuple(command_of(run)), job=str(run), run=str(run.absolute()), **how)
    return judge([request], root=root)[0]


def run_verdict(run: Path) -> tuple[str, list[str]]:
    """The verdict of the rules on a run and a line for each fault; SKIP with the reason if they cannot judge it."""
    try:
        report = verify_run(run, root=ROOT, probes=False)
    except UsageError as error:
        return "SKIP", [str(error)]
    return report.verdict, [line_of(finding) for finding in (*report.of("FAIL"), *report.of("WARN"))]


def verify_docs(root: Path, **how: Any) -> list[Report]:
    """A report for each page with commands. Only the rules judge them, as their behaviour is that of the recipes."""
    commands = [(one, what_is_missing(root, one)) for one in documented(root)]
    requests = [
        Request(argv=one.words, where=one.file, line=one.line, overlay=one.overlay, **{**how, "probes": False})
        for one, missing in commands
        if missing is None
    ]
    return page_reports(commands, judge(requests, root=root))


def verify_all(root: Path, *, docs: bool = True, **how: Any) -> list[Report]:
    """Judge all job files, recipes and documented commands below `root`."""
    root = Path(root)
    reports: list[Report] = []
    for path in sorted((root / "jobs").glob("jobs-*.txt")):
        reports += verify_file(path, root=root, **how)
    reports += verify_recipes(recipes(root), root=root, **how)
    return reports + (verify_docs(root, **how) if docs else [])
