"""Observes the script's own launch: which calls it makes in which order, and what it passes to the engine.

`launch` is called with a tiny config; `engine.run.launch.run` is replaced, so nothing is written or trained. Every tiny
instance is built by what the launch passes to `run`: the probes see what a run would see.
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
from verification.tree import OURS

MAKERS = ("create_model", "create_model_encoder")
"""The contract's names for the function that creates the model."""


@dataclass
class Launched:
    """A record of a launch."""

    name: str
    module: ModuleType
    schema: type | None = None
    build: Callable[[Any, Any], Any] | None = None
    """(config, runtime) -> plan, as passed to `run`."""
    config: Any = None
    """The config passed to `run`."""
    entry: str | None = None
    """The name that the script passed as its own."""
    calls: list[str] = field(default_factory=list)
    """load_synced_config, create_model and run in the order of their calls."""
    error: Exception | None = None


def launched(module: ModuleType, settings: Mapping[str, Any]) -> Launched:
    """Call the launch of `module` with `settings`. An exception in it is stored in the result."""
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
    if seen.schema is None or seen.build is None:  # the launch never called run: use the family's
        seen.schema, seen.build = seen.schema or module.FAMILY.schema, module.FAMILY.build
    return seen


def create_model(module: ModuleType) -> Callable[..., Any]:
    """The family's function that creates model and loss. Raises: UsageError if it has none."""
    functions = (getattr(module.FAMILY, name, None) for name in MAKERS)
    maker: Callable[..., Any] | None = next((function for function in functions if callable(function)), None)
    if maker is None:
        raise UsageError(f"the family of {module.__name__}.py has no {' or '.join(MAKERS)}")
    return maker


@contextlib.contextmanager
def watched(watch: Callable[[FrameType, CodeType], None]) -> Iterator[None]:
    """Call `watch(frame, code)` for every Python function that is entered."""
    with profiled(lambda frame, event, _: watch(frame, frame.f_code) if event == "call" else None):
        yield


@contextlib.contextmanager
def profiled(profile: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """Set `profile` as the profiler (sys.setprofile), and restore the previous one at the end."""
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextlib.contextmanager
def replaced(original: Any, stand_in: Any) -> Iterator[None]:
    """Replace `original` by `stand_in` in all of our modules, under whatever name they imported it."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in OURS or "launch" in vars(m)]
    places = [(m, name) for m in modules for name, value in list(vars(m).items()) if value is original]
    for module, name in places:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, original)
