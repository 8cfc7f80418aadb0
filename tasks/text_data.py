"""What verification has to know about data sets of text, for each family that trains on them: by meta.json or the table
of names; and tiny ones of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.io import read_bytes, read_json, user_path
from verification.data import TextPath

FIXED = ("byte", "gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
"""Tokenizers with one vocabulary for all texts; the others make theirs from the text."""
MODES = {"single": "dataset", "multidataset": "dataset_list", "multicontext": "multicontext_datasets"}


def text_data(config: dict[str, Any], folder: Path, local: bool) -> list[TextPath]:
    """The data sets of a config that trains on text, in the order of their key; none for other configs."""
    key = MODES.get(str(config.get("training_mode")), "")
    names = config.get(key)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list):
        return []
    return [read_text_data(str(name), key, folder, local, config.get("offline") != "error") for name in names]


def read_text_data(name: str, key: str, folder: Path, local: bool, stand_ins: bool) -> TextPath:
    """data/`name`, or `name` where it is a path (relative to `folder`)."""
    from dataset.text.named import NAMED

    path = name if "/" in name or name.startswith("~") else f"data/{name}"
    root = folder / user_path(path)
    if local and root.exists():
        return _there(TextPath(path, key, "there", "tokens"), root)
    entry = NAMED.get(Path(path).name)
    if entry is None:
        return TextPath(path, key, "unknown")
    state = "published"
    if entry.generated or (entry.offline and stand_ins):
        state = "built on first use" if entry.generated else f"published, else {entry.offline} in its place"
    kind = entry.tokenizer
    text = f"{entry.source} {entry.local} {entry.generated} {entry.offline}"
    vocabulary = kind if kind in FIXED else f"{kind} of {text}"
    origin = "dataset/text/named.py"
    return TextPath(path, key, state, "tokens", origin=origin, tokenizer=kind, vocabulary=vocabulary, text=text)


def _there(path: TextPath, root: Path) -> TextPath:
    missing = [f"{split}.bin" for split in ("train", "val") if not (root / f"{split}.bin").is_file()]
    if missing:
        return replace(path, problem=f"{path.path} has no {' and no '.join(missing)}")
    meta = root / "meta.json"
    if not meta.exists() and not (root / "meta.pkl").exists():  # nanoGPT's rule
        return replace(path, tokenizer="gpt2", vocabulary="gpt2", origin=f"{path.path}/train.bin")
    try:
        content: Any = read_json(meta) if meta.exists() else {}
        kind, lengths = str(content.get("tokenizer", "")), dict(content.get("tokens") or {})
        state = read_bytes(root / "tokenizer.json") if (root / "tokenizer.json").exists() else b""
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return replace(path, problem=f"{path.path}/meta.json cannot be used: {error!r}")
    # an old pickle is opened by the run, which refuses anything but a plain value
    vocabulary = kind if kind in FIXED or not kind else f"{kind} {hashlib.sha256(state).hexdigest()[:8]}"
    return replace(path, tokenizer=kind, vocabulary=vocabulary, lengths=lengths, origin=f"{path.path}/{meta.name}")


def write_tokens(
    folder: Path,
    lengths: Mapping[str, int],
    words: int,
    seeds: Iterable[int],
    *,
    key: tuple[int, ...] = (),
    eot: int = 0,
) -> None:
    """A data set of random text; with `eot` every so many-th token is the last word, which ends a document."""
    import numpy as np

    folder.mkdir(parents=True)
    for (split, count), seed in zip(lengths.items(), seeds, strict=True):
        tokens = np.random.default_rng((*key, count, seed)).integers(0, words - bool(eot), count)
        if eot:
            tokens[eot - 1 :: eot] = words - 1
        tokens.astype("<u2").tofile(folder / f"{split}.bin")
    meta = {"vocab_size": words, "dtype": "uint16", "tokens": dict(lengths)} | ({"eot": words - 1} if eot else {})
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
