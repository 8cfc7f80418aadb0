"""Test-time training on a task's own demonstrations: predict one from the others, all transformed and recoloured alike.

Trained is a task token (added to the context), the encoder, or all weights. Every task has its own copies, trained in
parallel with those of other tasks (torch.func.vmap); the model keeps its weights. The examples of a task depend only on
the task and the seed.

G tasks, E examples of each per step, at most K demonstrations, T tokens, C context tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dataset.arc.augment import COLOURS
from dataset.arc.tokens import PAD
from engine.distributed import keyed_numpy
from engine.fields import Inert, Range, check_fields
from evaluators.adaptation.adam import Adam
from evaluators.adaptation.examples import (
    IGNORE,
    Batch,
    Originals,
    TokenLoss,
    augment,
    draw_augmentations,
    log_likelihood,
)

Weights = dict[str, Tensor]
"""Trained parameters of G tasks by name, [G, ...] each."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of test-time training."""

    adapt: Literal["token", "encoder", "all"] = "token"
    """What is trained: a token that is added to every context of the task, the weights of the encoder, or all
    weights."""
    steps: Annotated[int, Range(0)] = 20
    """Updates per task."""
    lr: Annotated[float, Range(above=0)] = 1e-2
    """Learning rate of Adam. Weights need a smaller one than a token, e.g. 1e-3."""
    examples: Annotated[int, Range(1)] = 8
    """Examples of each task per step."""
    tasks: Annotated[int, Range(1), Inert("adapt=token", "adapt=token trains all tasks of a batch at once")] = 16
    """Tasks that are trained at once; each needs copies of the weights and moments in memory."""
    turn: bool = True
    """Rotate and reflect the examples; false: they keep the task's orientation, so that rules about it can be
    learned."""
    recolour: bool = True
    """Permute the colours of the examples; false: they keep the task's colours, so that rules about them can be
    learned."""
    act_steps: Annotated[int, Range(1)] = 1
    """ACT steps of an example, only the last with gradient; the question is answered with all."""

    def __post_init__(self) -> None:
        check_fields(self)


class Examples:
    """Leave-one-out examples of tasks: predict one demonstration from the others, with one augmentation for all."""

    def __init__(self, originals: Originals, groups: np.ndarray, config: TrainingConfig, seed: int) -> None:
        self.shown, self.groups = originals.demonstrations(groups), groups
        self.count, self.seed, self.turn, self.recolour = config.examples, seed, config.turn, config.recolour
        self.sizes = self.shown["demo_mask"].sum(1)

    def batch(self, step: int, device: torch.device) -> tuple[Batch, Tensor]:
        """(examples of a step [n, ...], task of each [n]), for tasks with at least two demonstrations."""
        usable = np.flatnonzero(self.sizes > 1)
        owner = np.repeat(usable, self.count)
        held_out, tids, tables = [], [], []
        for task in usable:
            generator = keyed_numpy(self.seed, f"test_time_training/{step}", int(self.groups[task]))
            held_out.append(generator.integers(self.sizes[task], size=self.count))
            turned, recoloured = draw_augmentations(generator, self.count)
            tids.append(turned if self.turn else np.zeros_like(turned))
            tables.append(recoloured if self.recolour else np.tile(np.arange(COLOURS), (self.count, 1)))
        rows, columns = np.arange(len(owner)), np.concatenate(held_out)
        width = self.shown["demo_mask"].shape[1]
        turn, colours = np.repeat(np.concatenate(tids), width), np.repeat(np.concatenate(tables), width, axis=0)
        grids = {}
        for name in ("demo_inputs", "demo_labels"):
            tokens = self.shown[name][owner]
            grids[name] = augment(tokens.reshape(-1, tokens.shape[-1]), turn, colours).reshape(tokens.shape)
        mask = self.shown["demo_mask"][owner].copy()
        mask[rows, columns] = False
        labels = grids["demo_labels"][rows, columns]
        arrays = {
            **grids,
            "demo_mask": mask,
            "inputs": grids["demo_inputs"][rows, columns],
            "labels": np.where(labels == PAD, IGNORE, labels),
        }
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
        return batch, torch.from_numpy(owner).to(device)


def losses(model: Any, batch: Batch, token: Tensor | None, token_loss: TokenLoss, act_steps: int) -> Tensor:
    """Loss of each example, [n]; `token` [n, C, D] is added to the contexts."""
    context = model.encode(batch).context
    if token is not None:
        context = context.to(token.dtype) + token
    logits = model.decode_with_context(batch, context, act_steps=act_steps).logits
    return -log_likelihood(logits, batch["labels"], token_loss)


def fit_tokens(
    model: Any, examples: Examples, config: TrainingConfig, token_loss: TokenLoss, device: torch.device
) -> tuple[Tensor, list[float]]:
    """Train one token per task, all together: (tokens [G, C, D], mean loss of each step).

    Tasks with a single demonstration cannot be trained and get a zero token.
    """
    start = model.encode(examples.batch(0, device)[0]).context if (examples.sizes > 1).any() else None
    if start is None:
        width = model.config
        return torch.zeros(len(examples.groups), width.context_len, width.hidden_size, device=device), []
    kind = torch.promote_types(start.dtype, torch.float32)
    token = torch.zeros(len(examples.groups), *start.shape[1:], dtype=kind, device=device)
    adam, history = Adam([token], lr=config.lr), []
    for step in range(config.steps):
        batch, owner = examples.batch(step, device)
        with torch.enable_grad():
            token = token.detach().requires_grad_()
            each = losses(model, batch, token[owner], token_loss, config.act_steps)
            (gradient,) = torch.autograd.grad(each.sum() / examples.count, token)
        token = token.detach() - adam.step([gradient])[0]
        history.append(float(each.detach().mean()))
    return token.detach(), history


def fit_weights(
    model: Any, examples: Examples, config: TrainingConfig, token_loss: TokenLoss, device: torch.device
) -> tuple[Weights, Tensor]:
    """Train a copy of the weights per task: (weights, loss of each task in each step [steps, G]).

    Tasks with a single demonstration keep the model's weights, and their losses are NaN. The model is not changed.
    """
    trained = torch.from_numpy(np.flatnonzero(examples.sizes > 1)).to(device)
    history = torch.full((config.steps, len(examples.groups)), float("nan"), device=device)
    if not len(trained):
        return {}, history
    prefix, part = ("inner.encoder.", model.encoder) if config.adapt == "encoder" else ("", model)
    start = {prefix + name: p.detach() for name, p in part.named_parameters() if p.requires_grad}
    weights = {name: p.expand(len(trained), *p.shape).clone() for name, p in start.items()}
    adam = Adam(list(weights.values()), lr=config.lr)
    loss_module = _LossModule(model, token_loss, config.act_steps)

    def loss_of(own: Weights, batch: Batch) -> Tensor:
        mean: Tensor = functional_call(loss_module, {f"model.{name}": value for name, value in own.items()}, (batch,))
        return mean

    for step in range(config.steps):
        batch, _ = examples.batch(step, device)
        each = {name: values.unflatten(0, (len(trained), -1)) for name, values in batch.items()}
        with torch.enable_grad(), model.vmappable():
            for value in weights.values():
                value.requires_grad_()
            losses_of = vmap(loss_of)(weights, each)
            gradients = torch.autograd.grad(losses_of.sum(), list(weights.values()), allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), gradients, strict=True)]
        updates = adam.step(grads)
        weights = {name: w.detach() - update for (name, w), update in zip(weights.items(), updates, strict=True)}
        history[step, trained] = losses_of.detach().to(history.dtype)
    full = {name: p.expand(len(examples.groups), *p.shape).clone() for name, p in start.items()}
    return {name: value.index_copy(0, trained, weights[name]) for name, value in full.items()}, history


class _LossModule(nn.Module):
    """The mean loss of some examples as a module, for functional_call."""

    def __init__(self, model: Any, token_loss: TokenLoss, act_steps: int) -> None:
        super().__init__()
        self.model, self.token_loss, self.act_steps = model, token_loss, act_steps

    def forward(self, batch: Batch) -> Tensor:
        return losses(self.model, batch, None, self.token_loss, self.act_steps).mean()
