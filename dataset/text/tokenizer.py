"""The registry of tokenizers: fitted to a corpus by name, or restored from the state of a data set or checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataset.text.base import EOT_TEXT, Tokenizer, width
from dataset.text.chars import Byte, Char, CharClass
from dataset.text.subword import BPE, TIKTOKEN, SentencePiece, Tiktoken
from engine.io import UsageError, did_you_mean

__all__ = ["EOT_TEXT", "TOKENIZERS", "Tokenizer", "fit", "from_state", "width"]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "char": Char,
    "byte": Byte,
    "char_class": CharClass,
    "bpe": BPE,
    "sentencepiece": SentencePiece,
    **dict.fromkeys(TIKTOKEN, Tiktoken),
}


def _named(kind: str) -> type[Tokenizer]:
    if kind not in TOKENIZERS:
        raise UsageError(f"there is no tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}")
    return TOKENIZERS[kind]


def fit(kind: str, texts: Iterable[str], *, vocab_size: int | None = None, eot: bool = False) -> Tokenizer:
    """Fit the tokenizer `kind` to texts; `eot`: with an end-of-document token. Raises: UsageError."""
    cls = _named(kind)
    if vocab_size is not None and not cls.sized:
        sized = ", ".join(sorted(name for name, other in TOKENIZERS.items() if other.sized))
        raise UsageError(f"--vocab-size is for {sized}: the size of the {kind} vocabulary is given")
    return cls.fit(kind, texts, vocab_size=vocab_size, eot=eot)


def from_state(state: dict[str, Any]) -> Tokenizer:
    """Restore a tokenizer from its `state()`. Raises: UsageError if it is not one."""
    if not isinstance(state, dict) or not isinstance(state.get("type"), str):
        raise UsageError("this is not the state of a tokenizer: it has no type")
    try:
        return _named(state["type"]).from_state(state)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(f"damaged state of the tokenizer {state['type']}: {error!r}") from None
