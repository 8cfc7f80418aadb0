"""A job file as a whole: lines that are no jobs, jobs that are there twice, marks and names that mislead."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from launcher.jobs import JobFile
from verification.finding import Finding, Report
from verification.rule import finding, settled


def file_findings(file: JobFile, name: str, reports: Sequence[Report]) -> list[Finding]:
    """JOB001, JOB002 and JOB032 of a file, given the reports of its jobs."""
    findings = [finding("JOB001", "FAIL", text, name, number) for number, text in file.problems]
    findings.append(finding("JOB001", "PASS", f"{len(file.jobs)} jobs", name))
    pending = [one for one in file.jobs if one.state in ("todo", "running")]
    lines = Counter(one.command for one in pending)
    twice = [one for one in pending if lines[one.command] > 1]
    stale = [one for one in file.jobs if one.state == "running" and is_gone(one.owner)]
    findings += [finding("JOB002", "WARN", "this pending job is there twice", name, one.line_number) for one in twice]
    for one in stale:
        text = f"marked as running by process {one.owner[0] if one.owner else '?'}, which is gone"
        findings.append(finding("JOB002", "WARN", text, name, one.line_number))
    findings.append(finding("JOB002", "PASS", "no pending job is there twice, no mark is stale", name))
    folders: dict[str, list[str]] = {}
    for report in reports:
        run_name, folder = report.facts.get("run_name"), report.facts.get("run_dir")
        if run_name and folder:
            folders.setdefault(str(folder), []).append(report.job)
    same = {folder: ids for folder, ids in folders.items() if len(ids) > 1}
    findings += [finding("JOB032", "WARN", f"jobs {', '.join(ids)} write to {at}", name) for at, ids in same.items()]
    findings.append(finding("JOB032", "PASS", "run names are unique", name))
    return [replace(one, job=name) for one in settled(findings)]


def is_gone(owner: tuple[int, str | None] | None) -> bool:
    """Whether the process that marked a job has ended, as far as this machine can tell."""
    if owner is None:
        return True
    pid, host = owner
    return host in (None, socket.gethostname()) and not os.path.exists(f"/proc/{pid}")
