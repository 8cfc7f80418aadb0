"""Any optimizer of `torch.optim` or of the pytorch-optimizer library behind this project's `step(lr_scale, ok)`.

torch's fused kernels, and our Muon, take "this step is skipped" as a device scalar, so nothing waits for the host.
The others are asked on the host, which on a GPU costs one synchronisation a step.
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
"""Those whose step needs gradients only: LBFGS wants a closure, SparseAdam sparse gradients."""
_FUSED = ("adam", "adamw")  # SGD's fused kernel takes a first step that is skipped for its momentum's start
DECAY = "weight_decay"
"""The one option that groups of one optimizer may have different values of."""
EXTRA = "pip install -e '.[optim]'"


class LibraryOptimizer:
    """One optimizer object of a library over one or several groups of named parameters.

    `make(groups)` builds it at learning rate `lr`; a step runs at lr·lr_scale. Where the optimizer keeps the weights to
    evaluate apart from those it trains (schedule-free ones), `evaluating()` exchanges them. A group's `fused_rows`
    gives the rows of each matrix in a parameter that stacks several; the optimizer sees those, over the same memory.
    `settings` names the options: a config's value of them holds, whatever the checkpoint's.
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
        cut = [cut_rows(group) for group in groups]
        params = {name: param for kept, _ in cut for name, param in kept.items()}
        self.params, self.names = [*params.values()], [*params]
        self._cuts = [each for _, cuts in cut for each in cuts]
        self.lr, self._make, self._settings = lr, make, settings
        own = [{DECAY: group.options[DECAY]} if DECAY in group.options else {} for group in groups]
        self.optimizer = make([{"params": [*kept.values()], **more} for (kept, _), more in zip(cut, own, strict=True)])
        self._fused, self._hessian_every, self._steps = fused, hessian_every, 0
        if self.evaluates_others:
            self.optimizer.train()  # type: ignore[attr-defined]
        self._fresh = [dict(group) for group in self.optimizer.param_groups]

    @property
    def capturable(self) -> bool:
        """Whether nothing of a step is asked on the host."""
        return self._fused or isinstance(self.optimizer, Muon)

    @torch.no_grad()
    def step(self, lr_scale: float | Tensor = 1.0, ok: Tensor | None = None) -> None:
        """One update at learning rate lr·lr_scale; `ok` 0 leaves everything as it is."""
        if self._fused or hasattr(self.optimizer, "found_inf"):
            # the kernels' own switch, made for loss scaling: 1 leaves parameters, moments and step count alone
            self.optimizer.found_inf = None if ok is None else (1.0 - ok.float()).reshape(())  # type: ignore[attr-defined]
        elif ok is not None and not bool(ok):
            return
        captured, lr = isinstance(lr_scale, Tensor), self.lr * lr_scale
        if self._fused and isinstance(lr, Tensor):
            lr = lr.float()  # as its kernels read it
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if self._fused:
                group["capturable"] = captured
        for part, whole, rows in self._cuts:
            part.grad = None if whole.grad is None else whole.grad[rows]
        if not captured:
            self.count_step()
        if self._hessian_every is None:
            bare_step(self.optimizer)()
        else:
            due = (self._steps - 1) % self._hessian_every == 0
            squares = [torch.zeros_like(p) if p.grad is None else p.grad * p.grad for p in self.params] if due else None
            self.optimizer.step(hessian=squares)  # type: ignore[call-overload]

    def count_step(self) -> None:
        """One more step has been taken."""
        self._steps += 1

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
        toys = {name: nn.Parameter(param.detach().clone()) for name, param in smallest.values()}
        fields: dict[str, Any] = {
            "settings": self._settings,
            "fused": self._fused,
            "hessian_every": self._hessian_every,
        }
        try:
            with torch.random.fork_rng(devices=[]):
                trial = LibraryOptimizer(self._make, [_toys(toys)], lr=self.lr, **fields)
                entries = copy.deepcopy({name: state["state"][name] for name in toys})
                trial._put({**state, "state": entries, "groups": copy.deepcopy(state["groups"][:1])})
                for toy in toys.values():
                    toy.grad = torch.full_like(toy, 1e-3)
                trial.step()
        except Exception as error:  # a library's class fails in its own ways
            raise ValueError(
                f"it lacks what these options need ({type(error).__name__}: {_first_line(error)}): keep the optimizer "
                "and the options that the run began with, or start a new run (resume=false)"
            ) from error


def cut_rows(
    group: ParamGroup,
) -> tuple[dict[str, nn.Parameter], list[tuple[nn.Parameter, nn.Parameter, slice]]]:
    """The parameters of a group with those of its `fused_rows` cut into rows; and the cuts: (part, whole, rows)."""
    kept: dict[str, nn.Parameter] = {}
    cuts = []
    for name, param in group.dense.items():
        if name not in group.fused_rows:
            kept[name] = param
            continue
        sizes = group.fused_rows[name]
        for part, end in zip(param.detach().split([*sizes]), accumulate(sizes), strict=True):
            rows = slice(end - len(part), end)
            kept[f"{name}.rows_{rows.start}"] = own = nn.Parameter(part)
            cuts.append((own, param, rows))
    return kept, cuts


def _toys(params: dict[str, nn.Parameter]) -> ParamGroup:
    """A group to try an optimizer out on."""
    return ParamGroup(name="toys", optimizer="", lr=0.0, params=params)


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


def build_library(cls: type[torch.optim.Optimizer], groups: Sequence[ParamGroup]) -> LibraryOptimizer:
    """`cls` over `groups`, which differ in weight decay alone; tried on two small tensors first, so that what cannot
    train or be saved is refused at once.

    Raises UsageError, naming why, for an optimizer whose step needs more than gradients (a closure, the model itself)
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
    matrices_only = "adamw_lr" in signature  # one object for matrices and the rest: here each group is its own object
    period = int(settings.get("update_period", signature["update_period"].default)) if name == "sophiah" else None

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        extra: dict[str, Any] = {"fused": True} if fused else {}
        marked: Any = [{**group, "use_muon": True} for group in groups] if matrices_only else groups
        return cls(marked, **{"lr": lr, **settings, **extra})

    common: dict[str, Any] = {"settings": frozenset(signature), "hessian_every": period}
    _try_out(name, make, common, sizes=[(4, 3), (3, 3)] if matrices_only or name == "muon" else [(4, 3), (3,)])
    return LibraryOptimizer(make, groups, lr=lr, fused=fused, **common)


def _try_out(name: str, make: Any, common: dict[str, Any], *, sizes: list[tuple[int, ...]]) -> None:
    toys = {f"p{number}": nn.Parameter(torch.ones(size)) for number, size in enumerate(sizes)}
    try:
        with torch.random.fork_rng(devices=[]):  # some draw random numbers: the run's own must not move
            trial = LibraryOptimizer(make, [_toys(toys)], lr=1e-3, **common)
            before = _attributes(trial.optimizer)
            for _ in range(2):
                for toy in toys.values():
                    toy.grad = torch.ones_like(toy)
                trial.step()
        if hidden := sorted(key for key, value in _attributes(trial.optimizer).items() if before.get(key) != value):
            raise UsageError(
                f"optimizer {name!r} cannot be used here: it keeps {hidden[0]!r} outside what a checkpoint saves"
            )
        split_tree(trial.state_dict())
    except UsageError:
        raise
    except Exception as error:  # third-party code: whatever it raises, the user needs one line and another choice
        known = isinstance(error, ValueError | TypeError)
        if known and not any(word in str(error) for word in ("closure", "leaf", "argument")):
            raise
        why = _first_line(error) if known else f"{type(error).__name__}: {_first_line(error)}"
        raise UsageError(
            f"optimizer {name!r} cannot be used here ({why}): its step needs more than gradients; choose another, "
            "e.g. adamw"
        ) from error


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
