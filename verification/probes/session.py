"""One call of `probe`: read the config, shrink it, build it (DYN700), run the probes, keep the results."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import engine.registry
from engine.errors import UsageError
from engine.registry import FAMILIES, resolve
from engine.registry import Family as Entry
from engine.schema import structure
from engine.task import Runtime
from verification.codes import CODES
from verification.finding import Finding
from verification.probes import context, episodes, outputs, ranks, texts, training  # noqa: F401  they register on import
from verification.probes import overrides as override_probe
from verification.probes.instance import Tiny, runtime, step
from verification.probes.registry import PROBES, look
from verification.probes.shrink import Settings, family_of

BUILT = "DYN700"
MEMO: dict[str, list[Finding]] = {}
"""Hash of (root, script, code, shrunk config, overridden keys) -> findings."""
TIME_LIMIT_S = 120
RANK_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


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
        script = _entry(name, root)
    except Exception as error:
        return [_unbuilt(error)]
    if script is None:
        return _elsewhere(resolved, name, root, codes, given)
    engine.registry.ROOT = root  # the code that is examined may be another checkout than this one
    with _quiet():
        return _observe(script, resolved, root, codes, given)


def _codes(only: Iterable[str] | None) -> list[str]:
    known = {BUILT, *(code for code, _ in PROBES)}
    if unknown := set(only or ()) - known:
        raise ValueError(f"no probe observes {', '.join(sorted(unknown))}: choose among {', '.join(sorted(known))}")
    return sorted(known if only is None else set(only))


def read_config(config: Any) -> tuple[Settings, list[str]]:
    """(resolved container, remembered overrides) of whatever `probe` was given."""
    source = vars(config).get("_source") if dataclasses.is_dataclass(config) else None
    if source is not None:
        return dict(source.resolved), list(source.overrides)
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if not isinstance(config, Mapping):
        raise UsageError(f"expected a config, got {type(config).__name__}")
    return json.loads(json.dumps(config)), []


def _entry(name: str, root: Path) -> Entry | None:
    """The family of an entry script, or None when this process holds another repository's."""
    if name not in FAMILIES:
        return None
    loaded = importlib.import_module(f"tasks.{FAMILIES[name]}.family")
    return loaded.FAMILY if Path(loaded.__file__ or "").resolve().parents[2] == root else None


def _observe(
    script: Entry, resolved: Settings, root: Path, codes: Sequence[str], given: Sequence[str]
) -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        data = Path(folder) / "boards"
        try:
            structure(script.schema, {key: value for key, value in resolved.items() if key != "hydra"})
            arch = resolved.get("arch") or {}
            model_class = resolve(arch.get("name", ""), "models", "arch.name")
            family = family_of(model_class)
            if family is None:
                declared = f"FAMILY={getattr(model_class, 'FAMILY', None)!r}"
                return [Finding(BUILT, "SKIP", "dyn", f"no probes are registered for {declared} of {arch['name']}")]
            settings = family.shrink(resolved, data)
            keys, run = override_probe.override_keys(given, arch)
            tiny = Tiny(script, family, settings, model_class, full_arch=arch, overridden=keys, overridden_run=run)
            stamp = json.dumps([str(root), script.entry, settings], sort_keys=True).replace(folder, "")
        except Exception as error:
            return [_unbuilt(error)]

        def kept(code: str, extra: Any, make: Any) -> list[Finding]:
            key = hashlib.sha256(json.dumps([code, stamp, extra]).encode()).hexdigest()
            if key not in MEMO:
                if not data.exists():
                    family.write_data(data)
                MEMO[key] = make()
            return MEMO[key]

        first = kept(BUILT, arch, lambda: [_built(tiny, resolved)])
        found = list(first) if BUILT in codes or first[0].level == "FAIL" else []
        if first[0].level == "FAIL":
            return found
        for code in codes:
            row = PROBES.get((code, family.data_mode))
            if row is not None:
                extra = [keys, run, arch] if code == override_probe.CODE else None
                found += kept(code, extra, lambda row=row: look(row, tiny))
        return found


# --- DYN700 -----------------------------------------------------------------------------------------------------------


def _built(tiny: Tiny, resolved: Settings) -> Finding:
    """The whole config as a model without memory, then the tiny one with a step and a backward pass."""
    try:
        size = _full_size(tiny, resolved)
        plan = tiny.build()
        step(plan.task, 1)
        with torch.no_grad():
            small = sum(param.numel() for param in plan.task.module.parameters())
    except Exception as error:
        return _unbuilt(error)
    return Finding(
        BUILT, "PASS", "dyn",
        f"{tiny.model_class.__name__} builds and takes a step: {size:,} parameters {tiny.family.sized} "
        f"({small:,} in the tiny instance)",
    )  # fmt: skip


def _full_size(tiny: Tiny, resolved: Settings) -> int:
    """Parameters of the unshrunk model."""
    return sum(param.numel() for param in _full_model(tiny.script, tiny.family, resolved).parameters())


def _full_model(script: Entry, family: Any, resolved: Settings) -> torch.nn.Module:
    """The unshrunk model on the meta device, through the family's create_model."""
    config = structure(script.schema, {key: value for key, value in resolved.items() if key != "hydra"})
    base = vars(runtime(0)) | {"device": torch.device("meta")}
    with torch.device("meta"):
        return family.build_full(script, config, Runtime(**base))


def tensor_names(resolved: Settings, *, entry: str, root: Path) -> set[str]:
    """What the weights of the config's model are called. Raises: UsageError where it cannot be built here."""
    script = _entry(Path(entry).stem, root.resolve())
    if script is None:
        raise UsageError(f"this process has not loaded the code of {root}")
    model_class = resolve((resolved.get("arch") or {}).get("name", ""), "models", "arch.name")
    family = family_of(model_class)
    if family is None:
        raise UsageError(f"no probes are registered for {model_class.__name__}")
    with _quiet():
        return set(_full_model(script, family, resolved).state_dict())


def _unbuilt(error: BaseException) -> Finding:
    said = " ".join(str(error).split())[:400]
    text = said if isinstance(error, UsageError) else f"{type(error).__name__}: {said}"
    return Finding(BUILT, "FAIL", "dyn", f"the config cannot be built: {text}", CODES[BUILT].fix)


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
            [sys.executable, "-m", "verification.probes"], input=json.dumps(request), text=True, cwd=root,
            env=environment, capture_output=True, timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [_unbuilt(RuntimeError(f"the probes took more than {TIME_LIMIT_S} s"))]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [_unbuilt(RuntimeError(last))]
    return [Finding(**row) for row in json.loads(done.stdout)]
