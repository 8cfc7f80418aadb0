"""Documented commands (README.md, docs/*.md, headers of recipes): their scripts and targets must exist, and verify."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.io import did_you_mean
from verification.finding import Finding, Report
from verification.modules import module_file
from verification.rule import finding

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLED = re.compile(r"<!-- file: (\S+) -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
"""A variable of the environment before a command."""
FOREIGN = frozenset(("pytest", "pip", "venv", "torch.distributed.run", "mypy", "ruff", "http.server"))


@dataclass(frozen=True)
class Documented:
    """A command on a page."""

    file: str
    line: int
    words: tuple[str, ...]
    refused: bool = False
    """Whether the page shows that it is refused: an `error:` line follows."""
    overlay: dict[str, str] = field(default_factory=dict)
    """Modules that the page has the reader write, by file."""


def documented(root: Path) -> Iterator[Documented]:
    """All of our commands in the pages and recipes below the root."""
    pages = [p for p in [root / "README.md", *sorted((root / "docs").glob("*.md"))] if p.is_file()]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        overlay = {match[1]: match[2] for match in INSTALLED.finditer(text)}
        for match in FENCE.finditer(text):
            start = text.count("\n", 0, match.start(2)) + 1
            if match[1] in ("bash", "sh", "console"):
                for below, body in unrolled(match[2]):
                    yield from _commands(
                        page.relative_to(root).as_posix(), body, start + below, match[1] == "console", overlay
                    )
    for page in sorted((root / "config").glob("cfg_*.yaml")):
        lines: list[str] = []
        for line in page.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            command = re.search(r"\b(?:python|torchrun) .*", line)
            lines.append(
                re.split(r"\s{2,}\(", command[0])[0]
                if command
                else line[1:].strip()
                if lines and lines[-1].endswith("\\")
                else ""
            )
        yield from _commands(page.relative_to(root).as_posix(), "\n".join(lines), 1, False, {})


def unrolled(body: str) -> Iterator[tuple[int, str]]:
    """(lines above it, text): shell text without its `for` loops, then the body of each loop once for each word."""
    yield 0, LOOP.sub(lambda loop: "\n" * loop[0].count("\n"), body)
    for loop in LOOP.finditer(body):
        above, name = body.count("\n", 0, loop.start(3)), re.compile(rf"\$(?:{loop[1]}\b|{{{loop[1]}}})")
        for word in shlex.split(loop[2]):
            yield above, word.join(name.split(loop[3]))


def _commands(file: str, body: str, start: int, console: bool, overlay: dict[str, str]) -> Iterator[Documented]:
    whole = re.sub(r"((?:.*\\\n)+)(.*)", lambda m: m[0].replace("\\\n", "") + "\n" * m[1].count("\n"), body)
    lines = [*whole.splitlines(), "$ "]
    for number, line in enumerate(lines[:-1]):
        if console and not line.startswith("$ "):
            continue
        output = itertools.takewhile(lambda later: not later.startswith("$ "), lines[number + 1 :])
        refused = console and any(later.startswith("error") for later in output)
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue
        if next(_without_assignments(words), "") in ("python", "torchrun", "make"):
            yield Documented(file, start + number, tuple(words), refused, overlay)


def _without_assignments(words: Iterable[str]) -> Iterator[str]:
    """The words of a command behind the variables set before it."""
    return itertools.dropwhile(ASSIGNMENT.fullmatch, words)


def page_reports(commands: Iterable[tuple[Documented, str | None]], judged: Iterable[Report]) -> list[Report]:
    """A report for each page with commands, which come with `what_is_missing`; `judged`: the reports of the entry
    scripts' commands, in order."""
    reports = iter(judged)
    pages: dict[str, list[Finding]] = {}
    for one, reason in commands:
        findings = pages.setdefault(one.file, [])
        text = " ".join(one.words)
        if reason is not None:
            findings.append(_finding(one, "FAIL" if reason else "PASS", f"{text}: {reason}" if reason else text))
            continue
        report = next(reports)
        failures = report.of("FAIL")
        if one.refused:
            level = "PASS" if failures or "resume=" in text or "run_name=" in text else "INFO"
            findings.append(_finding(one, level, f"{text}: shown as refused" + ("" if failures else " (at run time)")))
            continue
        findings += [_finding(one, "FAIL", f"{text}: {failure.code} {failure.message}") for failure in failures]
        findings += [] if failures else [_finding(one, "PASS", text)]
    return [Report(file, findings=findings) for file, findings in pages.items()]


def _finding(one: Documented, level: str, text: str) -> Finding:
    return replace(finding("DOC810", level, text, one.file, one.line), job=one.file)


def what_is_missing(root: Path, one: Documented) -> str | None:
    """The make target, module or script that does not exist, "" if all do; None for commands of an entry script."""
    words = list(_without_assignments(one.words))
    if words[0] == "make":
        makefile = root / "Makefile"
        text = makefile.read_text(encoding="utf-8") if makefile.is_file() else ""
        targets = re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE)
        unknown = [word for word in words[1:] if "=" not in word and not word.startswith("-") and word not in targets]
        return f"the Makefile has no target {unknown[0]}: {did_you_mean(unknown[0], targets)}" if unknown else ""
    rest = words[1:]
    while rest and rest[0].startswith("--"):
        rest = rest[1:]
    if rest[:1] == ["-m"] and len(rest) > 1:
        if rest[1].split(".")[0] in FOREIGN or rest[1] in FOREIGN:
            return ""
        return "" if module_file(root, rest[1]) else f"there is no module {rest[1]}"
    script = next((word for word in rest if word.endswith(".py")), None)
    if script is None:
        return ""
    if not (root / script).is_file():
        return f"there is no {script}"
    return "" if "/" in script else None
