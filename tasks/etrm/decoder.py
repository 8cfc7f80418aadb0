"""The decoder of another run as a beginning, and what that run was trained on: `load_pretrained_decoder`.

A TRM with puzzle embeddings has been trained on the demonstrations of the tasks that it is tested on. A decoder taken
from it makes the result "contaminated", and every evaluation of the run is marked so (docs/etrm.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from dataset.format import PuzzleSplit, load_splits
from dataset.metadata import read_json_file
from engine.checkpoint.manifest import Checkpoint
from engine.checkpoint.state_tree import load_weights
from engine.errors import UsageError
from engine.io import print_rank0, user_path
from engine.registry import family_of
from engine.run.load_run import find_checkpoint
from models.recursive_reasoning.etrm import TRMWithEncoder, TRMWithEncoderConfig
from tasks.etrm.args import ETRMConfig
from tasks.loading import misfit

KEY = "load_pretrained_decoder"
WRITERS = ("pretrain", "pretrain_etrm")
_NOT_ITS_OWN = (
    "encoder",
    "context",
    "puzzle_emb",
    "halt",
    "grid_shape",
    "aggregation",
    "query_init",
    "latent",
    "num_act",
)
_FREE = ("no_ACT_continue", "eval_halting", "forward_dtype")


@dataclass(frozen=True)
class Decoder:
    """A checkpoint whose decoder fits `model`, and what it was trained on."""

    model: TRMWithEncoder
    name: str
    checkpoint: Checkpoint | None
    """None: it is not there any more, which only a new run minds."""
    tensors: Mapping[str, Tensor]
    provenance: str
    """What it was trained on, next to this run's test tasks: clean, contaminated or unknown, in words."""

    @property
    def leakage(self) -> str:
        """As of PuzzleSplit."""
        return {"clean": "", "contaminated": "contaminated"}.get(self.provenance.split()[0], "unchecked")

    def load(self) -> None:
        """Put it into the model; the encoder stays as it was made. Raises: UsageError where there is none."""
        if self.checkpoint is None:
            raise UsageError(f"{KEY}={self.name}: no such run or checkpoint")
        put(self.model, self.tensors)
        averaged = ", averaged" if self.checkpoint.ema else ""
        print_rank0(f"decoder     {self.checkpoint.path} (step {self.checkpoint.step}{averaged}); {self.provenance}")


def decoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that any recursive model of this kind has: no encoder, no table of puzzles."""
    others = ("inner.encoder.", "inner.puzzle_emb.", "inner.context_gain")
    return {name: tensor for name, tensor in state.items() if not name.startswith(others)}


def put(model: TRMWithEncoder, decoder: Mapping[str, Tensor]) -> None:
    """Load the tensors of `decoder_part`; the encoder stays as it is."""
    load_weights(model, {**model.state_dict(), **decoder}, strict=True)


def find_decoder(config: ETRMConfig, model: TRMWithEncoder, test: Sequence[PuzzleSplit]) -> Decoder:
    """The decoder that the config names. Raises: UsageError: of another shape, or with other cycles."""
    name = str(config.load_pretrained_decoder)
    if not user_path(name).exists():
        return Decoder(model, name, None, {}, f"unknown decoder: {name} is not here; assume it is contaminated")
    checkpoint = find_checkpoint(user_path(name))
    if checkpoint.entry not in WRITERS:
        raise UsageError(f"{KEY}={name}: written by {checkpoint.entry}.py, expected a run of pretrain.py")
    given = decoder_part({**checkpoint.model, **(checkpoint.ema or {})})
    if odd := misfit(given, decoder_part(model.state_dict())):
        raise UsageError(f"{KEY}={name}: {odd}: expected the decoder's arch.* keys")
    if not config.allow_decoder_mismatch and (changed := other_keys(checkpoint, model.config)):
        raise UsageError(
            f"{KEY}={name} was trained with {', '.join(changed)}: set the same, or allow_decoder_mismatch=true"
        )
    return Decoder(model, name, checkpoint, given, provenance(checkpoint, test))


def other_keys(checkpoint: Checkpoint, config: TRMWithEncoderConfig) -> list[str]:
    """`arch.key=value` of the source, where what its weights are used for differs from `config`."""
    family = family_of(checkpoint.entry, f"{KEY}: entry")
    theirs = family.read_arch(SimpleNamespace(arch=checkpoint.config["arch"])).model_config
    changed = []
    for field in dataclasses.fields(theirs):
        if field.name.startswith(_NOT_ITS_OWN) or field.name in _FREE or not hasattr(config, field.name):
            continue
        if (value := getattr(theirs, field.name)) != getattr(config, field.name):
            changed.append(f"arch.{field.name}={value}")
    return changed


def provenance(checkpoint: Checkpoint, test: Sequence[PuzzleSplit]) -> str:
    """Whether the source, or a run whose decoder it began with, was trained on any task of the test splits, by the
    tasks' names."""
    asked: set[str] = set().union(*(task_names(split) for split in test))
    trained: set[str] = set()
    sources, missing = ancestry(checkpoint)
    for source in sources:
        for folder in family_of(source.entry, f"{KEY}: entry").data_folders(source.config):
            if not (Path(folder) / "train" / "dataset.json").exists():
                missing = missing or str(folder)
                continue
            for split in load_splits([folder], "train"):
                trained |= task_names(split)
    if both := asked & trained:
        return f"contaminated decoder: trained on {len(both)} of {len(asked)} test tasks"
    if missing:
        return f"unknown decoder: {missing}, which it was trained on, is not here; assume it is contaminated"
    return f"clean decoder: trained on none of the {len(asked)} test tasks"


def ancestry(checkpoint: Checkpoint) -> tuple[list[Checkpoint], str]:
    """The checkpoint, the one whose decoder its run began with, and so on; and the name of one that is not here."""
    chain = [checkpoint]
    while name := chain[-1].config.get(KEY):
        if not user_path(name).exists():
            return chain, str(name)
        before = find_checkpoint(user_path(name))
        if any(before.path == each.path for each in chain):
            break
        chain.append(before)
    return chain, ""


def task_names(split: PuzzleSplit) -> set[str]:
    """The names of a split's tasks, without those of their augmentations."""
    names = split.root / "identifiers.json"
    listed = read_json_file(names) if names.exists() else []
    used = {int(number) for number in split.puzzle_identifiers}
    return {str(listed[number]).partition("|||")[0] for number in used if 0 < number < len(listed)}
