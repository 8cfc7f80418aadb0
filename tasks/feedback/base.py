"""The frozen base of an adapter: a checkpoint of feedforward_train.py, identified by the sha256 of its weights.

The base is referenced, not copied: an adapter's run stores path and sha256, and refuses any other base.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dataset.text.vocabulary import Vocabulary, read_vocabularies
from engine.checkpoint.manifest import Checkpoint
from engine.checkpoint.state_tree import load_weights
from engine.errors import UsageError
from engine.io import print_rank0, sha256_file
from engine.run.load_run import find_checkpoint, read_config
from engine.task import Runtime
from models.feedback.base import BaseLM
from models.feedback.config import TextShape
from tasks.feedback.args import INDOMAIN_KEYS, FeedbackConfig, FeedforwardConfig
from tasks.feedback.family import FEEDFORWARD
from tasks.feedback.runs import BASE_KEYS, base_checkpoint
from tasks.loading import stored_weights

RAW, AVERAGED = "model.safetensors", "ema.safetensors"


def text_shape(vocab_size: int) -> TextShape:
    """The shape of a text model: MASK and PAD are the two ids after the tokenizer's `vocab_size`."""
    return TextShape(words=vocab_size, mask_id=vocab_size, pad_id=vocab_size + 1)


@dataclass(frozen=True, kw_only=True)
class FrozenBase:
    """A base without gradients or dropout."""

    model: BaseLM
    named: Path
    """The path in the config: `path`, or a link to it."""
    path: Path
    hashes: Mapping[str, str]
    """From `weight_hashes`."""
    step: int
    dataset: str
    """The data set it was trained on."""

    @property
    def sha256(self) -> str:
        """Hash of the weights in use."""
        return self.hashes[used_file(self.hashes)]

    def reference(self) -> dict[str, str]:
        """The reference to this base that an adapter's checkpoint stores."""
        return {"path": str(self.path), "file": used_file(self.hashes), "sha256": self.sha256}

    def trained_on(self, stored: Mapping[str, Any]) -> FrozenBase:
        """The base that the reference `stored` identifies: this one, or the earlier target of its link, whose weights
        are then loaded into `model`. Raises: UsageError as `require_same`."""
        path = resolve_base(self.named, self.hashes, stored)
        if path == self.named:
            return self
        checkpoint = find_checkpoint(path, checksums=True)
        load_weights(self.model, stored_weights(checkpoint)[0])
        self.model.freeze()
        path = Path(os.path.relpath(checkpoint.path))
        print_rank0(
            f"base        {path} (step {checkpoint.step}), on which this run was trained: "
            f"{self.named.name} has moved on"
        )
        return replace(self, path=path, hashes=weight_hashes(path), step=checkpoint.step)


def weight_hashes(checkpoint: Path) -> dict[str, str]:
    """File name -> sha256 of the raw weights in a base's checkpoint, and of the averaged ones if it has any."""
    return {name: sha256_file(checkpoint / name) for name in (RAW, AVERAGED) if (checkpoint / name).exists()}


def used_file(hashes: Mapping[str, str]) -> str:
    """The file that a base's weights are loaded from: the averaged ones if there are any."""
    return AVERAGED if AVERAGED in hashes else RAW


def matches(hashes: Mapping[str, str], stored: Mapping[str, Any]) -> bool:
    """Whether weights with these `hashes` are those of the reference `stored`."""
    file = stored.get("file")
    # An earlier version stored no file, and always the hash of the raw weights.
    return file in (None, used_file(hashes)) and hashes.get(file or RAW) == str(stored.get("sha256"))


def require_same(path: Path, hashes: Mapping[str, str], stored: Mapping[str, Any], run: str = "this run") -> None:
    """Raise UsageError unless the base in `path`, with these `hashes`, is the one that `stored` refers to."""
    if matches(hashes, stored):
        return
    sha256 = str(stored.get("sha256"))
    where = location_hint(path, sha256)
    if not where and not os.path.exists(str(stored.get("path"))):
        where = (
            ", which no longer exists: restore it from a copy, or train again on a checkpoint that is kept (keep_every "
            "and save_epoch_interval of the base keep some)"
        )
    own = hashes.get(used_file(hashes), "")
    raise UsageError(
        f"ff_checkpoint_dir: {path} is another base (sha256 {own[:12]}) than the one that {run} was "
        f"trained on ({stored.get('path')}, sha256 {sha256[:12]}): that one is needed{where}"
    )


def resolve_base(named: Path, hashes: Mapping[str, str], stored: Mapping[str, Any], run: str = "this run") -> Path:
    """The base that `stored` refers to: `named`, the path in the config with these `hashes`, or, if that is a link that
    has moved on, the checkpoint that it pointed to.

    Raises: UsageError as `require_same`.
    """
    kept = named.resolve().parent / Path(str(stored.get("path"))).name
    if not matches(hashes, stored) and is_moving(named) and kept.is_dir() and matches(weight_hashes(kept), stored):
        return kept
    require_same(named, hashes, stored, run)
    return named


def is_moving(link: Path) -> bool:
    """Whether training moves this link: epoch_ckpt_<dataset>.pt points to the newest checkpoint,
    best_ckpt_<dataset>.pt to the best. Links with the number of an epoch stay."""
    unnumbered = link.with_name(re.sub(r"_\d+\.pt$", ".pt", link.name))
    return link.is_symlink() and link.suffix == ".pt" and (unnumbered == link or not unnumbered.is_symlink())


def base_overrides(checkpoint: Checkpoint, config: FeedbackConfig) -> dict[str, str]:
    """Overrides of `config` that name the base on which the adapter of `checkpoint` was trained; empty if the config
    names it. Raises: UsageError as `require_same`."""
    named = find_base(config)
    stored = checkpoint.state(rank=0, world_size=1)["task"]["base"]
    path = resolve_base(named, weight_hashes(named), stored, str(checkpoint.path))
    return {} if path == named else {"ff_checkpoint_dir": str(path.parent), "ff_checkpoint_name": path.name}


def location_hint(path: Path, sha256: str) -> str:
    """`, which is in FOLDER`, for an error message, if weights with this hash are in another checkpoint of the run of
    `path`, or in an earlier run that was moved aside; else "".
    """
    run = path.resolve().parent.parent
    for folder in (run, *sorted(run.parent.glob(f"{glob.escape(run.name)}.*"))):
        for weights in sorted(folder.glob("checkpoints/step_*")):
            if sha256 in weight_hashes(weights).values():
                return f", which is in {weights}"
    return ""


def find_base(config: FeedbackConfig) -> Path:
    """The base's checkpoint. Raises: UsageError if it does not exist."""
    return base_checkpoint(config.ff_checkpoint_dir, config.ff_checkpoint_name, config.out_dir, config.active_dataset)


def find_indomain(config: FeedbackConfig) -> Path | None:
    """The checkpoint of the in-domain base; None if the config names none. Raises: UsageError if it does not exist."""
    if config.indomain_checkpoint_dir is None:
        return None
    name = config.indomain_checkpoint_name or f"best_ckpt_{config.active_dataset}.pt"
    where = config.out_dir, config.active_dataset
    return base_checkpoint(config.indomain_checkpoint_dir, name, *where, keys=INDOMAIN_KEYS)


def load_base(config: FeedbackConfig, runtime: Runtime, data: Vocabulary) -> FrozenBase:
    """Load the base that `config` names, with its averaged weights if it keeps any; `data` is the vocabulary of the
    text that the adapter reads.

    Raises: UsageError if it does not exist, was written by another script, has another vocabulary than the data, or a
    shorter block_size.
    """
    path = find_base(config)
    base, _ = _load(path, BASE_KEYS[0], config, runtime, data)
    for key, value in config.model.items():
        own = getattr(base.model.config, key, value)
        if own != value:
            print_rank0(f"note: model.{key}={value} is not the base's, which has {own}: its checkpoint decides")
    print_rank0(f"base        {_facts(base)}")
    if is_moving(path):
        print_rank0(
            f"note: ff_checkpoint_name={path.name} is a link that moves when the base trains further; it now points to "
            f"{base.path.name}. A run keeps the checkpoint that it started with"
        )
    return base


def load_indomain(config: FeedbackConfig, runtime: Runtime, data: Vocabulary, objective: str) -> BaseLM | None:
    """Load the in-domain base, trained on the active data set; None if the config names none. `objective` is the
    adapted base's: losses of different objectives are not comparable.

    Raises: UsageError as `load_base`, and for a base of other data or of another objective.
    """
    path = find_indomain(config)
    if path is None:
        return None
    key = INDOMAIN_KEYS[0]
    # Creating a model draws random weights, and training must not depend on whether there is a base to compare with.
    with torch.random.fork_rng([runtime.device] if runtime.device.type == "cuda" else []):
        base, stored = _load(path, key, config, runtime, data)
    if base.dataset != config.active_dataset and stored.dataset.folder != config.dataset.folder:
        raise UsageError(
            f"{key}: {path} was trained on {base.dataset}, expected a base of active_dataset={config.active_dataset}"
        )
    if base.model.config.objective != objective:
        raise UsageError(
            f"{key}: {path} has arch.objective={base.model.config.objective}, expected {objective}, as of the base "
            "that is adapted"
        )
    print_rank0(f"in-domain   {_facts(base)}: val/gap_closed is the share of the way from the base to it")
    return base.model


def _facts(base: FrozenBase) -> str:
    averaged = ", averaged weights" if used_file(base.hashes) == AVERAGED else ""
    return f"{base.path} (step {base.step}, trained on {base.dataset}{averaged}), sha256 {base.sha256[:12]}"


def _load(
    path: Path, key: str, config: FeedbackConfig, runtime: Runtime, data: Vocabulary
) -> tuple[FrozenBase, FeedforwardConfig]:
    """(the base in `path`, its own config); `key` of `config` named it."""
    checkpoint = find_checkpoint(path, checksums=True)
    if checkpoint.entry != FEEDFORWARD.entry:
        raise UsageError(f"{key}: {path} was written by {checkpoint.entry}.py, not by {FEEDFORWARD.entry}.py")
    stored: FeedforwardConfig = read_config(checkpoint, FeedforwardConfig, device=config.device)
    shape = text_shape(require_vocabulary(checkpoint, data))
    model, _ = FEEDFORWARD.create_model(stored, shape, runtime)
    load_weights(model, stored_weights(checkpoint)[0])
    if config.dataset.block_size > model.config.block_size:
        raise UsageError(
            f"datasets.{config.active_dataset}.block_size={config.dataset.block_size} is longer than "
            f"arch.block_size={model.config.block_size} of {path} ({key}): lower it"
        )
    base = FrozenBase(
        model=model.freeze(),
        named=path,
        path=Path(os.path.relpath(checkpoint.path)),
        hashes=weight_hashes(checkpoint.path),
        step=checkpoint.step,
        dataset=stored.active_dataset,
    )
    return base, stored


def require_vocabulary(checkpoint: Checkpoint, data: Vocabulary) -> int:
    """The vocabulary size of the base of `checkpoint`, whose vocabulary must be `data`.

    Raises: UsageError if they differ, naming both tokenizers.
    """
    kept = read_vocabularies(checkpoint.path.resolve().parent.parent)
    if not kept:
        raise UsageError(f"{checkpoint.path}: its run keeps no vocabularies.json, so its tokens are unknown")
    if kept[0].state != data.state:
        raise UsageError(
            f"the base {checkpoint.path} reads tokens of {_describe(kept[0])}, the data are in tokens of "
            f"{_describe(data)}: choose data with the base's tokenizer (datasets.NAME.tokenizer_name)"
        )
    return kept[0].size


def _describe(vocabulary: Vocabulary) -> str:
    kind = vocabulary.state.get("type") if vocabulary.state else "unknown"
    return f"'{kind}' ({vocabulary.size}, {vocabulary.path})"
