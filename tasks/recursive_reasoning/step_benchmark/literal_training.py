"""The published training step, evaluation and batching: optimizers that loop over parameters, metrics read at each
step, batches assembled group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.loop import compiling
from tasks.recursive_reasoning.step_benchmark.literal import Batch, Carry, Literal


class AdamATan2:
    """imoneoi's adam-atan2 0.0.3 in plain torch, one parameter at a time."""

    def __init__(self, params: Sequence[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        self.params, self.lr, self.betas, self.weight_decay = params, lr, betas, weight_decay
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
        self.count = 0

    def step(self) -> None:
        """On CUDA the package updates all parameters in one kernel; the closest in plain torch are foreach kernels."""
        (self.step_foreach if self.params[0].is_cuda else self.step_loop)()

    @torch.no_grad()
    def step_loop(self) -> None:
        """Update one parameter at a time."""
        self.count += 1
        (beta1, beta2), lr = self.betas, self.lr
        for param, (mean, square) in zip(self.params, self.moments, strict=True):
            if (grad := param.grad) is None:
                continue
            param.mul_(1 - lr * self.weight_decay)
            mean.lerp_(grad, 1 - beta1)
            square.lerp_(grad.square(), 1 - beta2)
            root = square.sqrt() / (1 - beta2**self.count) ** 0.5
            param.add_(torch.atan2(mean, root), alpha=-lr / (1 - beta1**self.count))
            param.grad = None

    @torch.no_grad()
    def step_foreach(self) -> None:
        """Update all parameters that have a gradient with foreach kernels."""
        self.count += 1
        (beta1, beta2), lr = self.betas, self.lr
        used = [(p, p.grad, *pair) for p, pair in zip(self.params, self.moments, strict=True) if p.grad is not None]
        params, grads, means, squares = map(list, zip(*used, strict=True))
        torch._foreach_mul_(params, 1 - lr * self.weight_decay)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**self.count) ** 0.5)
        updates = [torch.atan2(mean, root) for mean, root in zip(means, roots, strict=True)]
        torch._foreach_add_(params, updates, alpha=-lr / (1 - beta1**self.count))
        for param in params:
            param.grad = None


@torch.no_grad()
def sign_sgd(table: Any, lr: float, weight_decay: float) -> None:
    """Update the batch's rows: sum the gradients of equal identifiers, then w <- w (1 - lr wd) - lr sign(sum)."""
    if (grad := table.local.grad) is None:
        return
    ids, inverse = table.ids.long().unique(return_inverse=True)
    total = grad.new_zeros(len(ids), grad.shape[1])
    total.scatter_add_(0, inverse.unsqueeze(-1).expand(-1, grad.shape[1]), grad)
    table.weights[ids] = table.weights[ids].mul_(1 - lr * weight_decay).add_(total.sign_(), alpha=-lr)
    table.local.grad = None


class Training:
    """The published training loop around a `Literal`; `step` and `evaluate` return metrics as floats."""

    def __init__(self, model: Literal, rows: int, config: Any, *, compiled: bool = False) -> None:
        """`config`: learning rates, decays and EMA rate, by the names of pretrain.py's keys. `compiled`: torch.compile
        the whole model, loss included, as the published script does."""
        self.model, self.rows, self.config = model, rows, config
        self.forward: Any = torch.compile(model, backend=compiling.BACKEND) if compiled else model
        params = [*model.parameters()]
        self.optimizer = AdamATan2(params, config.lr, (config.beta1, config.beta2), config.weight_decay)
        self.shadow = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.carry: Carry | None = None

    def step(self, batch: Batch) -> dict[str, float]:
        """One ACT step of every row, one optimizer step, and the metrics on the host."""
        model, config = self.model.train(), self.config
        carry = model.initial_carry(batch) if self.carry is None else self.carry
        self.carry, loss, metrics = self.forward(carry, batch)
        (loss / self.rows).backward()
        if model.inner.puzzle_emb is not None:
            sign_sgd(model.inner.puzzle_emb, config.puzzle_emb_lr, config.puzzle_emb_weight_decay)
        self.optimizer.step()
        values = _read(metrics)
        for name, param in model.named_parameters():
            self.shadow[name] = (1 - config.ema_rate) * param.detach() + config.ema_rate * self.shadow[name]
        count = max(values.pop("count"), 1)
        return {name: value / (self.rows if name.endswith("loss") else count) for name, value in values.items()}

    @torch.inference_mode()
    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Run a whole episode; loss and metrics are computed at each ACT step, those of the last one returned."""
        model = self.model.eval()
        carry, metrics = model.initial_carry(batch), dict[str, Tensor]()
        while True:
            carry, _, metrics = model(carry, batch)
            if carry.halted.all():
                break
        values = _read(metrics)
        count = max(values.pop("count"), 1)
        return {name: value / count for name, value in values.items()}


def _read(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    names = sorted(metrics)
    values = torch.stack([metrics[name].to(torch.float32) for name in names]).cpu().numpy()
    return dict(zip(names, values.tolist(), strict=True))


def batches(split: Any, seed: int, iteration: int, epochs: int, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of one iteration: draw a group, one of its puzzles, its examples, until a batch is full."""
    rng, choice = np.random.Generator(np.random.Philox(seed=seed + iteration)), np.random.RandomState(seed)
    groups = len(split.group_indices) - 1
    order = np.concatenate([rng.permutation(groups) for _ in range(epochs)])
    position = 0
    while position < len(order):
        examples, puzzles, filled = [], [], 0
        while position < len(order) and filled < rows:
            group = order[position]
            puzzle = rng.integers(split.group_indices[group], split.group_indices[group + 1])
            position += 1
            first, size = split.puzzle_indices[puzzle], split.puzzle_indices[puzzle + 1] - split.puzzle_indices[puzzle]
            taken = min(size, rows - filled)
            puzzles.append(np.full(taken, puzzle, dtype=np.int32))
            examples.append(first + choice.choice(size, taken, replace=False))
            filled += taken
        if filled < rows:
            return
        chosen = np.concatenate(examples)
        yield {
            "inputs": split.inputs[chosen].astype(np.int32),
            "labels": split.labels[chosen].astype(np.int32),
            "puzzle_identifiers": split.puzzle_identifiers[np.concatenate(puzzles)].astype(np.int32),
        }
