"""Export a run of pretrain.py as the graph of one ACT step, with a driver that needs only numpy and onnxruntime.

Shapes: B rows of a batch, T tokens, V vocabulary size, N puzzle identifiers, E width of the puzzle table.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from engine.errors import UsageError
from models.recursive_reasoning.step import EMBEDDING, OneStep
from reports.model_card import Verify
from tasks.graphs import Graph, Run, require_precision, write_graph
from tasks.recursive_reasoning.loading import PuzzleRun, load_puzzle_run

EXAMPLES, BATCH_SIZES = 64, (3, 61)
"""Held-out puzzles that a graph is checked on, and the sizes of their batches."""


def export_graph(args: argparse.Namespace, verify: Verify | None = None) -> None:
    """Export a run for the arguments of scripts/export.py. Raises: UsageError, RunFailure."""
    run = load_puzzle_run(args.checkpoint, weights=args.weights, device="cpu")
    model, opened = run.task.model, run.opened
    require_precision(args.checkpoint, model.inner.dtype)
    if model.noise_width or model.needs_keys:
        raise UsageError(f"{args.checkpoint} draws random numbers in every step: it cannot be exported as a graph")
    batches = held_out(run)
    outputs = [model_steps(model, batch) for batch in batches]
    final = torch.cat([model(batch).logits.argmax(-1) for batch in batches])
    step = OneStep(model)

    def logits(graph: Run) -> Tensor:
        return torch.cat(
            [step_logits(graph, step, batch, steps) for batch, steps in zip(batches, outputs, strict=True)]
        )

    def compare_episodes(graph: Run) -> str:
        preds = torch.cat([episode_logits(graph, step, batch, run.steps).argmax(-1) for batch in batches])
        return f"{int((preds == final).all(1).sum())} of {len(final)} final answers are the model's"

    rows = Dim("rows", min=1, max=1 << 20)
    inputs = step_inputs(step, _two_rows(batches[0]))
    write_graph(
        Graph(
            module=step,
            inputs=inputs,
            sizes={name: {0: rows} for name in inputs},
            outputs=step.outputs,
            expected=torch.cat([output.logits for steps in outputs for output in steps]),
            logits=logits,
            checked_on=f"{len(final)} held-out puzzles, {run.steps} ACT steps each, from the model's own states",
            further_check=compare_episodes,
            metadata={
                "architecture": opened.config.arch,
                "state": list(step.start),
                "steps": run.steps,
                "halting": model.eval_halting,
                "seq_len": model.shape.seq_len,
                "vocab_size": model.shape.vocab_size,
                "puzzle_identifiers": None if step.table is None else len(step.table),
            },
            checkpoint=opened.checkpoint,
            weights=opened.weights,
            facts=model.facts,
            tags=model.tags,
            advice=[
                "one ACT step, of zeros here: each part of the state begins as its row of start.npz, and an episode",
                f"takes {run.steps} steps (export.json), each from what the one before gave as next_...",
                *['evaluate.py beside this file does that: Model(Path("FOLDER"))(inputs, identifiers)']
                * (args.format == "onnx"),
            ],
            write_more=lambda folder, format: _write_state_and_driver(step, folder, format),
        ),
        args,
        verify,
    )


def held_out(run: PuzzleRun) -> list[dict[str, Tensor]]:
    """The first EXAMPLES examples of the test split, in batches of BATCH_SIZES."""
    split = run.splits[0]
    examples = split.questions()[:EXAMPLES]
    if not len(examples):
        raise UsageError(f"{run.data[0]['path']} has no examples in this split")
    parts = np.split(examples, np.cumsum(BATCH_SIZES)[:-1])
    batches = [split.batch(part) for part in parts if len(part)]
    return [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]


def _two_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat((rows, rows))[:2] for name, rows in batch.items()}


def step_inputs(step: OneStep, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of the first step of an episode, by name."""
    rows = len(batch["inputs"])
    inputs = {"inputs": batch["inputs"]}
    if step.table is not None:
        inputs[EMBEDDING] = step.table[batch["puzzle_identifiers"].long()]
    return inputs | {name: start.expand(rows, *start.shape).contiguous() for name, start in step.start.items()}


def model_steps(model: Any, batch: dict[str, Tensor]) -> list[Any]:
    """The model's output at every ACT step, with halting off so that no row stops early."""
    halting, model.eval_halting = model.eval_halting, "fixed"
    outputs = list(model.think(batch))
    model.eval_halting = halting
    return outputs


@torch.no_grad()
def step_logits(graph: Run, step: OneStep, batch: dict[str, Tensor], outputs: list[Any]) -> Tensor:
    """Logits [steps · B, T, V] of a graph whose steps each start from the model's latents: a recursion may be chaotic,
    above all before training, and would amplify rounding errors from step to step."""
    inputs, logits = step_inputs(step, batch), []
    for output in outputs:
        logits.append(graph(*inputs.values())[step.outputs.index("logits")])
        inputs |= {name: output.carry.latents[name].contiguous() for name in step.start}
    return torch.cat(logits)


@torch.no_grad()
def episode_logits(graph: Run, step: OneStep, batch: dict[str, Tensor], steps: int) -> Tensor:
    """Logits [B, T, V] after `steps` steps of a graph; with latched halting those of the step at which a row halts."""
    inputs, latched = step_inputs(step, batch), step.model.eval_halting == "latched"
    halted = torch.zeros(len(batch["inputs"]), dtype=torch.bool)
    logits: Tensor | None = None
    for _ in range(steps):
        outputs = dict(zip(step.outputs, graph(*inputs.values()), strict=True))
        new = outputs["logits"]
        logits = new if logits is None else torch.where(halted[:, None, None], logits, new)
        inputs |= {name: outputs[f"next_{name}"].contiguous() for name in step.start}
        halted = halted | (outputs["halts"] & latched)
    assert logits is not None
    return logits


def _write_state_and_driver(step: OneStep, folder: Path, format: str) -> list[str]:
    """Write start.npz (initial latents of one row, by name), puzzle_table.npy [N, E] if there is a table, and the
    driver of an ONNX export."""
    arrays: dict[str, Any] = {name: start.numpy() for name, start in step.start.items()}
    np.savez(folder / "start.npz", **arrays)
    lines = []
    if step.table is not None:
        np.save(folder / "puzzle_table.npy", step.table.numpy())
        lines.append(f"table       puzzle_table.npy, {step.table.shape[0]:,} x {step.table.shape[1]}")
    if format == "onnx":
        shutil.copyfile(Path(__file__).with_name("onnx_driver.py"), folder / "evaluate.py")
        lines.append("driver      evaluate.py DATA evaluates with numpy and onnxruntime alone")
    return lines
