"""The base model of a fine-tuning run: a folder, a model of the Hub, or a tiny one that is trained on first use.

The tiny one is a GPT-2 of 0.3 M parameters that train.py trains on generated sentences about dogs and cats
(dataset/text/pets.py, config/cfg_train_pets.yaml). It is only used if its folder is named, never in place of another
model (docs/decisions/0007-stand-in-data.md).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dataset.text.pets import in_grammar
from engine.errors import RunFailure, UsageError
from engine.io import file_lock, print_rank0, user_path
from engine.run.environment import REPORT, SUFFIX, SWEEP

NAME = "animal_lm"
"""Folder name of the tiny model, which is trained if the folder is missing."""
TINY = f"data/{NAME}"
ROOT = Path(__file__).resolve().parents[2]
RECIPE = "cfg_train_pets"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OF_THIS_PROCESS = (REPORT, SUFFIX, SWEEP, "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
"""Environment variables that would make the child process a rank or a job of a sweep."""


def ensure_model(name: str) -> str:
    """The folder of the model `name`: the folder itself (the tiny model is trained if missing), or its snapshot in the
    Hub cache, downloaded if there is a network. Every rank may call this; one does the work, the others wait.

    Raises:
        UsageError: there is no such model; the message has the command that uses the tiny one.
        RunFailure: the tiny one cannot be trained.
    """
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"--model_name_or_path {name}: the folder has no config.json of transformers")
        return str(folder)
    if folder.name == NAME:
        with file_lock(folder.parent / f".{NAME}.lock", wait=True):
            if not folder.is_dir():
                build_model(folder)
        return str(folder)
    return _hub_snapshot(name)


def checker_of(name: str) -> Callable[[str], bool] | None:
    """A function that decides whether a completion of the model `name` makes sense; None for all but the tiny one."""
    return in_grammar if Path(name).name == NAME else None


def _hub_snapshot(name: str) -> str:
    trains = Path(sys.argv[0]).name == "train_animal.py"  # else it is a script that reads a stored run
    instead = f"to try it without one: {tiny_command()}" if trains else "put it there, or a symbolic link to it"
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"--model_name_or_path {name}: there is no such folder; {instead}")
    try:
        from huggingface_hub import snapshot_download, try_to_load_from_cache
    except ImportError:
        raise UsageError(f"--model_name_or_path {name}: pip install -e '.[animal]' reads the Hub; {instead}") from None
    try:
        cached = [try_to_load_from_cache(name, file) for file in ("config.json", *WEIGHTS)]
        if isinstance(cached[0], str) and any(isinstance(path, str) for path in cached[1:]):
            return str(Path(cached[0]).parent)
        return str(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except Exception as error:  # of requests, urllib3 or the library: the download failed
        raise UsageError(
            f"--model_name_or_path {name} is not in the Hub cache and cannot be fetched ({type(error).__name__}): on a "
            f"machine with network `hf download {name}`, then give its folder; {instead}"
        ) from None


def tiny_command() -> str:
    """The command of this process, with the tiny model instead of its own."""
    typed = sys.orig_argv  # sys.argv has been translated for Hydra
    script = next((place for place, word in enumerate(typed) if word.endswith("train_animal.py")), None)
    arguments = sys.argv[1:] if script is None else typed[script + 1 :]
    words = _without(arguments, "--model_name_or_path", "model_name_or_path")
    return shlex.join(["python", "train_animal.py", "--model_name_or_path", TINY, *words])


def _without(words: Sequence[str], *keys: str) -> list[str]:
    """The words of a command line without a flag and its value, in either style."""
    left: list[str] = []
    skip = False
    for word in words:
        key, equals, _ = word.partition("=")
        if not skip and key not in keys:
            left.append(word)
        skip = not skip and key in keys and not equals
    return left


def build_model(folder: Path, *overrides: str) -> None:
    """Train the tiny model and export it to `folder`, atomically.

    Args:
        overrides: overrides of its recipe.

    Raises: RunFailure with the last output line of the command that failed.
    """
    print_rank0(
        f"{folder} is missing: training it now (a GPT-2 of 0.3 M parameters on generated sentences about dogs and "
        f"cats, config/{RECIPE}.yaml, about a minute of CPU time)"
    )
    began = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as scratch:
        data, run = Path(scratch).resolve() / "pets", Path(scratch).resolve() / "run"
        places = [f"dataset={data}", f"out_dir={run}"]
        _call([str(ROOT / "train.py"), f"--config-name={RECIPE}", *places, *overrides])
        _call([str(ROOT / "scripts" / "export_gpt2.py"), str(run), str(folder.resolve())])
    print_rank0(f"{folder}: made in {time.monotonic() - began:.0f} s")


def _call(words: Sequence[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in _OF_THIS_PROCESS}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise RunFailure(f"{Path(words[0]).name} could not make the tiny model (exit code {done.returncode}): {last}")
