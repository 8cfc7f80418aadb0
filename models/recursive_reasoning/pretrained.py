"""Save and load models as folders: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    FOLDER/config.json                 class, hyper-parameters, data shape
    FOLDER/model.safetensors           the trunk: everything but the puzzle table
    FOLDER/puzzle_table.safetensors    the table [N, E]; optional
    FOLDER/README.md                   the model card

The puzzle table is a separate file (1.8 GB for ARC-AGI-1, the trunk 27 MB): adapting a model to new puzzles needs only
the trunk. The table is memory-mapped, so only rows that are used are read. Both files hold tensors only, no pickle.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import tempfile
import typing
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.recursive_reasoning.act import PuzzleShape

FORMAT = 1
CONFIG, TRUNK, TABLE_FILE, CARD = "config.json", "model.safetensors", "puzzle_table.safetensors", "README.md"
TABLE = "inner.puzzle_emb.weights"
_MAX_BYTES = 1 << 20  # of a config
_MAX_LENGTH, _MAX_ROWS = 1 << 20, 1 << 28  # tokens per example, puzzles: more means a damaged file
_CLASS = re.compile(r"recursive_reasoning\.(\w+)@(\w+)")


class Pretrained(nn.Module):
    """Mixin that saves and loads a model with the `config` and `shape` it was built with."""

    config: Any
    shape: PuzzleShape

    def save_pretrained(self, folder: str | Path, *, card: str | None = None, puzzle_table: bool = True) -> None:
        """Write the folder atomically. `card` is the text of README.md; `puzzle_table=False` leaves out the table.

        Raises: FileExistsError if the folder exists; OSError.
        """
        final = Path(os.path.abspath(folder))
        if final.exists():
            raise FileExistsError(f"{folder} exists already: remove it or choose another folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.tmp-", dir=final.parent))
        try:
            self._write(temporary, card or self.model_card(final.name), puzzle_table)
            temporary.chmod(0o755)  # mkdtemp makes it private
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write(self, folder: Path, card: str, puzzle_table: bool) -> None:
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        table = state.pop(TABLE, None)
        parts = {TRUNK: state}
        if table is not None and puzzle_table:
            parts[TABLE_FILE] = {TABLE: table}
        for name, tensors in parts.items():
            try:
                save_file(tensors, folder / name, metadata={"format": "pt"})
            except SafetensorError as error:  # e.g. a full disk; the errno is only in the message
                number = re.search(r"\(os error (\d+)\)", str(error))
                code = int(number[1]) if number else errno.EIO
                raise OSError(code, os.strerror(code), str(folder / name)) from error
            (folder / name).chmod(0o644)  # safetensors makes it private
        module = type(self).__module__.removeprefix("models.")
        about = {
            "format": FORMAT,
            "class": f"{module}@{type(self).__name__}",
            "config": dataclasses.asdict(self.config),
            "shape": dataclasses.asdict(self.shape),
        }
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        puzzle_identifiers: int | None = None,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> Self:
        """Load a model, in eval mode, from a folder or a Hugging Face Hub repository (`user/name` at `revision`).

        `puzzle_identifiers` creates a new table of that many rows, each the mean of the stored ones (zeros if there is
        no stored table), as the public code does for other data. Otherwise the stored table is memory-mapped. Called on
        the base class it builds the class named in config.json.

        Raises: ValueError, in one line, for a missing or damaged folder or another class; ImportError with the command
        that installs the Hub's library.
        """
        folder = _folder(source, revision)
        about = _read_config(folder / CONFIG)
        kind = _class_of(about["class"], folder / CONFIG)
        if not issubclass(kind, cls):
            raise ValueError(f"{folder} holds a {kind.__name__}, not a {cls.__name__}")
        try:
            shape = PuzzleShape(**about["shape"])
            _check_shape(shape)
            small = dataclasses.replace(shape, num_puzzle_identifiers=1)  # the table is replaced below
            config, trunk = _nested(kind.Config, about["config"]), _read(folder / TRUNK)
            with torch.device("meta"):  # check before allocating memory
                _check_trunk(kind(config, small), trunk, folder / TRUNK)
            model = kind(config, small, auto_dtype=auto_dtype, attention=attention)
            model.load_state_dict(trunk, strict=False)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            words = " ".join(str(error).split())[:300]
            raise ValueError(
                words if str(folder) in words else f"{folder / CONFIG} belongs to no model: {words}"
            ) from None
        rows = puzzle_identifiers or shape.num_puzzle_identifiers
        model.shape = dataclasses.replace(shape, num_puzzle_identifiers=rows)
        if model.puzzle_emb is not None:
            size = (shape.num_puzzle_identifiers, model.puzzle_emb.weights.shape[1])
            model.puzzle_emb.weights = _table(folder / TABLE_FILE, size, rows, fresh=puzzle_identifiers is not None)
        loaded: Self = model.eval()
        return loaded

    def push_to_hub(
        self, repository: str, *, card: str | None = None, puzzle_table: bool = True, **options: Any
    ) -> str:
        """Upload what `save_pretrained` writes and return the URL; `options` go to `HfApi.create_repo` (e.g.
        private=True). Raises: ImportError with the command that installs the Hub's library."""
        hub = _hub(repository)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / repository.rpartition("/")[2]
            self.save_pretrained(path, card=card or self.model_card(repository), puzzle_table=puzzle_table)
            api = hub.HfApi()
            api.create_repo(repository, exist_ok=True, **options)
            return str(api.upload_folder(repo_id=repository, folder_path=path))

    @property
    def facts(self) -> dict[str, str]:
        """Facts for the model card, by name."""
        table = self.state_dict().get(TABLE)
        return {
            "class": f"`{type(self).__module__}.{type(self).__name__}`",
            "parameters": f"{sum(p.numel() for p in self.parameters()):,}",
            "puzzle table": "none" if table is None else f"{table.shape[0]:,} x {table.shape[1]}",
            "sequence length, vocabulary": f"{self.shape.seq_len}, {self.shape.vocab_size}",
        }

    @property
    def tags(self) -> list[str]:
        """Tags of the model card."""
        return ["recursive-reasoning", type(self).__module__.rpartition(".")[2]]

    def load_snippet(self, name: str) -> str:
        """Python code that loads the folder or repository `name`."""
        kind = type(self)
        return f'from {kind.__module__} import {kind.__name__}\n\nmodel = {kind.__name__}.from_pretrained("{name}")'

    def model_card(self, name: str) -> str:
        """The text of README.md: facts, and how to load the model. For a run scripts/convert.py writes a longer one."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        return f"""---
library_name: loopforge
tags: [{", ".join(self.tags)}]
---

# {name}

| | |
|---|---|
{rows}

```python
{self.load_snippet(name)}
```
"""


def _folder(source: str | Path, revision: str | None) -> Path:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.exists():
        raise ValueError(f"{source} is neither a model's folder nor a repository of the form user/name")
    hub = _hub(str(source))
    return Path(hub.snapshot_download(str(source), revision=revision, allow_patterns=[CONFIG, TRUNK, TABLE_FILE, CARD]))


def _hub(repository: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError(
            f"{repository} is on the Hugging Face Hub: pip install -e '.[hub]' loads from there"
        ) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
        about: Any = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        about = None
    kinds = {"format": int, "class": str, "config": dict, "shape": dict}
    if not isinstance(about, dict) or any(type(about.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"{path} is not the config of a model: expected {', '.join(kinds)}")
    if about["format"] > FORMAT:
        raise ValueError(f"{path} has format {about['format']}, this program reads up to {FORMAT}: update the program")
    return about


def _class_of(name: str, path: Path) -> Any:
    """The class `name`. Only models of this package are allowed, since a config may come from anywhere."""
    match = _CLASS.fullmatch(name)
    kind = None
    if match and importlib.util.find_spec(f"{__package__}.{match[1]}") is not None:
        kind = getattr(importlib.import_module(f"{__package__}.{match[1]}"), match[2], None)
    if not (isinstance(kind, type) and issubclass(kind, Pretrained) and hasattr(kind, "Config")):
        raise ValueError(f"{path} names {name!r:.80}, which is not a model of {__package__}")
    return kind


def _nested(kind: type, values: dict[str, Any]) -> Any:
    """Build a dataclass from plain values, including nested dataclasses."""
    fields = dict(values)
    for name, hint in typing.get_type_hints(kind).items():
        inner = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if inner and isinstance(fields.get(name), dict):
            fields[name] = _nested(typing.cast(type, inner[0]), fields[name])
    return kind(**fields)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if not path.is_file():  # a pipe would block
            raise OSError("it is missing")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): fetch it again") from None


def _check_shape(shape: PuzzleShape) -> None:
    for name, value in dataclasses.asdict(shape).items():
        limit = {"seq_len": _MAX_LENGTH, "num_puzzle_identifiers": _MAX_ROWS}.get(name, 1 << 31)
        if type(value) is not int or not (name != "pad_id") <= value <= limit:
            raise ValueError(f"{name} is {value!r:.40}, expected a whole number up to {limit}")


def _check_trunk(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = {name: tensor for name, tensor in model.state_dict().items() if name != TABLE}
    odd = [name for name in own if name not in state or own[name].shape != state[name].shape]
    odd += [name for name in state if name not in own]
    if odd:
        raise ValueError(
            f"{path} does not fit {path.parent / CONFIG}: {len(odd)} tensors differ, the first is {odd[0]}"
        )


def _table(path: Path, size: tuple[int, int], rows: int, *, fresh: bool) -> Tensor:
    """The stored table [N, E], or with `fresh` a new one of `rows` rows. Raises: ValueError."""
    if not path.exists():
        return torch.zeros(rows, size[1])
    table = _read(path).get(TABLE)
    if table is None or tuple(table.shape) != size:
        actual = None if table is None else list(table.shape)
        raise ValueError(f"{path} holds a table {actual}, {path.parent / CONFIG} says {list(size)}")
    return table.mean(0, keepdim=True).repeat(rows, 1) if fresh else table
