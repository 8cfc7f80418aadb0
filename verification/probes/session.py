"""One call of the probes: read the config, shrink it, build it, run the probes, keep the results."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

import engine.registry
from engine.errors import UsageError
from engine.registry import import_ours, resolve, split_name
from engine.schema import structure
from verification.codes import ALSO_OBSERVED, CODES, OBSERVED
from verification.finding import Finding
from verification.probes import (  # noqa: F401  they register on import
    context,
    depth,
    episodes,
    errors,
    mode,
    outputs,
    overrides as override_probe,
    ranks,
    splits,
    training,
    wiring,
)
from verification.probes.instance import Tiny, step
from verification.probes.launch import launched
from verification.probes.registry import PROBES, chosen, place_of, place_of_error, run_probe
from verification.spec import Settings, shrunk, specification
from verification.verdicts import Verdict

BUILT, CLASS, SUM = "DYN700", "MOD410", "SUM600"
JUDGED = tuple(sorted((*OBSERVED, *ALSO_OBSERVED)))
MEMO: dict[str, list[Finding]] = {}
"""Hash of (root, script, code, shrunk config, overridden keys) -> findings."""
TIME_LIMIT_S = 120
RANK_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


# --- the two calls ----------------------------------------------------------------------------------------------------


def observe(
    config: Any, *, entry: str, root: Path, only: Iterable[str] | None, overrides: Sequence[str] | None
) -> list[Finding]:
    """See `verification.probes.probe`."""
    codes = _codes(only)
    root, name = root.resolve(), Path(entry).stem
    try:
        resolved, remembered = read_config(config)
    except (UsageError, OmegaConfBaseException) as error:
        return [_unbuilt(error)]
    given = list(remembered if overrides is None else overrides)
    try:
        module = script_module(name, root)
    except Exception as error:
        return [_unbuilt(error)]
    if module is None:
        return _elsewhere(resolved, name, root, codes, given)
    engine.registry.ROOT = root  # the code that is examined may be another checkout than this one
    found: list[Finding] = []
    if seen := [code for code in codes if code in JUDGED]:
        found += observe_codes(resolved, script=module, root=root, codes=seen).findings
    if deep := [code for code in codes if code not in JUDGED]:
        with _quiet():
            found += _observe(module, resolved, root, deep, given)
    return found


def observe_codes(
    resolved: Mapping[str, Any], *, script: ModuleType | str, root: Path, codes: Sequence[str] = JUDGED
) -> Verdict:
    """What the guide asks of behaviour, observed on a tiny instance of a resolved config. Never raises."""
    verdict, root = Verdict(), root.resolve()
    resolved = {key: value for key, value in resolved.items() if key != "hydra"}
    with _quiet(), tempfile.TemporaryDirectory(prefix="probe-") as folder:
        try:
            module = script_module(script, root) if isinstance(script, str) else script
            if module is None:
                raise UsageError(f"this process has not loaded the code of {root}")
            engine.registry.ROOT = root
            verdict.findings += _class(resolved, root)
            tiny = make_tiny(module, resolved, root, Path(folder) / "data", narrow=True)
            tiny.build()
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            reason = text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
            if _refused(error):
                verdict.findings.append(_said("SCR112", "FAIL", reason))
            known = {finding.code for finding in verdict.findings}
            verdict.findings += [_said(c, "SKIP", f"not observed: {reason}") for c in codes if c not in known]
            verdict.findings = [finding for finding in verdict.findings if finding.code in codes]
            return verdict
        _run_all(verdict, tiny, codes)
    return verdict


def _run_all(verdict: Verdict, tiny: Tiny, codes: Sequence[str]) -> None:
    failed = {finding.code for finding in verdict.findings if finding.level == "FAIL"}
    rows, blocked = chosen([code for code in codes if code not in (CLASS, SUM)], tiny), set[str]()
    for row in rows:
        if first := [code for code in row.after if code in failed | blocked]:
            found = [_said(row.code, "SKIP", f"not observed: {first[0]} comes first")]
            blocked.add(row.code)
        else:
            found = run_probe(row, tiny)
        failed |= {finding.code for finding in found if finding.level == "FAIL"}
        verdict.findings += found
    known = {row.code for row in rows} | {CLASS}
    for code in codes:
        if code == SUM:
            verdict.findings.append(_sum(tiny, failed))
        elif code not in known:
            verdict.findings.append(_said(code, "SKIP", "a check of models with ACT steps"))
    verdict.findings = [finding for finding in verdict.findings if finding.code in codes]
    task = vars(tiny).get("task_class")  # where a probe has asked for it
    keys = ("train_forward", "act_mode_found", "encoder_policy")
    verdict.facts = {key: tiny.kept.get(key) for key in keys}
    verdict.facts["task"] = f"{task.__module__}@{task.__name__}" if task else None


def _refused(error: BaseException) -> bool:
    """Whether `engine.registry.require` found another family or data mode than the script's."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "require" in frames


def _class(resolved: Mapping[str, Any], root: Path) -> list[Finding]:
    """MOD410: the class is a module that can be called as the trainer calls it."""
    name = str((resolved.get("arch") or {}).get("name", ""))
    try:
        cls = resolve(name, "models", "arch.name")
    except UsageError:  # a class without forward is refused there, and examined here
        if (cls := _named(name)) is None:
            raise
    file, line = place_of(cls, root)
    problems = []
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        problems.append(f"{attribute_name(cls)} is no nn.Module")
    elif getattr(cls, "forward", None) is nn.Module.forward:
        problems.append(f"{cls.__name__} has no forward")
    elif getattr(cls, "ACT_MODE", None) is not None or "carry" in inspect.signature(cls.forward).parameters:
        try:
            inspect.signature(cls.forward).bind(None, {})
            inspect.signature(cls.forward).bind(None, {}, None)
        except TypeError as error:
            problems.append(f"{cls.__name__}.forward cannot be called as forward(batch, carry=None): {error}")
    if problems:
        return [Finding(CLASS, "FAIL", "5", text, CODES[CLASS].fix, file, line) for text in problems]
    return [Finding(CLASS, "PASS", "5", f"class {cls.__name__} is a module with forward", "", file, line)]


def _named(name: str) -> Any:
    """What `module@Class` of models/ names, whatever it is; None where that is nothing of ours."""
    split = split_name(name, "models")
    if split is None or split[0][0] != "models":
        return None
    try:
        return getattr(import_ours(".".join(split[0]), "arch.name"), split[1], None)
    except (ImportError, UsageError):
        return None


def attribute_name(cls: Any) -> str:
    """The name of a class, or of what stands in its place."""
    return str(getattr(cls, "__name__", cls))


def _sum(tiny: Tiny, failed: set[str]) -> Finding:
    """SUM600: one sentence about what was seen, right where nothing failed."""
    cls, kept = tiny.model_class, tiny.kept
    if tiny.spec.act:
        policy = kept.get("encoder_policy", "none")
        text = f"{cls.__name__} uses {kept.get('train_forward')}() with {getattr(cls, 'ACT_MODE', None)} halting, "
        text += f"{getattr(cls, 'DATA_MODE', None)} mode, "
        text += "no encoder" if policy == "none" else f"encoder: {policy}"
    else:
        text = f"{cls.__name__} is trained by {tiny.task_class.__name__}, {getattr(cls, 'DATA_MODE', None)} mode"
    file, line = place_of(cls, tiny.root)
    level = "FAIL" if failed else "PASS"
    return Finding(SUM, level, "6", text, CODES[SUM].fix if failed else "", file, line)  # type: ignore[arg-type]


def _said(code: str, level: Any, text: str) -> Finding:
    return Finding(code, level, CODES[code].step, text)


# --- the tiny instance ------------------------------------------------------------------------------------------------


def make_tiny(
    module: ModuleType,
    resolved: Mapping[str, Any],
    root: Path,
    data: Path,
    given: Sequence[str] = (),
    narrow: bool = False,
) -> Tiny:
    """The instance of a config. `narrow` keeps what decides how a step works, so that many configs share a verdict.

    Raises: UsageError; LookupError where the family has no specification.
    """
    arch = resolved.get("arch") or {}
    spec = specification(module)
    model_class = resolve(arch.get("name", ""), "models", "arch.name")
    declared = {key: getattr(model_class, key, None) for key in ("FAMILY", "DATA_MODE")}
    if spec is None:
        raise LookupError(f"no probes are registered for FAMILY={declared['FAMILY']!r} of {arch['name']}")
    settings = shrunk(spec, resolved, data, narrow=narrow)
    keys, run = override_probe.override_keys(given, arch)
    launch = launched(module, settings)
    if launch.schema is None or launch.build is None:
        raise launch.error or UsageError(f"{launch.name}.py hands no build to the engine")
    structure(launch.schema, dict(resolved))
    spec.write_data(data)
    return Tiny(
        launch,
        spec,
        settings,
        model_class,
        root=root,
        data=data,
        full_arch=dict(arch),
        overridden=keys,
        overridden_run=run,
        resolved=dict(resolved),
    )


def _codes(only: Iterable[str] | None) -> list[str]:
    known = {BUILT, *JUDGED, *(code for code, _ in PROBES), *FAMILY_CODES}
    if unknown := set(only or ()) - known:
        raise ValueError(f"no probe observes {', '.join(sorted(unknown))}: choose among {', '.join(sorted(known))}")
    return sorted(known - set(JUDGED) if only is None else set(only))


FAMILY_CODES = ("DYN706", "DYN712")
"""What families may observe in a way of their own."""


def read_config(config: Any) -> tuple[Settings, list[str]]:
    """(resolved container, remembered overrides) of whatever `probe` was given."""
    source = vars(config).get("_source") if is_dataclass(config) else None
    if source is not None:
        return dict(source.resolved), list(source.overrides)
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    elif is_dataclass(config) and not isinstance(config, type):
        config = {item.name: getattr(config, item.name) for item in fields(config)}
    if not isinstance(config, Mapping):
        raise UsageError(f"expected a config, got {type(config).__name__}")
    return json.loads(json.dumps(config)), []


def script_module(name: str, root: Path) -> ModuleType | None:
    """The entry script as a module, or None when this process holds another repository's."""
    loaded = sys.modules.get(name)
    if loaded is None:
        found = importlib.util.find_spec(name)
        if found is None or Path(found.origin or "").resolve().parent != root:
            return None
        loaded = importlib.import_module(name)
    return loaded if Path(loaded.__file__ or "").resolve().parent == root else None


# --- the deeper probes ------------------------------------------------------------------------------------------------


def _observe(
    module: ModuleType, resolved: Settings, root: Path, codes: Sequence[str], given: Sequence[str]
) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        data = Path(folder) / "data"
        try:
            tiny = make_tiny(module, resolved, root, data, given)
            stamp = json.dumps([str(root), module.__name__, tiny.settings], sort_keys=True).replace(folder, "")
        except LookupError as error:
            return [Finding(BUILT, "SKIP", "dyn", str(error))]
        except Exception as error:
            return [_unbuilt(error)]

        def kept(code: str, extra: Any, make: Any) -> list[Finding]:
            key = hashlib.sha256(json.dumps([code, stamp, extra]).encode()).hexdigest()
            if key not in MEMO:
                MEMO[key] = make()
            return MEMO[key]

        arch = tiny.full_arch
        first = kept(BUILT, arch, lambda: [_built(tiny)])
        found = list(first) if BUILT in codes or first[0].level == "FAIL" else []
        if first[0].level == "FAIL":
            return found
        for row in sorted(chosen([code for code in codes if code != BUILT], tiny), key=lambda row: row.code):
            extra = [tiny.overridden, tiny.overridden_run, arch] if row.code == override_probe.CODE else None
            found += kept(row.code, extra, lambda row=row: run_probe(row, tiny))
        return found


def _built(tiny: Tiny) -> Finding:
    """The whole config as a model without memory, then the tiny one with a step and a backward pass."""
    try:
        size = sum(param.numel() for param in tiny.full_model(tiny.resolved).parameters())
        plan = tiny.build()
        step(plan.task, 1)
        small = sum(param.numel() for param in plan.task.module.parameters())
    except Exception as error:
        return _unbuilt(error, tiny.root)
    return Finding(
        BUILT,
        "PASS",
        "dyn",
        f"{tiny.model_class.__name__} builds and takes a step: {size:,} parameters {tiny.spec.sized} "
        f"({small:,} in the tiny instance)",
    )


def tensor_names(resolved: Settings, *, entry: str, root: Path) -> set[str]:
    """What the weights of the config's model are called. Raises: UsageError where it cannot be built here."""
    module = script_module(Path(entry).stem, root.resolve())
    if module is None:
        raise UsageError(f"this process has not loaded the code of {root}")
    with _quiet(), tempfile.TemporaryDirectory(prefix="probe-") as folder:
        try:
            tiny = make_tiny(module, resolved, root.resolve(), Path(folder) / "data")
        except LookupError as error:
            raise UsageError(str(error)) from error
        return set(tiny.full_model(tiny.resolved).state_dict())


def _unbuilt(error: BaseException, root: Path | None = None) -> Finding:
    text = " ".join(str(error).split())[:400]
    text = text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
    file, line = place_of_error(error, root) if root is not None and not isinstance(error, UsageError) else ("", 0)
    return Finding(BUILT, "FAIL", "dyn", f"the config cannot be built: {text}", CODES[BUILT].fix, file, line)


# --- this process and others ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One rank, gradients on, nothing printed; random numbers and environment of the process are as before after it."""
    launcher = {key: os.environ.pop(key) for key in RANK_KEYS if key in os.environ}
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.update(launcher)


def _elsewhere(resolved: Settings, name: str, root: Path, codes: Sequence[str], given: Sequence[str]) -> list[Finding]:
    """The same in a fresh process whose code is that of `root` (its own verification package, or else ours)."""
    request = {"config": resolved, "entry": name, "only": list(codes), "overrides": list(given)}
    ours = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), ours])}
    for key in RANK_KEYS:
        environment.pop(key, None)
    ours_too = Path(engine.registry.__file__).resolve().parents[1] == root
    if ours_too or not (root / f"{name}.py").exists() or not (root / "engine" / "registry.py").exists():
        return [_unbuilt(UsageError(f"{root} has no entry script {name}.py"))]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "verification.probes"],
            input=json.dumps(request),
            text=True,
            cwd=root,
            env=environment,
            capture_output=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [_unbuilt(RuntimeError(f"the probes took more than {TIME_LIMIT_S} s"))]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [_unbuilt(RuntimeError(last))]
    return [Finding(**row) for row in json.loads(done.stdout)]
