"""The results of checks: one finding per statement, one report per command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["PASS", "INFO", "WARN", "FAIL", "SKIP"]
Step = Literal["1", "2", "3", "4", "5", "6", "data", "dyn", "doc"]

BLIND = "the config does not compose"
"""How the message of a SKIP begins that hides whether a step is right."""


@dataclass(frozen=True)
class Finding:
    """One statement of one check. `file` is relative to the examined root; `line` 0 means the file as a whole."""

    code: str
    level: Level
    step: str
    message: str
    fix: str = ""
    file: str = ""
    line: int = 0
    job: str = ""

    @property
    def place(self) -> str:
        """`file:line`, `file`, or nothing."""
        return f"{self.file}:{self.line}" if self.file and self.line else self.file


def worst(findings: Iterable[Finding]) -> str:
    """FAIL, WARN or PASS; SKIP where nothing could be judged, or not all for lack of a config."""
    levels = {finding.level for finding in findings}
    blind = any(finding.level == "SKIP" and finding.message.startswith(BLIND) for finding in findings)
    if levels & {"FAIL", "WARN"}:
        return "FAIL" if "FAIL" in levels else "WARN"
    return "PASS" if levels & {"PASS", "INFO"} and not blind else "SKIP"


@dataclass
class Report:
    """All findings about one command. `chain` holds the links as text, in the order in which they are followed."""

    job: str
    chain: list[dict[str, Any]] = field(default_factory=list)
    """Links: {"step", "what", "value", "file", "line"}."""
    findings: list[Finding] = field(default_factory=list)
    signature: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """The resolved table: script, config, arch, forward, modes, exploration, batch, steps ..."""

    where: str = ""
    """The file that holds the command."""
    intent: dict[str, str] = field(default_factory=dict)
    """What is meant by it."""
    questions: tuple[tuple[str, str, str], ...] = ()
    """What its family asks of it (verification.rule.QUESTIONS)."""
    subject: Any = field(default=None, repr=False)
    """What was judged; dynamic probes take their config from it. Not part of any output, nor of a child's answer."""

    def of(self, *levels: str) -> list[Finding]:
        """Findings of these levels (all without one), in the order in which they were made."""
        return [finding for finding in self.findings if not levels or finding.level in levels]

    def codes(self, *levels: str) -> set[str]:
        """The codes of `of(*levels)`."""
        return {finding.code for finding in self.of(*levels)}

    def failed(self, strict: bool = False) -> bool:
        """Whether something is wrong; `strict` counts warnings too."""
        return bool(self.of("FAIL", "WARN") if strict else self.of("FAIL"))

    @property
    def verdict(self) -> str:
        """The worst level among the findings."""
        return worst(self.findings)

    def level(self, steps: Iterable[str] = (), codes: Iterable[str] = ()) -> str:
        """The worst level of some steps, or of some codes."""
        return worst([finding for finding in self.findings if finding.step in steps or finding.code in codes])

    def as_dict(self) -> dict[str, Any]:
        """The record of the JSON output."""
        names = ("chain", "facts", "signature", "findings")
        return {"job": self.job, "verdict": self.verdict} | {name: self.record()[name] for name in names}

    def record(self) -> dict[str, Any]:
        """All but the subject, for another process."""
        rows = {name: value for name, value in vars(self).items() if name != "subject"}
        return rows | {"findings": [asdict(one) for one in self.findings]}
