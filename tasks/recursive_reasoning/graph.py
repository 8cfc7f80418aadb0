"""A run of pretrain.py as the graph of one ACT step, with a driver that needs numpy and onnxruntime alone."""

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

QUESTIONS, SEVERAL = 64, (3, 61)
"""Held-out puzzles that a graph is checked on, in batches of these sizes."""


def export_graph(args: argparse.Namespace, verify: Verify | None = None) -> None:
    """Write the folder that scripts/export.py was asked for. Raises: UsageError, RunFailure."""
    run = load_puzzle_run(args.checkpoint, weights=args.weights, device="cpu")
    model, opened = run.task.model, run.opened
    require_precision(args.checkpoint, model.inner.dtype)
    if model.noise_width or model.needs_keys:
        raise UsageError(f"{args.checkpoint} draws random numbers in every step: it cannot be exported as a graph")
    questions = held_out(run)
    own = [model_steps(model, batch) for batch in questions]
    whole = torch.cat([model(batch).logits.argmax(-1) for batch in questions])
    step = OneStep(model)

    def answer(graph: Run) -> Tensor:
        return torch.cat(
            [each_step(graph, step, batch, outputs) for batch, outputs in zip(questions, own, strict=True)]
        )

    def episodes(graph: Run) -> str:
        answers = torch.cat([episode(graph, step, batch, run.steps).argmax(-1) for batch in questions])
        return f"{int((answers == whole).all(1).sum())} of {len(whole)} final answers are the model's"

    rows = Dim("rows", min=1, max=1 << 20)
    inputs = step_inputs(step, _two_rows(questions[0]))
    write_graph(
        Graph(
            module=step,
            inputs=inputs,
            sizes={name: {0: rows} for name in inputs},
            outputs=step.outputs,
            expected=torch.cat([output.logits for outputs in own for output in outputs]),
            answer=answer,
            asked=f"{len(whole)} held-out puzzles, {run.steps} ACT steps each, from the model's own states",
            also=episodes,
            about={
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
            beside=lambda folder, format: _write_beside(step, folder, format),
        ),
        args,
        verify,
    )


def held_out(run: PuzzleRun) -> list[dict[str, Tensor]]:
    """The first QUESTIONS examples of the test split, in batches of SEVERAL sizes."""
    split = run.splits[0]
    examples = split.questions()[:QUESTIONS]
    if not len(examples):
        raise UsageError(f"{run.data[0]['path']} has no examples in this split")
    parts = np.split(examples, np.cumsum(SEVERAL)[:-1])
    batches = [split.batch(part) for part in parts if len(part)]
    return [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]


def _two_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat((rows, rows))[:2] for name, rows in batch.items()}


def step_inputs(step: OneStep, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the first step of an episode is given."""
    rows = len(batch["inputs"])
    given = {"inputs": batch["inputs"]}
    if step.table is not None:
        given[EMBEDDING] = step.table[batch["puzzle_identifiers"].long()]
    return given | {name: start.expand(rows, *start.shape).contiguous() for name, start in step.start.items()}


def model_steps(model: Any, batch: dict[str, Tensor]) -> list[Any]:
    """Every ACT step of the model itself, in which no row stays behind."""
    halting, model.eval_halting = model.eval_halting, "fixed"
    outputs = list(model.think(batch))
    model.eval_halting = halting
    return outputs


@torch.no_grad()
def each_step(graph: Run, step: OneStep, batch: dict[str, Tensor], outputs: list[Any]) -> Tensor:
    """Logits [steps · B, T, V] of a graph that begins each step where the model began it: a recursion may be chaotic,
    above all before it is trained, and rounding then grows from step to step."""
    given, logits = step_inputs(step, batch), []
    for output in outputs:
        logits.append(graph(*given.values())[step.outputs.index("logits")])
        given |= {name: output.carry.latents[name].contiguous() for name in step.start}
    return torch.cat(logits)


@torch.no_grad()
def episode(graph: Run, step: OneStep, batch: dict[str, Tensor], steps: int) -> Tensor:
    """Logits [B, T, V] after `steps` steps of a graph; with latched halting those of the step at which a row halts."""
    given, latched = step_inputs(step, batch), step.model.eval_halting == "latched"
    halted = torch.zeros(len(batch["inputs"]), dtype=torch.bool)
    logits: Tensor | None = None
    for _ in range(steps):
        answers = dict(zip(step.outputs, graph(*given.values()), strict=True))
        fresh = answers["logits"]
        logits = fresh if logits is None else torch.where(halted[:, None, None], logits, fresh)
        given |= {name: answers[f"next_{name}"].contiguous() for name in step.start}
        halted = halted | (answers["halts"] & latched)
    assert logits is not None
    return logits


def _write_beside(step: OneStep, folder: Path, format: str) -> list[str]:
    """start.npz, one row of the state by name; puzzle_table.npy [N, E] where there is a table; the driver of ONNX."""
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
