"""Fixtures for all tests: one torch thread, golden numbers, and runs of entry scripts in a forked process.

A fork starts with torch already loaded and with the grammars, schemas and rules of a launch in memory, so a run costs
tenths of a second where a fresh interpreter costs seconds.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import gc
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from safetensors.torch import load_file

import engine.cli.defaults  # noqa: F401  so that tests may compose our recipes with Hydra alone

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """One cache folder for the whole run, that of the user stays as it is; workers of xdist inherit it. Byte code is
    made here once: child processes would make it again and again where PYTHONDONTWRITEBYTECODE is set.
    """
    if not hasattr(config, "workerinput"):
        for package in ROOT.glob("*/__init__.py"):
            if package.parent.name != "tests":
                compileall.compile_dir(package.parent, quiet=2)
        folder = tempfile.TemporaryDirectory(prefix="loopforge-tests-")
        os.environ["XDG_CACHE_HOME"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.fixture
def golden() -> Callable[[str], Path]:
    """`golden("adam_atan2/f32.npz")` -> its path; the test is skipped where the golden numbers are absent."""

    def find(name: str) -> Path:
        path = SHARED / "golden" / name
        if not path.exists():
            pytest.skip(f"golden numbers are not here: {path}")
        return path

    return find


@dataclass
class Result:
    """What a forked run left: its exit code and everything it printed."""

    code: int
    output: str


@functools.cache
def _warm_up() -> None:
    """What every launch reads and no launch changes, read once in the parent: a fork inherits modules and caches."""
    import numpy.random  # noqa: F401

    from engine.cli.keys import known_keys
    from engine.cli.resolve import resolve
    from engine.registry import families
    from engine.run import launch, session  # noqa: F401
    from verification import preflight  # noqa: F401

    _compose_once()
    _parse_once()
    for family in families():
        required = (f"++{key}={value}" for key, value in family.schema.REQUIRED.items())
        trace = resolve(ROOT / f"{family.entry}.py", ["device=cpu", *required], root=ROOT)
        assert trace.config is not None, trace.problems
        known_keys(family.schema, trace.resolved or {})
        family.read_arch(trace.config)
        for part in ("build", "verify"):
            family.part(part)


def _compose_once() -> None:
    """Hydra composes a config once more, for half of the time of a refused launch, to read hydra.mode, which no file
    in config/ sets. Launches in processes of their own still do."""
    from hydra._internal.hydra import Hydra

    whole = Hydra.get_mode

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        ours = (ROOT / "config" / f"{config_name}.yaml").exists() and "hydra.mode" not in " ".join(overrides)
        return None if ours else whole(hydra, config_name, overrides)

    Hydra.get_mode = get_mode


def _parse_once() -> None:
    """A YAML text that was parsed before is not parsed again: a launch reads the files of its recipe, which a fork has
    inherited, for a tenth of its time."""
    parse, known = yaml.load, dict[Any, bytes]()

    def load(stream: Any, Loader: Any) -> Any:
        text = stream if isinstance(stream, str | bytes) else stream.read()
        key = text, Loader.__module__, Loader.__qualname__  # OmegaConf makes the same class at each call
        if key not in known:
            if text is not stream:
                stream.seek(0)  # the marks of an error name the file
            known[key] = pickle.dumps(parse(stream, Loader))
        return pickle.loads(known[key])

    yaml.load = load


_FSYNC = os.fsync


def _child(connection, function, args, kwargs, cwd, env) -> None:
    gc.freeze()  # what is inherited would be searched for garbage again and again
    os.chdir(cwd)
    os.environ.update(env)
    if os.fsync is _FSYNC:  # no test cuts the power, and a run waits a tenth of a second for the disk
        os.fsync = lambda handle: None
    buffer = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
        try:
            function(*args, **kwargs)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
    connection.send((code, buffer.getvalue()))
    connection.close()


def run_forked(
    function: Callable, *args, cwd: Path | str = ROOT, env: dict[str, str] | None = None, **kwargs
) -> Result:
    """Call `function` in a forked child; a SystemExit becomes the exit code, a traceback code 1."""
    return finish(*start_forked(function, *args, cwd=cwd, env=env, **kwargs))


def _entry(script: str, argv: list[str]) -> None:
    import runpy

    sys.argv = [str(ROOT / f"{script}.py"), *argv]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_script(script: str, *argv: str, cwd: Path | str = ROOT, env: dict[str, str] | None = None) -> Result:
    """Run `python SCRIPT.py ARGV...` in a forked process, as a user's shell would."""
    return run_forked(_entry, script, list(argv), cwd=cwd, env=env)


def start_forked(function: Callable, *args, cwd: Path | str = ROOT, env: dict[str, str] | None = None, **kwargs):
    """Like `run_forked`, but returns (process, connection) at once: for tests that kill or signal the child."""
    _warm_up()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, function, args, kwargs, str(cwd), env or {}))
    process.start()
    theirs.close()
    return process, ours


def finish(process, connection) -> Result:
    """Wait for a process of `start_forked`."""
    try:
        code, output = connection.recv()
    except EOFError:
        code, output = None, ""
    process.join()
    return Result(process.exitcode if code is None else code, output)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_ranks(
    function: Callable, *args, cwd: Path | str = ROOT, ranks: int = 2, stagger_s: float = 0.0
) -> list[Result]:
    """Call `function` in `ranks` forked processes with torchrun's variables; later ranks start `stagger_s` later."""
    port, started = free_port(), []
    for number in range(ranks):
        env = {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if number and stagger_s:
            time.sleep(stagger_s)
        started.append(start_forked(function, *args, cwd=cwd, env=env))
    return [finish(*pair) for pair in started]


def run_ranks(script: str, *argv: str, cwd: Path | str, ranks: int = 2, stagger_s: float = 0.0) -> list[Result]:
    """Run `ranks` processes of an entry script as torchrun would, over gloo."""
    return fork_ranks(_entry, script, list(argv), cwd=cwd, ranks=ranks, stagger_s=stagger_s)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A module with `IN_FORKS = True` runs each test in a child: with CUDA in torch, autograd after torch.compile
    starts threads, and no later fork of the same process could train.
    """
    if not getattr(pyfuncitem.module, "IN_FORKS", False) or "capsys" in pyfuncitem.fixturenames:
        return None  # what a child prints is not captured here
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    result = run_forked(pyfuncitem.obj, **given)
    assert result.code == 0, result.output
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With LOOPFORGE_REQUIRE_EXTRAS=1 a test that `importorskip` would skip fails: there every extra is installed."""
    report = yield
    required = os.environ.get("LOOPFORGE_REQUIRE_EXTRAS") == "1"
    if required and report.skipped and call.excinfo and call.excinfo.traceback[-1].name == "importorskip":
        report.outcome, report.longrepr = "failed", f"an extra is missing: {call.excinfo.value}"
    return report


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP is not ignored, here and in child processes, even if pytest was started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def dynamo() -> None:
    """torch._dynamo, which DDP and torch.compile need, loaded once for all forks: it takes seconds."""
    import torch._dynamo  # noqa: F401

    from engine.optim.library import keep_dynamo_out

    keep_dynamo_out()  # it has wrapped torch.manual_seed, which a fork without it calls


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/debug-sudoku-4x4` and nothing else; runs use it as working directory through links."""
    from dataset.catalog import ensure

    root = tmp_path_factory.mktemp("tiny")
    ensure(root / "data" / "debug-sudoku-4x4")
    return root / "data"


@pytest.fixture
def workplace(tmp_path: Path, tiny_data: Path) -> Path:
    """An empty working directory in which the small data set is already built."""
    (tmp_path / "data").symlink_to(tiny_data)
    return tmp_path


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Files that cannot grow beyond so many bytes, in place of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def archs_of(family: str, **declared: str) -> list[str]:
    """The files of config/arch whose class is in models/`family`/ and declares what is `declared` (DATA_MODE, ...)."""
    from engine.registry import resolve

    return [
        arch
        for arch, name in _classes().items()
        if name.startswith(f"{family}.")
        and all(getattr(resolve(name, "models"), key) == value for key, value in declared.items())
    ]


@functools.cache
def _classes() -> dict[str, str]:
    """The class that each file of config/arch names."""
    from engine.cli.recipes import read_option

    paths = sorted((ROOT / "config/arch").glob("*.yaml"))
    return {path.stem: read_option(path)["arch"]["name"] for path in paths}


def metrics(run_dir: Path) -> list[dict]:
    """metrics.jsonl without the time fields, which are all that may differ between equal runs."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def every_second_fast(cases: Iterable[Sequence[Any]]) -> list[Any]:
    """Cases for `parametrize`, every second one marked slow: for long lists whose cases are of one kind."""
    return [pytest.param(*case, marks=[pytest.mark.slow] * (number % 2)) for number, case in enumerate(cases)]


def status_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "status.json").read_text())


def last_checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / (run_dir / "checkpoints/latest").read_text().strip()


def weights(checkpoint: Path) -> dict[str, bytes]:
    """All tensors of a checkpoint (model, average, optimizers) by file and name."""
    return {
        f"{file.stem}.{name}": tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        for file in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
