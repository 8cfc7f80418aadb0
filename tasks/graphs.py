"""Models as graphs that run without this project: torch.export programs and ONNX files, for scripts/export.py.

A family defines the graph of its model. Here it is written, read back, and given the inputs that the model was given.
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
"""The graph by format: what `torch.export.load` reads, what onnxruntime reads."""
ABOUT = "export.json"
TOLERANCE = 1e-4
"""Largest difference of a logit from the model's own."""
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
"""What a card shows: the graph called once, with zeros of the sizes of an example."""
Run = Callable[..., tuple[Tensor, ...]]
"""The tensors of `Graph.inputs` in order -> those of `Graph.outputs`."""


@dataclass(kw_only=True)
class Graph:
    """A model as a function of tensors alone, and how to check that what was written is that model."""

    module: nn.Module
    """In evaluation mode, on the CPU: a `Run`."""
    inputs: dict[str, Tensor]
    """An example of each input. Sizes that vary must be at least 2 in it: torch.export takes 1 for a constant."""
    sizes: Mapping[str, Mapping[int, Any]]
    """Which dimensions of each input vary (torch.export.Dim)."""
    outputs: tuple[str, ...]
    expected: Tensor
    """The model's own logits for questions of several sizes."""
    answer: Callable[[Run], Tensor]
    """Those of a graph for the same questions."""
    asked: str
    """The questions in words."""
    also: Callable[[Run], str] = lambda run: ""
    """A further comparison, in words."""
    about: dict[str, Any]
    """What export.json holds besides."""
    checkpoint: Any
    """engine.checkpoint.manifest.Checkpoint"""
    weights: str
    """ema or raw."""
    facts: Mapping[str, Any]
    """Rows of the model card."""
    tags: Sequence[str]
    advice: Sequence[str] = ()
    """Lines about the inputs, for the model card."""
    beside: Callable[[Path, str], list[str]] = lambda folder, format: []
    """Writes what else belongs into the folder, for a format; returns lines to print."""


def require_format(name: str) -> None:
    """Raises: UsageError where the libraries of a format are not installed, before anything is loaded."""
    if name == "onnx":
        for library in LIBRARIES:
            try:
                importlib.import_module(library)
            except ImportError:
                raise UsageError(f"--format onnx needs {library}: pip install -e '.[onnx]'") from None


def require_precision(run: object, dtype: torch.dtype) -> None:
    """Raises: UsageError for a model that computes in less than float32, whose rounding no graph repeats."""
    if dtype not in (torch.float32, torch.float64):
        short = str(dtype).removeprefix("torch.")
        raise UsageError(f"{run} computes in {short} (arch.forward_dtype): only float32 and float64 are exported")


def write_graph(graph: Graph, args: argparse.Namespace, verify: Verify | None) -> None:
    """Write the folder `args.out`, whole or not at all, if the graph that was written answers as the model does.
    `verify` judges the run for the model card.

    Raises: UsageError for a folder that cannot be made, a model that cannot be traced; RunFailure for other answers.
    """
    folder = Path(os.path.abspath(args.out))
    try:
        with atomic_directory(folder) as temporary, torch.no_grad():
            file = temporary / FILES[args.format]
            with _quiet():
                run = {"export": _write_program, "onnx": _write_onnx}[args.format](graph, file)
                apart = float((graph.answer(run) - graph.expected).abs().max())
                also = graph.also(run)
            if not apart <= TOLERANCE:
                raise RunFailure(
                    f"the graph's logits differ from the model's by {apart:.2g}, more than {TOLERANCE:g}: not written"
                )
            lines = graph.beside(temporary, args.format)
            atomic_write_json(temporary / ABOUT, _about(graph, args.format, apart))
            atomic_write_text(temporary / CARD, _card(graph, args, folder.name, verify))
            size = sum(path.stat().st_size for path in temporary.glob(f"{file.name}*"))
    except FileExistsError:
        raise UsageError(f"{args.out} exists already: remove it or choose another folder") from None
    except FileNotFoundError as error:
        raise UsageError(f"{args.out} cannot be created ({error}): choose another folder") from None
    print_rank0(f"graph       {args.out}/{file.name} ({size / 1e6:.1f} MB)")
    for line in lines:
        print_rank0(line)
    print_rank0(f"checked     {graph.asked}: logits differ by at most {apart:.1e}{also and f'; {also}'}")


def _about(graph: Graph, format: str, apart: float) -> dict[str, Any]:
    """The content of export.json."""
    return {
        "format": format,
        "file": FILES[format],
        "inputs": _forms(graph),
        "outputs": list(graph.outputs),
        "run": "/".join(graph.checkpoint.path.parts[-4:-2]),
        "step": graph.checkpoint.step,
        "weights": graph.weights,
        **graph.about,
        "checked": {"questions": graph.asked, "largest_difference": apart},
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
    """Code that makes an example of the inputs by name, below the comment of `Graph.advice`."""
    library = {"export": "torch", "onnx": "np"}[format]
    rows = [
        f'    "{name}": {library}.zeros({tuple(tensor.shape)}, dtype={library}.{str(tensor.dtype)[6:]}),'
        for name, tensor in graph.inputs.items()
    ]
    return "\n".join([*(f"# {line}" for line in graph.advice), "inputs = {", *rows, "}"])


def _forms(graph: Graph) -> dict[str, dict[str, Any]]:
    """Of each input the dtype, and its sizes, where one that varies has a name."""
    forms = {}
    for name, tensor in graph.inputs.items():
        varying = {number: size.__name__ for number, size in graph.sizes[name].items()}
        shape = [varying.get(number, size) for number, size in enumerate(tensor.shape)]
        forms[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    return forms


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
        given = {name: tensor.numpy() for name, tensor in zip(graph.inputs, tensors, strict=True)}
        return tuple(map(torch.from_numpy, session.run(list(graph.outputs), given)))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' messages about libraries that are not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
