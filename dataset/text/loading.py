"""The data of a train.py run: checks or builds the folders, and opens training and evaluation batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset.text.batches import EvalBatches, TrainBatches
from dataset.text.mixture import Mixture
from dataset.text.named import build_command, ensure_text
from dataset.text.stream import TokenStream
from engine.io import UsageError, user_path

Split = Literal["train", "val"]
# Most tokens and logits of one forward pass of an evaluation: batches are merged, as calls dominate in small models.
PASS_TOKENS, PASS_LOGITS = 1 << 13, 1 << 26


@dataclass(kw_only=True)
class HeldOut:
    """One data set's evaluation: batches of a split, and the figures that convert nats to bits per byte."""

    name: str
    split: Split
    batches: EvalBatches
    bytes_per_token: float | None = None
    eot: int | None = None
    """End-of-document token: it has no bytes of text, so its nats do not count for bits per byte."""
    stream: int | None = None
    """Index of its vocabulary in the model, if each data set has its own."""


@dataclass(kw_only=True)
class OpenedText:
    """The result of `open_text`: K data sets, or K aligned streams."""

    folders: list[Path]
    vocab_sizes: tuple[int, ...]
    """The size of each vocabulary of the model."""
    batches: TrainBatches
    held_out: list[HeldOut]
    weights: list[float] = field(default_factory=lambda: [1.0])
    """Average share of training of each data set."""
    cards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def covers(self) -> str:
        """Description of the data of a validation loss."""
        entries = [entry for entry in self.held_out if entry.split == "val"]
        several = len(entries) > 1
        return ", ".join(entry.batches.covers + (f" of {entry.name}" if several else "") for entry in entries)


def folder_of(name: str) -> Path:
    """`data/<name>`; a path (also one with a leading data/ or ./data/) is kept, with `~` expanded."""
    return user_path(name) if "/" in name or name.startswith("~") else Path("data") / name


def ensure_data(config: Any) -> list[dict[str, Any]]:
    """Cards of the data sets of a `TrainConfig`; a missing one, or its stand-in, is built, which is printed.

    Raises: UsageError for data that are not available, naming the folder and the command that builds it.
    """
    folders = [folder_of(name) for name in dict.fromkeys(_names(config))]
    for folder in folders if config.from_file else ():
        if not folder.exists():
            lists = {"multidataset": "dataset_list", "multicontext": "multicontext_datasets"}
            key = lists.get(config.training_mode, "dataset")
            raise UsageError(
                f"{folder} does not exist, and a run's config does not build data: {key} (of evaluate.py: --data) says "
                f"where it was moved to, else {build_command(folder)}"
            )
    return [ensure_text(folder, offline=config.offline) for folder in folders]


def dataset_folders(config: Any) -> list[Path]:
    """Folders of the data sets of a `TrainConfig`, in the order of the model's vocabularies or streams."""
    return [folder_of(name) for name in _names(config)]


def separate_vocabularies(config: Any) -> bool:
    """Whether each data set or stream of a `TrainConfig` has its own vocabulary in the model."""
    return config.training_mode == "multicontext" or config.multidataset_wte


def model_sizes(config: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a model's vocabularies, from those of its data sets: one for each, or one shared by all."""
    return tuple(sizes) if separate_vocabularies(config) else (max(sizes),)


def _names(config: Any) -> list[str]:
    """Aligned streams as listed; the data sets of a mixture without repeats."""
    if config.training_mode == "multicontext":
        return list(config.multicontext_datasets)
    return list(dict.fromkeys(_listed(config))) if config.training_mode == "multidataset" else [config.dataset]


def _listed(config: Any) -> list[str]:
    """The items of dataset_list; spellings of the same folder (`a`, `data/a`) become the first of them."""
    first: dict[str, str] = {}
    return [first.setdefault(os.path.realpath(folder_of(name)), name) for name in config.dataset_list]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names of data sets in metrics and samples: the folder's name, with its parent's if two have the same."""
    names = [folder.name for folder in folders]
    for depth in range(2, max((len(folder.absolute().parts) for folder in folders), default=0)):
        twice = {name for name in names if names.count(name) > 1}
        names = [
            "-".join(folder.absolute().parts[-depth:]) if name in twice else name
            for name, folder in zip(names, folders, strict=True)
        ]
    return names


def open_text(config: Any, *, block_size: int, rows: int) -> OpenedText:
    """Open the data sets of a `TrainConfig`, for a global batch of `rows` sequences of `block_size` tokens.

    Raises: UsageError for data that are not available or do not fit together, naming the folder.
    """
    mode, order = config.training_mode, _names(config)
    cards = ensure_data(config)
    titles = short_names([folder_of(name) for name in order])
    train = [TokenStream(folder_of(name), "train", name=title) for name, title in zip(order, titles, strict=True)]
    contexts = mode == "multicontext"
    mixture = None
    if mode == "multidataset":
        mixture = Mixture(
            _listed(config),
            seed=config.seed,
            max_steps=config.max_iters,
            probs=config.dataset_sampling_probs,
            probs_final=config.dataset_sampling_probs_final,
            transition=config.dataset_sampling_probs_transition_method,
            interleaving=config.dataset_interleaving,
            shuffle=config.dataset_interleaving_shuffle,
        )
    batches = TrainBatches(
        train,
        seed=config.seed,
        batch_size=rows,
        block_size=block_size,
        method=config.sampling_method,
        mixture=mixture,
        contexts=contexts,
        align=config.multicontext_align,
    )
    return OpenedText(
        folders=[stream.root for stream in train],
        vocab_sizes=model_sizes(config, [stream.meta.vocab_size for stream in train]),
        batches=batches,
        held_out=_held_out(config, order, titles, block_size, contexts),
        weights=mixture.probabilities(config.max_iters // 2).tolist() if mixture else [1.0],
        cards=cards,
    )


def _held_out(
    config: Any, names: Sequence[str], titles: Sequence[str], block_size: int, contexts: bool
) -> list[HeldOut]:
    """The validation split of every data set, then (eval_train) as much of the training split."""
    groups = [names] if contexts else [[name] for name in names]
    titles = ["+".join(titles)] if contexts else titles
    entries = []
    for number, (group, title) in enumerate(zip(groups, titles, strict=True)):
        validation = _batches(config, group, "val", block_size, contexts, windows=None)
        entries.append(_entry(config, title, "val", validation, number, contexts))
        if config.eval_train:
            windows = validation.windows if config.eval_mode == "sweep" else None
            training = _batches(config, group, "train", block_size, contexts, windows=windows)
            entries.append(_entry(config, title, "train", training, number, contexts))
    return sorted(entries, key=lambda entry: entry.split == "train")  # all validation losses first


def _batches(
    config: Any, group: Sequence[str], split: Split, block_size: int, contexts: bool, *, windows: int | None
) -> EvalBatches:
    """At most eval_iters batches of batch_size rows (and at most `windows` rows), several merged into one pass."""
    streams = [TokenStream(folder_of(name), split) for name in group]
    tokens = config.batch_size * block_size
    logits = tokens * max(stream.meta.vocab_size for stream in streams)
    room = max(1, min(PASS_TOKENS // tokens, PASS_LOGITS // logits))
    limit = config.eval_iters
    if windows is not None:
        limit = min(limit or windows, -(-windows // config.batch_size))
    merged = max(f for f in range(1, room + 1) if limit is None or limit % f == 0)
    return EvalBatches(
        streams,
        seed=config.eval_seed,
        batch_size=config.batch_size * merged,
        block_size=block_size,
        mode=config.eval_mode,
        max_batches=None if limit is None else limit // merged,
        contexts=contexts,
        align=config.multicontext_align,
    )


def _entry(config: Any, name: str, split: Split, batches: EvalBatches, number: int, contexts: bool) -> HeldOut:
    first = batches.data.streams[0]
    ratio = None if contexts else first.bytes_per_token
    return HeldOut(
        name=name,
        split=split,
        batches=batches,
        bytes_per_token=ratio,
        eot=first.meta.eot if ratio else None,
        stream=number if config.multidataset_wte else None,
    )
