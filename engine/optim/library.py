"""Any optimizer of `torch.optim` or of the pytorch-optimizer library behind this project's `step(lr_scale, ok)`.

torch's fused kernels take "this step is called off" as a device scalar, so nothing waits for the host. The others are
asked on the host, which on a GPU costs one synchronisation a step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UsageError
from engine.treefile import split_tree

TORCH: Mapping[str, type[torch.optim.Optimizer]] = {
    name.lower(): getattr(torch.optim, name)
    for name in (
        "Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop",
        "Rprop", "SGD",
    )
}  # fmt: skip
"""Those whose step needs gradients only: LBFGS wants a closure, SparseAdam sparse gradients."""
_DEVICE_CHOICES = (
    "lr",
    "fused",
    "foreach",
    "capturable",
    "differentiable",
)  # not state: this machine's, or the schedule's
_FUSED = ("adam", "adamw")  # SGD's fused kernel takes a first step that is called off for its momentum's start
EXTRA = "pip install -e '.[optim]'"


class LibraryOptimizer:
    """One optimizer object of a library over named parameters.

    `make(params)` builds it at learning rate `lr`; a step runs at lr·lr_scale. Where the optimizer keeps the weights to
    evaluate apart from those it trains (schedule-free ones), `evaluating()` exchanges them. `parts` gives the rows of
    each matrix in a parameter that stacks several; the optimizer sees those, over the same memory.
    """

    def __init__(
        self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], params: Sequence[nn.Parameter],
        names: Sequence[str], *, lr: float, fused: bool = False, hessian_every: int | None = None,
        parts: Mapping[str, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        self.params, self.names, self._cuts = cut_rows(params, names, parts or {})
        self.lr = lr
        self.optimizer = make(self.params)
        self._fused, self._hessian_every, self._steps = fused, hessian_every, 0
        if self.evaluates_others:
            self.optimizer.train()  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None:
        """One update at learning rate lr·lr_scale; `ok` 0 leaves everything as it is."""
        if self._fused:
            # the kernels' own switch, made for loss scaling: 1 leaves parameters, moments and step count alone
            self.optimizer.found_inf = None if ok is None else (1.0 - ok.float()).reshape(())  # type: ignore[attr-defined]
        elif ok is not None and not bool(ok):
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * lr_scale
        for part, whole, rows in self._cuts:
            part.grad = None if whole.grad is None else whole.grad[rows]
        self._steps += 1
        if self._hessian_every is None:
            self.optimizer.step()
        else:
            due = (self._steps - 1) % self._hessian_every == 0
            squares = [torch.zeros_like(p) if p.grad is None else p.grad * p.grad for p in self.params] if due else None
            self.optimizer.step(hessian=squares)  # type: ignore[call-overload]

    @property
    def evaluates_others(self) -> bool:
        """Whether the weights to evaluate differ from those that a step moves."""
        return callable(getattr(self.optimizer, "eval", None)) and callable(getattr(self.optimizer, "train", None))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The parameters hold the weights to evaluate inside."""
        if not self.evaluates_others:
            yield
            return
        # The exchange is a formula, not a copy: kept copies make the weights after it the very same bits.
        kept = [param.detach().clone() for param in self.params]
        self.optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for param, value in zip(self.params, kept, strict=True):
                    param.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """{"steps", "state": {parameter: {...}}, "groups": [scalars that the optimizer itself moves]} (no copies)."""
        stored = self.optimizer.state_dict()
        state = {self.names[index]: dict(entry) for index, entry in stored["state"].items()}
        groups = [
            {k: v for k, v in group.items() if isinstance(v, int | float | Tensor) and k not in _DEVICE_CHOICES}
            for group in stored["param_groups"]
        ]
        return {"steps": self._steps, "state": state, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state in; raises ValueError that names what does not fit."""
        unknown = sorted(state["state"].keys() - set(self.names))
        if unknown:
            raise ValueError(f"optimizer state does not fit: {len(unknown)} unknown names, first {unknown[0]!r}")
        own = self.optimizer.state_dict()
        number = {name: index for index, name in enumerate(self.names)}
        for name, entry in state["state"].items():
            wanted = tuple(self.params[number[name]].shape)
            for key in ("exp_avg", "momentum_buffer"):
                found = entry.get(key)
                if isinstance(found, Tensor) and tuple(found.shape) != wanted:
                    raise ValueError(
                        f"optimizer state {key} of {name!r} has shape {tuple(found.shape)}, expected {wanted}"
                    )
        groups = [{**group, **stored} for group, stored in zip(own["param_groups"], state["groups"], strict=True)]
        self.optimizer.load_state_dict(
            {"state": {number[name]: entry for name, entry in state["state"].items()}, "param_groups": groups}
        )
        self._steps = int(state["steps"])


def cut_rows(
    params: Sequence[nn.Parameter], names: Sequence[str], parts: Mapping[str, Sequence[int]]
) -> tuple[list[nn.Parameter], list[str], list[tuple[nn.Parameter, nn.Parameter, slice]]]:
    """Parameters and names with those of `parts` cut into rows; and the cuts: (part, whole, rows)."""
    if not parts:
        return list(params), list(names), []
    kept: dict[str, nn.Parameter] = {}
    cuts = []
    for name, param in zip(names, params, strict=True):
        if name not in parts:
            kept[name] = param
            continue
        for part, end in zip(param.detach().split([*parts[name]]), accumulate(parts[name]), strict=True):
            rows = slice(end - len(part), end)
            kept[f"{name}.rows_{rows.start}"] = own = nn.Parameter(part)
            cuts.append((own, param, rows))
    return list(kept.values()), list(kept), cuts


class Lookahead:
    """k steps of an inner optimizer, then a share `alpha` of the way from the slow weights (Zhang et al. 2019)."""

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
    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None:
        """One inner step; every k-th one moves the slow weights and restarts the fast ones there."""
        if ok is not None and not bool(ok):
            return
        self.inner.step(lr_scale)
        self.count += 1
        if self.count % self.k == 0:
            torch._foreach_lerp_(self.slow, [param.detach() for param in self.params], self.alpha)
            torch._foreach_copy_([param.detach() for param in self.params], self.slow)

    def state_dict(self) -> dict[str, Any]:
        """Inner state, slow weights by name, steps so far."""
        slow = dict(zip(self.names, self.slow, strict=True))
        return {"inner": self.inner.state_dict(), "slow": slow, "count": self.count}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.inner.load_state_dict(state["inner"])
        for name, slow in zip(self.names, self.slow, strict=True):
            slow.copy_(state["slow"][name])
        self.count = int(state["count"])


def library_names() -> list[str]:
    """Every name of the pytorch-optimizer library; empty where it is not installed."""
    try:
        from pytorch_optimizer import get_supported_optimizers
    except ImportError:
        return []
    return sorted(get_supported_optimizers())


def find_class(name: str) -> type[torch.optim.Optimizer] | None:
    """The class called `name` in lower case: torch's, else pytorch-optimizer's. None where neither has it."""
    if name in TORCH:
        return TORCH[name]
    if name not in library_names():
        return None
    from pytorch_optimizer import load_optimizer

    return load_optimizer(name)


def build_library(
    name: str, cls: type[torch.optim.Optimizer], params: Sequence[nn.Parameter], names: Sequence[str], *, lr: float,
    options: Mapping[str, Any], parts: Mapping[str, Sequence[int]],
) -> LibraryOptimizer:  # fmt: skip
    """`cls` over `params`, tried on two small tensors first, so that what cannot train or be saved is refused at once.

    Raises UsageError, naming why, for an optimizer whose step needs more than gradients (a closure, the model itself)
    or whose state no checkpoint can hold; ValueError or TypeError of the class for an option it refuses.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    signature = inspect.signature(cls.__init__).parameters
    device = params[0].device.type if params else "cpu"
    fused = name in _FUSED and device in ("cpu", "cuda", "mps") and "fused" not in settings
    matrices_only = "adamw_lr" in signature  # one object for matrices and the rest: here each group is its own object
    period = int(settings.get("update_period", signature["update_period"].default)) if name == "sophiah" else None

    def make(values: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups: Any = [{"params": values, "use_muon": True}] if matrices_only else values
        extra: dict[str, Any] = {"fused": True} if fused else {}
        return cls(groups, **{"lr": lr, **settings, **extra})

    _try_out(name, make, period, sizes=[(4, 3), (3, 3)] if matrices_only or name == "muon" else [(4, 3), (3,)])
    return LibraryOptimizer(make, params, names, lr=lr, fused=fused, hessian_every=period, parts=parts)


def _try_out(name: str, make: Any, period: int | None, *, sizes: list[tuple[int, ...]]) -> None:
    state = torch.random.get_rng_state()  # some draw random numbers: the run's own must not move
    toys = [nn.Parameter(torch.ones(size)) for size in sizes]
    try:
        trial = LibraryOptimizer(make, toys, [f"p{i}" for i in range(len(toys))], lr=1e-3, hessian_every=period)
        for _ in range(2):
            for toy in toys:
                toy.grad = torch.ones_like(toy)
            trial.step()
        split_tree(trial.state_dict())
    except (ValueError, TypeError) as error:
        if "closure" not in str(error) and "leaf" not in str(error) and "argument" not in str(error):
            raise
        raise UsageError(f"optimizer {name!r} cannot be used here: {_first_line(error)}") from error
    except Exception as error:  # third-party code: whatever it raises, the user needs one line and another choice
        raise UsageError(
            f"optimizer {name!r} cannot be used here ({type(error).__name__}: {_first_line(error)}): "
            "its step needs more than gradients; choose another, e.g. adamw"
        ) from error
    finally:
        torch.random.set_rng_state(state)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]
