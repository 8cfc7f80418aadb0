"""Find runs by the names of the documented flags, before the config is composed (imports no torch).

<out_dir>/<dataset>/<run name>_YYYY-MM-DD_HH-MM-SS/ is a run; its `epoch_ckpt_<dataset>.pt` links to a checkpoint.
"""

from __future__ import annotations

import csv
import os
import re
from functools import partial
from pathlib import Path

from engine.cli.translate import Groups, quote
from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.reading import Unreadable, read_json as read_json_file, read_text
from engine.registry import Rewrite
from engine.run.files import read_identity, read_json, read_yaml
from tasks.feedback.args import FeedforwardConfig

STAMP = r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
RESUME_KEYS = ("checkpoint_dir", "checkpoint_name")
OPEN_BLOCKS = ("datasets.", "epochs.")
"""Blocks of a config that may have keys which no recipe declares."""
BASE_KEYS = ("ff_checkpoint_dir", "ff_checkpoint_name")
"""Required keys of a hypernetwork; a resumed run has stored them."""


def rewriter(entry: str, run_key: str, needs: tuple[str, ...] = ()) -> Rewrite:
    """A function that rewrites the overrides of a command: `--resume True` becomes the overrides of
    `resume_overrides`, and keys of OPEN_BLOCKS may be new.

    `run_key`: the key whose value is the prefix of run folders of the script `entry`; `needs`: required keys that a
    resumed run has stored.
    """
    return partial(_rewrite, entry, run_key, needs)


def _rewrite(
    entry: str, run_key: str, needs: tuple[str, ...], words: list[str], groups: Groups, typed: dict[str, str]
) -> list[str]:
    words = [f"++{word}" if word.startswith(OPEN_BLOCKS) else word for word in words]
    overrides = {key.lstrip("+"): unquoted(value) for key, _, value in (word.partition("=") for word in words)}
    if overrides.get("resume", "").lower() != "true" or "run_dir" in overrides or "active_dataset" not in overrides:
        return words
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in RESUME_KEYS]
    resumed = resume_overrides(entry, overrides, run_key, typed)
    stored = {word.lstrip("+").partition("=")[0] for word in resumed}
    if missing := [key for key in needs if key not in stored and key not in overrides]:
        name = overrides.get("checkpoint_dir")
        folder = Path(setting(overrides, "out_dir")) / overrides["active_dataset"]
        where = run_path(name, folder) if name else f"any {folder / setting(overrides, run_key)}_*"
        raise UsageError(f"nothing to resume: no run in {where}; a new one, without resume, needs {', '.join(missing)}")
    return [*kept, *resumed]


def resume_overrides(entry: str, given: dict[str, str], run_key: str, typed: dict[str, str]) -> list[str]:
    """`run_dir=` and `resume_from=` for the run and checkpoint that a command resumes, and the keys of its base; empty
    if there is no run, which the launch reports with the folder that it searched. `given`: the command's overrides.

    Raises: UsageError for a run of another script, or for none of that name among others.
    """
    folder = Path(setting(given, "out_dir")) / given["active_dataset"]
    if directory := given.get("checkpoint_dir"):
        run = run_path(directory, folder)
        key = typed["run_dir"] = typed.get("checkpoint_dir", "checkpoint_dir")
        if not run.exists() and (runs := runs_of(folder, setting(given, run_key))):
            hint = did_you_mean(directory, [each.name for each in runs])
            raise UsageError(f"{key}={directory}: nothing to resume: no checkpoint in {run}: {hint}")
    else:
        runs = runs_of(folder, setting(given, run_key))
        if not runs:
            return []
        run = runs[-1]
    read_identity(run, entry)
    words = [f"run_dir={quote(str(run))}"]
    if name := given.get("checkpoint_name"):
        key = typed["resume_from"] = typed.get("checkpoint_name", "checkpoint_name")
        words.append(f"resume_from={quote(str(checkpoint_in(run, name, key)))}")
    stored = read_yaml(run / "config.resolved.yaml")
    return words + [f"++{key}={quote(str(stored[key]))}" for key in BASE_KEYS if key in stored and key not in given]


def run_path(name: str, folder: Path) -> Path:
    """The path of a run given by its bare name in `folder`, or by a path."""
    path = user_path(name)
    return folder / name if "/" not in name.rstrip("/") and not path.exists() else path


def checkpoint_in(run: Path, name: str, key: str) -> Path:
    """The checkpoint `name`, the value of `key`: a link in the run (or its name, where the file system has no links), a
    step_N in its checkpoints/, or a path.

    Raises: UsageError that lists the choices.
    """
    path = user_path(name)
    for choice in (run / name, run / "checkpoints" / name, path):
        if choice.exists() and ("/" in name or choice != path):
            return choice
    if not run.is_dir():
        return run / name
    if (target := _target(run, name)) is not None:
        return target
    items = [item for folder in (run, run / "checkpoints") if folder.is_dir() for item in folder.iterdir()]
    known = sorted(item.name for item in items if re.fullmatch(r".*\.pt|step_\d+", item.name) and item.exists())
    why = f"there is no such checkpoint in {run}"
    if (run / name).is_symlink():
        why = f"{run / name} links to {os.readlink(run / name)}, which is gone"
    raise UsageError(f"{key}={name}: {why}: {did_you_mean(name, known)}")


def _target(run: Path, name: str) -> Path | None:
    """The checkpoint that the link `epoch_ckpt_<dataset>.pt`, `epoch_ckpt_<dataset>_<epoch>.pt` or
    `best_ckpt_<dataset>.pt` would point to, in a run without links: not every file system has them, and not every copy
    keeps them. None for another name."""
    if (run / name).is_symlink() or not name.endswith(".pt"):
        return None
    try:
        dataset = read_yaml(run / "config.resolved.yaml").get("active_dataset")
        pointers = {f"epoch_ckpt_{dataset}.pt": "latest", f"best_ckpt_{dataset}.pt": "best"}
        numbered = re.fullmatch(rf"epoch_ckpt_{re.escape(str(dataset))}_(\d+)\.pt", name)
        step = _end_of(run, numbered[1]) if numbered else read_text(run / "checkpoints" / pointers[name]).strip()
        target = run / "checkpoints" / step
    except (OSError, Unreadable, KeyError):
        return None
    return target if re.fullmatch(r"step_\d+", target.name) and target.is_dir() else None


def _end_of(run: Path, epoch: str) -> str:
    """The checkpoint `step_N` at the end of an epoch, by metrics.csv. Raises: OSError, Unreadable, KeyError."""
    rows = csv.DictReader(read_text(run / "metrics.csv").splitlines())
    ends = {row.get("epoch"): row.get("step") for row in rows}
    return f"step_{ends[epoch]}"


def runs_of(folder: Path, name: str) -> list[Path]:
    """The runs called `name` in a folder that have a checkpoint, oldest first by the time in their names."""
    folders = folder.glob(f"{name}_*") if folder.is_dir() else ()
    runs = [run for run in folders if re.fullmatch(re.escape(name) + STAMP, run.name)]
    return sorted(run for run in runs if (run / "checkpoints" / "latest").exists())


def setting(given: dict[str, str], key: str) -> str:
    """The value of a key that decides where runs are: the command's, the config file's (training.KEY), the default."""
    if key in given:
        return given[key]
    try:
        section = read_json_file(Path(FeedforwardConfig.CONFIG_FILE))
        value = section["training"][key]
    except (OSError, Unreadable, KeyError, TypeError):
        value = None
    return value if isinstance(value, str) else str(getattr(FeedforwardConfig, key))


def unquoted(value: str) -> str:
    """A value of the command line without its quotes."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def base_checkpoint(
    directory: str, name: str, out_dir: str, dataset: str, *, keys: tuple[str, ...] = BASE_KEYS
) -> Path:
    """The base that `ff_checkpoint_dir` and `ff_checkpoint_name` (or other `keys`) name. A bare name is searched under
    the active data set first, then under all, since a base is usually trained on another data set.

    Raises: UsageError that names the folders searched and the choices, or a file of torch.save.
    """
    run = run_path(directory, Path(out_dir) / dataset)
    if not run.is_dir() and "/" not in directory:
        others = sorted(Path(out_dir).glob(f"*/{directory}"))
        run = others[0] if len(others) == 1 else run
    if not run.is_dir():
        folders = sorted(Path(out_dir).glob("*/*"))
        bases = [each.name for each in folders if read_json(each / "identity.json").get("entry") == "feedforward_train"]
        where = str(run) if "/" in directory else f"{Path(out_dir) / dataset} (nor in any {Path(out_dir) / '*'})"
        raise UsageError(
            f"{keys[0]}={directory}: there is no such run in {where}: {did_you_mean(directory, bases)}; "
            "python feedforward_train.py makes one"
        )
    checkpoint = checkpoint_in(run, name, keys[1])
    if checkpoint.is_file() and checkpoint.name not in ("latest", "best"):  # the pointers of a run are files, too
        raise UsageError(
            f"{keys[1]}={name}: {checkpoint} is a file: expected a checkpoint (a folder) of feedforward_train.py"
        )
    return checkpoint
