"""An existing run (--checkpoint): its stored config, signature and step, compared with the current code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.cli.files import config_files
from engine.cli.resolve import Trace
from engine.config import NOT_IDENTITY
from engine.errors import UsageError
from engine.fields import flatten
from engine.io import did_you_mean, read_object, user_path
from engine.reading import Unreadable, read_text, reason_of
from engine.registry import FAMILIES
from engine.run.files import read_json, read_yaml, runs_below
from engine.run.stored import merge_for_resume, stored_origin, stored_text
from engine.schema import structure
from verification.finding import Finding
from verification.rule import NotApplicable, finding, need_config, rule
from verification.signature import compare_signatures, make_signature
from verification.subject import Subject


def run_of(subject: Subject) -> Path:
    """The folder of the judged run. Raises NotApplicable."""
    if subject.checkpoint is None:
        raise NotApplicable("no run is examined (--checkpoint RUN)")
    return subject.checkpoint


def leaves(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every leaf that belongs to a run's identity."""
    identity = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    return {key: value for key, value in flatten(identity) if not isinstance(value, dict)}


@rule("CKP610", at_launch=False)
def stored_config(subject: Subject) -> Iterator[Finding]:
    run = run_of(subject)
    file = run / "config.resolved.yaml"
    if not file.is_file():
        yield finding("CKP610", "FAIL", f"{run} has no config.resolved.yaml", str(run))
        return
    need_config(subject)
    if subject.today is None:
        raise NotApplicable(subject.no_today)
    stored: Any = read_yaml(file)
    if not stored:
        yield finding("CKP610", "FAIL", f"{file} is damaged", str(file))
        return
    before, today = leaves(stored), leaves(subject.today)
    if newer := [f"{key}={value}" for key, value in today.items() if key not in before]:
        yield finding("CKP610", "WARN", f"keys newer than the run: {', '.join(newer)}", str(file))
    for key in [key for key in before if before[key] != today.get(key)]:
        text = f"{key}: {before[key]} in the run, {today.get(key)} composed today"
        yield finding("CKP610", "FAIL", text, str(file))


@rule("CKP611", at_launch=False)
def stored_signature(subject: Subject) -> Iterator[Finding]:
    run = run_of(subject)
    file = run / "path_signature.json"
    if not file.is_file():
        yield finding("CKP611", "WARN", f"{run} has no path_signature.json", str(run))
        return
    need_config(subject)
    today = {key: value for key, value in make_signature(subject).items() if key != "world_size"}  # of this process
    try:
        fails, warns = compare_signatures(read_object(file), today)
    except UsageError as error:
        yield finding("CKP611", "FAIL", str(error), str(file))
        return
    for level, texts in (("FAIL", fails), ("WARN", warns)):
        for text in texts:
            yield finding("CKP611", level, text, str(file))


@rule("CKP612", at_launch=False)
def stored_tensors(subject: Subject) -> Iterator[Finding]:
    run_of(subject)
    raise NotApplicable("tensors are compared with --dynamic, and strictly by all that opens a checkpoint")
    yield


@rule("CKP613", at_launch=False)
def stored_step(subject: Subject) -> Iterator[Finding]:
    status = run_of(subject) / "status.json"
    step = read_json(status).get("step")
    if type(step) is not int:
        raise NotApplicable(f"{status} names no step")
    if subject.steps is None:
        raise NotApplicable("the length of the run is not known")
    text = f"step {step} of {subject.steps}"
    yield finding("CKP613", "PASS" if step <= subject.steps else "FAIL", text, str(status))


# --- its command and config -------------------------------------------------------------------------------------------


def resume(trace: Trace) -> None:
    """With resume=true, apply the command's values to the stored config, as the launch does.

    If there is no such run, or only the launch can name its folder (run_name=null), the trace stays as composed. What
    the launch refuses, e.g. another arch, is a problem of the link `schema`.
    """
    config = trace.resolved or {}
    folder = trace.cwd / user_path(str(config.get("run_dir")))
    if not (folder / "config.yaml").is_file():
        return
    try:
        trace.problems.pop("schema", None)  # that of the command with its recipe
        adopt(trace, folder, trace.overrides)
        assert trace.resolved is not None
        trace.resolved["run_dir"] = config["run_dir"]
    except (UsageError, OmegaConfBaseException) as error:
        trace.problems["schema"] = " ".join(str(error).split())


def adopt(trace: Trace, run: Path, overrides: list[str]) -> None:
    """Judge the stored config of `run` with `overrides` instead of the composed one.

    Raises: UsageError, OmegaConfBaseException.
    """
    text = stored_text(run)
    origin: Mapping[str, Any] = stored_origin(text)
    resolved = OmegaConf.to_container(
        merge_for_resume(text, overrides, groups=trace.choices), resolve=True, throw_on_missing=True
    )
    assert isinstance(resolved, dict)
    trace.resolved = {str(key): value for key, value in resolved.items()}
    trace.config_name = str(origin.get("config_name") or trace.config_name)
    trace.choices = dict(origin.get("choices") or trace.choices)
    schema = trace.script.schema if trace.script else None
    trace.config = structure(schema, trace.resolved) if schema else None
    trace.composed, trace.files = True, config_files(trace.folders, trace.config_name, trace.choices)


def run_folder(path: Path) -> Path:
    """The run folder of a path to it or to one of its checkpoints."""
    return next((one for one in (path, path.parent, path.parent.parent) if (one / "overrides.txt").is_file()), path)


def examine(subject: Subject, run: Path) -> None:
    """Judge the run itself; what its command composes to now is kept as `today`.

    Raises: UsageError for a stored config that this version cannot read.
    """
    words, trace = command_of(run), subject.trace
    links = ("config", "compose", "schema", "resolve")
    problems = [trace.problems.pop(link) for link in links if link in trace.problems]
    subject.today, subject.checkpoint = trace.resolved, run
    if any(word.partition("=")[0] == "resume" and word.endswith("=true") for word in words):
        subject.today, subject.no_today = None, "it was resumed by name: the command that began it is not stored"
    elif problems:
        subject.no_today = f"its command no longer composes: {problems[0]}"
    trace.overrides, trace.jobs = [], [[]]
    try:
        adopt(trace, run, [])
    except OmegaConfBaseException as error:
        raise UsageError(f"{run}/config.yaml cannot be read: {' '.join(str(error).split())[:120]}") from None


def tensors(run: Path, config: dict[str, Any], script: ModuleType) -> Finding:
    """CKP612: compare the newest checkpoint of a run with the tensor names of the current model. Imports torch."""
    from engine.checkpoint.state_tree import tensor_file_fault, tensor_shapes
    from verification.probes.session import tensor_names

    steps = {int(path.parent.name[5:]): path for path in run.glob("step_*/model.safetensors")}
    if not steps:
        return finding("CKP612", "SKIP", f"{run} holds no checkpoint")
    file = steps[max(steps)]
    if fault := tensor_file_fault(file):
        return finding("CKP612", "FAIL", f"{file.name} {fault}", str(file))
    stored = set(tensor_shapes(file))
    try:
        names = tensor_names(config, script)
    except UsageError as error:
        return finding("CKP612", "SKIP", f"no model to compare with: {error}")
    for what, some in (("lacks", names - stored), ("has unknown", stored - names)):
        if some:
            text = f"the checkpoint {what} {', '.join(sorted(some)[:3])}" + (", ..." if len(some) > 3 else "")
            return finding("CKP612", "FAIL", text, str(file))
    return finding("CKP612", "PASS", f"the checkpoint has the {len(names)} tensors of the model", str(file))


def command_of(run: Path) -> list[str]:
    """The words of the last launch that wrote `run`. Raises: UsageError if there is no run."""
    if not os.path.lexists(run / "config.yaml"):
        if runs := runs_below(run):
            raise UsageError(f"{run} is a folder of runs: name one of them, {', '.join(runs)}")
        raise UsageError(f"{run} is not a run directory: expected e.g. checkpoints/PROJECT/RUN with a config.yaml")
    stored = stored_text(run)
    origin, script = stored_origin(stored), OmegaConf.to_container(OmegaConf.create(stored), resolve=False)
    script = script.get("script") if isinstance(script, dict) else None
    name = origin.get("config_name")
    if not script or not name:
        raise UsageError(f"{run}/config.yaml names no {'config' if script else 'script'}: it does not belong to a run")
    # Tracing executes code of the script's family: the name in the file must be one of our scripts.
    if not isinstance(script, str) or script.removesuffix(".py") not in FAMILIES:
        hint = did_you_mean(str(script), FAMILIES)
        raise UsageError(f"{run}/config.yaml: script {script!r}: expected an entry script, {hint}")
    if Path(name).is_absolute() or ".." in Path(name).parts or name.startswith("-"):
        raise UsageError(f"{run}/config.yaml: config_name {name!r}: expected the name of a recipe")
    return ["python", f"{script.removesuffix('.py')}.py", f"--config-name={name}", *_overrides(run / "overrides.txt")]


def _overrides(file: Path) -> list[str]:
    """The overrides of the command. Raises: UsageError, also for flags and Hydra's own keys (search paths, launchers),
    which must not come from a file.
    """
    try:
        lines = [line for line in read_text(file).splitlines() if line]
    except FileNotFoundError:
        return []
    except (OSError, Unreadable) as error:
        raise UsageError(f"{file} {reason_of(error)}") from None
    for line in lines:
        if line.startswith("-") or line.lstrip("+~").startswith(("hydra.", "hydra/", "hydra@", "hydra=")):
            raise UsageError(f"{file}: {line[:80]!r} is not the value of a key: this file does not belong to a run")
    return lines
