"""Start from the decoder of another run, and check what that run was trained on: `load_pretrained_decoder`.

A TRM with puzzle embeddings was trained on the demonstrations of its test tasks. A run that takes its decoder is
"contaminated", and each of its evaluations is marked so (docs/etrm.md).
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
from tasks.loading import near_run, shape_mismatch, stored_weights

KEY = "load_pretrained_decoder"
WRITERS = ("pretrain", "pretrain_etrm")
_NOT_OF_DECODER = (
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
    """A checkpoint whose decoder fits `model`, and its provenance."""

    model: TRMWithEncoder
    name: str
    checkpoint: Checkpoint | None
    """None if it no longer exists, which is an error only for a new run."""
    tensors: Mapping[str, Tensor]
    provenance: str
    """Whether it was trained on this run's test tasks: a sentence that starts with clean, contaminated or unknown."""

    @property
    def leakage(self) -> str:
        """The provenance as a value of `PuzzleSplit.leakage`."""
        return {"clean": "", "contaminated": "contaminated"}.get(self.provenance.split()[0], "unchecked")

    def load(self) -> None:
        """Load the decoder into the model, whose encoder keeps its weights. Raises: UsageError if it is missing."""
        if self.checkpoint is None:
            raise UsageError(f"{KEY}={self.name}: no such run or checkpoint{near_run(self.name)}")
        load_decoder(self.model, self.tensors)
        averaged = ", averaged" if self.checkpoint.has_ema else ""
        print_rank0(f"decoder     {self.checkpoint.path} (step {self.checkpoint.step}{averaged}); {self.provenance}")


def decoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict that belong to the decoder: no encoder, no puzzle table."""
    others = ("inner.encoder.", "inner.puzzle_emb.", "inner.context_gain")
    return {name: tensor for name, tensor in state.items() if not name.startswith(others)}


def load_decoder(model: TRMWithEncoder, decoder: Mapping[str, Tensor]) -> None:
    """Load the tensors of `decoder_part`; the encoder keeps its weights."""
    load_weights(model, {**model.state_dict(), **decoder})


def find_decoder(config: ETRMConfig, model: TRMWithEncoder, test: Sequence[PuzzleSplit]) -> Decoder:
    """Find the decoder that the config names. Raises: UsageError if its shapes or its number of cycles differ."""
    name = str(config.load_pretrained_decoder)
    if not user_path(name).exists():
        return Decoder(model, name, None, {}, f"unknown decoder: {name} is not here; assume it is contaminated")
    checkpoint = find_checkpoint(user_path(name))
    if checkpoint.entry not in WRITERS:
        raise UsageError(f"{KEY}={name}: written by {checkpoint.entry}.py, expected a run of pretrain.py")
    tensors = decoder_part(stored_weights(checkpoint)[0])
    if mismatch := shape_mismatch(tensors, decoder_part(model.state_dict())):
        raise UsageError(f"{KEY}={name}: {mismatch}: expected the decoder's arch.* keys")
    if not config.allow_decoder_mismatch and (changed := changed_keys(checkpoint, model.config)):
        raise UsageError(
            f"{KEY}={name} was trained with {', '.join(changed)}: set the same, or allow_decoder_mismatch=true"
        )
    return Decoder(model, name, checkpoint, tensors, provenance(checkpoint, test))


def changed_keys(checkpoint: Checkpoint, config: TRMWithEncoderConfig) -> list[str]:
    """`arch.key=value` of the source run for each decoder key whose value differs from `config`."""
    family = family_of(checkpoint.entry, f"{KEY}: entry")
    theirs = family.read_arch(SimpleNamespace(arch=checkpoint.config["arch"])).model_config
    changed = []
    for field in dataclasses.fields(theirs):
        if field.name.startswith(_NOT_OF_DECODER) or field.name in _FREE or not hasattr(config, field.name):
            continue
        if (value := getattr(theirs, field.name)) != getattr(config, field.name):
            changed.append(f"arch.{field.name}={value}")
    return changed


def provenance(checkpoint: Checkpoint, test: Sequence[PuzzleSplit]) -> str:
    """Whether the source, or a run that it took its decoder from, was trained on any test task, judged by task
    names."""
    tested: set[str] = set().union(*(task_names(split) for split in test))
    trained: set[str] = set()
    sources, missing = ancestry(checkpoint)
    for source in sources:
        for folder in family_of(source.entry, f"{KEY}: entry").data_folders(source.config):
            if not (Path(folder) / "train" / "dataset.json").exists():
                missing = missing or str(folder)
                continue
            for split in load_splits([folder], "train"):
                trained |= task_names(split)
    if both := tested & trained:
        return f"contaminated decoder: trained on {len(both)} of {len(tested)} test tasks"
    if missing:
        return f"unknown decoder: {missing}, which it was trained on, is not here; assume it is contaminated"
    return f"clean decoder: trained on none of the {len(tested)} test tasks"


def ancestry(checkpoint: Checkpoint) -> tuple[list[Checkpoint], str]:
    """(the checkpoint, the one its run took its decoder from, and so on; the first that is missing, or "")."""
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
    """The names of a split's tasks, augmented copies included under the name of their task."""
    names = split.root / "identifiers.json"
    listed = read_json_file(names) if names.exists() else []
    used = {int(number) for number in split.puzzle_identifiers}
    return {str(listed[number]).partition("|||")[0] for number in used if 0 < number < len(listed)}
