"""Reports on the console (the guide's six steps with ticks), as JSON, and as the Markdown page of the repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from verification.codes import CODES
from verification.finding import Report
from verification.link import mode_of_name
from verification.rules.config import warmup_key
from verification.spec import QUESTIONS
from verification.subject import Subject

STEPS = (
    ("Step 1: job", ("1",)),
    ("Step 2: script", ("2",)),
    ("Step 3: main config", ("3",)),
    ("Step 4: arch config", ("4",)),
    ("Step 5: model", ("5",)),
    ("Step 6: together", ("6",)),
    ("Data", ("data",)),
    ("Dynamic", ("dyn",)),
    ("Documentation", ("doc",)),
)
TICKS = {"PASS": "✅", "WARN": "⚠️", "FAIL": "❌", "SKIP": "–", "INFO": "ℹ️"}
CHECKLIST = (
    ("Job file uses correct script and config", ("JOB010", "JOB020", "JOB030", "SCR111")),
    ("Script's Hydra decorator matches config name", ("SCR110", "SCR111")),
    ("Main config's `arch` default points to existing arch config", ("CFG210",)),
    ("Arch config's `name` references correct module@class", ("ARC310", "ARC311", "ARC312")),
    ("Module file exists and exports the class", ("ARC311", "ARC312")),
    ("Training forward pass matches expected mode", ("SCR130", "MOD420", "MOD421")),
    ("ACT behavior is correct (fixed vs dynamic)", ("CFG230", "ARC320", "ARC321", "MOD440")),
    ("Data path is correct (encoder-mode vs embedding-mode)", ("DAT510", "DAT511", "SCR112")),
    ("Encoder usage matches mode (cached vs re-encoded)", ("MOD430", "MOD431", "MOD432")),
    ("No `_original`, `_old`, `_backup` suffixes in active code", ("JOB011", "JOB021", "ARC313")),
)


def text(reports: Sequence[Report], *, verbose: bool = False, brief: bool = False) -> str:
    """The console form: the steps of each command with their links, then what is wrong, why it matters, and the fix.

    `brief` leaves out commands without FAIL or WARN.
    """
    blocks = [_block(report, verbose) for report in reports if not brief or report.of("FAIL", "WARN")]
    counts = {level: sum(report.verdict == level for report in reports) for level in ("PASS", "WARN", "FAIL", "SKIP")}
    total = ", ".join(f"{number} {level}" for level, number in counts.items() if number)
    return "\n\n".join([*blocks, f"{len(reports)} report(s): {total or 'nothing to check'}"]) + "\n"


def _block(report: Report, verbose: bool) -> str:
    lines = [f"{TICKS[report.verdict]} {report.job or 'command'}  {report.verdict}"]
    for title, steps in STEPS:
        findings = [finding for finding in report.findings if finding.step in steps]
        level = report.level(steps)
        links = [link for link in report.chain if link["step"] in steps]
        if not findings or (level == "SKIP" and not links and not verbose):
            continue
        lines.append(f"  {TICKS[level]} {title}")
        for link in links:
            place = f"  ({link['file']}{':' + str(link['line']) if link['line'] else ''})" if link["file"] else ""
            lines.append(f"       {link['what']}: {link['value']}{place}")
        for finding in findings:
            what = f"{TICKS[finding.level]} {finding.code} {finding.message}"
            what += f"  ({finding.place})" if finding.place else ""
            is_intent = finding.code == "JOB034" and finding.level != "SKIP"
            if finding.level in ("FAIL", "WARN"):
                row = CODES[finding.code]
                lines += [f"     {what}", f"          why: {row.why}", f"          fix: {finding.fix or row.fix}"]
            elif verbose or is_intent or (finding.level == "INFO" and finding.code != "CFG220"):
                lines.append(f"     {what}")
    result = [one.message for one in report.findings if (one.code, one.level) == ("SUM600", "PASS")]
    return "\n".join([*lines, *(f"  Result: {message}" for message in result[:1])])


def as_json(reports: Sequence[Report]) -> str:
    """All reports with their verdicts."""
    content: dict[str, Any] = {"reports": [report.as_dict() for report in reports]}
    return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"


# --- the Markdown page ------------------------------------------------------------------------------------------------

ROWS = (
    ("script", "Script"),
    ("config", "Config"),
    ("arch", "Arch"),
    ("model", "module@Class"),
    ("loss", "Loss"),
    ("train_forward", "Training forward"),
    ("act_mode", "ACT mode"),
    ("encoder_policy", "Encoder policy"),
    ("encoder_type", "Encoder"),
    ("data_mode", "Data mode"),
    ("data", "Data"),
    ("exploration", "Exploration"),
    ("halt_max_steps", "Most ACT steps"),
    ("batch", "Batch"),
    ("processes", "Processes"),
    ("steps", "Optimizer steps"),
    ("warmup", "Warm-up"),
    ("initial_weights", "Initial weights"),
)


PAGE = "docs/training-path-verification.md"
COLUMNS = {"config": "config", "model": "model", "train_forward": "forward", "data_mode": "data mode"}


def summary(reports: Sequence[Report]) -> str:
    """The page in the repository: a row for the commands of a file that train the same thing, then what is wrong."""
    groups: dict[tuple[str, ...], list[Report]] = {}
    for report in (report for report in reports if report.chain):
        facts = [_cell(report.facts.get(key)) for key in COLUMNS]
        file = report.where.split(":")[0] or "command"
        groups.setdefault((file, TICKS[report.verdict], *facts), []).append(report)
    rows = [(file, str(len(group)), *cells) for (file, *cells), group in groups.items()]
    text = (
        f"What ships, verified: `python scripts/verify_path.py --all --summary --markdown {PAGE}` writes this page,"
        " without `--summary` one with the chain, the resolved values, the checklist and the questions of every"
        " command. `make check` fails when the page is stale. What the codes mean is in"
        " [verification.md](verification.md)."
    )
    lines = _head(text, ("from", "commands", "verdict", *COLUMNS.values()), rows)
    worse = [(report, one) for group in groups.values() for report in group for one in report.of("FAIL", "WARN")]
    if worse:
        lines += ["", *(f"- {_title(report)}: {TICKS[one.level]} {one.code} {one.message}" for report, one in worse)]
    return "\n".join(lines) + "\n"


def markdown(reports: Sequence[Report]) -> str:
    """The full page: chain, resolved table, checklist, questions and findings of each command.

    Nothing in it depends on time, machine or commit (for reports with `local_data=False`), so that the page can be
    compared with a newly generated one.
    """
    shown = [report for report in reports if report.chain]
    text = (
        "Generated by `python scripts/verify_path.py --all --markdown PAGE` from the job files in jobs/ and the"
        " recipes in config/. What the codes mean is in docs/verification.md."
    )
    rows = [
        (_title(report), TICKS[report.verdict], *(_cell(report.facts.get(key)) for key in (*COLUMNS, "steps")))
        for report in shown
    ]
    lines = _head(text, ("command", "verdict", *COLUMNS.values(), "steps"), rows)
    for report in shown:
        lines += ["", *_section(report)]
    return "\n".join(lines) + "\n"


def _head(text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = [columns, ["---"] * len(columns), *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    lines[1] = lines[1].replace(" ", "")
    return ["# Training path verification", "", text, "", *lines]


def _title(report: Report) -> str:
    where = report.where
    return where if where.endswith(".yaml") else f"{where}: {report.job}" if where else report.job


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "–" if value in (None, "") else str(value).replace("|", "\\|")


def _section(report: Report) -> list[str]:
    intent = report.intent
    lines = [f"## {_title(report)}", "", "```text"]
    for link in report.chain:
        place = f"   {link['file']}" if link["file"] and link["file"] != link["value"] else ""
        lines.append(f"{link['what']:<18} {link['value']}{place}")
    lines += ["```", "", "| | |", "|---|---|"]
    lines += [f"| {title} | {_cell(report.facts.get(key))} |" for key, title in ROWS]
    lines.append("")
    lines += [f"- {TICKS[report.level(codes=codes)]} {title} ({', '.join(codes)})" for title, codes in CHECKLIST]
    lines.append("")
    for question, fact, key in report.questions or QUESTIONS:
        actual = f"; found: {_cell(report.facts.get(fact))}" if fact else ""
        lines.append(f"- {question} **{intent.get(key, 'not stated')}**{actual}")
    problems = report.of("FAIL", "WARN")
    if problems:
        lines += ["", *(f"- {TICKS[f.level]} {f.code}: {f.message}. {f.fix}" for f in problems)]
    return lines


# --- the links of the chain, and the resolved table -------------------------------------------------------------------


def links(subject: Subject) -> list[dict[str, Any]]:
    """The chain as rows, in the guide's order."""
    rows: list[dict[str, Any]] = []

    def link(step: str, what: str, value: Any, file: str = "", line: int = 0) -> None:
        if value not in (None, ""):
            rows.append({"step": step, "what": what, "value": str(value), "file": file, "line": line})

    trace = subject.trace
    link("1", "command", " ".join(subject.command.argv), subject.where, subject.line)
    if trace.script is None or not trace.script.mains:
        return rows
    file, first = subject.script_file, trace.script.mains[0]
    link("2", "script", file, file, first.line)
    link("2", "decorator", first.config_name, file, first.line)
    link("3", "config", trace.config_name, subject.config_file)
    link("3", "defaults", " -> ".join(subject.files))
    link("4", "arch", subject.choices.get("arch"), subject.arch_file)
    if subject.resolved is None:
        return rows
    for one in (subject.model, subject.loss, *subject.evaluators):
        step = "5" if one is subject.model else "4"
        link(step, one.key, one.text, *one.place)
    if name := subject.model.train_forward:
        link("5", "training forward", f"{name}()", *subject.model.train_place)
    for entry in subject.data:
        link("data", entry.key, f"{entry.path} ({entry.mode or 'mode unknown'}, {entry.state})", entry.origin)
    return rows


def facts(subject: Subject, signature: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved table: the path signature, and further facts for the reader."""
    config, arch = subject.resolved or {}, subject.arch
    return dict(signature) | {
        "act_mode_found": mode_of_name(subject.model.train_forward),
        "training_mode": config.get("training_mode"),
        "exploration": arch.get("halt_exploration_prob"),
        "halt_max_steps": arch.get("halt_max_steps"),
        "batch": config.get("global_batch_size", config.get("batch_size")),
        "processes": subject.command.processes,
        "steps": subject.steps,
        "max_steps": config.get("max_steps"),
        "warmup": config.get(warmup_key(config)),
        "initial_weights": "resumed" if subject.trace.resumes else signature["initial_weights"],
        "run_name": config.get("run_name") or config.get("out_dir"),
        "run_dir": config.get("run_dir"),
    }
