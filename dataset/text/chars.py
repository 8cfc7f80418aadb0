"""Tokenizers without a library: characters, bytes, character classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np

from dataset.text.base import EOT_TEXT, Tokenizer, width
from engine.io import UsageError


def code_points(text: str) -> np.ndarray:
    """The code point of each character; uint32 [N]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Char(Tokenizer):
    """One token per character of the corpus, in code point order (the ids of nanoGPT's shakespeare_char)."""

    kind = "char"
    whole: ClassVar[bool] = True

    def __init__(self, chars: str | list[str], *, eot: bool) -> None:
        self.chars = list(chars)
        self.eot = len(self.chars) if eot else None
        self.vocab_size = len(self.chars) + eot
        if len(set(self.chars)) != len(self.chars):
            raise UsageError("a vocabulary of characters contains one of them twice")
        codes = np.array([ord(char) for char in self.chars], dtype=np.int64)
        self._table = np.full(int(codes.max(initial=0)) + 2, -1, dtype=np.int32)  # last row: any larger code point
        self._table[codes] = np.arange(len(codes))

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        return cls(sorted(set().union(*map(set, texts))), eot=eot)

    def state(self) -> dict[str, Any]:
        return {"type": self.kind, "chars": self.chars, "eot": self.eot is not None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["chars"], eot=bool(state["eot"]))

    def encode(self, text: str) -> np.ndarray:
        codes = code_points(text)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        if ids.size and ids.min() < 0:
            char = text[int(np.argmin(ids))]
            shown = repr("".join(self.chars[:40])) + ", ..." * (len(self.chars) > 40)
            raise UsageError(
                f"the character {char!r} (U+{ord(char):04X}) is not among the {len(self.chars)} of this vocabulary: "
                f"{shown}"
            )
        return ids.astype(width(self.vocab_size))

    def _decode(self, ids: np.ndarray) -> str:
        return "".join(EOT_TEXT if id == self.eot else self.chars[id] for id in ids.tolist())


class Byte(Tokenizer):
    """The bytes of UTF-8; 256 is the end-of-document token if the corpus has documents."""

    kind = "byte"

    def __init__(self, *, eot: bool) -> None:
        self.eot = 256 if eot else None
        self.vocab_size = 256 + eot

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        return cls(eot=eot)

    def state(self) -> dict[str, Any]:
        return {"type": self.kind, "eot": self.eot is not None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(eot=bool(state["eot"]))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(width(self.vocab_size))

    def _decode(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == 256)
        pieces = np.split(ids, ends)
        texts = [piece[piece < 256].astype(np.uint8).tobytes().decode("utf-8", "replace") for piece in pieces]
        return EOT_TEXT.join(texts)


# class -> the character to which it is decoded
CLASSES = {
    "newline": "\n",
    "space": " ",
    "upper vowel": "A",
    "upper consonant": "B",
    "lower vowel": "a",
    "lower consonant": "b",
    "digit": "0",
    "punctuation": ".",
    "other": "?",
}


def char_class(char: str) -> int:
    """The class of a character as an index into CLASSES; an accented letter has the class of its base letter."""
    names = list(CLASSES)
    if char == "\n":
        return names.index("newline")
    if char.isspace():
        return names.index("space")
    if char.isalpha():
        case = "upper" if char.isupper() else "lower"
        base = unicodedata.normalize("NFD", char)[0].lower()
        return names.index(f"{case} {'vowel' if base in 'aeiou' else 'consonant'}")
    if char.isdigit():
        return names.index("digit")
    return names.index("punctuation" if unicodedata.category(char)[0] in "PS" else "other")


class CharClass(Tokenizer):
    """One token per character, its class: a stream that is aligned with `char`, for multicontext training."""

    kind = "char_class"
    lossless: ClassVar[bool] = False

    def __init__(self, *, eot: bool) -> None:
        self.eot = len(CLASSES) if eot else None
        self.vocab_size = len(CLASSES) + eot

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        return cls(eot=eot)

    def state(self) -> dict[str, Any]:
        return {"type": self.kind, "classes": list(CLASSES), "eot": self.eot is not None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(eot=bool(state["eot"]))

    def encode(self, text: str) -> np.ndarray:
        present, where = np.unique(code_points(text), return_inverse=True)
        classes = np.array([char_class(chr(code)) for code in present.tolist()], dtype=width(self.vocab_size))
        return classes[where]

    def _decode(self, ids: np.ndarray) -> str:
        texts = [*CLASSES.values(), EOT_TEXT]
        return "".join(texts[id] for id in ids.tolist())
