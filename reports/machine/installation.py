"""Describes the machine and installed packages with the standard library only, whatever else is missing."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "lm": "weights and tokenizers of GPT-2 and of Hugging Face, tiktoken, SentencePiece",
    "animal": "train_animal.py on pretrained models: LoRA, sentence embeddings, clusters",
    "wandb": "metrics at Weights & Biases (enable_wandb=true)",
    "tensorboard": "metrics in TensorBoard (enable_tensorboard=true)",
    "sweep": "several jobs of a sweep at once (-m hydra/launcher=joblib), and slurm",
    "optuna": "sweeps that search (-m hydra/sweeper=optuna)",
    "slurm": "jobs and sweeps on a Slurm cluster",
    "cloud": "SkyPilot, which takes the task files of launch.py to clouds",
    "flash": "attention=flash on CUDA",
    "hub": "from_pretrained of a name on the Hugging Face hub",
    "optim": "the optimizers of the pytorch-optimizer library",
    "onnx": "models as ONNX files (scripts/export.py --format onnx)",
    "dev": "tests, linter and type checker",
    "all": "everything that installs without a compiler",
}
"""What each extra of pyproject.toml adds."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCHINDUCTOR_CACHE_DIR",
    "CXX",
    "HYDRA_FULL_ERROR",
    "HF_HUB_OFFLINE",
    "WANDB_MODE",
    "WORLD_SIZE",
    "SLURM_JOB_ID",
)
"""Environment variables that change what a run does; others are not shown, as they may hold secrets."""
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w,]+)\])?(?P<bounds>[^;]*)")


def python_facts() -> dict[str, Any]:
    """This project, its commit, the interpreter and the system."""
    return {
        "project": _project().get("version"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
        "python": platform.python_version(),
        "executable": home_shortened(sys.executable),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def packages() -> dict[str, dict[str, Any]]:
    """Name of each required package -> {"required", "version" (None: missing), "usable"}."""
    return {name: _package(name, bounds) for name, bounds in _requirements(_project().get("dependencies", []))}


def extras() -> dict[str, dict[str, Any]]:
    """Name of each extra -> {"adds", "installed" (package -> version), "missing" (packages), "install" (command)}."""
    declared = _project().get("optional-dependencies", {})
    extras = {}
    for extra in declared:
        requirements = {name: _package(name, bounds) for name, bounds in _requirements(declared[extra])}
        extras[extra] = {
            "adds": EXTRAS.get(extra, ""),
            "installed": {name: each["version"] for name, each in requirements.items() if each["usable"]},
            "missing": [name for name, each in requirements.items() if not each["usable"]],
            "install": f"pip install -e '.[{extra}]'",
        }
    return extras


def home_shortened(text: str) -> str:
    """Text with the home folder as `~`, so that what is pasted in public does not name the user."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def _project() -> dict[str, Any]:
    try:
        return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    except (OSError, ValueError, KeyError):
        return {}


def _requirements(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(package, bounds) of requirements; one that names extras of this project is replaced by theirs."""
    for line in lines:
        if (match := REQUIREMENT.match(line)) is None:
            continue
        if match["name"] == _project()["name"]:
            for extra in match["extras"].split(","):
                yield from _requirements(_project()["optional-dependencies"][extra])
        else:
            yield match["name"], match["bounds"].strip()


def _package(name: str, bounds: str) -> dict[str, Any]:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    return {"required": bounds, "version": version, "usable": version is not None and _within(version, bounds)}


def _within(version: str, bounds: str) -> bool:
    """Whether a version meets bounds such as `>=1.3.5,<1.4`; pyproject.toml uses only these two operators."""
    for kind, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        if (_numbers(version) >= _numbers(bound)) != (kind == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0); `1.4` -> (1, 4, 0)."""
    parts = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(parts + [0] * (3 - len(parts)))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Bytes of main memory; None if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
