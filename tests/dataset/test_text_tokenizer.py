"""Tokenizers: text comes back, states survive JSON, libraries are asked for by name."""

from __future__ import annotations

import base64
import json
import sys
import types

import numpy as np
import pytest

from dataset.text.chars import CLASSES, char_class
from dataset.text.tokenizer import TOKENIZERS, fit, from_state, width
from engine.io import UsageError

TEXT = "First Citizen:\nBefore we proceed, hear me speak.\n\nAll:\nSpeak, speak; 3.14 times!\n" * 20
HARD = "a\tb\n\n  x é <|endoftext|> \r\n 日本😀 \u00a0end"
LIBRARY = {"bpe": "tokenizers", "sentencepiece": "sentencepiece"}


def fitted(kind: str, text: str, **options):
    if kind in LIBRARY:
        pytest.importorskip(LIBRARY[kind])
        options.setdefault("vocab_size", 300)
    return fit(kind, [text], **options)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "sentencepiece"])
@pytest.mark.parametrize("eot", [False, True])
def test_text_comes_back(kind: str, eot: bool) -> None:
    tokenizer = fitted(kind, TEXT + HARD, eot=eot)
    ids = tokenizer.encode(TEXT + HARD)
    assert ids.dtype == width(tokenizer.vocab_size)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == TEXT + HARD
    if tokenizer.eot is not None:
        assert tokenizer.eot not in ids  # not even for a text that spells it
        assert tokenizer.decode([*ids[:5], tokenizer.eot, *ids[:5]]).count("<|endoftext|>") == 1


@pytest.mark.parametrize("kind", ["char", "byte", "char_class", "bpe", "sentencepiece"])
def test_a_state_survives_json(kind: str) -> None:
    tokenizer = fitted(kind, TEXT, eot=True)
    again = from_state(json.loads(json.dumps(tokenizer.state())))
    assert (again.vocab_size, again.eot, again.kind) == (tokenizer.vocab_size, tokenizer.eot, kind)
    assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


@pytest.mark.parametrize("kind", ["byte", "bpe", "sentencepiece"])
def test_half_a_character_decodes_to_the_replacement_sign(kind: str) -> None:
    tokenizer = fitted(kind, TEXT)
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("ab 日本")[:-1])


def test_characters_have_the_ids_of_nanogpt() -> None:
    tokenizer = fit("char", ["hello", " world"])
    stoi = {char: number for number, char in enumerate(sorted(set("hello world")))}
    assert tokenizer.encode("hello world").tolist() == [stoi[c] for c in "hello world"]
    with pytest.raises(UsageError, match=r"'é' \(U\+00E9\) is not among the 8"):
        tokenizer.encode("hé")
    with pytest.raises(ValueError, match="token 8 is outside the vocabulary of 8"):
        tokenizer.decode([0, 8])


def test_classes_are_aligned_with_characters() -> None:
    names = list(CLASSES)
    want = {
        "\n": "newline",
        "\t": "space",
        "E": "upper vowel",
        "É": "upper vowel",
        "T": "upper consonant",
        "o": "lower vowel",
        "y": "lower consonant",
        "7": "digit",
        ";": "punctuation",
        "+": "punctuation",
    }
    assert {char: names[char_class(char)] for char in want} == want
    text = TEXT + "É 日本"
    assert len(fit("char_class", []).encode(text)) == len(fit("char", [text]).encode(text)) == len(text)
    assert fit("char_class", []).decode(fit("char_class", []).encode("To 7, é\n")) == "Ba 0. a\n"


@pytest.mark.parametrize(
    ("size", "kind"), [(65, "uint16"), (50257, "uint16"), (65536, "uint16"), (65537, "uint32"), (100277, "uint32")]
)
def test_width_follows_the_vocabulary(size: int, kind: str) -> None:
    assert width(size).name == kind
    assert size - 1 <= np.iinfo(width(size)).max


def test_tiktoken_is_loaded_when_used_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=offline))
    tokenizer = fit("cl100k_base", [])
    assert (tokenizer.vocab_size, tokenizer.eot, width(tokenizer.vocab_size).name) == (100277, 100257, "uint32")
    with pytest.raises(UsageError, match=r"cl100k_base \(no route to host\).*TIKTOKEN_CACHE_DIR=DIR"):
        tokenizer.encode("a")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UsageError, match="pip install tiktoken"):
        fit("gpt2", []).encode("a")


def test_tiktoken_encodes_like_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"he": 256, b"ll": 257}
    table = tiktoken.Encoding(
        "gpt2", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: table)
    tokenizer = fit("gpt2", [])
    assert tokenizer.encode("hello").tolist() == [256, 257, ord("o")]
    assert tokenizer.decode([256, 257, 0xE6]) == "hell\ufffd"
    assert tokenizer.decode([256, 50256]) == "he<|endoftext|>"
    assert tokenizer.decode([256, 300, 257]) == "he\ufffdll"  # a model may sample a number that is not a token


def test_sentencepiece_learns_from_long_lines() -> None:
    line = "the quick brown fox jumps over the lazy dog " * 2000
    tokenizer = fitted("sentencepiece", line, vocab_size=350)
    assert len(tokenizer.encode(line)) < len(line) / 4
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_refusals() -> None:
    with pytest.raises(UsageError, match="did you mean 'char'"):
        fit("chr", [])
    with pytest.raises(UsageError, match="--vocab-size is for bpe, sentencepiece"):
        fit("byte", [], vocab_size=300)
    with pytest.raises(UsageError, match="has no type"):
        from_state({})
    with pytest.raises(UsageError, match="damaged state of the tokenizer char"):
        from_state({"type": "char"})
    assert {"char", "byte", "bpe", "gpt2", "cl100k_base", "o200k_base", "sentencepiece"} <= TOKENIZERS.keys()


def test_refusals_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    for size in (256, 0):
        with pytest.raises(UsageError, match="at least 257"):
            fit("bpe", [TEXT], vocab_size=size)
    with pytest.raises(UsageError, match="not a tokenizer"):
        from_state({"type": "bpe", "model": {"x": 1}})
    pytest.importorskip("sentencepiece")
    with pytest.raises(UsageError, match="sentencepiece cannot train"):
        fit("sentencepiece", [TEXT], vocab_size=20)
    with pytest.raises(UsageError, match="damaged state of the tokenizer sentencepiece"):
        from_state({"type": "sentencepiece", "model": ""})
    with pytest.raises(UsageError, match="sentencepiece"):
        from_state({"type": "sentencepiece", "model": base64.b64encode(b"xyz").decode()})
    for library in ("tokenizers", "sentencepiece"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UsageError, match=f"pip install {library}"):
            fit({"tokenizers": "bpe"}.get(library, library), [TEXT])
