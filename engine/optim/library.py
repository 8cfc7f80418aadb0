"""Any optimizer of `torch.optim` or of the pytorch-optimizer library behind this project's `step(lr_scale, ok)`.

torch's fused kernels, and our Muon, take "this step is called off" as a device scalar, so nothing waits for the host.
The others are asked on the host, which on a GPU costs one synchronisation a step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import split_tree
from engine.errors import UsageError
from engine.optim.builtin import Muon

TORCH: Mapping[str, type[torch.optim.Optimizer]] = {
    name.lower(): Muon if name == "Muon" else getattr(torch.optim, name)
    for name in (
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "Adamax",
        "AdamW",
        "ASGD",
        "Muon",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
}
"""Those whose step needs gradients only: LBFGS wants a closure, SparseAdam sparse gradients."""
_FUSED = ("adam", "adamw")  # SGD's fused kernel takes a first step that is called off for its momentum's start
EXTRA = "pip install -e '.[optim]'"


@dataclass(kw_only=True)
class Block:
    """Parameters that a library's optimizer takes as one of its groups, with the options that are theirs alone."""

    params: Sequence[nn.Parameter]
    names: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    fused_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)


class LibraryOptimizer:
    """One optimizer object of a library over named parameters, in one or several blocks.

    `make(groups)` builds it at learning rate `lr`; a step runs at lr·lr_scale. Where the optimizer keeps the weights to
    evaluate apart from those it trains (schedule-free ones), `evaluating()` exchanges them. A block's `fused_rows`
    gives the rows of each matrix in a parameter that stacks several; the optimizer sees those, over the same memory.
    `settings` names the options: a config's value of them holds, whatever the checkpoint's.
    """

    def __init__(
        self,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        blocks: Sequence[Block],
        *,
        lr: float,
        settings: frozenset[str] = frozenset(),
        fused: bool = False,
        hessian_every: int | None = None,
    ) -> None:
        cut = [cut_rows(block.params, block.names, block.fused_rows) for block in blocks]
        self.params = [param for params, _, _ in cut for param in params]
        self.names = [name for _, names, _ in cut for name in names]
        self._cuts = [each for _, _, cuts in cut for each in cuts]
        self.lr, self._make, self._settings = lr, make, settings
        self.optimizer = make([{"params": c[0], **block.options} for c, block in zip(cut, blocks, strict=True)])
        self._fused, self._hessian_every, self._steps = fused, hessian_every, 0
        if self.evaluates_others:
            self.optimizer.train()  # type: ignore[attr-defined]
        self._fresh = [dict(group) for group in self.optimizer.param_groups]

    @torch.no_grad()
    def step(self, lr_scale: float = 1.0, ok: Tensor | None = None) -> None:
        """One update at learning rate lr·lr_scale; `ok` 0 leaves everything as it is."""
        if self._fused or hasattr(self.optimizer, "found_inf"):
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
            bare_step(self.optimizer)()
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
        """{"steps", "state": {parameter: {...}}, "groups": [what the optimizer has moved in each]} (no copies)."""
        stored = self.optimizer.state_dict()
        state = {self.names[index]: dict(entry) for index, entry in stored["state"].items()}
        groups = [
            {k: v for k, v in self._own(group).items() if isinstance(v, Tensor) or k not in fresh or v is not fresh[k]}
            for group, fresh in zip(self.optimizer.param_groups, self._fresh, strict=True)
        ]
        return {"steps": self._steps, "state": state, "groups": groups}

    def _own(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a group that are the optimizer's own: no option, no parameter, only numbers and text."""
        without = {*self._settings, "params", "lr"}
        kinds = int | float | str | Tensor
        return {key: value for key, value in group.items() if key not in without and isinstance(value, kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a state in. Options stay as they are here: only what the optimizer itself moves comes back.

        Raises ValueError that names what does not fit.
        """
        unknown = sorted(state["state"].keys() - set(self.names))
        if unknown:
            raise ValueError(f"optimizer state does not fit: {len(unknown)} unknown names, first {unknown[0]!r}")
        shapes = {name: tuple(param.shape) for name, param in zip(self.names, self.params, strict=True)}
        for name, entry in state["state"].items():
            for key in ("exp_avg", "momentum_buffer"):
                value = entry.get(key)
                if isinstance(value, Tensor) and tuple(value.shape) != shapes[name]:
                    raise ValueError(
                        f"optimizer state {key} of {name!r} has shape {tuple(value.shape)}, expected {shapes[name]}"
                    )
        self._try_state(state)
        self._put(state)

    def _put(self, state: Mapping[str, Any]) -> None:
        number = {name: index for index, name in enumerate(self.names)}
        own = self.optimizer.state_dict()["param_groups"]
        groups = [{**group, **self._own(stored)} for group, stored in zip(own, state["groups"], strict=True)]
        self.optimizer.load_state_dict(
            {"state": {number[name]: entry for name, entry in state["state"].items()}, "param_groups": groups}
        )
        self._steps = int(state["steps"])

    def _try_state(self, state: Mapping[str, Any]) -> None:
        """A step with the stored state of the smallest parameter of each kind: options may need more than is there."""
        smallest: dict[tuple[int, frozenset[str]], tuple[str, nn.Parameter]] = {}
        for name, param in zip(self.names, self.params, strict=True):
            if name in state["state"]:
                kind = (param.dim(), frozenset(state["state"][name]))
                if kind not in smallest or param.numel() < smallest[kind][1].numel():
                    smallest[kind] = (name, param)
        if not smallest:
            return
        names = [name for name, _ in smallest.values()]
        toys = [nn.Parameter(param.detach().clone()) for _, param in smallest.values()]
        draws = torch.random.get_rng_state()
        try:
            trial = LibraryOptimizer(
                self._make,
                [Block(params=toys, names=names)],
                lr=self.lr,
                settings=self._settings,
                fused=self._fused,
                hessian_every=self._hessian_every,
            )
            entries = copy.deepcopy({name: state["state"][name] for name in names})
            trial._put({**state, "state": entries, "groups": copy.deepcopy(state["groups"][:1])})
            for toy in toys:
                toy.grad = torch.full_like(toy, 1e-3)
            trial.step()
        except Exception as error:  # a library's class fails in its own ways
            raise ValueError(
                f"it lacks what these options need ({type(error).__name__}: {_first_line(error)}): keep the optimizer "
                "and the options that the run began with, or start a new run (resume=false)"
            ) from error
        finally:
            torch.random.set_rng_state(draws)


def cut_rows(
    params: Sequence[nn.Parameter], names: Sequence[str], fused_rows: Mapping[str, Sequence[int]]
) -> tuple[list[nn.Parameter], list[str], list[tuple[nn.Parameter, nn.Parameter, slice]]]:
    """Parameters and names with those of `fused_rows` cut into rows; and the cuts: (part, whole, rows)."""
    if not fused_rows:
        return list(params), list(names), []
    kept: dict[str, nn.Parameter] = {}
    cuts = []
    for name, param in zip(names, params, strict=True):
        if name not in fused_rows:
            kept[name] = param
            continue
        for part, end in zip(param.detach().split([*fused_rows[name]]), accumulate(fused_rows[name]), strict=True):
            rows = slice(end - len(part), end)
            kept[f"{name}.rows_{rows.start}"] = own = nn.Parameter(part)
            cuts.append((own, param, rows))
    return list(kept.values()), list(kept), cuts


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

    optimizer: type[torch.optim.Optimizer] = load_optimizer(name)
    return optimizer


def build_library(
    name: str, cls: type[torch.optim.Optimizer], blocks: Sequence[Block], *, lr: float, options: Mapping[str, Any]
) -> LibraryOptimizer:
    """`cls` over `blocks`, tried on two small tensors first, so that what cannot train or be saved is refused at once.

    Raises UsageError, naming why, for an optimizer whose step needs more than gradients (a closure, the model itself)
    or whose state no checkpoint can hold; ValueError or TypeError of the class for an option it refuses.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    signature = inspect.signature(cls.__init__).parameters
    first = next((param for block in blocks for param in block.params), None)
    device = first.device.type if first is not None else "cpu"
    fused = name in _FUSED and device in ("cpu", "cuda", "mps") and "fused" not in settings
    matrices_only = "adamw_lr" in signature  # one object for matrices and the rest: here each group is its own object
    period = int(settings.get("update_period", signature["update_period"].default)) if name == "sophiah" else None

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        extra: dict[str, Any] = {"fused": True} if fused else {}
        marked: Any = [{**group, "use_muon": True} for group in groups] if matrices_only else groups
        return cls(marked, **{"lr": lr, **settings, **extra})

    common: dict[str, Any] = {"settings": frozenset(signature), "hessian_every": period}
    _try_out(name, make, common, sizes=[(4, 3), (3, 3)] if matrices_only or name == "muon" else [(4, 3), (3,)])
    return LibraryOptimizer(make, blocks, lr=lr, fused=fused, **common)


def _try_out(name: str, make: Any, common: dict[str, Any], *, sizes: list[tuple[int, ...]]) -> None:
    state = torch.random.get_rng_state()  # some draw random numbers: the run's own must not move
    toys = [nn.Parameter(torch.ones(size)) for size in sizes]
    try:
        trial = LibraryOptimizer(
            make, [Block(params=toys, names=[f"p{i}" for i in range(len(toys))])], lr=1e-3, **common
        )
        before = _attributes(trial.optimizer)
        for _ in range(2):
            for toy in toys:
                toy.grad = torch.ones_like(toy)
            trial.step()
        if hidden := sorted(key for key, value in _attributes(trial.optimizer).items() if before.get(key) != value):
            raise UsageError(
                f"optimizer {name!r} cannot be used here: it keeps {hidden[0]!r} where no checkpoint looks"
            )
        split_tree(trial.state_dict())
    except UsageError:
        raise
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


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, int | float]:
    """What an optimizer counts outside its groups and state."""
    return {key: value for key, value in vars(optimizer).items() if isinstance(value, int | float)}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


# --- torch's optimizers without torch._dynamo -------------------------------------------------------------------------
# At their first call they (and torch.manual_seed) import it, which takes seconds, to keep torch.compile out of what is
# never compiled here. These two call what lies under those wrappers; where a future torch has other wrappers, it is
# imported as ever.


def keep_dynamo_out() -> None:
    """Let torch.manual_seed and what all optimizers share run as they are: torch asks for this attribute first."""
    for function in (torch.manual_seed, *vars(torch.optim.Optimizer).values()):
        if (bare := getattr(function, "__wrapped__", None)) is not None:
            bare.__dict__.setdefault("__dynamo_disable", bare)


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """`optimizer.step`, of torch's own classes the function under the wrappers: call it without gradients."""
    own = type(optimizer).__module__.startswith(("torch.optim.", "engine.optim."))
    return inspect.unwrap(type(optimizer).step).__get__(optimizer) if own else optimizer.step


keep_dynamo_out()  # here, since whatever trains imports this module
