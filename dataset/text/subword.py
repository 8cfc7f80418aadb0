"""Tokenizers of libraries, imported on use: byte-level BPE trained here, tiktoken's tables, sentencepiece."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np

from dataset.text.base import EOT_TEXT, Tokenizer, width
from engine.io import UsageError

DEFAULT_VOCAB = 4096
# In bytes. sentencepiece drops longer lines; its default of 4192 would drop whole documents.
MAX_LINE = 1 << 24
# In characters of one kind: training time is quadratic in a word's length, and longer words add nothing.
LONG_WORD = 1000
LONG_RUN = re.compile(rf"\w{{{LONG_WORD}}}|\s{{{LONG_WORD}}}|[^\w\s]{{{LONG_WORD}}}")
# name -> (size with the special tokens, end-of-text token), so that a data set can be opened without tiktoken
TIKTOKEN = {
    "gpt2": (50257, 50256),
    "r50k_base": (50257, 50256),
    "p50k_base": (50281, 50256),
    "cl100k_base": (100277, 100257),
    "o200k_base": (200019, 199999),
}


def _missing(library: str, kind: str) -> UsageError:
    return UsageError(f"the tokenizer {kind} needs the library {library}: pip install {library}")


def _without_long_words(text: str) -> list[str]:
    """`text`, cut after every LONG_WORD characters of a word; the parts joined are the text."""
    ends = [match.end() for match in LONG_RUN.finditer(text)]
    return [text[low:high] for low, high in zip([0, *ends], [*ends, len(text)], strict=True)]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class BPE(Tokenizer):
    """Byte-level BPE as in GPT-2, trained on the corpus with the `tokenizers` library; token 0 ends documents."""

    kind = "bpe"
    sized: ClassVar[bool] = True

    def __init__(self, model: dict[str, Any]) -> None:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise _missing("tokenizers", self.kind) from None
        try:
            self._library = Library.from_str(json.dumps(model))
        except Exception as error:  # the library raises bare Exceptions
            raise UsageError(f"not a tokenizer of the tokenizers library: {_reason(error)}") from None
        self._library.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.model = model
        self.vocab_size = self._library.get_vocab_size()
        self.eot = self._library.token_to_id(EOT_TEXT)

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        try:
            from tokenizers import Tokenizer as Library, decoders, models, pre_tokenizers, trainers
        except ImportError:
            raise _missing("tokenizers", kind) from None
        size = DEFAULT_VOCAB if vocab_size is None else vocab_size
        if size < 257:
            raise UsageError(f"--vocab-size {size}: byte-level BPE needs at least 257 (256 bytes, one end of document)")
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[EOT_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        library.train_from_iterator((piece for text in texts for piece in _without_long_words(text)), trainer)
        # The library's threads do not survive the fork of the encoding workers, which must not use them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return cls(json.loads(library.to_str()))

    def state(self) -> dict[str, Any]:
        return {"type": self.kind, "model": self.model}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["model"])

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._library.encode_batch_fast([text])[0].ids, dtype=width(self.vocab_size))

    def _decode(self, ids: np.ndarray) -> str:
        return self._library.decode(ids.tolist(), skip_special_tokens=False)


class Tiktoken(Tokenizer):
    """OpenAI's published tables, which tiktoken fetches once; needed only to encode and decode."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.vocab_size, self.eot = TIKTOKEN[kind]
        self._library: Any = None

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        return cls(kind)

    def state(self) -> dict[str, Any]:
        return {"type": self.kind}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["type"])

    def _table(self) -> Any:
        if self._library is None:
            try:
                import tiktoken
            except ImportError:
                raise _missing("tiktoken", self.kind) from None
            try:
                self._library = tiktoken.get_encoding(self.kind)
            except Exception as error:  # whatever the download raises
                raise UsageError(
                    f"tiktoken cannot get the table of {self.kind} ({_reason(error)}): where there is a network run "
                    f"TIKTOKEN_CACHE_DIR=DIR python -c \"import tiktoken; tiktoken.get_encoding('{self.kind}')\", "
                    "then copy DIR here and set TIKTOKEN_CACHE_DIR to it"
                ) from None
        return self._library

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._table().encode_ordinary(text), dtype=width(self.vocab_size))

    def _decode(self, ids: np.ndarray) -> str:
        table, pieces = self._table(), []
        for id in ids.tolist():
            try:
                pieces.append(table.decode_single_token_bytes(id))
            except KeyError:  # the tables have gaps before their special tokens, and a model may sample one
                pieces.append("\ufffd".encode())
        return b"".join(pieces).decode("utf-8", "replace")


class SentencePiece(Tokenizer):
    """SentencePiece BPE with byte fallback and without normalisation, so that decoding restores every text.

    One exception is the library's own: U+2581, which it uses for a space, is decoded as a space.
    """

    kind = "sentencepiece"
    sized: ClassVar[bool] = True

    def __init__(self, model: bytes) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise _missing("sentencepiece", self.kind) from None
        self.model = model
        try:
            self._library = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UsageError("not a model of sentencepiece: it does not load") from None
        self.vocab_size = self._library.get_piece_size()
        end = self._library.piece_to_id(EOT_TEXT)
        self.eot = end if self._library.is_control(end) else None

    @classmethod
    def fit(cls, kind: str, texts: Iterable[str], *, vocab_size: int | None, eot: bool) -> Self:
        try:
            import sentencepiece
        except ImportError:
            raise _missing("sentencepiece", kind) from None
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for text in texts for line in text.splitlines(keepends=True)),
                model_writer=model,
                model_type="bpe",
                vocab_size=DEFAULT_VOCAB if vocab_size is None else vocab_size,
                hard_vocab_limit=False,
                max_sentence_length=MAX_LINE,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                control_symbols=[EOT_TEXT],
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UsageError(f"sentencepiece cannot train on this corpus: {_reason(error)}") from None
        return cls(model.getvalue())

    def state(self) -> dict[str, Any]:
        return {"type": self.kind, "model": base64.b64encode(self.model).decode("ascii")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(base64.b64decode(state["model"]))

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._library.encode(text), dtype=width(self.vocab_size))

    def _decode(self, ids: np.ndarray) -> str:
        cuts = np.flatnonzero(ids == (-1 if self.eot is None else self.eot))
        pieces = [piece[piece != self.eot].tolist() for piece in np.split(ids, cuts)]
        return EOT_TEXT.join(self._library.decode(piece) if piece else "" for piece in pieces)
