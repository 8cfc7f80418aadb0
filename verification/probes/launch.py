"""The script's own launch, watched: which calls it makes in which order, and what it hands to the engine.

`launch` is called with a tiny config; `engine.run.launch.run` is replaced, so nothing is written and nothing trained.
What the launch hands to `run` builds every tiny instance: the probes see what a run would see.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from omegaconf import OmegaConf

import engine.config
import engine.run.launch
from engine.errors import UsageError

OURS = ("engine", "launcher", "models", "losses", "tasks", "evaluators", "dataset", "verification")
MAKERS = ("create_model", "create_model_encoder")
"""The contract's names for the function that makes the model."""


@dataclass
class Launched:
    """What a launch did."""

    name: str
    module: ModuleType
    schema: type | None = None
    build: Callable[[Any, Any], Any] | None = None
    """(config, runtime) -> plan, as it was given to `run`."""
    config: Any = None
    """The config that `run` was given."""
    entry: str | None = None
    """The name that the script gave itself."""
    calls: list[str] = field(default_factory=list)
    """load_synced_config, create_model and run in the order of their calls."""
    error: Exception | None = None


def launched(module: ModuleType, settings: Mapping[str, Any]) -> Launched:
    """Call the launch of `module` with `settings`. An error of its own is kept in the result."""
    seen = Launched(Path(module.__file__ or module.__name__).stem, module)
    function = inspect.unwrap(module.launch)
    run, load = engine.run.launch.run, engine.config.load_synced_config.__code__

    def stand_in(config: Any, build: Callable[[Any, Any], Any], **options: Any) -> dict[str, float]:
        seen.calls.append("run")
        seen.config, seen.build, seen.schema = config, build, seen.schema or type(config)
        seen.entry = options.get("entry", seen.entry)
        return {}

    def watch(frame: FrameType, code: CodeType) -> None:
        if code is load:
            seen.calls.append("load_synced_config")
            seen.schema, seen.entry = frame.f_locals.get("schema"), frame.f_locals.get("entry")
        elif code.co_name in MAKERS:
            seen.calls.append("create_model")

    with replaced(run, stand_in), watched(watch):
        try:
            function(OmegaConf.create(dict(settings)))
        except Exception as error:
            seen.error = error
    if seen.schema is None or seen.build is None:  # a launch that never runs: what the family would build
        seen.schema, seen.build = seen.schema or module.FAMILY.schema, module.FAMILY.build
    return seen


def create_model(module: ModuleType) -> Callable[..., Any]:
    """The script's (or its family's) function that makes model and loss. Raises: UsageError where there is none."""
    maker = next((function for name in MAKERS if callable(function := getattr(module.FAMILY, name, None))), None)
    if maker is None:
        raise UsageError(f"the family of {module.__name__}.py has no {' or '.join(MAKERS)}")
    made: Callable[..., Any] = maker
    return made


@contextlib.contextmanager
def watched(watch: Callable[[FrameType, CodeType], None]) -> Iterator[None]:
    """Call `watch` for every Python function that is entered meanwhile."""
    with profiled(lambda frame, event, _: watch(frame, frame.f_code) if event == "call" else None):
        yield


@contextlib.contextmanager
def profiled(profile: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """A profiler of its own meanwhile (sys.setprofile)."""
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextlib.contextmanager
def replaced(original: Any, stand_in: Any) -> Iterator[None]:
    """Put `stand_in` wherever one of our modules holds `original`, under whatever name it was imported."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in OURS or "launch" in vars(m)]
    places = [(m, name) for m in modules for name, value in list(vars(m).items()) if value is original]
    for module, name in places:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, original)
