"""From a corpus to a data set: workers encode pieces, one process writes them in order, atomically."""

from __future__ import annotations

import functools
import hashlib
import io
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset.metadata import read_card
from dataset.text.corpus import Corpus, Piece, read_corpus, sample_texts
from dataset.text.meta import META, SPLITS, TOKENIZER, load_tokenizer, read_meta
from dataset.text.splits import files_of
from dataset.text.tokenizer import TOKENIZERS, Tokenizer, fit, width
from dataset.workers import ordered_map
from dataset.writing import CARD, REHASH_BYTES, building, write_json
from engine.io import (
    Unreadable,
    UsageError,
    atomic_directory,
    available_cores,
    open_regular,
    print_rank0,
    progress,
    read_bytes,
    reason_of,
    sha256_file,
)

BUILDER_VERSION = 1
# Files of a text data set. A folder with any other file is not replaced: nanoGPT keeps input.txt and prepare.py next to
# its token files.
OURS = {"train.bin", "val.bin", META, TOKENIZER, CARD, "meta.pkl"}
# Most text on which a subword tokenizer is trained: more does not change a vocabulary of these sizes.
FIT_BYTES = 256 << 20
MOST_REPEATED = 0.01
"""Share of held-out documents that may occur in training without a warning: headings, short answers."""


@dataclass(frozen=True, kw_only=True)
class TextBuild:
    """What to build; the flags of dataset/build_text_dataset.py."""

    output_dir: Path
    inputs: tuple[Path, ...]
    source: str
    """Description of the text's origin, for the card."""
    published: tuple[str, ...] = ()
    """sha256 of the files of `source`; if others are read, the card says so."""
    tokenizer: str = "bpe"
    vocab_size: int | None = None
    tokenizer_from: Path | None = None
    """Data set whose tokenizer is used."""
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
    keys: tuple[str, ...] = ("text",)
    template: str = ""
    """Template of a document with `{field}` for each key; empty: the values, one per line."""
    lines: bool = False
    """Each line of a plain text is a document."""
    seed: int = 1337
    workers: int | None = None
    overwrite: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    """Further entries of the card, such as stand_in."""


@dataclass(frozen=True)
class _Encoder:
    """Encodes a piece; inherited by the workers."""

    tokenizer: Tokenizer
    documents: bool

    def __call__(self, piece: Piece) -> tuple[np.ndarray, dict[str, int]]:
        texts = piece.texts()
        encoded = []
        for text in texts:
            try:
                encoded.append(self.tokenizer.encode(text))
            except UsageError as error:  # a tokenizer fitted to other data
                raise UsageError(f"{piece.path}: {error}") from None
            if self.documents and self.tokenizer.eot is not None:
                encoded.append(np.array([self.tokenizer.eot], dtype=encoded[-1].dtype))
        tokens = np.concatenate(encoded) if encoded else np.zeros(0, dtype=width(self.tokenizer.vocab_size))
        counts = {
            "tokens": len(tokens),
            "bytes": sum(len(text.encode()) for text in texts),
            "characters": sum(map(len, texts)),
        }
        return tokens, counts | ({"documents": len(texts)} if self.documents else {})


def _write(stream: BinaryIO, results: Iterator[tuple[np.ndarray, dict[str, int]]]) -> dict[str, int]:
    total = Counter[str]()
    for tokens, counts in results:
        stream.write(np.ascontiguousarray(tokens).data)
        total.update(counts)
    return dict(total)


def _open(path: Path) -> io.BufferedReader:
    try:
        return open_regular(path)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{path} {reason_of(error)}") from None


def content_hash(root: str | Path) -> str:
    """sha256 over split, type, length and bytes of both token files, and the tokenizer.

    Equal hashes mean equal data, on whatever machine and with however many workers they were built.
    """
    root, digest = Path(root), hashlib.sha256()
    meta = read_meta(root)
    for split in SPLITS:
        path = root / f"{split}.bin"
        if path.exists():
            digest.update(f"{split}/{meta.dtype.str}/{path.stat().st_size // meta.dtype.itemsize}\n".encode())
            with _open(path) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    if (root / TOKENIZER).exists():
        try:
            digest.update(read_bytes(root / TOKENIZER))
        except (OSError, Unreadable) as error:
            raise UsageError(f"{root / TOKENIZER} {reason_of(error)}") from None
    return digest.hexdigest()


def refuse_existing(root: Path, *, overwrite: bool) -> None:
    """Raise UsageError if something at `root` may not be replaced by the build."""
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError(f"{root} is a file: choose another --output-dir")
    if overwrite:
        if foreign := sorted({path.name for path in root.iterdir()} - OURS):
            raise UsageError(
                f"{root} holds {foreign[0]}, which is not part of a text data set, so --overwrite leaves it alone: "
                "choose another --output-dir"
            )
    else:
        card = describe_text(root) if (root / CARD).exists() and (root / META).exists() else {}
        what = f" and is a stand-in ({card['source']})" if card.get("stand_in") else ""
        raise UsageError(f"{root} exists already{what}: pass --overwrite to replace it, or choose another --output-dir")


def _tokenizer(plan: TextBuild, corpus: Corpus) -> Tokenizer:
    if plan.tokenizer_from is not None:
        if plan.vocab_size is not None:
            raise UsageError(
                "--tokenizer-from and --vocab-size exclude each other: the vocabulary is that of the data set"
            )
        return load_tokenizer(plan.tokenizer_from)
    whole = plan.tokenizer in TOKENIZERS and TOKENIZERS[plan.tokenizer].whole
    pieces = [*corpus.train, *corpus.val] if whole else corpus.train
    texts = sample_texts(pieces, max(1, sum(p.high - p.low for p in pieces)) if whole else FIT_BYTES)
    tokenizer = fit(plan.tokenizer, texts, vocab_size=plan.vocab_size, eot=corpus.documents)
    if plan.vocab_size is not None and tokenizer.vocab_size < plan.vocab_size:
        print_rank0(
            f"note: this corpus gives {tokenizer.vocab_size:,} tokens, fewer than --vocab-size {plan.vocab_size}"
        )
    return tokenizer


def build(plan: TextBuild) -> dict[str, Any]:
    """Build the data set of `plan` and return its card plus `seconds`. Workers never change the data.

    Raises: UsageError for a plan, an input or an output folder that cannot be used; nothing is left behind.
    """
    began = time.perf_counter()
    with building(plan.output_dir) as root:
        refuse_existing(root, overwrite=plan.overwrite)
        files = files_of(plan.inputs, train_split=plan.train_split, val_split=plan.val_split)
        corpus = read_corpus(
            files.train,
            files.val,
            keys=plan.keys,
            val_fraction=plan.val_fraction,
            seed=plan.seed,
            template=plan.template,
            lines=plan.lines,
        )
        if files.left_out:
            more = f" and {len(files.left_out) - 8} more" if len(files.left_out) > 8 else ""
            print_rank0(f"note: left out: {', '.join(files.left_out[:8])}{more}")
        tokenizer = _tokenizer(plan, corpus)
        needed = 2 * sum(path.stat().st_size for path in corpus.files)
        free = shutil.disk_usage(root.parent).free
        if needed > free:
            have, want = f"{free / (1 << 20):,.1f}", f"{needed / (1 << 20):,.1f}"
            raise UsageError(f"{root.parent} has {have} MiB free; the token files may need {want} MiB")
        with atomic_directory(root, replace=plan.overwrite) as folder:
            counts = {split: _encode(plan, tokenizer, corpus, split, folder) for split in SPLITS}
            card = _finish(plan, tokenizer, corpus, counts, folder)
    return {**card, "seconds": round(time.perf_counter() - began, 2)}


def _encode(plan: TextBuild, tokenizer: Tokenizer, corpus: Corpus, split: str, folder: Path) -> dict[str, int]:
    pieces = corpus.train if split == "train" else corpus.val
    tokenizer.encode("")  # loads its tables once, before the workers are forked
    workers = plan.workers or min(available_cores(), len(pieces))
    results = ordered_map(_Encoder(tokenizer, corpus.documents), pieces, workers=workers)
    with open(folder / f"{split}.bin", "wb") as stream:
        counts = _write(stream, progress(results, total=len(pieces), label=f"encoding {split}"))
    if counts.get("tokens", 0) < 2:
        raise UsageError(f"the {split} split would have {counts.get('tokens', 0)} token(s): give more text")
    if not counts["bytes"]:
        raise UsageError(f"all documents of the {split} split are empty: give more text, or other --json-key fields")
    return counts


def _repeated(corpus: Corpus) -> int:
    """Count held-out documents that also occur in the training split, word for word."""

    def hashes(pieces: Sequence[Piece]) -> Iterator[bytes]:
        return (hashlib.blake2b(text.encode(), digest_size=8).digest() for piece in pieces for text in piece.texts())

    held = Counter(hashes(corpus.val))
    return sum(held[digest] for digest in {digest for digest in hashes(corpus.train) if digest in held})


def _finish(
    plan: TextBuild, tokenizer: Tokenizer, corpus: Corpus, counts: dict[str, dict[str, int]], folder: Path
) -> dict[str, Any]:
    """Write meta, tokenizer and card next to the token files; returns the card."""
    kind = str(width(tokenizer.vocab_size).newbyteorder("=").name)
    meta = {
        "format": "loopforge-text",
        "version": 1,
        "vocab_size": tokenizer.vocab_size,
        "dtype": kind,
        "eot": tokenizer.eot,
        "tokenizer": tokenizer.kind,
        "tokens": {split: counts[split]["tokens"] for split in SPLITS},
    }
    if tokenizer.lossless:
        meta["bytes"] = {split: counts[split]["bytes"] for split in SPLITS}
    write_json(folder / META, meta)
    write_json(folder / TOKENIZER, tokenizer.state(), indent=None)
    load_tokenizer(folder)  # before the folder is renamed into place: it can be loaded
    ratio = {split: round(counts[split]["bytes"] / counts[split]["tokens"], 4) for split in SPLITS}
    split = {"rule": corpus.rule}
    if plan.train_split or plan.val_split:
        split |= {"train": plan.train_split or "train", "val": plan.val_split or "valid"}
    files = [{"name": path.name, "sha256": sha256_file(path)} for path in corpus.files[:100]]
    held = counts["val"].get("documents", 0)
    if sha256_file(folder / "train.bin") == sha256_file(folder / "val.bin"):
        print_rank0("warning: val is train, token for token: a validation loss on it says nothing about other text")
    elif held and "generator" not in plan.card and (repeated := _repeated(corpus)) > held * MOST_REPEATED:
        print_rank0(
            f"warning: {repeated:,} of {held:,} held-out documents also occur in the training split, word for word: a "
            "validation loss on them says little about other text"
        )
    known = not plan.published or all(file["sha256"] in plan.published for file in files)
    card = {
        "name": plan.output_dir.name,
        "source": plan.source if known else f"local files, not the published {plan.source}",
        "stand_in": False,
        "builder": "dataset.build_text_dataset",
        "builder_version": BUILDER_VERSION,
        "python": platform.python_version(),
        "files": files,
        "split": split,
        **({"template": plan.template} if plan.template else {}),
        "seed": plan.seed,
        "tokenizer": {"type": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot},
        "dtype": kind,
        "counts": counts,
        "bytes_per_token": ratio,
        **plan.card,
        "content_hash": content_hash(folder),
    }
    write_json(folder / CARD, card)
    return card


@functools.cache
def _hash_once(root: Path, stamp: tuple[tuple[int, int], ...]) -> str:
    return content_hash(root)


def describe_text(root: str | Path) -> dict[str, Any]:
    """The card of a text data set with its `path`, and `modified: true` if the files have changed since.

    A data set without a card (made by nanoGPT's prepare.py) gets one: source `unknown`, counts and content hash.

    Raises: UsageError for a folder that is not a text data set.
    """
    root = Path(root)
    meta = read_meta(root)
    files = [root / f"{split}.bin" for split in SPLITS if (root / f"{split}.bin").exists()]
    card: dict[str, Any] = {"name": root.name, "source": "unknown", "stand_in": False, "dtype": meta.dtype.name}
    if (root / CARD).exists():
        card = read_card(root / CARD)
    else:
        card["tokenizer"] = {"type": meta.tokenizer, "vocab_size": meta.vocab_size, "eot": meta.eot}
        card["counts"] = {p.stem: {"tokens": p.stat().st_size // meta.dtype.itemsize} for p in files}
    stats = [path.stat() for path in files]
    if "content_hash" not in card or sum(stat.st_size for stat in stats) <= REHASH_BYTES:
        actual = _hash_once(root.resolve(), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
        if actual != card.setdefault("content_hash", actual):
            card.update(modified=True, content_hash=actual)
    return {"path": str(root), **card}
