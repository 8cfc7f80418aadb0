"""Reviews a command before it is started or submitted (scripts/launch.py)."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from engine.registry import ROOT
from launcher.destination import LaunchSpec
from verification.preflight import enforce
from verification.static import verify_command


def review(spec: LaunchSpec, to: str, emit: Callable[[str], None]) -> None:
    """Judge a command with its ranks by the rules of a launch. Raises: UsageError if one fails."""
    job, words = spec.job, spec.words(to)
    script = spec.script(words)
    if script is None:
        emit(f"note: nothing to review: {shlex.join(words)[:80]} launches nothing of ours")
        return
    where = str(spec.ledger.path) if spec.ledger else ""
    intent = job.intent if spec.ledger else None
    request = {"job": job.id, "intent": intent, "where": where, "line": job.line_number}
    report = verify_command([script.get(word, word) for word in words], root=ROOT, probes=False, **request)
    level = (report.subject.resolved or {}).get("verify", "strict")
    command = f"python scripts/verify_path.py -- {shlex.join(words)}"
    enforce(report, str(level), command, emit)
