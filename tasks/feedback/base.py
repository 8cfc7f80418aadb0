"""The frozen base of an adapter: a checkpoint of feedforward_train.py, known by the sha256 of its weights.

It is referenced, not copied: a run of an adapter stores path and sha256, and is refused on another base.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.text.vocabulary import Vocabulary, read_vocabularies
from engine.checkpoint.manifest import Checkpoint
from engine.checkpoint.store import load_weights
from engine.errors import UsageError
from engine.io import print_rank0, sha256_file
from engine.run.load_run import find_checkpoint, read_config
from engine.task import Runtime
from models.feedback.base import BaseLM
from models.feedback.config import TextShape
from tasks.feedback.args import FeedbackConfig, FeedforwardConfig
from tasks.feedback.family import FEEDFORWARD
from tasks.feedback.runs import base_checkpoint


def text_shape(words: int) -> TextShape:
    """MASK and PAD are the two numbers behind the tokenizer's."""
    return TextShape(words=words, mask_id=words, pad_id=words + 1)


@dataclass(frozen=True, kw_only=True)
class FrozenBase:
    """A base without gradients or dropout."""

    model: BaseLM
    path: Path
    sha256: str
    """Of its weights."""
    step: int
    dataset: str
    """What it was trained on."""

    def reference(self) -> dict[str, str]:
        """What a checkpoint of its adapter keeps of it."""
        return {"path": str(self.path), "sha256": self.sha256}

    def require(self, stored: Mapping[str, Any]) -> None:
        """Raises: UsageError where an adapter of the base `stored` would be used on this one."""
        if stored.get("sha256") != self.sha256:
            raise UsageError(
                f"ff_checkpoint_dir: {self.path} is another base (sha256 {self.sha256[:12]}) than the one that this "
                f"run was trained on ({stored.get('path')}, sha256 {str(stored.get('sha256'))[:12]}): give that one"
                + where_it_lies(self.path, str(stored.get("sha256")))
            )


def where_it_lies(path: Path, sha256: str) -> str:
    """`, which is in FOLDER` for the end of an error, where weights of this hash are in another checkpoint of the run
    of `path`, or in a run that was set aside from its place; else empty."""
    run = path.resolve().parent.parent
    for folder in (run, *sorted(run.parent.glob(f"{glob.escape(run.name)}.*"))):
        for weights in sorted(folder.glob("checkpoints/step_*/model.safetensors")):
            if sha256_file(weights) == sha256:
                return f", which is in {weights.parent}"
    return ""


def find_base(config: FeedbackConfig) -> Path:
    """The base's checkpoint. Raises: UsageError where it is not there."""
    return base_checkpoint(config.ff_checkpoint_dir, config.ff_checkpoint_name, config.out_dir, config.active_dataset)


def load_base(config: FeedbackConfig, runtime: Runtime, data: Vocabulary) -> FrozenBase:
    """The base that `config` names, on the device, with its averaged weights where it keeps any; `data` is the
    vocabulary of the text that its adapter reads.

    Raises: UsageError: there is none, it was written by another script, it reads other tokens than those of the data,
    or shorter texts than the data have.
    """
    path = find_base(config)
    checkpoint = find_checkpoint(path, checksums=True)
    if checkpoint.entry != FEEDFORWARD.entry:
        raise UsageError(
            f"ff_checkpoint_dir: {path} was written by {checkpoint.entry}.py, not by {FEEDFORWARD.entry}.py"
        )
    stored: FeedforwardConfig = read_config(checkpoint, FeedforwardConfig, device=config.device)
    shape = text_shape(require_tokens(checkpoint, data))
    model, _ = FEEDFORWARD.create_model(stored, shape, runtime)
    load_weights(model, {**checkpoint.model, **(checkpoint.ema or {})}, strict=True)
    if config.dataset.block_size > model.config.block_size:
        raise UsageError(
            f"datasets.{config.active_dataset}.block_size={config.dataset.block_size} is longer than the base's "
            f"arch.block_size={model.config.block_size}: lower it"
        )
    for key, value in config.model.items():
        own = getattr(model.config, key, value)
        if own != value:
            print_rank0(f"note: model.{key}={value} is not the base's, which has {own}: its checkpoint decides")
    base = FrozenBase(
        model=model.freeze(),
        path=Path(os.path.relpath(checkpoint.path)),
        sha256=sha256_file(checkpoint.path / "model.safetensors"),
        step=checkpoint.step,
        dataset=stored.active_dataset,
    )
    averaged = ", averaged weights" if checkpoint.ema else ""
    print_rank0(
        f"base        {base.path} (step {base.step}, trained on {base.dataset}{averaged}), sha256 {base.sha256[:12]}"
    )
    return base


def require_tokens(checkpoint: Checkpoint, data: Vocabulary) -> int:
    """The number of words that the base of `checkpoint` reads, which are those of the vocabulary `data`.

    Raises: UsageError where they are not, naming both tokenizers.
    """
    kept = read_vocabularies(checkpoint.path.resolve().parent.parent)
    if not kept:
        raise UsageError(f"{checkpoint.path}: its run keeps no vocabularies.json, so its tokens are unknown")
    if kept[0].state != data.state:
        raise UsageError(
            f"the base {checkpoint.path} reads tokens of {_named(kept[0])}, the data are in tokens of {_named(data)}: "
            "choose data with the base's tokenizer (datasets.NAME.tokenizer_name)"
        )
    return kept[0].size


def _named(vocabulary: Vocabulary) -> str:
    kind = vocabulary.state.get("type") if vocabulary.state else "unknown"
    return f"'{kind}' ({vocabulary.size}, {vocabulary.path})"
