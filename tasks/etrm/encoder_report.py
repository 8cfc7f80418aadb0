"""Compare runs of several encoders: accuracy on the training data, use of the context, and sizes.

Metrics are the last training values that each run has logged; sizes are those of its model with its own data.
Runs named NAME_0, NAME_1, ... are seeds of one set-up, NAME.
Shapes: K demonstrations, L positions of a pair, D width, T context tokens, Z latents.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from engine.errors import UsageError
from engine.io import print_rank0
from engine.run.files import read_yaml
from engine.run.load_run import open_checkpoint
from reports.output import prepare_folder, write_report
from reports.runs import curves, first_step, run_folders_below
from reports.tables import Column, Table
from tasks.etrm.family import FAMILY
from tasks.loading import data_root

REACHED = 0.9
"""Exact accuracy in training that counts as learned."""
FIGURES = {
    "exact": "exact_accuracy",
    "own - other": "context_use_exact",
    "loss, other - own": "context_use",
    "var_ratio": "var_ratio",
    "eff_rank": "eff_rank",
    "grad_coverage": "grad_coverage",
}
"""Heading -> `train/` metric, at the last step that logged it."""
SHAPES = {
    "pair [L, D]": "pair",
    "pairs [K, D]": "pairs",
    "aggregated": "aggregated",
    "latent [Z]": "latent",
    "context [T, D]": "context",
    "decoder [T + cells, D]": "decoder",
}
"""Heading -> key in `_shapes`."""


def write_encoder_report(args: argparse.Namespace) -> None:
    """Compare the runs below `args.run` (`scripts/fewshot_report.py --encoders`). Raises: UsageError."""
    if not args.run.is_dir() or not (folders := run_folders_below(args.run)):
        raise UsageError(
            f"{args.run} has no runs: expected a folder of runs of pretrain_etrm.py, e.g. checkpoints/NAME"
        )
    folders = with_metrics(folders)
    prepare_folder(args.out)
    names = names_of(folders, args.run)
    learned, set_ups = learned_table(names), set_ups_of(names)
    tables = {"learned": learned, "sizes": sizes_table(set_ups)}
    if len(set_ups) < len(folders):
        tables = {"set_ups": set_ups_table(learned, names, set_ups), **tables}
    text = "\n\n".join([f"# {args.run}", *(table.markdown() for table in tables.values())]) + "\n"
    print_rank0(text)
    write_report(args.out, {"encoders.md": text, **{f"{name}.csv": table.csv() for name, table in tables.items()}})
    print_rank0(f"written     {args.out}: encoders.md, {', '.join(f'{name}.csv' for name in tables)}")


def with_metrics(folders: list[Path]) -> list[Path]:
    """The runs of pretrain_etrm.py that have completed an example; prints the others. Raises: UsageError if none is
    left."""
    faults = {folder: _fault(folder) for folder in folders}
    if all(faults.values()):
        raise UsageError(f"{folders[0]} {faults[folders[0]]}: expected runs of pretrain_etrm.py")
    for folder, fault in faults.items():
        if fault:
            print_rank0(f"left out    {folder} {fault}")
    return [folder for folder in folders if not faults[folder]]


def _fault(folder: Path) -> str:
    """Why a run has no place in the tables; "" if it has one."""
    own = f"{FAMILY.entry}.py"
    script = read_yaml(folder / "config.resolved.yaml").get("script", own)
    if script != own:
        return f"is a run of {script}"
    metric = f"train/{FIGURES['exact']}"
    return "" if curves(folder).get(metric) else f"has no {metric}"


def names_of(folders: list[Path], place: Path) -> dict[Path, str]:
    """Run -> name of its folder, or its path below `place` if two runs have the same name."""
    unique = len({folder.name for folder in folders}) == len(folders)
    return {folder: folder.name if unique else os.path.relpath(folder, place) for folder in folders}


def set_ups_of(names: Mapping[Path, str]) -> dict[str, list[Path]]:
    """Name without its seed number -> runs."""
    out: dict[str, list[Path]] = {}
    for folder, name in names.items():
        out.setdefault(re.sub(r"_\d+$", "", name), []).append(folder)
    return out


def set_ups_table(learned: Table, names: Mapping[Path, str], set_ups: Mapping[str, list[Path]]) -> Table:
    """A row for each set-up: its seeds, their lowest exact accuracy, and the means of their rows in `learned`."""
    rows = {row[0]: row[1:] for row in learned.rows}
    table = Table([Column("set-up"), Column("seeds", "number", digits=0), _number("least exact"), *learned.columns[1:]])
    for name, folders in set_ups.items():
        columns = list(zip(*(rows[names[folder]] for folder in folders), strict=True))
        means = [None if None in column else fmean(column) for column in columns]
        table.add(name, len(folders), min(columns[0]), *means)
    return table


def _number(heading: str, digits: int = 2) -> Column:
    return Column(heading, "number", digits=digits)


def learned_table(names: Mapping[Path, str]) -> Table:
    """A row for each run: last training metrics, first step with exact accuracy 0.9, steps, and time of all training
    steps, without evaluation and start-up."""
    numbers = [_number(heading) for heading in FIGURES]
    counts = [_number(heading, digits=0) for heading in (f"steps to {REACHED}", "steps", "seconds")]
    table = Table([Column("run"), *numbers, *counts])
    for folder, name in names.items():
        recorded = curves(folder)
        figures = [recorded.get(f"train/{metric}") for metric in FIGURES.values()]
        exact = recorded[f"train/{FIGURES['exact']}"]
        last, steps = [points[-1][1] if points else None for points in figures], exact[-1][0]
        seconds = steps * fmean(value for _, value in recorded.get("time/step_ms", [(0, 0.0)])) / 1000
        table.add(name, *last, first_step(exact, REACHED), steps, seconds)
    return table


def sizes_table(set_ups: dict[str, list[Path]]) -> Table:
    """A row for each set-up: parameters, and the shapes of the intermediate tensors for one training example."""
    counts = [_number(heading, digits=0) for heading in ("encoder", "decoder")]
    others = [Column(heading) for heading in ("type", "mode", "layers", "aggregation", *SHAPES)]
    table = Table([Column("set-up"), *counts, *others])
    for name, (folder, *_) in set_ups.items():
        with contextlib.chdir(data_root(folder.resolve())):
            task: Any = open_checkpoint(folder.resolve(), device="cpu").plan.task
            model, encoder, shapes = task.model, task.model.encoder, _shapes(task)
        groups = {name: sum(param.numel() for param in params) for name, params in model.param_groups().items()}
        kind = type(encoder).__module__.rpartition(".")[2]
        row = [groups["encoder"], groups["trunk"], kind, model.ACT_MODE, encoder.layers, encoder.aggregation]
        table.add(name, *row, *(shapes.get(part) for part in SHAPES.values()))
    return table


@torch.no_grad()
def _shapes(task: Any) -> dict[str, list[int]]:
    """Shapes of one row's tensors, from the demonstrations to the decoder."""
    model = task.model
    tensors: dict[str, torch.Tensor] = {}
    batch = next(iter(task.micro_batches(1)))[1]
    hooks = [
        model.encoder.pairs.layers[0].register_forward_hook(lambda module, args, out: tensors.update(pair=out)),
        model.encoder.pairs.register_forward_hook(lambda module, args, out: tensors.update(pairs=out)),
        model.encoder.aggregate.register_forward_hook(lambda module, args, out: tensors.update(aggregated=out)),
    ]
    encoded = model.eval().encode(batch)
    for hook in hooks:
        hook.remove()
    tensors |= {"context": encoded.context, "decoder": next(iter(model.inner.initial(1).values()))}
    if encoded.latent is not None:
        tensors["latent"] = encoded.latent
    return {name: list(value.shape[1:]) for name, value in tensors.items()}
