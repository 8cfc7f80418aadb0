"""meta.json of a text data set, and the folders of nanoGPT and its descendants (meta.pkl, or none at all).

<root>/{train,val}.bin   token ids without a header, little-endian, uint16 or uint32
<root>/meta.json         vocab_size, dtype, eot, tokenizer (its name), tokens and bytes per split
<root>/tokenizer.json    what dataset.text.tokenizer.from_state takes
<root>/card.json         where the data come from, counts, content hash
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
MOST_WORDS = 1 << 24
"""A vocabulary beyond this is a slip or an attack: the embedding of as many words takes gigabytes."""


@dataclass(frozen=True, kw_only=True)
class TextMeta:
    """What one needs to know to read token files."""

    vocab_size: int
    dtype: np.dtype
    tokenizer: str
    """Name of the tokenizer; `unknown` where an old meta.pkl describes none of ours."""
    eot: int | None = None
    bytes_per_token: dict[str, float] | None = None
    """Per split: bytes of text / tokens. None where nobody counted."""
    tokens: dict[str, int] | None = None
    """Per split, as our builder counted them."""
    state: dict[str, Any] | None = None
    """State of the tokenizer that an old meta.pkl holds; ours is in tokenizer.json."""


class _Refused(pickle.UnpicklingError):
    pass


class _Plain(pickle.Unpickler):
    """Unpickles dicts, lists, strings and numbers; whatever asks for a class or a function is refused."""

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
    size, kind = _whole(path, "vocab_size", raw.get("vocab_size"), 1, MOST_WORDS), raw.get("dtype")
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
    """Numbers by split, none where the file has none."""
    if not isinstance(value, dict | None):
        raise UsageError(f"{path}: {key} must be numbers by split, got {value!r:.60}")
    return {split: _whole(path, f"{key}.{split}", count, 0, 1 << 62) for split, count in (value or {}).items()}


def _check_opcodes(data: bytes) -> None:
    """Refuse what asks for more memory than a pickle of this size can hold: a slot of the memo costs 8 bytes each up to
    its number, and twelve bytes of pickle may name slot 2^29.
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
    size, kind = _whole(path, "vocab_size", raw.get("vocab_size"), 1, MOST_WORDS), raw.get("tokenizer")
    # Their writer chose the width by the number it stored, before special tokens were counted.
    dtype = np.dtype("<u4" if size > 65535 else "<u2")
    if kind == "tiktoken" and raw.get("tiktoken_encoding") in [*TIKTOKEN]:
        name = raw["tiktoken_encoding"]
        full, eot = TIKTOKEN[name]
        return TextMeta(vocab_size=max(size, full), dtype=dtype, tokenizer=name, eot=eot, state={"type": name})
    signs = raw.get("itos")
    texts: list[Any] = []
    if isinstance(signs, dict) and len(signs) == size:
        texts = [signs.get(number) for number in range(size)]
    if kind is None and texts and all(isinstance(sign, str) and len(sign) == 1 for sign in texts):
        state = {"type": "char", "chars": texts, "eot": False}
        return TextMeta(vocab_size=size, dtype=dtype, tokenizer="char", state=state)
    return TextMeta(vocab_size=size, dtype=dtype, tokenizer="unknown")


def read_meta(root: str | Path) -> TextMeta:
    """How to read the token files in `root`: meta.json, else meta.pkl, else nanoGPT's rule (no meta: GPT-2 BPE).

    Raises: UsageError naming the file; a pickle that holds more than plain values is never executed.
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
    """What the tokenizer of a data set is made from. Raises: UsageError when it has none that we know."""
    root = Path(root)
    state = read_meta(root).state
    if state is None and not (root / TOKENIZER).exists():
        raise UsageError(f"{root} has token files but no tokenizer ({TOKENIZER}): text cannot be encoded or decoded")
    return read_object(root / TOKENIZER) if state is None else state


def _called(kind: str, eot: int | None) -> str:
    return f"{kind}, its documents ended by {'nothing' if eot is None else f'token {eot}'}"


def load_tokenizer(root: str | Path) -> Tokenizer:
    """The tokenizer of a data set. Raises: UsageError when it has none that we know."""
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
            f"{root / TOKENIZER} is {_called(*actual)}, {META} says {_called(*declared)}: files of two sets"
        )
    return tokenizer
