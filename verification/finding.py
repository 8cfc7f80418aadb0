"""The results of checks: one finding per statement, one report per command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["PASS", "INFO", "WARN", "FAIL", "SKIP"]
Step = Literal["1", "2", "3", "4", "5", "6", "data", "dyn", "doc"]

BLIND = "the config does not compose"
"""Start of the message of a SKIP because of which a step cannot be judged."""


@dataclass(frozen=True)
class Finding:
    """One statement of a check. `file` is relative to the examined root; `line` 0 is the whole file."""

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
    """FAIL, WARN or PASS; SKIP if nothing could be judged, or something could not for lack of a config."""
    levels = {finding.level for finding in findings}
    blind = any(finding.level == "SKIP" and finding.message.startswith(BLIND) for finding in findings)
    if levels & {"FAIL", "WARN"}:
        return "FAIL" if "FAIL" in levels else "WARN"
    return "PASS" if levels & {"PASS", "INFO"} and not blind else "SKIP"


@dataclass
class Report:
    """All findings about one command. `chain`: its links as text, in the order in which they are followed."""

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
    """Its stated intent."""
    questions: tuple[tuple[str, str, str], ...] = ()
    """The questions of its family (as verification.spec.QUESTIONS)."""
    subject: Any = field(default=None, repr=False)
    """The Subject that was judged. Not part of any output, nor sent by a child process."""

    def of(self, *levels: str) -> list[Finding]:
        """Findings of these levels (of all without an argument), in order."""
        return [finding for finding in self.findings if not levels or finding.level in levels]

    def codes(self, *levels: str) -> set[str]:
        """The codes of `of(*levels)`."""
        return {finding.code for finding in self.of(*levels)}

    def failed(self, strict: bool = False) -> bool:
        """Whether there is a FAIL, or with `strict` a WARN."""
        return bool(self.of("FAIL", "WARN") if strict else self.of("FAIL"))

    @property
    def verdict(self) -> str:
        """The worst level among the findings."""
        return worst(self.findings)

    def level(self, steps: Iterable[str] = (), codes: Iterable[str] = ()) -> str:
        """The worst level of some steps, or of some codes."""
        return worst([finding for finding in self.findings if finding.step in steps or finding.code in codes])

    def as_dict(self) -> dict[str, Any]:
        """The report in the JSON output."""
        names = ("chain", "facts", "signature", "findings")
        return {"job": self.job, "verdict": self.verdict} | {name: self.record()[name] for name in names}

    def record(self) -> dict[str, Any]:
        """All but the subject, as plain values for another process."""
        rows = {name: value for name, value in vars(self).items() if name != "subject"}
        return rows | {"findings": [asdict(one) for one in self.findings]}
