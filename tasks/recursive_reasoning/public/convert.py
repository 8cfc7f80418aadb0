"""Convert a public checkpoint to a run of ours and back (scripts/convert.py import and export)."""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dataset.metadata import PuzzleMetadata, read_metadata
from engine.building import create_model
from engine.checkpoint.state_tree import clean_names
from engine.checkpoint.store import CheckpointStore
from engine.config import HEADER, ConfigSource
from engine.errors import UsageError
from engine.io import atomic_directory, atomic_write_json, print_rank0, sha256_file, user_path
from engine.loop.trainer import Trainer
from engine.registry import Arch, family_of
from engine.run.decision import RunDecision
from engine.run.directory import RunDirectory, identity_file
from engine.run.environment import describe_environment
from engine.run.load_run import find_checkpoint
from engine.run.request import request_of
from engine.schema import structure
from engine.signals import StopSignal
from engine.task import Runtime, TrainingPlan
from models.recursive_reasoning.act import PuzzleShape
from reports.model_card import Verify, model_card
from tasks.loading import require_family, stored_weights
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.build import groups_of
from tasks.recursive_reasoning.family import FAMILY
from tasks.recursive_reasoning.public.configs import arch_block, public_config, run_config, set_values
from tasks.recursive_reasoning.public.layout import (
    CONFIG,
    LOADING,
    STANDARD,
    PublicCheckpoint,
    read_public,
    write_public,
)
from tasks.recursive_reasoning.public.sizes import Sizes, read_sizes, shape_report

LATENT_INIT = "_init"
"""Name suffix of a latent's fixed initial value, which the public code stores in its compute dtype."""
DTYPES = ("float64", "float32", "bfloat16", "float16")
"""Dtypes of tensors in a state dict of the public code."""


@dataclass(frozen=True)
class Data:
    """The properties of a run's data sets that determine its model."""

    metadata: PuzzleMetadata
    num_puzzle_identifiers: int
    """Over all folders, numbered consecutively."""


# --- import -----------------------------------------------------------------------------------------------------------


def import_run(args: Namespace) -> None:
    """Convert a public checkpoint to the run `args.folder`, written atomically. Raises: UsageError, after a list of the
    tensors that do not fit."""
    folder = Path(os.path.abspath(args.folder))
    if folder.exists():
        raise UsageError(f"{args.folder} exists already: remove it or choose another folder")
    source = read_public(args.source)
    shapes = {name: list(tensor.shape) for name, tensor in source.tensors.items()}
    sizes = read_sizes(shapes)
    arch_overrides, overrides = set_values(args.values)
    arch, differing = arch_block(source.config, sizes, arch_overrides)
    if args.data:
        overrides["data_paths"] = [os.fspath(path) for path in args.data]
    place = {
        "project_name": folder.parent.name or "imported",
        "run_name": folder.name,
        "run_dir": os.fspath(args.folder),
    }
    resolved, left = run_config(source.config or {}, arch, {**place, **overrides})
    if not resolved["data_paths"]:
        raise UsageError("all_config.yaml names no data: add --data FOLDER, the data set that the model is of")
    config: PretrainConfig = structure(PretrainConfig, {**resolved, "device": "cpu"})
    FAMILY.check(config)
    parts = FAMILY.read_arch(config)
    data = _data(resolved["data_paths"])
    shape = _shape(data, sizes, parts.model_config.prefix_len)
    lines, misfits = shape_report(shapes, _shapes_of(parts, shape))
    if misfits or differing:
        print_rank0("\n".join(lines))
        reason = f"{misfits} of {len(lines) - 1} tensors do not fit" if misfits else "no other shape would do"
        what = f" (all_config.yaml: {'; '.join(differing)})" if differing else ""
        raise UsageError(f"{source.path} is not the model that all_config.yaml and data describe: {reason}{what}")
    with atomic_directory(folder) as temporary:
        _write_run(temporary, config, resolved, source, args.step if args.step is not None else source.step, shape)
    _print_import(args.folder, source, sizes, resolved, left, data)


def _data(paths: list[str]) -> Data | None:
    """None if a folder does not exist. Raises: UsageError for a folder that is not a data set."""
    folders = [user_path(path) for path in paths]
    if not all(folder.is_dir() for folder in folders):
        return None
    read = [read_metadata(folder, "train") for folder in folders]
    return Data(read[0], 1 + sum(metadata.num_puzzle_identifiers - 1 for metadata in read))


def _shape(data: Data | None, sizes: Sizes, prefix: int) -> PuzzleShape:
    """From the data if it is here, else from the checkpoint. Attention without a position table fits any length."""
    if data is not None:
        meta = data.metadata
        return PuzzleShape(meta.seq_len, meta.vocab_size, data.num_puzzle_identifiers, meta.pad_id)
    length = 1 if sizes.positions is None else sizes.positions - prefix
    if length < 1:
        raise UsageError(
            f"the file has {sizes.positions} positions, and the puzzle vector takes {prefix}: set arch.puzzle_emb_len"
        )
    return PuzzleShape(length, sizes.vocab_size, sizes.num_puzzle_identifiers)


def _shapes_of(arch: Arch, shape: PuzzleShape) -> dict[str, list[int]]:
    """The shape of each tensor of the model, which is created on the meta device. Raises: UsageError."""
    try:
        with torch.device("meta"):
            model: nn.Module = arch.model_class(arch.model_config, shape)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except (RuntimeError, ArithmeticError) as error:  # sizes that overflow
        raise UsageError(f"cannot build a model of these sizes ({str(error).splitlines()[0]:.80})") from None
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _write_run(
    folder: Path,
    config: PretrainConfig,
    resolved: dict[str, Any],
    source: PublicCheckpoint,
    step: int,
    shape: PuzzleShape,
) -> None:
    """Write a run directory with one checkpoint, like that of a run stopped by a signal after `step`."""
    entry, name = FAMILY.entry, resolved["arch"]["name"].partition("@")[0].rpartition(".")[2]
    header = HEADER + json.dumps({"config_name": FAMILY.config_name, "choices": {"arch": name}}) + "\n"
    text = header + OmegaConf.to_yaml(OmegaConf.create(resolved))
    vars(config)["_source"] = ConfigSource(text, resolved, [f"arch={name}"], FAMILY.config_name, {"arch": name})
    directory = RunDirectory(folder, RunDecision("new", folder, "imported"))
    atomic_write_json(folder / "identity.json", identity_file(request_of(config, entry)))
    directory.write_config(text, resolved, [f"arch={name}"])
    directory.write_environment({**describe_environment(), "batch_rows": config.global_batch_size})
    model = {name: tensor.float() for name, tensor in source.tensors.items()}
    CheckpointStore(folder, entry).save(
        step,
        model=model,
        ema=_trained(model) if config.ema else None,  # the public code saves only the averaged weights
        state=_fresh_state(config, step, shape),
        config=resolved,
        metric=None,
        extra={"sizes": {}, "batch_rows": config.global_batch_size, "public": _origin(source)},
    )
    directory.set_status("interrupted", step=step, message=f"imported from {source.path.name}")


def _origin(source: PublicCheckpoint) -> dict[str, Any]:
    """The facts that an export needs to write identical files."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in source.tensors.items()}
    return {
        "file": source.path.name,
        "sha256": sha256_file(source.path),
        "config": source.config or {},
        "tensors": {name: [key, kinds[name]] for name, key in source.keys.items()},
    }


def _trained(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the network: no initial latents, and not the puzzle table."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith((LATENT_INIT, "puzzle_emb.weights"))}


class _Untrained:
    """The task of a run that has not trained: fresh parameter groups and no carry."""

    def __init__(self, model: Any, config: PretrainConfig) -> None:
        self.module, self.config = model, config

    def param_groups(self) -> list[Any]:
        return groups_of(self.module, self.config)

    def state_dict(self) -> dict[str, Any]:
        return {}


def _fresh_state(config: PretrainConfig, step: int, shape: PuzzleShape) -> dict[str, Any]:
    """The training state at `step` with fresh optimizers: public checkpoints store none.

    It does not depend on the puzzle table, so the model built for it has one identifier.
    """
    small = PuzzleShape(shape.seq_len, shape.vocab_size, 1, shape.pad_id)
    runtime = Runtime(
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="auto",
        seed=config.seed,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    model, _ = create_model(FAMILY.read_arch(config), small, runtime)
    plan = TrainingPlan(task=_Untrained(model, config), total_steps=max(step, 1), schedule=lambda step: 1.0)  # type: ignore[arg-type]
    trainer = Trainer(plan, config, runtime, save=lambda *_: None, write=lambda *_: None, stop=StopSignal())
    trainer.step = step
    return trainer.state_dict()


def _print_import(
    folder: Path, source: PublicCheckpoint, sizes: Sizes, config: Mapping[str, Any], left: list[str], data: Data | None
) -> None:
    parameters = sum(tensor.numel() for tensor in _trained(source.tensors).values())
    print_rank0(
        f"model       {config['arch']['name']}, {parameters:,} parameters, {sizes.num_puzzle_identifiers:,} puzzles"
    )
    print_rank0(f"run         {folder} (step {source.step})")
    if source.left_out:
        print_rank0(f"left out    scratch buffers: {', '.join(source.left_out)}")
    if left:
        print_rank0(f"left out    keys without a counterpart here: {', '.join(left)}")
    paths = ", ".join(config["data_paths"])
    if data is None:
        print_rank0(f"data        {paths} is not here: build it there, or convert again with --data FOLDER")
    else:
        print_rank0(f"data        {paths}")
        print_rank0(f"next        python scripts/evaluate.py {folder}")


# --- export -----------------------------------------------------------------------------------------------------------


def export_run(args: Namespace, verify: Verify | None = None) -> None:
    """Convert a run to a public checkpoint in `args.folder`, written atomically. `verify` checks the run for the model
    card. Raises: UsageError for a model that the public code does not have.
    """
    checkpoint = find_checkpoint(args.source, checksums=True)
    family = family_of(checkpoint.entry, f"checkpoint {checkpoint.path}: entry")
    require_family(args.source, family.entry, FAMILY)
    config = public_config(checkpoint.config)
    stored, kind = stored_weights(checkpoint, args.weights)
    weights = clean_names(stored)
    origin = checkpoint.extra.get("public")
    if origin is not None:
        try:
            config, tensors, name = _as_imported(weights, origin)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(
                f"checkpoint {checkpoint.path}: its manifest does not record how it was imported"
            ) from None
    else:
        tensors = _as_published(weights, config["arch"]["forward_dtype"])
        name = f"step_{checkpoint.step}"
    folder = Path(os.path.abspath(args.folder))
    card = model_card(
        checkpoint,
        name=folder.name,
        weights=kind,
        model={"class": config["arch"]["name"], "parameters": f"{sum(t.numel() for t in weights.values()):,} numbers"},
        loading=LOADING.format(file=f"{folder.name}/{name}"),
        tags=["recursive-reasoning"],
        license=args.license,
        verify=verify,
    )
    write_public(folder, config=config, tensors=tensors, name=name, card=card)
    which = "averaged" if kind == "ema" else "raw"
    print_rank0(f"model       {config['arch']['name']}, {which} weights, step {checkpoint.step}")
    print_rank0(f"written     {args.folder}/{name} and all_config.yaml")


def _as_imported(
    weights: Mapping[str, Tensor], origin: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """(config, tensors, file name) with the keys, order and dtypes of the file that was imported.

    Raises: KeyError, TypeError, AttributeError or ValueError for a malformed manifest, which is untrusted input.
    """
    name = origin["file"].removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w.-]*", name) or name == CONFIG or set(origin["tensors"]) != set(weights):
        raise ValueError(name)
    tensors = {}
    for own, (key, kind) in origin["tensors"].items():
        if not isinstance(key, str) or kind not in DTYPES:
            raise ValueError(key)
        tensors[key] = weights[own].to(getattr(torch, kind))
    if len(tensors) != len(weights):
        raise ValueError("two tensors of one name")
    return dict(origin["config"]), tensors, name


def _as_published(weights: Mapping[str, Tensor], compute: str) -> dict[str, Tensor]:
    """Tensors by the names of a compiled run of the public code. Initial latents get the compute dtype, unless that
    would round them."""
    dtype = getattr(torch, compute)

    def stored(name: str, tensor: Tensor) -> Tensor:
        narrow = tensor.to(dtype) if name.endswith(LATENT_INIT) else tensor
        return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor

    return {STANDARD + name: stored(name, tensor) for name, tensor in weights.items()}
