"""Runs the probes on a config: shrinks it, builds it through the script's own launch, and observes it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import engine.registry
from engine.errors import UsageError
from engine.registry import resolve
from engine.schema import structure
from verification.codes import ALSO_OBSERVED, OBSERVED
from verification.finding import Finding
from verification.probes import (  # noqa: F401  they register on import
    encoding,
    episodes,
    errors,
    fixed,
    handed,
    mode,
    outputs,
    overrides as override_probe,
    ranks,
    terms,
    training,
    wiring,
)
from verification.probes.instance import Tiny, step
from verification.probes.launch import launched
from verification.probes.reads import unread_keys
from verification.probes.registry import chosen, place_of_error, run_probe
from verification.rule import finding
from verification.spec import Settings, shrunk, specification

BUILT = "DYN700"
JUDGED = tuple(sorted((*OBSERVED, *ALSO_OBSERVED)))
RANK_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def observe(
    resolved: Mapping[str, Any], *, script: ModuleType, codes: Sequence[str] = JUDGED, overrides: Sequence[str] = ()
) -> list[Finding]:
    """Findings about a resolved config of the entry script `script`. Never raises.

    Each requested code of JUDGED has at least one finding, a SKIP if nothing could be built. With deeper codes
    (DYN7xx), a config that cannot be built is a DYN700, and nothing else is observed.
    """
    resolved = {key: value for key, value in resolved.items() if key != "hydra"}
    deep = not set(codes) <= set(JUDGED)
    if specification(script.FAMILY) is None:
        text = f"the family of {script.__name__}.py has no verify.py"
        return [finding(code, "SKIP", text) for code in ([BUILT] if deep else codes)]
    with _quiet(), tempfile.TemporaryDirectory(prefix="probe-") as folder:
        try:
            tiny = make_tiny(script, resolved, Path(folder) / "data", overrides, narrow=not deep)
            built = _built(tiny) if deep else tiny.build()
        except Exception as error:
            return [_unbuilt(error)] if deep else _unobserved(error, codes)
        return [*([built] if BUILT in codes else []), *_run_all(tiny, codes)]


def _run_all(tiny: Tiny, codes: Sequence[str]) -> list[Finding]:
    failed, blocked, findings = set[str](), set[str](), list[Finding]()
    rows = chosen([code for code in codes if code != BUILT], tiny)
    for row in rows:
        if first := [code for code in row.after if code in failed | blocked]:
            findings.append(finding(row.code, "SKIP", f"not observed: {first[0]} comes first"))
            blocked.add(row.code)
        else:
            findings += run_probe(row, tiny)
            failed |= {one.code for one in findings if one.level in ("FAIL", "WARN")}
    requested = {code for code in set(codes) & set(JUDGED) if not code.startswith("DYN")}  # DYN is not for all families
    unknown = requested - {row.code for row in rows}
    return [*findings, *(finding(code, "SKIP", "a check of models with ACT steps") for code in sorted(unknown))]


def _unobserved(error: Exception, codes: Sequence[str]) -> list[Finding]:
    """Findings if nothing could be built: a SCR112 if `engine.registry.require` refused the family or data mode."""
    refused = "require" in [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    rows = {code: ("SKIP", f"not observed: {in_one_line(error)}") for code in codes}
    if refused and "SCR112" in codes:
        rows["SCR112"] = ("FAIL", in_one_line(error))
    return [finding(code, level, text) for code, (level, text) in rows.items()]


def _unbuilt(error: Exception) -> Finding:
    root = engine.registry.ROOT
    top = (getattr(error, "name", None) or "").partition(".")[0]
    ours = (root / top).is_dir() or (root / f"{top}.py").is_file()
    if isinstance(error, ModuleNotFoundError) and not ours:
        return finding(BUILT, "SKIP", f"not observed: {error.name} is not installed here")
    place = ("", 0) if isinstance(error, UsageError) else place_of_error(error, root)
    return finding(BUILT, "FAIL", f"the config cannot be built: {in_one_line(error)}", *place)


def in_one_line(error: Exception) -> str:
    """An error in one line, with its class unless it is a UsageError."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


# --- the tiny instance ------------------------------------------------------------------------------------------------


def make_tiny(
    module: ModuleType,
    resolved: Mapping[str, Any],
    data: Path,
    overrides: Sequence[str] = (),
    narrow: bool = False,
) -> Tiny:
    """The tiny instance of a config. `narrow`: as in `verification.spec.shrunk`.

    Raises: UsageError.
    """
    arch, spec = resolved.get("arch") or {}, specification(module.FAMILY)
    if spec is None:
        raise UsageError(f"the family of {module.__name__}.py has no verify.py")
    model_class = resolve(arch.get("name", ""), "models", "arch.name")
    resolved = {**resolved, "arch": arch_with_defaults(arch, model_class)}
    settings = shrunk(spec, resolved, data, narrow=narrow)
    keys, run = override_probe.override_keys(overrides, arch)
    launch = launched(module, settings)
    if launch.schema is None or launch.build is None:
        raise launch.error or UsageError(f"{launch.name}.py hands no build to the engine")
    structure(launch.schema, dict(resolved))
    if spec.write_data is not None:
        spec.write_data(data)
    return Tiny(launch, spec, settings, model_class, data, dict(resolved), keys, run)


def arch_with_defaults(arch: Mapping[str, Any], model_class: type) -> Settings:
    """The arch block with the defaults of the model's Config, so that they can be shrunk, too."""
    schema = getattr(model_class, "Config", None)
    fields = dataclasses.fields(schema) if schema else ()
    return {one.name: one.default for one in fields if isinstance(one.default, bool | int | float | str)} | dict(arch)


def _built(tiny: Tiny) -> Finding:
    """Build the full-size model without memory, then the tiny one with a step. Raises what building raises."""
    size = sum(param.numel() for param in tiny.full_model(tiny.resolved).parameters())
    plan = tiny.build()
    step(plan.task, 1)
    small = sum(param.numel() for param in plan.task.module.parameters())
    text = f"{tiny.model_class.__name__} builds and takes a step: {size:,} parameters {tiny.spec.sized}".rstrip()
    return finding(BUILT, "PASS", f"{text} ({small:,} in the tiny instance)")


def tensor_names(resolved: Settings, script: ModuleType) -> set[str]:
    """The names of the tensors of the config's model. Raises: UsageError if it cannot be built here."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="probe-") as folder:
        tiny = make_tiny(script, resolved, Path(folder) / "data")
        return set(tiny.full_model(tiny.resolved).state_dict())


def keys_unread(resolved: Settings, script: ModuleType) -> list[str] | None:
    """The keys of a config that its tiny instance does not read; None if it cannot be built or run here."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="probe-") as folder:
        try:
            return unread_keys(make_tiny(script, resolved, Path(folder) / "data"))
        except Exception:
            return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run with one rank, gradients on and no output; restores random state and environment of the process."""
    launcher = {key: os.environ.pop(key) for key in RANK_KEYS if key in os.environ}
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.update(launcher)
