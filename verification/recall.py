"""What importing or running code has shown, kept on disk: the same code, question and versions show the same again.

Below `$XDG_CACHE_HOME/loopforge/verdicts` (~/.cache without the variable), one small JSON file for each answer. A cache
that cannot be read or written is not an error: the question is answered again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

import engine.cli.compose
import engine.registry
from engine.cli.compose import Composed
from engine.io import atomic_write_text, read_bytes
from verification.tree import ADOPTED, OURS, sources

FORMAT = 2
MOST = 4000
"""Files that are kept; beyond them the older half goes."""
LIBRARIES = ("torch", "numpy", "omegaconf", "hydra-core")
MEMORY: dict[str, Any] = {}
"""What this process has asked for."""


def recall(question: Sequence[Any], answer: Callable[[], Any] | None, *, lasts: Callable[[Any], Any] = bool) -> Any:
    """The JSON value that `answer()` gives for a question about the code of this process, asked once.

    Without `answer` only what is known: None where nothing is. An answer is kept on disk where it `lasts`.
    """
    name = key_of(question, *trees())
    if name not in MEMORY:
        value = load(name)
        if value is None and answer is None:
            return None
        if value is None and answer is not None and lasts(value := answer()):
            save(name, value)
        MEMORY[name] = value
    return MEMORY[name]


def folder() -> Path:
    """Where answers are kept. Raises: RuntimeError where nobody is at home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopforge" / "verdicts"


def trees() -> list[Path]:
    """Where the code of this process lies: a tree that is judged may link to another one, and have files of its own."""
    return list(dict.fromkeys([engine.registry.ROOT, *ADOPTED]))


def key_of(question: Sequence[Any], *roots: Path) -> str:
    """The name of an answer: of the question, the code below `roots`, the versions of Python and libraries."""
    content = json.dumps([*question, versions(), *map(code, roots)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:40]


@functools.cache
def code(root: Path) -> str:
    """A hash of all our sources below `root`."""
    digest = hashlib.sha256()
    for name, path in sorted(sources(root, OURS).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> str:
    """Format, Python and the libraries that decide how our code behaves."""
    return " ".join([str(FORMAT), platform.python_version(), *(f"{name} {_version(name)}" for name in LIBRARIES)])


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def load(name: str) -> Any:
    """The answer of that name, None where there is none that can be used."""
    try:
        return json.loads(read_bytes(folder() / f"{name}.json"))
    except (OSError, ValueError, RuntimeError):
        return None


def save(name: str, value: Any) -> None:
    """Keep an answer."""
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        atomic_write_text(place / f"{name}.json", json.dumps(value))
        if len(os.listdir(place)) > MOST:
            for path in sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime)[: MOST // 2]:
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return


class Compositions(dict[tuple[Any, ...], Composed]):
    """What engine.cli.compose keeps, on disk too: the same files and choices make the same config."""

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key) and isinstance(key, tuple) and (kept := recall(["composed", *key], None)):
            setup_globals()  # Hydra's ${now:...}, which its own composition would have registered
            super().__setitem__(key, Composed(OmegaConf.create(kept[0]), *kept[1:]))
        return super().__contains__(key)

    def __setitem__(self, key: tuple[Any, ...], made: Composed) -> None:
        super().__setitem__(key, made)
        recall(["composed", *key], lambda: [OmegaConf.to_container(made.config), made.choices, made.params])


engine.cli.compose.CACHE = Compositions(engine.cli.compose.CACHE)
