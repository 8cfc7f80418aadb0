"""Export a run of train.py as a graph: tokens [B, T] -> logits [B, T, V], for any B and T up to block_size.

A model of K aligned streams takes [B, K, T] and returns K logits.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from engine.distributed import keyed_generator
from engine.errors import UsageError
from reports.model_card import Verify
from tasks.graphs import Graph, Run, require_precision, write_graph
from tasks.language_model.loading import load_text_run

ROWS = (1, 3)
"""Rows of the batches that a graph is checked on: random tokens, of the shortest and the longest length."""


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(tensors[0])
        return tuple(output.logits(number) for number in range(len(output.streams)))


def export_graph(args: argparse.Namespace, verify: Verify | None = None) -> None:
    """Export a run for the arguments of scripts/export.py. Raises: UsageError, RunFailure."""
    run = load_text_run(args.checkpoint, checkpoint="latest", device="cpu", weights=args.weights or "ema")
    if args.weights == "ema" and run.weights != "ema":
        raise UsageError(f"{args.checkpoint} keeps no averaged weights (ema=false): use --weights raw")
    model, block = run.model, run.model.config.block_size
    require_precision(args.checkpoint, model.dtype)
    sizes = model.shape.vocab_sizes
    if len(sizes) > 1 and getattr(run.config, "multidataset_wte", False):
        raise UsageError(f"{args.checkpoint} has a vocabulary for each data set: only models with one are exported")
    if block < 2:
        raise UsageError(f"arch.block_size={block}: a graph takes at least 2 tokens")
    streams = () if len(sizes) == 1 else (len(sizes),)
    outputs = ("logits",) if len(sizes) == 1 else tuple(f"logits_{number}" for number in range(len(sizes)))
    generator = keyed_generator(0, "export")
    batches = [
        torch.randint(min(sizes), (rows, *streams, length), generator=generator)
        for rows, length in zip(ROWS, (2, block), strict=True)
    ]
    plain = _Logits(model)

    def flat_logits(graph: Run) -> Tensor:
        return torch.cat([logits.flatten() for tokens in batches for logits in graph(tokens)])

    with torch.no_grad():
        expected = flat_logits(plain)
    write_graph(
        Graph(
            module=plain,
            inputs={"tokens": batches[1][:2]},
            sizes={"tokens": {0: Dim("rows", min=1, max=1 << 20), 1 + len(streams): Dim("length", min=2, max=block)}},
            outputs=outputs,
            expected=expected,
            logits=flat_logits,
            checked_on=f"random tokens, {' and '.join(str(list(tokens.shape)) for tokens in batches)}",
            metadata={
                "architecture": run.config.arch,
                "block_size": block,
                "vocab_sizes": list(sizes),
            },
            checkpoint=run.checkpoint,
            weights=run.weights,
            facts={"parameters": f"{model.num_parameters():,}", "context": block},
            tags=["text-generation"],
        ),
        args,
        verify,
    )
