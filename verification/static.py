"""The static verifier: commands, job files and the whole repository, without torch, data or weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.run.parent import SUFFIX
from launcher import jobs as job_files
from verification.chain import Chain, Kind, build_chain, hydra_flags
from verification.checks import run_checks, say
from verification.checks.config import warmup_key
from verification.checks.model import encoder_policy, forward_of, mode_of_body
from verification.checks.registry import NotApplicable, declared
from verification.codes import CODES
from verification.finding import Finding, Report
from verification.signature import make_signature
from verification.source import ClassInfo, Repo


def verify_command(
    argv: list[str] | tuple[str, ...], *, root: Path, intent: dict[str, str] | None = None, where: str = "",
    kind: Kind = "command", job: str = "", line: int = 0, data: bool = False, repo: Repo | None = None,
) -> Report:  # fmt: skip
    """Follow one command, launcher included (`["torchrun", "--nproc-per-node=2", "pretrain.py", "lr=1e-3"]`).

    `where` is the file that holds it, `kind` what it is: a warm-up longer than the run is forgiven to a command whose
    max_steps cut it, not to a job or a recipe. `data` also reads the contents of data sets. `repo` is shared by many.
    """
    repo = repo if repo is not None else Repo(Path(root))
    chain = build_chain(argv, repo, kind=kind, job=job, where=where, line=line, intent=intent)
    chain.with_data = data
    report = report_of(chain)
    report.findings += _of_sweep(chain, {(found.code, found.message) for found in report.findings})
    return report


def _of_sweep(chain: Chain, known: set[tuple[str, str]]) -> Iterator[Finding]:
    """What is wrong with the further jobs of a sweep and not `known`; a report is of the first one."""
    flags = [word for pair in hydra_flags(chain.command.arguments).items() for word in pair]
    start = [f"{SUFFIX}=_job", "python", str(chain.command.script), *flags]  # as a sweep starts its jobs
    for number, overrides in list(enumerate(chain.jobs))[1:]:
        one = build_chain(
            [*start, *overrides], chain.repo, kind=chain.kind, job=chain.job, where=chain.where, line=chain.line,
            intent=chain.intent,
        )  # fmt: skip
        one.with_data = chain.with_data
        what = " ".join(word for word in overrides if word not in chain.jobs[0])
        for found in report_of(one).of("FAIL", "WARN"):
            if (found.code, found.message) not in known:
                known.add((found.code, found.message))
                yield replace(found, message=f"job {number} of the sweep ({what}): {found.message}")


def report_of(chain: Chain) -> Report:
    """Judge a chain."""
    findings = [replace(found, job=chain.job) for found in run_checks(chain)]
    order = {code: number for number, code in enumerate(CODES)}
    findings.sort(key=lambda found: order[found.code])
    resolved = chain.resolved is not None
    made = Report(chain.job, links(chain), findings, subject=chain)
    if resolved:
        made.signature, made.facts = make_signature(chain), facts(chain)
    return made


def verify_file(
    path: str | Path, *, root: Path, job: str | None = None, line: int | None = None, pending: bool = False,
    data: bool = False, repo: Repo | None = None,
) -> list[Report]:  # fmt: skip
    """Every job of a job file, or the one of id `job` or at `line`; `pending` leaves out done and failed ones.

    Lines that are no jobs, duplicates and names that are used twice are findings of a report of the file's own.
    Raises: UsageError for a file that cannot be read and a job that is not in it.
    """
    from engine.errors import UsageError
    from engine.io import did_you_mean

    repo = repo if repo is not None else Repo(Path(root))
    found = job_files.read(job_files.find(path, [root]))
    name = found.path.relative_to(root).as_posix() if found.path.is_relative_to(root) else str(found.path)
    chosen = [one for one in found.jobs if (job is None or one.id == job) and (line is None or one.line_number == line)]
    if (job or line) and not chosen:
        hint = did_you_mean(str(job or line), [one.id for one in found.jobs])
        raise UsageError(f"{name} has no job {job or f'at line {line}'}: {hint}")
    if pending:
        chosen = [one for one in chosen if one.state in ("todo", "running")]
    reports = []
    for one in chosen:
        if one.error:
            wrong = [Finding("JOB001", "FAIL", "1", one.error, CODES["JOB001"].fix, name, one.line_number, one.id)]
            reports.append(Report(one.id, findings=wrong))
            continue
        reports.append(
            verify_command(
                list(one.argv), root=root, intent=one.intent, where=name, kind="job", job=one.id,
                line=one.line_number, data=data, repo=repo,
            )
        )  # fmt: skip
    if job is None and line is None:
        reports.insert(0, Report(name, findings=_file_findings(found, name, reports)))
    return reports


def _file_findings(found: job_files.JobFile, name: str, reports: list[Report]) -> list[Finding]:
    said = [say("JOB001", "FAIL", text, name, number) for number, text in found.problems]
    if not said:
        said.append(say("JOB001", "PASS", f"{len(found.jobs)} jobs", name))
    pending = [one for one in found.jobs if one.state in ("todo", "running")]
    lines = Counter(one.command for one in pending)
    twice = [one for one in pending if lines[one.command] > 1]
    said += [say("JOB002", "WARN", "this pending job is there twice", name, one.line_number) for one in twice]
    stale = [one for one in found.jobs if one.state == "running" and _is_gone(one.owner)]
    said += [
        say(
            "JOB002",
            "WARN",
            f"marked as running by process {one.owner[0] if one.owner else '?'}, which is gone",
            name,
            one.line_number,
        )
        for one in stale
    ]
    if not twice and not stale:
        said.append(say("JOB002", "PASS", "no pending job is there twice, no mark is stale", name))
    folders: dict[str, list[str]] = {}
    for report in reports:
        run_name, folder = report.facts.get("run_name"), report.facts.get("run_dir")
        if run_name and folder:
            folders.setdefault(str(folder), []).append(report.job)
    same = {folder: ids for folder, ids in folders.items() if len(ids) > 1}
    said += [say("JOB032", "WARN", f"jobs {', '.join(ids)} write to {folder}", name) for folder, ids in same.items()]
    if not same:
        said.append(say("JOB032", "PASS", "run names are unique", name))
    return [replace(one, job=name) for one in said]


def _is_gone(owner: tuple[int, str | None] | None) -> bool:
    import os
    import socket

    if owner is None:
        return True
    pid, host = owner
    return host in (None, socket.gethostname()) and not os.path.exists(f"/proc/{pid}")


def verify_recipe(path: Path, *, root: Path, repo: Repo | None = None) -> Report:
    """A cfg_*.yaml as its own `script:` would run it; its header says what is meant in an `#@ intent:` line."""
    repo = repo if repo is not None else Repo(Path(root))
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    script = recipe_script(repo, path)
    intent: dict[str, str] = {}
    wrong = []
    for number, line in enumerate((repo.text(file) or "").splitlines(), 1):
        if line.startswith("#@") and (problem := job_files.read_directive(line, intent, {})):
            wrong.append(replace(say("JOB034", "WARN", problem, file, number), job=path.stem))
    argv = ["python", script, f"--config-name={path.stem}"]
    report = verify_command(argv, root=root, intent=intent, where=file, kind="recipe", job=path.stem, repo=repo)
    report.findings += wrong
    return report


def recipe_script(repo: Repo, path: Path) -> str:
    """The script that a recipe declares, itself or through its defaults; pretrain.py where none does."""
    from verification.yaml_lines import defaults_lines

    pending, seen = [path.stem], set()
    while pending:
        name = pending.pop(0)
        text = repo.text(f"config/{name}.yaml")
        if text is None or name in seen:
            continue
        seen.add(name)
        match = re.search(r"^script:\s*(\S+\.py)", text, re.MULTILINE)
        if match:
            return match[1]
        pending += [option.lstrip("/") for group, option, _ in defaults_lines(text) if not group and option != "_self_"]
    return "pretrain.py"


def verify_all(root: Path, *, data: bool = False, docs: bool = True, repo: Repo | None = None) -> list[Report]:
    """All job files, recipes and documented commands under `root`."""
    from verification.docs import verify_docs

    root = Path(root)
    repo = repo if repo is not None else Repo(root)
    reports: list[Report] = []
    for path in sorted((root / "jobs").glob("jobs-*.txt")):
        reports += verify_file(path, root=root, data=data, repo=repo)
    for path in sorted((root / "config").glob("cfg_*.yaml")):
        reports.append(verify_recipe(path, root=root, repo=repo))
    if docs:
        reports += verify_docs(repo)
    return reports


# --- what a report shows ----------------------------------------------------------------------------------------------


def links(chain: Chain) -> list[dict[str, Any]]:
    """The chain as rows, in the guide's order."""
    rows: list[dict[str, Any]] = []

    def link(step: str, what: str, value: Any, file: str = "", line: int = 0) -> None:
        if value not in (None, ""):
            rows.append({"step": step, "what": what, "value": str(value), "file": file, "line": line})

    link("1", "command", " ".join(chain.command.argv), chain.where, chain.line)
    script = chain.script
    if script is None:
        return rows
    link("2", "script", script.file, script.file, script.decorator_line)
    link("2", "decorator", script.config_name, script.file, script.decorator_line)
    if isinstance(script.task, ClassInfo):
        link("2", "task", f"{script.task.module.name}@{script.task.name}", script.task.file, script.task.line)
    link("3", "config", chain.config_name, chain.config_file)
    link("3", "defaults", " -> ".join(chain.files))
    link("4", "arch", chain.choices.get("arch"), chain.arch_file)
    for named in [one for one in (chain.model, chain.loss, *chain.evaluators) if one is not None]:
        place = (named.cls.file, named.cls.line) if named.cls else ("", 0)
        link("5" if named is chain.model else "4", named.key, named.text, *place)
    try:
        forward = forward_of(chain)
        if forward.train:
            node, owner = forward.method(forward.train)
            link("5", "training forward", f"{forward.train}()", owner.file, node.lineno)
    except NotApplicable:
        pass
    for entry in chain.data:
        link("data", entry.key, f"{entry.path} ({entry.mode or 'mode unknown'}, {entry.state})", entry.origin)
    return rows


def _begins(config: dict[str, Any]) -> str:
    """Where the weights of a new run come from."""
    sources = {"gpt2": config.get("gpt2_type"), "prev_run": config.get("prev_run_ckpt")}
    source = sources.get(str(config.get("init_from")))
    return str(source) if source else f"random, seed {config.get('seed')}"


def facts(chain: Chain) -> dict[str, Any]:
    """The resolved table."""
    config = chain.resolved or {}
    try:
        forward = forward_of(chain)
        train, done, policy = forward.train, mode_of_body(forward), encoder_policy(chain)
    except NotApplicable:
        train, done, policy = "", "", ""
    return {
        "script": chain.script.file if chain.script else None,
        "config": chain.config_name,
        "arch": chain.choices.get("arch"),
        "model": chain.model.text if chain.model else None,
        "loss": chain.loss.text if chain.loss else None,
        "train_forward": train,
        "act_mode": declared(chain, "ACT_MODE"),
        "act_mode_found": done,
        "encoder_policy": policy,
        "encoder_type": chain.arch.get("encoder_type", "none"),
        "data_mode": declared(chain, "DATA_MODE"),
        "data": [entry.path for entry in chain.data],
        "training_mode": config.get("training_mode"),
        "exploration": chain.arch.get("halt_exploration_prob"),
        "halt_max_steps": chain.arch.get("halt_max_steps"),
        "batch": config.get("global_batch_size", config.get("batch_size")),
        "processes": chain.command.processes,
        "steps": chain.steps,
        "max_steps": config.get("max_steps"),
        "warmup": config.get(warmup_key(config)),
        "initial_weights": "resumed" if chain.resumes else _begins(config),
        "run_name": config.get("run_name") or config.get("out_dir"),
        "run_dir": config.get("run_dir"),
    }
