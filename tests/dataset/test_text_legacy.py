"""Folders that nanoGPT and its descendants wrote are read; pickles that hold more than plain values are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from dataset.catalog import describe
from dataset.text.meta import load_tokenizer, read_meta
from dataset.text.stream import TokenStream
from engine.io import UsageError
from tests.dataset.test_text_build import made, prose, tokens

__all__ = ["prose"]


def legacy(root: Path, meta: object, ids: list[int], kind: str = "uint16") -> Path:
    root.mkdir()
    for split in ("train", "val"):
        np.array(ids, dtype=kind).tofile(root / f"{split}.bin")
    if meta is not None:
        (root / "meta.pkl").write_bytes(pickle.dumps(meta))
    return root


def test_a_nanogpt_folder_is_read(tmp_path: Path) -> None:
    chars = sorted("hello world")
    chars = list(dict.fromkeys(chars))
    meta = {"vocab_size": 8, "itos": dict(enumerate(chars)), "stoi": {c: n for n, c in enumerate(chars)}}
    root = legacy(tmp_path / "old", meta, [meta["stoi"][c] for c in "hello world"])
    assert load_tokenizer(root).decode(tokens(root, "train")) == "hello world"
    card = describe(root)
    assert (card["source"], card["tokenizer"]["vocab_size"], card["counts"]["val"]["tokens"]) == ("unknown", 8, 11)


def test_other_legacy_metas(tmp_path: Path) -> None:
    bare = read_meta(legacy(tmp_path / "bare", None, [50256]))
    assert (bare.vocab_size, bare.tokenizer, bare.dtype.name) == (50257, "gpt2", "uint16")
    # their meta counts 50256 tokens, though 50256 itself occurs
    gpt2 = {"vocab_size": 50256, "tokenizer": "tiktoken", "tiktoken_encoding": "gpt2"}
    assert read_meta(legacy(tmp_path / "gpt2", gpt2, [50256])).vocab_size == 50257
    wide = {"vocab_size": 100256, "tokenizer": "tiktoken", "tiktoken_encoding": "cl100k_base"}
    root = legacy(tmp_path / "wide", wide, [100257, 5], "uint32")
    assert tokens(root, "train").tolist() == [100257, 5]
    assert read_meta(root).vocab_size == 100277
    custom = legacy(tmp_path / "custom", {"vocab_size": 9, "tokenizer": "json_byte_fallback"}, [8])
    assert tokens(custom, "train").tolist() == [8]
    with pytest.raises(UsageError, match="no tokenizer"):
        load_tokenizer(custom)


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('/tmp/loopforge-owned').touch()",))


def test_a_malicious_pickle_is_refused(tmp_path: Path) -> None:
    root = legacy(tmp_path / "evil", {"vocab_size": 5, "itos": Evil()}, [1])
    with pytest.raises(UsageError, match=r"meta.pkl is refused: it asks for builtins.exec"):
        read_meta(root)
    assert not Path("/tmp/loopforge-owned").exists()
    (root / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": np.float64(5)}))
    with pytest.raises(UsageError, match=r"is refused: it asks for numpy"):
        read_meta(root)
    for content, words in (
        (b"junk", "cannot be read"),
        (pickle.dumps([1]), "dictionary"),
        (pickle.dumps({}), "vocab_size"),
    ):
        (root / "meta.pkl").write_bytes(content)
        with pytest.raises(UsageError, match=words):
            read_meta(root)


def test_mismatched_files_are_named(tmp_path: Path, prose: Path) -> None:
    made(tmp_path / "a", prose, tokenizer="char")
    made(tmp_path / "b", prose, tokenizer="byte")
    (tmp_path / "a" / "tokenizer.json").write_bytes((tmp_path / "b" / "tokenizer.json").read_bytes())
    with pytest.raises(UsageError, match=r"256 tokens, meta\.json says"):
        load_tokenizer(tmp_path / "a")
    made(tmp_path / "c", prose, tokenizer="char")
    for name, key, value in (("meta", "eot", 0), ("meta", "tokenizer", "byte"), ("tokenizer", "chars", ["e"])):
        path = tmp_path / "c" / f"{name}.json"
        raw = json.loads(path.read_text())
        changed = raw | {key: value * len(raw[key]) if isinstance(value, list) else value}
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=r"files of two sets|contains one of them twice"):
            load_tokenizer(tmp_path / "c")
        path.write_text(json.dumps(raw))
    assert load_tokenizer(tmp_path / "c").kind == "char"
    (tmp_path / "a" / "meta.json").write_text('{"vocab_size": 5, "dtype": "int8"}')
    with pytest.raises(UsageError, match="dtype must be uint16 or uint32, got 'int8'"):
        read_meta(tmp_path / "a")


def test_a_small_pickle_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    """Slot 2^29 of the memo in twelve bytes: the unpickler would make room for all slots before it."""
    root = legacy(tmp_path / "old", None, [1])
    (root / "meta.pkl").write_bytes(b"\x80\x02}r" + (1 << 29).to_bytes(4, "little") + b"(u.")
    with pytest.raises(UsageError, match="refused: it names slot"):
        read_meta(root)


@pytest.mark.parametrize(
    "meta", [{"vocab_size": 1 << 40, "itos": {}}, {"vocab_size": 1 << 24, "itos": {}}, {"vocab_size": True}]
)
def test_a_vocabulary_is_no_larger_than_its_table(tmp_path: Path, meta: dict) -> None:
    root = legacy(tmp_path / "old", meta, [1])
    if meta["vocab_size"] == 1 << 24:
        assert read_meta(root).tokenizer == "unknown"
    else:
        with pytest.raises(UsageError, match="vocab_size must be a whole number"):
            read_meta(root)


@pytest.mark.parametrize("meta", [None, "char", "json"])
@pytest.mark.parametrize("kind", ["int64", "uint64", "uint32", "int32"])
def test_wider_numbers_are_refused(tmp_path: Path, kind: str, meta: str | None) -> None:
    numbers = np.random.default_rng(0).integers(0, 60, 5000)
    for split in ("train", "val"):
        numbers.astype(kind).tofile(tmp_path / f"{split}.bin")
    if meta == "char":
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 60, "itos": dict(enumerate("x" * 60))}))
    elif meta == "json":
        (tmp_path / "meta.json").write_text(
            json.dumps({"vocab_size": 60, "dtype": "uint16", "tokens": {"train": 5000}})
        )
    with pytest.raises(UsageError, match=rf"holds numbers of {np.dtype(kind).itemsize * 8} bits, expected 16"):
        TokenStream(tmp_path, "train")
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 60, "dtype": "uint32"}))
    if "64" in kind:
        with pytest.raises(UsageError, match=r"holds numbers of 64 bits, expected 32"):
            TokenStream(tmp_path, "train")
    else:
        assert TokenStream(tmp_path, "train").tokens.tolist() == numbers.tolist()


def test_headers_are_refused(tmp_path: Path) -> None:
    ids = np.arange(1, 3001, dtype="<u2")
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    (tmp_path / "train.bin").write_bytes(header.tobytes() + ids.tobytes())
    np.save(tmp_path / "val.npy", ids)
    (tmp_path / "val.npy").rename(tmp_path / "val.bin")
    for split, message in (("train", "a header of llm.c"), ("val", "a header of numpy")):
        with pytest.raises(UsageError, match=message):
            TokenStream(tmp_path, split)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, prose: Path) -> None:
    made(tmp_path / "d", prose, tokenizer="char")
    path = tmp_path / "d" / "train.bin"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"train\.bin has 500 tokens, meta\.json says \d+: it was cut short"):
        TokenStream(tmp_path / "d", "train")


def test_lines_of_one_sign_are_no_wider_numbers(tmp_path: Path) -> None:
    """Every other token is the 0 of a newline; the builder's own count vouches for the width."""
    (tmp_path / "in.txt").write_text("".join(f"{n % 7}\n" for n in range(900)))
    made(tmp_path / "d", tmp_path / "in.txt", tokenizer="char")
    assert TokenStream(tmp_path / "d", "train").tokens[1] == 0
