"""Training at test time on a task's own demonstrations: one is asked for, the others are shown, turned and recoloured.

What is trained is a task token (added to the context; many tasks at once), the encoder, or all weights (one task after
another, put back bit for bit afterwards). The examples of a task depend on the task and the seed alone.

G tasks, E examples of each in a step, K demonstrations at most, T tokens, C context tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dataset.arc.augment import COLOURS
from dataset.arc.tokens import PAD
from engine.distributed import keyed_numpy
from engine.fields import Range, check_fields
from evaluators.adaptation.adam import Adam
from evaluators.adaptation.examples import (
    IGNORE,
    Batch,
    Originals,
    TokenLoss,
    augmented,
    draw_augmentations,
    log_likelihood,
)


@dataclass(kw_only=True)
class TrainingConfig:
    """What to train, and how long."""

    adapt: Literal["token", "encoder", "all"] = "token"
    """A token of the task that is added to every context, the weights of the encoder, or all weights."""
    steps: Annotated[int, Range(0)] = 20
    """Updates for each task."""
    lr: Annotated[float, Range(above=0)] = 1e-2
    """Step size of Adam. Weights take a smaller one than a token, e.g. 1e-3."""
    examples: Annotated[int, Range(1)] = 8
    """Examples of each task in a step."""
    recolour: bool = True
    """Permute the colours of examples, too; else they keep the task's own, and a rule about them can be learned."""
    act_steps: Annotated[int, Range(1)] = 1
    """ACT steps of an example, of which the last one has a gradient; the question is answered with all."""

    def __post_init__(self) -> None:
        check_fields(self)


class Examples:
    """Leave-one-out examples of tasks: a demonstration is asked for, the others are shown, all changed alike."""

    def __init__(self, originals: Originals, groups: np.ndarray, config: TrainingConfig, seed: int) -> None:
        self.shown, self.groups = originals.shown(groups), groups
        self.count, self.seed, self.recolour = config.examples, seed, config.recolour
        self.sizes = self.shown["demo_mask"].sum(1)

    def batch(self, step: int, device: torch.device) -> tuple[Batch, Tensor]:
        """The examples of a step, and the task of each: rows of the tasks that have two demonstrations, [n, ...]."""
        usable = np.flatnonzero(self.sizes > 1)
        owner = np.repeat(usable, self.count)
        asked, tids, tables = [], [], []
        for place in usable:
            generator = keyed_numpy(self.seed, f"test_time_training/{step}", int(self.groups[place]))
            asked.append(generator.integers(self.sizes[place], size=self.count))
            drawn = draw_augmentations(generator, self.count)
            tids.append(drawn[0])
            tables.append(drawn[1] if self.recolour else np.tile(np.arange(COLOURS), (self.count, 1)))
        rows, wanted = np.arange(len(owner)), np.concatenate(asked)
        width = self.shown["demo_mask"].shape[1]
        turn, colours = np.repeat(np.concatenate(tids), width), np.repeat(np.concatenate(tables), width, axis=0)
        grids = {}
        for name in ("demo_inputs", "demo_labels"):
            tokens = self.shown[name][owner]
            grids[name] = augmented(tokens.reshape(-1, tokens.shape[-1]), turn, colours).reshape(tokens.shape)
        mask = self.shown["demo_mask"][owner].copy()
        mask[rows, wanted] = False
        labels = grids["demo_labels"][rows, wanted]
        arrays = {
            **grids,
            "demo_mask": mask,
            "inputs": grids["demo_inputs"][rows, wanted],
            "labels": np.where(labels == PAD, IGNORE, labels),
        }
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
        return batch, torch.from_numpy(owner).to(device)


def losses(model: Any, batch: Batch, token: Tensor | None, token_loss: TokenLoss, act_steps: int) -> Tensor:
    """The loss of each example, [n]; `token` [n, C, D] is added to the contexts."""
    context = model.encode(batch).context
    if token is not None:
        context = context.to(token.dtype) + token
    logits = model.decode_with_context(batch, context, act_steps=act_steps).logits
    return -log_likelihood(logits, batch["labels"], token_loss)


def fit_tokens(
    model: Any, examples: Examples, config: TrainingConfig, token_loss: TokenLoss, device: torch.device
) -> tuple[Tensor, list[float]]:
    """A token for each task, [G, C, D], all trained together, and the mean loss of each step.

    A task with a single demonstration has nothing to learn from, and a token of zeros.
    """
    start = model.encode(examples.batch(0, device)[0]).context if (examples.sizes > 1).any() else None
    if start is None:
        width = model.config
        return torch.zeros(len(examples.groups), width.context_len, width.hidden_size, device=device), []
    kind = torch.promote_types(start.dtype, torch.float32)
    token = torch.zeros(len(examples.groups), *start.shape[1:], dtype=kind, device=device)
    adam, course = Adam([token], lr=config.lr), []
    for step in range(config.steps):
        batch, owner = examples.batch(step, device)
        with torch.enable_grad():
            token = token.detach().requires_grad_()
            each = losses(model, batch, token[owner], token_loss, config.act_steps)
            (gradient,) = torch.autograd.grad(each.sum() / examples.count, token)
        token = token.detach() - adam.step([gradient])[0]
        course.append(float(each.detach().mean()))
    return token.detach(), course


@contextlib.contextmanager
def fitted_weights(
    model: Any, examples: Examples, config: TrainingConfig, token_loss: TokenLoss, device: torch.device
) -> Iterator[list[float]]:
    """In this block the model's weights are trained on the one task of `examples`; then they are put back, bit for bit.

    Yields the mean loss of each step; none for a task with a single demonstration.
    """
    part = model.encoder if config.adapt == "encoder" else model
    params = [param for param in part.parameters() if param.requires_grad]
    before = [param.detach().clone() for param in params]
    adam, course = Adam(before, lr=config.lr), []
    try:
        for step in range(config.steps if examples.sizes[0] > 1 else 0):
            batch, _ = examples.batch(step, device)
            with torch.enable_grad():
                loss = losses(model, batch, None, token_loss, config.act_steps).mean()
                gradients = torch.autograd.grad(loss, params, allow_unused=True)
            known = [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True)]
            with torch.no_grad():
                for param, move in zip(params, adam.step(known), strict=True):
                    param.sub_(move)
            course.append(float(loss.detach()))
        yield course
    finally:
        with torch.no_grad():
            for param, value in zip(params, before, strict=True):
                param.copy_(value)
