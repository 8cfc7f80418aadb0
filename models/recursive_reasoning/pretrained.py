"""Models as folders that others load: `save_pretrained` and `from_pretrained`, the puzzle table apart from the trunk.

    FOLDER/config.json                 class, hyper-parameters, shape of the data
    FOLDER/model.safetensors           the trunk: everything but the puzzle table
    FOLDER/puzzle_table.safetensors    the table [N, E]; may be left out
    FOLDER/README.md                   the model card

The table of ARC-AGI-1 has 1.8 GB, the trunk 27 MB. Who adapts a model to new puzzles needs the trunk alone; who loads
the table maps it into memory, where only the rows that are used are read. Both files hold tensors and nothing else.
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
_LARGEST = 1 << 20  # bytes of a config
_LONGEST, _MOST_ROWS = 1 << 20, 1 << 28  # tokens of an example, puzzles: beyond lies a damaged file
_CLASS = re.compile(r"recursive_reasoning\.(\w+)@(\w+)")


class Pretrained(nn.Module):
    """What `RecursiveModel` has of it. `config` and `shape` are those that the model was made with."""

    config: Any
    shape: PuzzleShape

    def save_pretrained(self, folder: str | Path, *, card: str | None = None, puzzle_table: bool = True) -> None:
        """Write the folder, whole or not at all; `card` is the text of its README.md, `puzzle_table` false leaves the
        table out.

        Raises: FileExistsError where there is something of that name; OSError.
        """
        final = Path(os.path.abspath(folder))
        if final.exists():
            raise FileExistsError(f"{folder} exists already: remove it or choose another folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.tmp-", dir=final.parent))
        try:
            self._write(temporary, card or self.model_card(final.name), puzzle_table)
            temporary.chmod(0o755)  # made for its owner alone
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
            except SafetensorError as error:  # a full disk, of which the library's text alone holds the number
                number = re.search(r"\(os error (\d+)\)", str(error))
                code = int(number[1]) if number else errno.EIO
                raise OSError(code, os.strerror(code), str(folder / name)) from error
            (folder / name).chmod(0o644)  # the library makes it private
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
        """The model in a folder, or in a repository of the Hugging Face Hub (`user/name` at `revision`), to evaluate.

        `puzzle_identifiers` gives it a new table of so many rows, each the mean of the stored ones (zeros without any),
        as the public code does for a table of other data. Else the stored table is mapped into memory. Called on the
        base class it makes whatever class config.json names.

        Raises: ValueError, one line, for a folder that is none or is damaged, or another class; ImportError with the
        command that installs the Hub's library.
        """
        folder = _folder(source, revision)
        about = _read_config(folder / CONFIG)
        kind = _class_of(about["class"], folder / CONFIG)
        if not issubclass(kind, cls):
            raise ValueError(f"{folder} holds a {kind.__name__}, not a {cls.__name__}")
        try:
            shape = PuzzleShape(**about["shape"])
            _check_shape(shape)
            small = dataclasses.replace(shape, num_puzzle_identifiers=1)  # its table is replaced
            config, trunk = _nested(kind.Config, about["config"]), _read(folder / TRUNK)
            with torch.device("meta"):  # what does not fit the weights takes no memory
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
        made: Self = model.eval()
        return made

    def push_to_hub(
        self, repository: str, *, card: str | None = None, puzzle_table: bool = True, **options: Any
    ) -> str:
        """Upload what `save_pretrained` writes; `options` go to `HfApi.create_repo` (private=True, e.g.). Returns the
        address. Raises: ImportError with the command that installs the Hub's library."""
        hub = _hub(repository)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / repository.rpartition("/")[2]
            self.save_pretrained(path, card=card or self.model_card(repository), puzzle_table=puzzle_table)
            api = hub.HfApi()
            api.create_repo(repository, exist_ok=True, **options)
            return str(api.upload_folder(repo_id=repository, folder_path=path))

    @property
    def facts(self) -> dict[str, str]:
        """Name -> value of the facts about the model in its card."""
        table = self.state_dict().get(TABLE)
        return {
            "class": f"`{type(self).__module__}.{type(self).__name__}`",
            "parameters": f"{sum(p.numel() for p in self.parameters()):,}",
            "puzzle table": "none" if table is None else f"{table.shape[0]:,} x {table.shape[1]}",
            "sequence length, vocabulary": f"{self.shape.seq_len}, {self.shape.vocab_size}",
        }

    @property
    def tags(self) -> list[str]:
        """For the Hub."""
        return ["recursive-reasoning", type(self).__module__.rpartition(".")[2]]

    def loading(self, name: str) -> str:
        """Python that loads the folder or repository `name`."""
        kind = type(self)
        return f'from {kind.__module__} import {kind.__name__}\n\nmodel = {kind.__name__}.from_pretrained("{name}")'

    def model_card(self, name: str) -> str:
        """The text of README.md: what the model is, how to load it. scripts/convert.py writes that of a run."""
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
{self.loading(name)}
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
            text = stream.read(_LARGEST + 1)
        about: Any = json.loads(text) if len(text) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        about = None
    kinds = {"format": int, "class": str, "config": dict, "shape": dict}
    if not isinstance(about, dict) or any(type(about.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"{path} is not the config of a model: expected {', '.join(kinds)}")
    if about["format"] > FORMAT:
        raise ValueError(f"{path} has format {about['format']}, this program reads up to {FORMAT}: update the program")
    return about


def _class_of(name: str, path: Path) -> Any:
    """Only a model of this package: a config may come from anywhere."""
    match = _CLASS.fullmatch(name)
    kind = None
    if match and importlib.util.find_spec(f"{__package__}.{match[1]}") is not None:
        kind = getattr(importlib.import_module(f"{__package__}.{match[1]}"), match[2], None)
    if not (isinstance(kind, type) and issubclass(kind, Pretrained) and hasattr(kind, "Config")):
        raise ValueError(f"{path} names {name!r:.80}, which is not a model of {__package__}")
    return kind


def _nested(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain values, blocks within it as the dataclasses that its fields declare."""
    made = dict(values)
    for name, hint in typing.get_type_hints(kind).items():
        inner = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if inner and isinstance(made.get(name), dict):
            made[name] = _nested(typing.cast(type, inner[0]), made[name])
    return kind(**made)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if not path.is_file():  # a pipe would hold us up
            raise OSError("it is missing")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): fetch it again") from None


def _check_shape(shape: PuzzleShape) -> None:
    for name, value in dataclasses.asdict(shape).items():
        most = {"seq_len": _LONGEST, "num_puzzle_identifiers": _MOST_ROWS}.get(name, 1 << 31)
        if type(value) is not int or not (name != "pad_id") <= value <= most:
            raise ValueError(f"{name} is {value!r:.40}, expected a whole number up to {most}")


def _check_trunk(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = {name: tensor for name, tensor in model.state_dict().items() if name != TABLE}
    odd = [name for name in own if name not in state or own[name].shape != state[name].shape]
    odd += [name for name in state if name not in own]
    if odd:
        raise ValueError(
            f"{path} does not fit {path.parent / CONFIG}: {len(odd)} tensors differ, the first is {odd[0]}"
        )


def _table(path: Path, size: tuple[int, int], rows: int, *, fresh: bool) -> Tensor:
    """The stored table [N, E] as it is in the file, or `rows` new rows. Raises: ValueError."""
    if not path.exists():
        return torch.zeros(rows, size[1])
    table = _read(path).get(TABLE)
    if table is None or tuple(table.shape) != size:
        actual = None if table is None else list(table.shape)
        raise ValueError(f"{path} holds a table {actual}, {path.parent / CONFIG} says {list(size)}")
    return table.mean(0, keepdim=True).repeat(rows, 1) if fresh else table
