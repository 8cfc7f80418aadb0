"""Runs that exist: what they go on with is the stored config, not what a command composes to today."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.reading import Unreadable, read_text, reason_of
from engine.registry import FAMILIES
from engine.run.files import runs_below
from engine.run.stored import merge_for_resume, stored_origin, stored_text
from engine.schema import structure
from verification.compose import Composed
from verification.finding import Finding, Report
from verification.source import Repo
from verification.yaml_lines import defaults_lines

if TYPE_CHECKING:
    from verification.chain import Chain


def go_on(chain: Chain) -> None:
    """Under resume=true put the stored config under the command's values, as the launch does.

    A run that is not here, or whose folder only the launch can name (by run_name=null), leaves the chain as composed.
    Raises: UsageError for what the launch refuses, e.g. another arch.
    """
    config = chain.resolved or {}
    folder = (chain.cwd or chain.repo.root) / user_path(str(config.get("run_dir")))
    if (folder / "config.yaml").is_file():
        adopt(chain, folder, chain.overrides)
        assert chain.resolved is not None
        chain.resolved["run_dir"] = config["run_dir"]


def adopt(chain: Chain, run: Path, overrides: list[str]) -> None:
    """Make the stored config of `run`, with `overrides` on top, the one that is judged.

    Raises: UsageError, OmegaConfBaseException.
    """
    text = stored_text(run)
    merged = merge_for_resume(text, overrides, groups=chain.choices)
    origin: Mapping[str, Any] = stored_origin(text)
    resolved = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    chain.resolved = {str(key): value for key, value in resolved.items()}
    chain.config_name = str(origin.get("config_name") or chain.config_name)
    chain.choices = dict(origin.get("choices") or chain.choices)
    chain.config = structure(chain.schema, chain.resolved) if chain.schema else None
    chain.composed = trace(chain)


def verify_run(run: Path, repo: Repo, *, data: bool = False) -> Report:
    """A run, by its stored config, against today's code and what its command means today. Raises: UsageError."""
    from verification.chain import build_chain, follow_classes
    from verification.static import report_of

    run = next((f for f in (run, run.parent, run.parent.parent) if (f / "overrides.txt").is_file()), run)
    chain = build_chain(command_of(run), repo, job=str(run))
    try:
        examine(run, chain)
    except OmegaConfBaseException as error:
        raise UsageError(f"{run}/config.yaml cannot be read: {' '.join(str(error).split())[:120]}") from None
    chain.with_data = data
    follow_classes(chain)
    return report_of(chain)


def examine(run: Path, chain: Chain) -> None:
    """Judge the run itself; `chain` is its command, followed as of today, and keeps that as `today`.

    Raises: UsageError, OmegaConfBaseException for a stored config that this version does not read.
    """
    words = command_of(run)
    problems = [chain.problems.pop(key) for key in ("config", "compose", "schema", "resolve") if key in chain.problems]
    chain.today = chain.resolved
    if any(word.partition("=")[0] == "resume" and word.endswith("=true") for word in words):
        chain.today, chain.no_today = None, "it was resumed by name: the command that began it is not stored"
    elif problems:
        chain.no_today = f"its command composes no more: {problems[0]}"
    chain.overrides = []
    adopt(chain, run, [])
    chain.checkpoint = run


def tensors(chain: Chain) -> Finding:
    """CKP612: the newest checkpoint of the run against the names that today's model has. Loads torch."""
    from engine.checkpoint.state_tree import tensor_file_fault, tensor_shapes
    from verification.checks.registry import say
    from verification.probes.session import tensor_names

    assert chain.checkpoint is not None
    assert chain.script is not None
    steps = {int(path.parent.name[5:]): path for path in chain.checkpoint.glob("step_*/model.safetensors")}
    if not steps:
        return say("CKP612", "SKIP", f"{chain.checkpoint} holds no checkpoint")
    file = steps[max(steps)]
    if fault := tensor_file_fault(file):
        return say("CKP612", "FAIL", f"{file.name} {fault}", str(file))
    stored = set(tensor_shapes(file))
    try:
        wanted = tensor_names(chain.resolved or {}, entry=chain.script.stem, root=chain.repo.root)
    except UsageError as error:
        return say("CKP612", "SKIP", f"no model to compare with: {error}")
    for what, names in (("lacks", wanted - stored), ("has unknown", stored - wanted)):
        if names:
            text = f"the checkpoint {what} {', '.join(sorted(names)[:3])}" + (", ..." if len(names) > 3 else "")
            return say("CKP612", "FAIL", text, str(file))
    return say("CKP612", "PASS", f"the checkpoint has the {len(wanted)} tensors of the model", str(file))


def command_of(run: Path) -> list[str]:
    """The launch that wrote `run` last, as words. Raises: UsageError where there is no run."""
    if not os.path.lexists(run / "config.yaml"):
        if runs := runs_below(run):
            raise UsageError(f"{run} is a folder of runs: name one of them, {', '.join(runs)}")
        raise UsageError(f"{run} is no run directory: expected e.g. checkpoints/PROJECT/RUN with a config.yaml")
    stored = stored_text(run)
    origin, script = stored_origin(stored), OmegaConf.to_container(OmegaConf.create(stored), resolve=False)
    script = script.get("script") if isinstance(script, dict) else None
    name = origin.get("config_name")
    if not script or not name:
        raise UsageError(f"{run}/config.yaml names no {'config' if script else 'script'}: it is not of a run")
    # The script is followed by executing its schema: what a file names must be one of ours, in our folder.
    if not isinstance(script, str) or script.removesuffix(".py") not in FAMILIES:
        hint = did_you_mean(str(script), FAMILIES)
        raise UsageError(f"{run}/config.yaml: script {script!r}: expected an entry script, {hint}")
    if Path(name).is_absolute() or ".." in Path(name).parts or name.startswith("-"):
        raise UsageError(f"{run}/config.yaml: config_name {name!r}: expected the name of a recipe")
    return ["python", f"{script.removesuffix('.py')}.py", f"--config-name={name}", *_overrides(run / "overrides.txt")]


def _overrides(file: Path) -> list[str]:
    """The values that the command gave. Flags and Hydra's own keys (where to search, what to start) are none of a
    file's business. Raises: UsageError.
    """
    try:
        lines = [line for line in read_text(file).splitlines() if line]
    except FileNotFoundError:
        return []
    except (OSError, Unreadable) as error:
        raise UsageError(f"{file} {reason_of(error)}") from None
    for line in lines:
        if line.startswith("-") or line.lstrip("+~").startswith(("hydra.", "hydra/", "hydra@", "hydra=")):
            raise UsageError(f"{file}: {line[:80]!r} is no value of a key: this file is not of a run")
    return lines


def trace(chain: Chain) -> Composed:
    """The files that the primary config and the choices lead to, for line numbers; nothing is merged."""
    names: list[tuple[str, str, str]] = []

    def visit(name: str, package: str) -> None:
        text = chain.repo.text(chain.locate(name))
        if text is None or any(name == seen for seen, _, _ in names) or len(names) > 50:
            return
        own_at = len(names)
        for group, option, _ in defaults_lines(text):
            if option == "_self_":
                own_at = len(names)
            elif not group:
                visit(option.lstrip("/"), "")
            elif not group.startswith("override"):
                visit(f"{group}/{chain.choices.get(group, option)}", group)
        names.insert(own_at if own_at else len(names), (name, package, f"{name}.yaml"))

    visit(chain.config_name, "")
    for group, option in chain.choices.items():
        globally = "@package _global_" in (chain.repo.text(chain.locate(f"{group}/{option}")) or "")
        visit(f"{group}/{option}", "" if globally else group)
    return Composed(OmegaConf.create(), dict(chain.choices), names)
