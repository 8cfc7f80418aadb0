"""Wraps the optimizers of `torch.optim` and of the pytorch-optimizer library in this project's `step(lr_scale, ok)`.

torch's fused kernels and our Muon take "skip this step" as a device scalar, so there is no host sync. For the others
the host reads `ok`, which on a GPU costs one synchronisation per step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.state_tree import split_tree
from engine.errors import UsageError
from engine.optim.builtin import Muon, check_muon
from engine.task import ParamGroup

_NAMES = "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD NAdam RAdam RMSprop Rprop SGD"
TORCH: Mapping[str, type[torch.optim.Optimizer]] = {
    **{name.lower(): getattr(torch.optim, name) for name in _NAMES.split()},
    "muon": Muon,
}
"""torch's optimizers whose step needs only gradients: LBFGS needs a closure, SparseAdam sparse gradients."""
_FUSED = ("adam", "adamw")  # SGD's fused kernel would start its momentum from a skipped first step
DECAY = "weight_decay"
"""The only option that may differ between the groups of one optimizer."""
EXTRA = "pip install -e '.[optim]'"


class LibraryOptimizer:
    """One optimizer object of a library over one or several groups of named parameters.

    `make(groups)` builds it at learning rate `lr`; a step runs at lr·lr_scale. If the optimizer keeps weights for
    evaluation apart from those it trains (schedule-free ones), `evaluating()` swaps them in. A group's `fused_rows`
    gives the rows of each matrix in a parameter that stacks several; the optimizer sees these as parameters that share
    its memory. `settings` names the options, for which the config counts and not a checkpoint.
    """

    def __init__(
        self,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        groups: Sequence[ParamGroup],
        *,
        lr: float,
        settings: frozenset[str] = frozenset(),
        fused: bool = False,
        hessian_every: int | None = None,
    ) -> None:
        split = [split_rows(group) for group in groups]
        params = {name: param for members, _ in split for name, param in members.items()}
        self.params, self.names = [*params.values()], [*params]
        self._parts = [each for _, parts in split for each in parts]
        self.lr, self._make, self._settings = lr, make, settings
        decays = [{DECAY: group.options[DECAY]} if DECAY in group.options else {} for group in groups]
        self.optimizer = make([{"params": [*own.values()], **wd} for (own, _), wd in zip(split, decays, strict=True)])
        self._fused, self._hessian_every, self._steps = fused, hessian_every, 0
        self._fields: dict[str, Any] = {"settings": settings, "fused": fused, "hessian_every": hessian_every}
        if self.has_eval_weights:
            self.optimizer.train()  # type: ignore[attr-defined]
        self._initial = [dict(group) for group in self.optimizer.param_groups]

    @property
    def capturable(self) -> bool:
        """Whether a step needs nothing from the host."""
        return self._fused or isinstance(self.optimizer, Muon)

    @torch.no_grad()
    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None:
        """One update at learning rate lr·lr_scale; `ok` 0 leaves everything unchanged."""
        if self._fused or hasattr(self.optimizer, "found_inf"):
            # the kernels' own switch, meant for loss scaling: 1 leaves parameters, moments and step count unchanged
            self.optimizer.found_inf = None if ok is None else (1.0 - ok.float()).reshape(())  # type: ignore[attr-defined]
        elif ok is not None and not bool(ok):
            return
        captured, lr = isinstance(lr_scale, Tensor), self.lr * lr_scale
        if self._fused and isinstance(lr, Tensor):
            lr = lr.float()  # the dtype that the kernels expect
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if self._fused:
                group["capturable"] = captured
        for part, param, rows in self._parts:
            part.grad = None if param.grad is None else param.grad[rows]
        if not captured:
            self.count_step()
        if self._hessian_every is None:
            bare_step(self.optimizer)()
        else:
            due = (self._steps - 1) % self._hessian_every == 0
            squares = [torch.zeros_like(p) if p.grad is None else p.grad * p.grad for p in self.params] if due else None
            self.optimizer.step(hessian=squares)  # type: ignore[call-overload]

    def count_step(self) -> None:
        """Count a step."""
        self._steps += 1

    @property
    def has_eval_weights(self) -> bool:
        """Whether the weights for evaluation differ from those that a step updates."""
        return callable(getattr(self.optimizer, "eval", None)) and callable(getattr(self.optimizer, "train", None))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which the parameters hold the weights for evaluation, of an optimizer that has such weights."""
        # eval() and train() compute the weights and round: restoring copies gives back exactly the same bits.
        saved = [param.detach().clone() for param in self.params]
        self.optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for param, value in zip(self.params, saved, strict=True):
                    param.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """{"steps", "state": {parameter: {...}}, "groups": [values that the optimizer has changed]} (no copies)."""
        stored = self.optimizer.state_dict()
        state = {self.names[index]: dict(entry) for index, entry in stored["state"].items()}
        groups = [
            {k: v for k, v in self._own(group).items() if isinstance(v, Tensor) or k not in old or v is not old[k]}
            for group, old in zip(self.optimizer.param_groups, self._initial, strict=True)
        ]
        return {"steps": self._steps, "state": state, "groups": groups}

    def _own(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The optimizer's own values in a group: no options or parameters, only numbers and text."""
        excluded = {*self._settings, "params", "lr"}
        kinds = int | float | str | Tensor
        return {key: value for key, value in group.items() if key not in excluded and isinstance(value, kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state. Options stay as configured here: only values that the optimizer itself changes are restored.

        Raises: ValueError that names what does not fit.
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
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        number = {name: index for index, name in enumerate(self.names)}
        own = self.optimizer.state_dict()["param_groups"]
        groups = [{**group, **self._own(stored)} for group, stored in zip(own, state["groups"], strict=True)]
        self.optimizer.load_state_dict(
            {"state": {number[name]: entry for name, entry in state["state"].items()}, "param_groups": groups}
        )
        self._steps = int(state["steps"])

    def _try_state(self, state: Mapping[str, Any]) -> None:
        """Try a step with the stored state of the smallest parameter of each kind: it may lack what options need."""
        smallest: dict[tuple[int, frozenset[str]], tuple[str, nn.Parameter]] = {}
        for name, param in zip(self.names, self.params, strict=True):
            if name in state["state"]:
                kind = (param.dim(), frozenset(state["state"][name]))
                if kind not in smallest or param.numel() < smallest[kind][1].numel():
                    smallest[kind] = (name, param)
        if not smallest:
            return
        copies = {name: nn.Parameter(param.detach().clone()) for name, param in smallest.values()}
        try:
            with torch.random.fork_rng(devices=[]):
                trial = LibraryOptimizer(self._make, [_trial_group(copies)], lr=self.lr, **self._fields)
                entries = copy.deepcopy({name: state["state"][name] for name in copies})
                trial._restore({**state, "state": entries, "groups": copy.deepcopy(state["groups"][:1])})
                for param in copies.values():
                    param.grad = torch.full_like(param, 1e-3)
                trial.step()
        except Exception as error:  # a library's class may raise anything
            raise ValueError(
                f"it lacks what these options need ({type(error).__name__}: {_first_line(error)}): keep the optimizer "
                "and the options that the run began with, or start a new run (resume=false)"
            ) from error


def split_rows(
    group: ParamGroup,
) -> tuple[dict[str, nn.Parameter], list[tuple[nn.Parameter, nn.Parameter, slice]]]:
    """The parameters of a group, those in `fused_rows` split by rows; and the parts as (part, parameter, its rows)."""
    params: dict[str, nn.Parameter] = {}
    parts = []
    for name, param in group.dense.items():
        if name not in group.fused_rows:
            params[name] = param
            continue
        sizes = group.fused_rows[name]
        for values, end in zip(param.detach().split([*sizes]), accumulate(sizes), strict=True):
            rows = slice(end - len(values), end)
            params[f"{name}.rows_{rows.start}"] = part = nn.Parameter(values)
            parts.append((part, param, rows))
    return params, parts


def _trial_group(params: dict[str, nn.Parameter]) -> ParamGroup:
    """A group to try an optimizer on."""
    return ParamGroup(name="trial", optimizer="", lr=0.0, params=params)


def library_names() -> list[str]:
    """All names of the pytorch-optimizer library; empty if it is not installed."""
    try:
        from pytorch_optimizer import get_supported_optimizers
    except ImportError:
        return []
    return sorted(get_supported_optimizers())


def find_class(name: str) -> type[torch.optim.Optimizer] | None:
    """The class with the lower-case `name`: torch's, else pytorch-optimizer's, else None."""
    if name in TORCH:
        return TORCH[name]
    if name not in library_names():
        return None
    from pytorch_optimizer import load_optimizer

    optimizer: type[torch.optim.Optimizer] = load_optimizer(name)
    return optimizer


def build_library(cls: type[torch.optim.Optimizer], groups: Sequence[ParamGroup]) -> LibraryOptimizer:
    """`cls` over `groups`, which differ only in weight decay; tried on two small tensors first, so that one that cannot
    train or be saved is refused at once.

    Raises: UsageError, naming why, for an optimizer whose step needs more than gradients (a closure, the model itself)
    or whose state no checkpoint can hold; ValueError or TypeError of the class for an option it refuses.
    """
    name, lr, options = groups[0].optimizer, groups[0].lr, groups[0].options
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if cls is Muon:
        check_muon(settings)
    signature = inspect.signature(cls.__init__).parameters
    first = next((param for group in groups for param in group.dense.values()), None)
    device = first.device.type if first is not None else "cpu"
    fused = name in _FUSED and device in ("cpu", "cuda", "mps") and "fused" not in settings
    matrices_only = "adamw_lr" in signature  # the class mixes Muon and AdamW in one object: here only its Muon is used
    period = int(settings.get("update_period", signature["update_period"].default)) if name == "sophiah" else None

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        extra: dict[str, Any] = {"fused": True} if fused else {}
        marked: Any = [{**group, "use_muon": True} for group in groups] if matrices_only else groups
        return cls(marked, **{"lr": lr, **settings, **extra})

    common: dict[str, Any] = {"settings": frozenset(signature), "hessian_every": period}
    _try_out(name, make, common, sizes=[(4, 3), (3, 3)] if matrices_only or name == "muon" else [(4, 3), (3,)])
    return LibraryOptimizer(make, groups, lr=lr, fused=fused, **common)


def _try_out(name: str, make: Any, common: dict[str, Any], *, sizes: list[tuple[int, ...]]) -> None:
    params = {f"p{number}": nn.Parameter(torch.ones(size)) for number, size in enumerate(sizes)}
    try:
        with torch.random.fork_rng(devices=[]):  # some draw random numbers: the run's generator must not advance
            trial = LibraryOptimizer(make, [_trial_group(params)], lr=1e-3, **common)
            before = _attributes(trial.optimizer)
            for _ in range(2):
                for param in params.values():
                    param.grad = torch.ones_like(param)
                trial.step()
        if hidden := sorted(key for key, value in _attributes(trial.optimizer).items() if before.get(key) != value):
            raise UsageError(
                f"optimizer {name!r} cannot be used here: it keeps {hidden[0]!r} outside what a checkpoint saves"
            )
        split_tree(trial.state_dict())
    except UsageError:
        raise
    except Exception as error:  # third-party code may raise anything: the user needs one line and another choice
        known = isinstance(error, ValueError | TypeError)
        if known and not any(word in str(error) for word in ("closure", "leaf", "argument")):
            raise
        why = _first_line(error) if known else f"{type(error).__name__}: {_first_line(error)}"
        raise UsageError(
            f"optimizer {name!r} cannot be used here ({why}): its step needs more than gradients; choose another, "
            "e.g. adamw"
        ) from error


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, int | float]:
    """Numbers that an optimizer keeps outside of its groups and state."""
    return {key: value for key, value in vars(optimizer).items() if isinstance(value, int | float)}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


# --- torch's optimizers without torch._dynamo -------------------------------------------------------------------------
# At their first call they (and torch.manual_seed) import it, which takes seconds, only to exclude themselves from
# torch.compile. These two functions call what is under those wrappers; if a future torch has other wrappers, it is
# imported as usual.


def keep_dynamo_out() -> None:
    """Run torch.manual_seed and the optimizers' common methods unwrapped: torch checks for this attribute first."""
    for function in (torch.manual_seed, *vars(torch.optim.Optimizer).values()):
        if (bare := getattr(function, "__wrapped__", None)) is not None:
            bare.__dict__.setdefault("__dynamo_disable", bare)


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """`optimizer.step`; for torch's own classes and ours the function under the wrappers. Call it under no_grad."""
    own = type(optimizer).__module__.startswith(("torch.optim.", "engine.optim."))
    return inspect.unwrap(type(optimizer).step).__get__(optimizer) if own else optimizer.step


keep_dynamo_out()  # here, since everything that trains imports this module
