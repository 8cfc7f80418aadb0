"""Judges another source tree in a forked child that imports the packages of that tree."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.registry import SLOTS
from verification.finding import Finding, Report

HERE = Path(__file__).resolve().parents[1]
ADOPTED: list[Path] = []
"""In a child: the tree whose packages it has imported."""
CODE = (*SLOTS, "engine")
"""Packages on which a run's behaviour depends."""
OURS = (*CODE, "launcher", "verification", "scripts", "reports", "viewer")


def is_here(root: Path) -> bool:
    """Whether the code below `root` is byte for byte that of this process."""
    if root.resolve() in (HERE, *ADOPTED):
        return True
    ours, theirs = sources(HERE), sources(root)
    return ours.keys() == theirs.keys() and all(
        path.stat().st_size == theirs[name].stat().st_size and path.read_bytes() == theirs[name].read_bytes()
        for name, path in ours.items()
    )


def sources(root: Path, packages: Iterable[str] = CODE) -> dict[str, Path]:
    """Relative name -> file of the scripts in `root` and of all modules of `packages`."""
    files = [*root.glob("*.py"), *(path for name in packages for path in (root / name).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path for path in files}


def judge_elsewhere(requests: Sequence[Any], root: Path, overlay: Mapping[str, str] | None = None) -> list[Report]:
    """`verification.static.judge` run by the code below `root`; `overlay`: text of additional files.

    Raises: UsageError as raised in the child; RuntimeError with the child's traceback.
    """
    if overlay:
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            return judge_elsewhere(requests, _with_files(root, Path(folder) / root.name, overlay))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, [asdict(one) for one in requests], root))
    process.start()
    sender.close()
    try:
        kind, content = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the child that judges {root} ended with code {process.exitcode}") from None
    process.join()
    if kind != "reports":
        raise UsageError(content) if kind == "refused" else RuntimeError(content)
    return [Report(**{**row, "findings": [Finding(**one) for one in row["findings"]]}) for row in content]


def _child(sender: Any, requests: list[dict[str, Any]], root: Path) -> None:
    try:
        sender.send(("reports", _judged(requests, root.resolve())))
    except BaseException as error:
        # compared by name: the class belongs to the engine of the other tree
        refused = type(error).__name__ == "UsageError"
        sender.send(("refused", str(error)) if refused else ("broken", traceback.format_exc()))
    finally:
        sender.close()
        sys.stdout.flush()
        os._exit(0)


def _judged(requests: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    scripts = {path.stem for path in (*HERE.glob("*.py"), *root.glob("*.py"))}
    kept = sys.modules["engine.cli.compose"].CACHE  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] in {*OURS, *scripts}]:
        del sys.modules[name]
    sys.path[:] = [str(root), *(place for place in sys.path if place not in ("", str(root)))]
    importlib.invalidate_caches()
    static = importlib.import_module("verification.static")
    importlib.import_module("engine.cli.compose").CACHE.update(kept)  # valid here, too: keyed by the content of files
    importlib.import_module("verification.tree").ADOPTED.append(root)
    reports = static.judge([static.Request(**one) for one in requests], root=root)
    return [report.record() for report in reports]


def _with_files(root: Path, target: Path, files: Mapping[str, str]) -> Path:
    """A tree of links to `root` with real folders and files for `files`."""
    folders = {parent for file in files for parent in Path(file).parents}

    def link(folder: Path) -> None:
        (target / folder).mkdir()
        for path in (root / folder).iterdir():
            if folder / path.name in folders:
                link(folder / path.name)
            elif path.name != "__pycache__" and not path.name.startswith("."):
                (target / folder / path.name).symlink_to(path.resolve())

    target.parent.mkdir(parents=True, exist_ok=True)
    link(Path("."))
    for file, text in files.items():
        (target / file).unlink(missing_ok=True)
        (target / file).write_text(text, encoding="utf-8")
    return target
