"""meta.json of a text data set, and the folders of nanoGPT and its descendants (meta.pkl, or no meta file).

<root>/{train,val}.bin   token ids without a header, little-endian, uint16 or uint32
<root>/meta.json         vocab_size, dtype, eot, tokenizer (its name), tokens and bytes per split
<root>/tokenizer.json    the state for dataset.text.tokenizer.from_state
<root>/card.json         origin of the data, counts, content hash
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.text.subword import TIKTOKEN
from dataset.text.tokenizer import Tokenizer, from_state, width
from engine.io import Unreadable, UsageError, read_bytes, read_object, reason_of

SPLITS = ("train", "val")
META, TOKENIZER = "meta.json", "tokenizer.json"
LARGEST_VOCAB = 1 << 24
"""A larger vocabulary is an error or an attack: its embedding would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class TextMeta:
    """How to read the token files of a data set."""

    vocab_size: int
    dtype: np.dtype
    tokenizer: str
    """Name of the tokenizer; `unknown` if an old meta.pkl describes none of ours."""
    eot: int | None = None
    bytes_per_token: dict[str, float] | None = None
    """Bytes of text / tokens per split. None if they were not counted."""
    tokens: dict[str, int] | None = None
    """Number of tokens per split, if our builder counted them."""
    state: dict[str, Any] | None = None
    """State of the tokenizer in an old meta.pkl; ours is in tokenizer.json."""


class _Refused(pickle.UnpicklingError):
    pass


class _Plain(pickle.Unpickler):
    """Unpickles dicts, lists, strings and numbers; a pickle that refers to a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"it asks for {module}.{name}, plain values only are read (it may run code: do not trust it)")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to outside objects, plain values only are read")


def _whole(path: Path, key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{path}: {key} must be a whole number from {least} to {most}, got {value!r:.60}")
    return value


def _ours(path: Path) -> TextMeta:
    raw = read_object(path)
    size, kind = _whole(path, "vocab_size", raw.get("vocab_size"), 1, LARGEST_VOCAB), raw.get("dtype")
    if kind not in ("uint16", "uint32"):
        raise UsageError(f"{path}: dtype must be uint16 or uint32, got {kind!r:.60}")
    eot, name = raw.get("eot"), raw.get("tokenizer", "unknown")
    if eot is not None:
        _whole(path, "eot", eot, 0, size - 1)
    if not isinstance(name, str):
        raise UsageError(f"{path}: tokenizer must be a name, got {name!r:.60}")
    tokens, sizes = _counts(path, "tokens", raw.get("tokens")), _counts(path, "bytes", raw.get("bytes"))
    ratio = {split: sizes[split] / tokens[split] for split in tokens if tokens[split] and split in sizes}
    return TextMeta(
        vocab_size=size,
        dtype=np.dtype(kind).newbyteorder("<"),
        tokenizer=name,
        eot=eot,
        bytes_per_token=ratio or None,
        tokens=tokens,
    )


def _counts(path: Path, key: str, value: Any) -> dict[str, int]:
    """The numbers per split under `key`; empty if the file has none."""
    if not isinstance(value, dict | None):
        raise UsageError(f"{path}: {key} must be numbers by split, got {value!r:.60}")
    return {split: _whole(path, f"{key}.{split}", count, 0, 1 << 62) for split, count in (value or {}).items()}


def _check_opcodes(data: bytes) -> None:
    """Raise _Refused for a memo index that a pickle of this size cannot reach.

    Unpickling allocates 8 bytes for every memo slot up to the index, and twelve bytes of pickle may name slot 2^29.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise _Refused(f"it names slot {argument} of a memory that it cannot fill")


def _legacy(path: Path) -> TextMeta:
    try:
        data = read_bytes(path)
        _check_opcodes(data)
        raw = _Plain(io.BytesIO(data)).load()
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None
    except _Refused as error:
        raise UsageError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UsageError(f"{path} cannot be read: {error!r}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: expected a dictionary, found {type(raw).__name__}")
    size, kind = _whole(path, "vocab_size", raw.get("vocab_size"), 1, LARGEST_VOCAB), raw.get("tokenizer")
    # Its writer chose the type by the stored size, which does not count special tokens.
    dtype = np.dtype("<u4" if size > 65535 else "<u2")
    if kind == "tiktoken" and raw.get("tiktoken_encoding") in [*TIKTOKEN]:
        name = raw["tiktoken_encoding"]
        full, eot = TIKTOKEN[name]
        return TextMeta(vocab_size=max(size, full), dtype=dtype, tokenizer=name, eot=eot, state={"type": name})
    itos = raw.get("itos")
    chars: list[Any] = []
    if isinstance(itos, dict) and len(itos) == size:
        chars = [itos.get(number) for number in range(size)]
    if kind is None and chars and all(isinstance(char, str) and len(char) == 1 for char in chars):
        state = {"type": "char", "chars": chars, "eot": False}
        return TextMeta(vocab_size=size, dtype=dtype, tokenizer="char", state=state)
    return TextMeta(vocab_size=size, dtype=dtype, tokenizer="unknown")


def read_meta(root: str | Path) -> TextMeta:
    """How to read the token files in `root`: from meta.json, else meta.pkl, else as nanoGPT does (GPT-2 BPE).

    Raises: UsageError naming the file; a pickle with more than plain values is refused, not executed.
    """
    root = Path(root)
    if (root / META).exists():
        return _ours(root / META)
    if (root / "meta.pkl").exists():
        return _legacy(root / "meta.pkl")
    if not (root / "train.bin").exists():
        raise UsageError(f"{root} is not a text data set: it has neither {META} nor train.bin")
    size, eot = TIKTOKEN["gpt2"]
    return TextMeta(vocab_size=size, dtype=width(size), tokenizer="gpt2", eot=eot, state={"type": "gpt2"})


def tokenizer_state(root: str | Path) -> dict[str, Any]:
    """The state of a data set's tokenizer. Raises: UsageError if it has none that we know."""
    root = Path(root)
    state = read_meta(root).state
    if state is None and not (root / TOKENIZER).exists():
        raise UsageError(f"{root} has token files but no tokenizer ({TOKENIZER}): text cannot be encoded or decoded")
    return read_object(root / TOKENIZER) if state is None else state


def _describe(kind: str, eot: int | None) -> str:
    return f"{kind}, its documents ended by {'nothing' if eot is None else f'token {eot}'}"


def load_tokenizer(root: str | Path) -> Tokenizer:
    """Load the tokenizer of a data set. Raises: UsageError if it has none that we know, or that of another."""
    root = Path(root)
    meta = read_meta(root)
    tokenizer = from_state(tokenizer_state(root))
    if meta.state is None and tokenizer.vocab_size != meta.vocab_size:
        raise UsageError(
            f"{root / TOKENIZER} has {tokenizer.vocab_size} tokens, {META} says {meta.vocab_size}: files of two sets"
        )
    declared, actual = (meta.tokenizer, meta.eot), (tokenizer.kind, tokenizer.eot)
    if meta.state is None and "unknown" not in declared and declared != actual:
        raise UsageError(
            f"{root / TOKENIZER} is {_describe(*actual)}, {META} says {_describe(*declared)}: files of two sets"
        )
    return tokenizer
