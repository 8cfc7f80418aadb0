"""Our own optimizers in plain torch, with a step that can be skipped on the device.

`step(lr_scale, ok)`: `ok` is a 0/1 scalar tensor. 0 leaves parameters, moments and step count exactly as they were,
even if gradients hold NaN or inf, without a host sync. Moments are kept in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from engine.fields import Range
from engine.task import SparseTable

RATE, MOMENT = Range(0), Range(0, below=1)
CHUNK = 65_536
"""Elements of a chunk: six float32 tensors of this size take 1.6 MB."""


def _require(bounds: Range, **options: float) -> None:
    """Raises: ValueError for an option outside of `bounds`, or that is not a number."""
    for key, value in options.items():
        if not isinstance(value, int | float) or not bounds.fits(value):
            raise ValueError(f"{key}={value}: expected {bounds.describe(key, value)}")


class AdamATan2:
    """Adam without epsilon (Everett et al. 2024, in the form of imoneoi's adam-atan2 0.0.3).

    p <- p(1 - lr·wd); m, v moving averages of g, g²; p <- p - lr/(1-β1^t) · atan2(m, sqrt(v)/sqrt(1-β2^t)).
    The bias correction of the first moment is outside the atan2. A zero gradient only decays. lr 0 is allowed.
    """

    capturable = True

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        names: Sequence[str],
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 1e-2,
    ) -> None:
        _require(RATE, lr=lr, weight_decay=weight_decay)
        _require(MOMENT, beta1=beta1, beta2=beta2)
        self.params, self.names = list(params), list(names)
        self.lr, self.beta1, self.beta2, self.weight_decay = lr, beta1, beta2, weight_decay
        self.exp_avg = [torch.zeros_like(p, dtype=_upcast(p)).detach() for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p, dtype=_upcast(p)).detach() for p in self.params]
        self.count = torch.zeros((), dtype=torch.float32, device=self.params[0].device if self.params else "cpu")

    @torch.no_grad()
    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None:
        """One update at learning rate lr·lr_scale. A parameter without a gradient is left unchanged."""
        moments = zip(self.params, self.exp_avg, self.exp_avg_sq, strict=True)
        live = [(p.detach(), p.grad, m, v) for p, m, v in moments if p.grad is not None]
        if not live:
            return  # all frozen: not counted, so that bias correction starts at the first real step
        self.count.add_(1.0 if ok is None else ok.to(self.count.dtype))

        # Device scalars in float64 (where the device has it): 1 - beta^t of small t loses digits in float32.
        count = self.count.to(torch.float32 if self.count.device.type == "mps" else torch.float64).clamp(min=1.0)
        lr = self.lr * lr_scale
        step_size, decay = lr / (1.0 - self.beta1**count), torch.ones_like(count) - lr * self.weight_decay
        if ok is not None:
            step_size, decay = torch.where(ok > 0, step_size, 0.0), torch.where(ok > 0, decay, 1.0)
        correction2 = (1.0 - self.beta2**count).sqrt()
        on_cpu = ok is not None and ok.device.type == "cpu"
        update_moments = self._update_moments_on_cpu if on_cpu else self._update_moments
        for param, grad, mean, square in _chunks(live):
            update_moments(grad, mean, square, ok)
            roots = torch._foreach_sqrt(square)
            torch._foreach_div_(roots, correction2)
            updates = [torch.atan2(m, root, out=root) for m, root in zip(mean, roots, strict=True)]
            self._apply(param, updates, step_size, decay)

    def _update_moments(self, grads: list[Tensor], m: list[Tensor], v: list[Tensor], ok: Tensor | None) -> None:
        """Interpolate the moments towards g and g²; if `ok` is 0, towards themselves, which changes nothing."""
        first = [g.to(mean.dtype) for g, mean in zip(grads, m, strict=True)]
        second = list(torch._foreach_mul(first, first))
        if ok is not None:
            mask = ok.to(torch.bool)
            first = [torch.where(mask, g, mean) for g, mean in zip(first, m, strict=True)]
            second = [torch.where(mask, g, square) for g, square in zip(second, v, strict=True)]
        torch._foreach_lerp_(m, first, 1.0 - self.beta1)
        torch._foreach_lerp_(v, second, 1.0 - self.beta2)

    def _update_moments_on_cpu(self, grads: list[Tensor], m: list[Tensor], v: list[Tensor], ok: Any) -> None:
        """The same with rates that are 0 if `ok` is 0: on a CPU, `where` would take longer than all the rest."""
        for grad, mean, square in zip(grads, m, v, strict=True):
            mask = ok.to(mean.dtype)
            g = torch.nan_to_num(grad.to(mean.dtype), 0.0, 0.0, 0.0).mul_(mask)
            mean.lerp_(g, mask * (1.0 - self.beta1))
            square.lerp_(g.mul_(g), mask * (1.0 - self.beta2))

    @staticmethod
    def _apply(params: list[Tensor], updates: list[Tensor], step_size: Tensor, decay: Tensor) -> None:
        """p <- p·decay - step_size·update, computed in the moments' dtype and rounded once to the parameter's."""
        torch._foreach_mul_(updates, step_size)
        if all(p.dtype == u.dtype for p, u in zip(params, updates, strict=True)):
            torch._foreach_mul_(params, decay)
            torch._foreach_sub_(params, updates)
            return
        for param, update in zip(params, updates, strict=True):
            param.copy_(param.to(update.dtype).mul_(decay).sub_(update))

    def count_step(self) -> None:
        """Nothing to do: no count is kept on the host."""

    def state_dict(self) -> dict[str, Any]:
        """{"step": scalar, "exp_avg": {name: tensor}, "exp_avg_sq": {name: tensor}} (no copies)."""
        return {
            "step": self.count,
            "exp_avg": dict(zip(self.names, self.exp_avg, strict=True)),
            "exp_avg_sq": dict(zip(self.names, self.exp_avg_sq, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state, copying. Raises: ValueError that names what does not fit."""
        for key, own in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            stored = state[key]
            if stored.keys() != set(self.names):
                differing = sorted(stored.keys() ^ set(self.names))
                raise ValueError(
                    f"optimizer state does not fit: {len(differing)} differing names in {key}, first {differing[0]!r}"
                )
            for name, tensor in zip(self.names, own, strict=True):
                if stored[name].shape != tensor.shape:
                    raise ValueError(
                        f"optimizer state {key} of {name!r} has shape {tuple(stored[name].shape)}, "
                        f"expected {tuple(tensor.shape)}"
                    )
                tensor.copy_(stored[name])
        self.count.copy_(torch.as_tensor(state["step"]))


def _chunks(tensors: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[list[Tensor], ...]]:
    """`tensors`, transposed; on a CPU one tensor at a time, in chunks that stay in cache through a dozen passes."""
    if any(t.device.type != "cpu" or not t.is_contiguous() for each in tensors for t in each):
        yield tuple(map(list, zip(*tensors, strict=True)))
        return
    for each in tensors:
        for chunks in zip(*(t.view(-1).split(CHUNK) for t in each), strict=True):
            yield tuple([chunk] for chunk in chunks)


def _upcast(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


class Lookahead:
    """Lookahead (Zhang et al. 2019): every k inner steps, slow <- slow + alpha · (fast - slow) and fast <- slow."""

    capturable = False

    def __init__(
        self, inner: Any, params: Sequence[nn.Parameter], names: Sequence[str], *, k: int, alpha: float
    ) -> None:
        if k < 1 or not 0.0 < alpha <= 1.0:
            raise ValueError(f"k={k}, alpha={alpha}: expected k of at least 1 and 0 < alpha <= 1")
        self.inner, self.params, self.names, self.k, self.alpha = inner, list(params), list(names), k, alpha
        self.lr = inner.lr
        self.slow = [param.detach().clone() for param in self.params]
        self.count = 0

    @torch.no_grad()
    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None:
        """One inner step; every k-th one updates the slow weights and resets the fast ones to them."""
        if ok is not None and not bool(ok):
            return
        self.inner.step(lr_scale)
        self.count += 1
        if self.count % self.k == 0:
            torch._foreach_lerp_(self.slow, [param.detach() for param in self.params], self.alpha)
            torch._foreach_copy_([param.detach() for param in self.params], self.slow)

    def count_step(self) -> None:
        """Never called: steps of this optimizer are not captured."""

    @property
    def has_eval_weights(self) -> bool:
        """Whether the inner optimizer keeps weights for evaluation apart from those it trains."""
        return bool(getattr(self.inner, "has_eval_weights", False))

    def evaluating(self) -> AbstractContextManager[None]:
        """Context in which the parameters hold the inner optimizer's weights for evaluation."""
        return self.inner.evaluating()  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """Inner state, slow weights by name, steps so far."""
        slow = dict(zip(self.names, self.slow, strict=True))
        return {"inner": self.inner.state_dict(), "slow": slow, "count": self.count}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        torch._foreach_copy_(self.slow, [state["slow"][name] for name in self.names])
        self.count = int(state["count"])


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), with a step that can be skipped on the device, and in float32 on a CPU.

    Options, groups and state are torch's. `found_inf` is the switch of torch's fused kernels: 1 leaves parameters and
    momentum unchanged. torch's own Muon lacks it, so the host would have to read `ok`.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    def _update(self, param: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        state, lr, momentum = self.state[param], group["lr"], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        mean, skip = state["momentum_buffer"], None if self.found_inf is None else self.found_inf > 0
        if skip is not None:
            grad = torch.where(skip, mean, grad)  # leaves the momentum unchanged
        mean.lerp_(grad, 1 - momentum)
        update = grad.lerp(mean, momentum) if group["nesterov"] else mean
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = param.shape
        kinds = {"match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)), "original": math.sqrt(max(1, rows / columns))}
        new = param.mul(1 - lr * group["weight_decay"])
        size = -lr * kinds[group["adjust_lr_fn"] or "original"]
        if isinstance(size, Tensor):  # add_ takes only host numbers as `alpha`
            new.add_(update.to(new.dtype).mul_(size))
        else:
            new.add_(update, alpha=size)
        param.copy_(new if skip is None else torch.where(skip, param, new))


def check_muon(options: Mapping[str, Any]) -> None:
    """Raises: ValueError for options that torch's Muon accepts but that cannot train."""
    bounds = {"momentum": MOMENT, "ns_steps": Range(1, 99), "eps": Range(above=0), "weight_decay": RATE}
    for key in (key for key in bounds if key in options):
        _require(bounds[key], **{key: options[key]})
    if not isinstance(steps := options.get("ns_steps", 1), int):
        raise ValueError(f"ns_steps={steps}: expected a whole number")
    three = options.get("ns_coefficients", (0.0,) * 3)
    if not isinstance(three, list | tuple) or [isinstance(each, int | float) for each in three] != [True] * 3:
        raise ValueError(f"ns_coefficients={three}: expected three numbers")


def orthogonalised(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """[m, n] -> approximately U V^T of its singular value decomposition, by Newton-Schulz iteration: in bfloat16, as
    published, or in float32 on a CPU, where bfloat16 can take 30 times as long (docs/results/bench.md)."""
    a, b, c = coefficients
    x = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


# --- SignSGD for a large table of which a step uses few rows ----------------------------------------------------------
# w <- w(1 - lr·wd) - lr·sign(Σ gradients of the row). Gradients of equal identifiers are summed over slots,
# micro-batches and ranks; rows outside the batch do not even decay. All shapes depend only on the number of slots, so
# there is no host sync.


def sign_update(
    weights: Tensor, ids: Tensor, grads: Tensor, *, lr: float | Tensor, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """Return (sorted ids [n], their new rows [n, E]); equal ids have equal rows, so the order of writes is irrelevant.

    A stable sort makes equal ids adjacent, and a cumulative sum of the changes numbers the groups: no `unique`, no host
    sync.
    """
    sorted_ids, order = torch.sort(ids.long(), stable=True)
    changes = torch.ones_like(sorted_ids)
    changes[1:] = (sorted_ids[1:] != sorted_ids[:-1]).long()
    group = changes.cumsum(0) - 1  # [n]
    sorted_grads = grads[order].to(weights.dtype)
    total = torch.zeros_like(sorted_grads).index_add_(0, group, sorted_grads)[group]
    return sorted_ids, weights[sorted_ids] * (1.0 - lr * weight_decay) - lr * total.sign()


class SparseSignSGD:
    """SignSGD on a sparse table, with the interface of the dense optimizers; it has no state."""

    capturable = True

    def __init__(self, table: SparseTable, *, lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        _require(RATE, lr=lr, weight_decay=weight_decay)
        self.table, self.lr, self.weight_decay = table, lr, weight_decay

    @torch.no_grad()
    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None:
        """Update the rows used since the last step. `ok` 0 leaves them unchanged and drops the gradients.

        A collective: every rank calls it, with the same number of rows.
        """
        from engine.distributed import all_gather_rows

        ids, grads = self.table.take_pending()
        ids, grads = all_gather_rows(ids), all_gather_rows(grads)
        if ids.shape[0] == 0:
            return
        weights = self.table.weights
        ids, rows = sign_update(weights, ids, grads, lr=self.lr * lr_scale, weight_decay=self.weight_decay)
        if ok is not None:
            rows = torch.where(ok.to(torch.bool), rows, weights[ids])
        weights[ids] = rows

    def count_step(self) -> None:
        """Nothing to do: no count is kept on the host."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore. Raises: ValueError for a state of another optimizer."""
        if state:
            raise ValueError(f"optimizer state does not fit: sparse_sign_sgd has none, got {sorted(state)}")
