"""The tiny instance that the probes examine: built by the script's own code, and driven as the trainer does.

Shapes: B rows of the batch, T tokens, S positions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import engine.registry
from engine.distributed import rank, world_size
from engine.loop.trainer import Trainer
from engine.schema import structure
from engine.task import Runtime
from verification.probes.launch import Launched, create_model
from verification.spec import Settings, Verification
from verification.subject import optimizer_keys

Edit = Callable[[int, Any], Any]
T = TypeVar("T")
Q_BIAS = 10.0
"""A q bias at which every row halts (or, negated, continues), whatever it has computed."""


class Unobservable(Exception):
    """The model lacks what a probe needs to observe; the text names it."""


@dataclass
class Call:
    """Inputs and output of one forward pass of the model."""

    batch: dict[str, Tensor]
    carry: Any
    output: Any
    training: bool


class Recorder:
    """Records every forward of `model` and the names of the `_forward_*` methods that ran.

    `edit(number, output)` may replace an output before the caller sees it.
    """

    def __init__(self, model: nn.Module, edit: Edit | None = None) -> None:
        self.calls: list[Call] = []
        self.names: list[str] = []
        self._edit = edit
        forward = model.forward
        bind = _signature(type(model)).bind

        def recorded(*args: Any, **kwargs: Any) -> Any:
            inputs = list(bind(model, *args, **kwargs).arguments.values())[1:]  # batch and carry, in any calling form
            batch, carry = _copy(inputs[0]), _copy(inputs[1]) if len(inputs) > 1 else None
            output = forward(*args, **kwargs)
            if self._edit is not None:
                output = self._edit(len(self.calls), output)
            self.calls.append(Call(batch, carry, output, model.training))
            return output

        model.forward = recorded  # type: ignore[method-assign]
        for name in dir(type(model)):
            if name.startswith("_forward_"):
                setattr(model, name, self._named(name, getattr(model, name)))

    def _named(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            return method(*args, **kwargs)

        return call


def _signature(cls: type) -> inspect.Signature:
    """The signature of a model's forward; for one with *args or **kwargs, that of a base class that names them."""
    own = [inspect.signature(vars(base)["forward"]) for base in cls.__mro__ if "forward" in vars(base)]
    collects = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [one for one in own if not any(parameter.kind in collects for parameter in one.parameters.values())]
    return (named or own)[0]


def _copy(value: Any) -> Any:
    """A copy of a batch or carry, unaffected by later in-place writes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{name: _copy(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


@dataclass
class Tiny:
    """Builds a fresh tiny instance for each probe; the same seed gives the same weights."""

    launch: Launched
    spec: Verification
    settings: Settings
    model_class: type
    data: Path
    """The folder with the tiny data set."""
    resolved: Settings
    """The full-size config."""
    overridden: Sequence[str] = ()
    """Keys of the architecture that the command sets; below, keys of the run."""
    overridden_run: Sequence[str] = ()
    root: Path = field(default_factory=lambda: engine.registry.ROOT)
    cache: dict[str, Any] = field(default_factory=dict)
    """Observations that several probes share, by name."""

    @property
    def schema(self) -> Any:
        return self.launch.schema

    @property
    def arch(self) -> Mapping[str, Any]:
        return self.settings["arch"]

    @property
    def full_arch(self) -> Settings:
        return self.resolved["arch"]

    def once(self, observe: Callable[[Tiny], T]) -> T:
        """An observation that several probes share: computed by the first one, then cached."""
        name = observe.__name__
        if name not in self.cache:
            self.cache[name] = observe(self)
        result: T = self.cache[name]
        return result

    @functools.cached_property
    def task_class(self) -> Any:
        """The class of the task."""
        return type(self.build().task)

    @property
    def act_mode(self) -> str | None:
        """The ACT_MODE that the model declares: dynamic, or fixed (all steps in one training step)."""
        return getattr(self.model_class, "ACT_MODE", None)

    @functools.cached_property
    def max_steps(self) -> int:
        """Steps of a whole episode, as the model has them."""
        if not isinstance(steps := getattr(self.build().task.module, "halt_max_steps", None), int):
            raise Unobservable("the model has no halt_max_steps")
        return steps

    def by_reference(self, key: str) -> bool:
        """Whether `key` reaches the optimizer through its file, which has the value once a config is resolved: a later
        change would not get there (JOB031 checks those keys)."""
        return "optimizer" in self.settings and key in optimizer_keys(self.root)

    def config(self, run: Mapping[str, Any] | None = None, **arch: Any) -> Any:
        """The structured config, with run keys and keys of `arch` (dotted: `loss.loss_type`) replaced.

        Raises: UsageError.
        """
        settings = {**self.settings, **(run or {}), "arch": with_keys(self.arch, arch)}
        return structure(self.schema, settings)

    def build(
        self, *, perturbed: bool = True, run: Mapping[str, Any] | None = None, config: Any = None, **arch: Any
    ) -> Any:
        """Build a fresh plan. `perturbed` adds seeded noise to all weights, so that zeros hide nothing."""
        config = config or self.config(run, **arch)
        torch.manual_seed(config.seed)
        assert self.launch.build is not None
        plan = self.launch.build(config, runtime(config.seed))
        if perturbed:
            perturb(plan.task.module)
        plan.task.module.train()
        return plan

    def full_model(self, settings: Settings | None = None, **arch: Any) -> nn.Module:
        """The full-size model on the meta device (without memory), with keys of `arch` replaced. Raises: UsageError."""
        settings = {**(settings or self.settings), "arch": with_keys(self.full_arch, arch)}
        config = structure(self.schema, {key: value for key, value in settings.items() if key != "hydra"})
        meta = replace(runtime(0), device=torch.device("meta"))
        with torch.device("meta"):
            model: nn.Module = create_model(self.launch.module)(config, self.spec.full_shape(config), meta)[0]
        return model


def runtime(seed: int) -> Runtime:
    """A runtime on the CPU in float32; with one rank, except in the probe of two ranks."""
    return Runtime(
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="auto",
        seed=seed,
        accumulation=1,
        rank=rank(),
        world_size=world_size(),
    )


class NoStop:
    """A stop signal that never comes."""

    def agreed(self) -> bool:
        return False


def fit(
    plan: Any,
    config: Any,
    after_step: Callable[[], None] | None = None,
    write: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> tuple[Trainer, Mapping[str, float | None]]:
    """Run the real trainer without files, calling `after_step` after each step: (trainer, its results).

    `write` gets what a run would write to metrics.jsonl.
    """

    def nothing(*_: Any) -> None: ...

    seen = nothing if after_step is None else lambda _: after_step()
    hook = SimpleNamespace(start=nothing, after_step=seen, after_eval=nothing, end=nothing)
    never: Any = NoStop()
    trainer = Trainer(
        plan, config, runtime(config.seed), save=nothing, write=write or nothing, stop=never, hooks=[hook]
    )
    return trainer, trainer.fit()


# --- driving a task ---------------------------------------------------------------------------------------------------


def batch_of(micro_batch: Any) -> dict[str, Tensor]:
    """The dictionary of tensors in a task's micro-batch."""
    parts = micro_batch if isinstance(micro_batch, tuple | list) else [micro_batch]
    for part in parts:
        if isinstance(part, dict):
            return part
    raise Unobservable("the task's micro-batches hold no dictionary of tensors")


def step(task: Any, number: int, change: Callable[[dict[str, Tensor]], None] | None = None) -> float:
    """The loss of step `number` summed over its micro-batches, without an optimizer.

    `change` edits the dictionary of each micro-batch in place.
    """
    total = 0.0
    for micro_batch in task.micro_batches(number):
        if change is not None:
            change(batch_of(micro_batch))
        total += float(task.loss(micro_batch)[0].detach())
    finish_step(task)
    return total


def unroll(model: nn.Module, batch: dict[str, Tensor], steps: int) -> Iterator[Any]:
    """Yield the outputs of `steps` forward passes over one batch without gradients, each with the last one's carry."""
    state = None
    for _ in range(steps):
        torch.manual_seed(5)  # the same for every unrolling
        with torch.no_grad():
            output = model(batch, state)
        state = output.carry
        yield output


def evaluate(task: Any) -> dict[str, Any]:
    """The results of a run's final evaluation; empty if the task has none."""
    return dict(task.evaluate(final=True)) if callable(getattr(task, "evaluate", None)) else {}


def finish_step(task: Any) -> None:
    """Do what the trainer does after a step, without an optimizer."""
    task.after_step()
    for table in tables(task.module).values():
        table.take_pending()


def tables(model: nn.Module) -> dict[str, Any]:
    """The sparse tables of a model by name: modules that look up rows and keep their gradients for an optimizer."""
    return {name: module for name, module in model.named_modules() if hasattr(type(module), "take_pending")}


def first_batch(task: Any) -> dict[str, Tensor]:
    """The first batch of step 1."""
    return dict(batch_of(next(iter(task.micro_batches(1)))))


def perturb(model: nn.Module) -> None:
    """Add seeded noise to every parameter and fill the sparse tables: a zero weight hides what it multiplies."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn(param.shape, generator=generator).to(param.dtype))
        for table in tables(model).values():
            table.weights.copy_(torch.randn(table.weights.shape, generator=generator))


def set_halting(model: nn.Module, halt: bool) -> None:
    """Fix the halting head so that every row halts (or continues), whatever it has computed."""
    heads = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "q_head"]
    if len(heads) != 1 or getattr(heads[0], "bias", None) is None:
        raise Unobservable("the model has no module q_head with a bias to steer")
    sign = Q_BIAS if halt else -Q_BIAS
    with torch.no_grad():
        heads[0].weight.zero_()
        for place in range(heads[0].bias.numel()):  # (halt, continue)
            heads[0].bias[place] = sign if place == 0 else -sign


def junk(labels: Tensor) -> Tensor:
    """Other labels everywhere, still in the vocabulary; ignored positions are kept."""
    return torch.where(labels >= 0, (labels + 1) % (int(labels.max()) + 1), labels)


def reachable(item: Any) -> Iterator[Any]:
    """All objects within five references of `item`, itself included; torch modules are not searched."""
    seen: dict[int, Any] = {}
    level = [item]
    for _ in range(6):
        fresh = {id(one): one for one in level if id(one) not in seen}
        seen |= fresh
        yield from fresh.values()
        level = [part for one in fresh.values() for part in _parts(one)]


def _parts(item: Any) -> list[Any]:
    if isinstance(item, Tensor | nn.Module | type | str):
        return []
    inner = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple | set) else ()
    bound = [item.args, item.keywords, item.func] if isinstance(item, functools.partial) else []
    return [*inner, *bound, *getattr(item, "__dict__", {}).values()]


def with_keys(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested block with dotted keys replaced."""
    copy = dict(block)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        copy[head] = with_keys(copy.get(head) or {}, {rest: value}) if rest else value
    return copy


def same(a: Any, b: Any) -> bool:
    """Whether two nested values (lists, dictionaries, dataclasses) have equal tensors and values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if is_dataclass(a) and is_dataclass(b):
        return all(same(getattr(a, one.name), getattr(b, one.name)) for one in fields(a))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def listed(names: list[str]) -> str:
    """At most four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
