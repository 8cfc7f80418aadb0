"""Load a run of train.py without its data: sampling and export only need what the run stores."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.text.loading import dataset_folders, model_sizes
from dataset.text.named import ensure_text
from dataset.text.vocabulary import Vocabulary, read_vocabularies, vocabularies_of
from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.environment import data_change
from engine.run.files import read_json
from tasks.language_model.family import FAMILY
from tasks.loading import data_root, pick_checkpoint, require_family, stored_weights


@dataclass(kw_only=True)
class TextRun:
    """A model in evaluation mode with its vocabularies."""

    model: Any
    config: Any
    runtime: Any
    checkpoint: Any
    """engine.checkpoint.manifest.Checkpoint"""
    weights: str
    """ema or raw: the weights that were loaded."""
    vocabularies: list[Vocabulary]

    @property
    def step(self) -> int:
        return int(self.checkpoint.step)


def load_text_run(run: Path, *, checkpoint: str, device: str, weights: str) -> TextRun:
    """Load the model and vocabularies of a run's checkpoint.

    Raises: UsageError for a run of another script, or one without stored vocabularies whose data has changed.
    """
    from engine.checkpoint.state_tree import load_weights
    from engine.device import make_runtime
    from engine.run.load_run import find_checkpoint, read_config
    from models.language_models.gpt import LMShape

    run = Path(os.path.abspath(run))
    with contextlib.chdir(data_root(run)):
        stored = find_checkpoint(pick_checkpoint(run, checkpoint), checksums=True)
        require_family(run, stored.entry, FAMILY)
        config = read_config(stored, FAMILY.schema, device=device)
        vocabularies = vocabularies_for(stored, config)
        runtime = make_runtime(config)
        sizes = model_sizes(config, [each.size for each in vocabularies])
        model, _ = FAMILY.create_model(config, LMShape(sizes), runtime)
        tensors, chosen = stored_weights(stored, weights)
        load_weights(model, tensors)
        model.eval()
    return TextRun(
        model=model, config=config, runtime=runtime, checkpoint=stored, weights=chosen, vocabularies=vocabularies
    )


def vocabularies_for(checkpoint: Any, config: Any) -> list[Vocabulary]:
    """The vocabularies stored in the run; for an older run, those of its data, if the data has not changed."""
    run_dir = checkpoint.path.parent.parent
    kept = read_vocabularies(run_dir)
    if kept is not None:
        for each in kept:
            if not each.matches_data():
                print_rank0(f"warning: {each.path} has another vocabulary since this run began; the run's own is used")
        return kept
    folders = dataset_folders(config)
    for folder in folders:
        card = ensure_text(folder, offline=config.offline)
        change = data_change(checkpoint.extra, read_json(run_dir / "environment.json"), card)
        if change is not None:
            raise UsageError(
                f"{folder} is not the data that the run saw ({change}), and the run keeps no vocabulary of its own: "
                "put the old data back"
            )
    return vocabularies_of(folders)
