"""Load a run of a feedback script without its data: sampling only needs the run and its base."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.text.tokenizer import Tokenizer
from dataset.text.vocabulary import read_vocabularies
from engine.checkpoint.state_tree import load_weights
from engine.device import make_runtime
from engine.errors import UsageError
from engine.registry import family_of
from engine.run.load_run import find_checkpoint, read_config
from models.feedback.adapter_config import AdapterShape
from models.feedback.config import TextShape
from tasks.feedback.args import FeedbackConfig
from tasks.feedback.base import FrozenBase, base_overrides, load_base, text_shape
from tasks.loading import data_root, pick_checkpoint, stored_weights


@dataclass(kw_only=True)
class FeedbackRun:
    """A model in evaluation mode, its base if it is an adapter, and its tokenizer."""

    model: Any
    base: FrozenBase | None
    config: Any
    runtime: Any
    shape: TextShape
    tokenizer: Tokenizer
    step: int
    weights: str
    """ema or raw: the weights that were loaded."""

    @property
    def causal(self) -> bool:
        """Whether the model predicts the next token."""
        language_model: Any = self.model if self.base is None else self.base.model
        return bool(language_model.config.objective == "autoregressive")


def load_feedback_run(run: Path, *, checkpoint: str, device: str, weights: str) -> FeedbackRun:
    """Load a run's checkpoint. Raises: UsageError for no checkpoint, no vocabulary, or a base it was not trained on."""
    run = Path(os.path.abspath(run))
    with contextlib.chdir(data_root(run)):
        stored = find_checkpoint(pick_checkpoint(run, checkpoint), checksums=True)
        family = family_of(stored.entry, f"checkpoint {stored.path}: entry")
        config = read_config(stored, family.schema, device=device)
        kept = read_vocabularies(stored.path.resolve().parent.parent)
        if not kept:
            raise UsageError(f"{stored.path}: its run keeps no vocabularies.json, so its tokens are unknown")
        runtime, shape, base = make_runtime(config), text_shape(kept[0].size), None
        if isinstance(config, FeedbackConfig):
            own = read_config(stored, family.schema, device=device, overrides=base_overrides(stored, config))
            base = load_base(own, runtime, kept[0])
        full = AdapterShape(base=base.model.config, text=shape) if base is not None else shape
        model, _ = family.create_model(config, full, runtime)
        tensors, chosen = stored_weights(stored, weights)
        load_weights(model, tensors)
        model.eval()
    return FeedbackRun(
        model=model,
        base=base,
        config=config,
        runtime=runtime,
        shape=shape,
        tokenizer=kept[0].tokenizer(),
        step=stored.step,
        weights=chosen,
    )
