"""Export models as graphs that run without this project: torch.export programs and ONNX files, for scripts/export.py.

A family defines the graph of its model. This file writes it, reads it back and compares its logits with the model's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import RunFailure, UsageError
from engine.io import atomic_directory, atomic_write_json, atomic_write_text, print_rank0
from reports.model_card import CARD, Verify, model_card

FILES = {"export": "model.pt2", "onnx": "model.onnx"}
"""File name by format: for `torch.export.load`, for onnxruntime."""
ABOUT = "export.json"
TOLERANCE = 1e-4
"""Largest allowed absolute difference between the graph's logits and the model's."""
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
LOADING = {
    "export": """
import torch

model = torch.export.load("{name}/model.pt2").module()
{inputs}
outputs = model(*inputs.values())  # {outputs}
""",
    "onnx": """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}/model.onnx")
{inputs}
outputs = session.run(None, inputs)  # {outputs}
""",
}
"""Code for the model card: call the graph once, on zeros of the example's shapes."""
Run = Callable[..., tuple[Tensor, ...]]
"""Tensors in the order of `Graph.inputs` -> tensors in the order of `Graph.outputs`."""


@dataclass(kw_only=True)
class Graph:
    """A model as a pure function of tensors, and how to check that an exported file computes the same."""

    module: nn.Module
    """The model, callable like a `Run`, in evaluation mode on the CPU."""
    inputs: dict[str, Tensor]
    """An example of each input. Dynamic dimensions must be at least 2: torch.export takes 1 for a constant."""
    sizes: Mapping[str, Mapping[int, Any]]
    """Dynamic dimensions of each input (torch.export.Dim)."""
    outputs: tuple[str, ...]
    expected: Tensor
    """Logits of the model on check inputs of several sizes."""
    logits: Callable[[Run], Tensor]
    """Logits of an exported graph on the same inputs."""
    checked_on: str
    """Description of the check inputs."""
    further_check: Callable[[Run], str] = lambda run: ""
    """Runs a further comparison; returns its result as text."""
    metadata: dict[str, Any]
    """Further content of export.json."""
    checkpoint: Any
    """engine.checkpoint.manifest.Checkpoint"""
    weights: str
    """ema or raw."""
    facts: Mapping[str, Any]
    """Rows of the model card."""
    tags: Sequence[str]
    advice: Sequence[str] = ()
    """Lines about the inputs, for the model card."""
    write_more: Callable[[Path, str], list[str]] = lambda folder, format: []
    """(folder, format): writes further files of the export; returns lines to print."""


def require_format(name: str) -> None:
    """Raise UsageError if a library of the format is not installed, before anything is loaded."""
    if name == "onnx":
        for library in LIBRARIES:
            try:
                importlib.import_module(library)
            except ImportError:
                raise UsageError(f"--format onnx needs {library}: pip install -e '.[onnx]'") from None


def require_precision(run: object, dtype: torch.dtype) -> None:
    """Raise UsageError for a model that computes in less than float32: no graph reproduces its rounding."""
    if dtype not in (torch.float32, torch.float64):
        short = str(dtype).removeprefix("torch.")
        raise UsageError(f"{run} computes in {short} (arch.forward_dtype): only float32 and float64 are exported")


def write_graph(graph: Graph, args: argparse.Namespace, verify: Verify | None) -> None:
    """Export to the folder `args.out`, atomically, if the written graph reproduces the model's logits. `verify` checks
    the run for the model card.

    Raises: UsageError if the folder cannot be created or the model cannot be traced; RunFailure if logits differ.
    """
    folder = Path(os.path.abspath(args.out))
    try:
        with atomic_directory(folder) as temporary, torch.no_grad():
            file = temporary / FILES[args.format]
            with _quiet():
                run = {"export": _write_program, "onnx": _write_onnx}[args.format](graph, file)
                error = float((graph.logits(run) - graph.expected).abs().max())
                further = graph.further_check(run)
            if not error <= TOLERANCE:
                raise RunFailure(
                    f"the graph's logits differ from the model's by {error:.2g}, more than {TOLERANCE:g}: not written"
                )
            lines = graph.write_more(temporary, args.format)
            atomic_write_json(temporary / ABOUT, _about(graph, args.format, error))
            atomic_write_text(temporary / CARD, _card(graph, args, folder.name, verify))
            size = sum(path.stat().st_size for path in temporary.glob(f"{file.name}*"))
    except FileExistsError:
        raise UsageError(f"{args.out} exists already: remove it or choose another folder") from None
    except FileNotFoundError as reason:
        raise UsageError(f"{args.out} cannot be created ({reason}): choose another folder") from None
    print_rank0(f"graph       {args.out}/{file.name} ({size / 1e6:.1f} MB)")
    for line in lines:
        print_rank0(line)
    print_rank0(f"checked     {graph.checked_on}: logits differ by at most {error:.1e}{further and f'; {further}'}")


def _about(graph: Graph, format: str, error: float) -> dict[str, Any]:
    """The content of export.json."""
    return {
        "format": format,
        "file": FILES[format],
        "inputs": _input_specs(graph),
        "outputs": list(graph.outputs),
        "run": "/".join(graph.checkpoint.path.parts[-4:-2]),
        "step": graph.checkpoint.step,
        "weights": graph.weights,
        **graph.metadata,
        "checked": {"questions": graph.checked_on, "largest_difference": error},
    }


def _card(graph: Graph, args: argparse.Namespace, name: str, verify: Verify | None) -> str:
    return model_card(
        graph.checkpoint,
        name=name,
        weights=graph.weights,
        model={**graph.facts, "inputs": ", ".join(graph.inputs), "outputs": ", ".join(graph.outputs)},
        loading=LOADING[args.format].format(
            name=name, inputs=_zeros(graph, args.format), outputs=", ".join(graph.outputs)
        ),
        tags=[*graph.tags, args.format],
        license=args.license,
        verify=verify,
    )


def _zeros(graph: Graph, format: str) -> str:
    """Code that builds zero inputs by name, after `Graph.advice` as comments."""
    library = {"export": "torch", "onnx": "np"}[format]
    rows = [
        f'    "{name}": {library}.zeros({tuple(tensor.shape)}, dtype={library}.{str(tensor.dtype)[6:]}),'
        for name, tensor in graph.inputs.items()
    ]
    return "\n".join([*(f"# {line}" for line in graph.advice), "inputs = {", *rows, "}"])


def _input_specs(graph: Graph) -> dict[str, dict[str, Any]]:
    """Dtype and shape of each input; a dynamic dimension is given by name."""
    specs = {}
    for name, tensor in graph.inputs.items():
        dynamic = {number: size.__name__ for number, size in graph.sizes[name].items()}
        shape = [dynamic.get(number, size) for number, size in enumerate(tensor.shape)]
        specs[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    return specs


def _program(graph: Graph) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=(tuple(dict(graph.sizes[name]) for name in graph.inputs),),
            strict=False,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"torch.export cannot trace this model: {' '.join(str(error).split())[:200]}") from error


def _write_program(graph: Graph, file: Path) -> Run:
    torch.export.save(_program(graph), file)
    module = torch.export.load(file).module()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = module(*tensors)
        return outputs

    return run


def _write_onnx(graph: Graph, file: Path) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    program = torch.onnx.export(
        _program(graph),
        dynamo=True,
        verbose=False,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=(tuple(dict(graph.sizes[name]) for name in graph.inputs),),
    )
    assert program is not None
    program.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, tensors, strict=True)}
        return tuple(map(torch.from_numpy, session.run(list(graph.outputs), feed)))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' messages about libraries that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
