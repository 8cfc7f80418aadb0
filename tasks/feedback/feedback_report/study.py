"""Runs of the feedback scripts as a study: how cells are named, and which static LoRA each is compared with.

Cells are in sections by the data sets of adapter and base; a base is in the section of its in-domain adapters.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.run.files import read_yaml
from reports.naming import difference_names
from reports.runs import Run
from reports.study import Cell, Study, leaves
from tasks.feedback.args import FeedbackConfig
from tasks.feedback.runs import base_checkpoint
from tasks.loading import data_root

METRIC, PARAMETERS, FLOPS = "eval/loss", "eval/parameters", "eval/flops"
LORA, TUNED, HYPER = "static_lora@StaticLora", "attention_finetune@AttentionFineTune", "hypernetwork@HyperNetwork"
BASE, LOOPED = "base@BaseLM", "looped@LoopedLM"
RANK, MODE, REVERSE, READS, PASSES, ADDED, SCALE = (
    f"arch.{key}"
    for key in ("lora_rank", "mode", "feedback_reverse", "conditioning", "n_passes", "accumulate", "scale_rule")
)
_LEFT_OUT = {*FeedbackConfig.NOT_IDENTITY, "ff_checkpoint_dir", "ff_checkpoint_name", "script", "epochs"}


def with_base(run: Run) -> Run:
    """Add data set, architecture and steps of a run's base to its config, under `base`.

    Raises: UsageError if the base is gone.
    """
    config = run.config
    if "ff_checkpoint_dir" not in config:
        return run
    with contextlib.chdir(data_root(run.path)):
        try:
            path = base_checkpoint(
                *(str(config[key]) for key in ("ff_checkpoint_dir", "ff_checkpoint_name", "out_dir", "active_dataset"))
            )
        except UsageError as error:
            raise UsageError(f"{run.path} cannot be placed: {error}") from None
        stored = read_yaml(path.resolve().parent.parent / "config.resolved.yaml")
    base = {"dataset": stored.get("active_dataset"), "arch": stored.get("arch"), "steps": stored.get("total_steps")}
    return replace(run, config={**config, "base": base})


@dataclass(frozen=True, kw_only=True)
class FeedbackStudy(Study):
    """Compares every cell with the static LoRA on the same base that is nearest in number of parameters."""

    ignored: frozenset[str] = frozenset(_LEFT_OUT)
    expected: str = "run of a feedback script"
    no_baseline: str = "there is no run of a static LoRA (arch=static_lora): no difference from one can be given"

    def check(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a run of another family."""
        arch = config.get("arch")
        name = arch.get("name") if isinstance(arch, Mapping) else None
        if not isinstance(name, str) or not name.startswith("feedback."):
            raise UsageError(f"{path} is a run of {name}: expected one of feedforward_train.py or of an adapter")

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a config, with only the active one of its data sets."""
        datasets = config.get("datasets") or {}
        kept = {**config, "datasets": datasets.get(config.get("active_dataset"))}
        settings = leaves({name: value for name, value in kept.items() if name not in {*self.ignored, "seed"}})
        return with_later_keys(dict(settings))

    def is_baseline(self, settings: Mapping[str, Any]) -> bool:
        """Whether the cell is a static LoRA."""
        return kind(settings) == LORA

    def baseline_of(self, cell: Cell, cells: Sequence[Cell]) -> Cell | None:
        """The nearest static LoRA in number of parameters; for a base, among those of its section."""
        near = [one for one in cells if kind(one.settings) == LORA and _base(one.settings) == _base(cell.settings)]
        if kind(cell.settings) in (BASE, LOOPED):
            near = [one for one in cells if kind(one.settings) == LORA and section(one) == section(cell)]
        if self.is_baseline(cell.settings) or not near:
            return None
        return min(near, key=lambda one: abs(parameters(one) - parameters(cell)))

    def names(self, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """Kind of model and main settings; further differences are appended if two cells would share a name."""
        names = list(map(_name, settings))
        same: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            same[name].append(number)
        for name, numbers in same.items():
            if len({repr(sorted(settings[number].items())) for number in numbers}) > 1:
                for number, more in zip(numbers, difference_names([settings[n] for n in numbers]), strict=True):
                    names[number] = f"{name}, {more}"
        return names

    def rank(self, cell: Cell) -> int:
        """Sort key by kind of model: bases, static LoRA, fine-tuning, hypernetworks."""
        order = [BASE, LOOPED, LORA, TUNED, HYPER]
        return order.index(kind(cell.settings)) if kind(cell.settings) in order else len(order)


def with_later_keys(settings: dict[str, Any]) -> dict[str, Any]:
    """Add values for keys that older runs lack, so that they share a cell with newer ones."""
    later: dict[str, Any] = {"eval_t_grid": 16}
    later |= {SCALE: "sqrt"} if kind(settings) in (LORA, HYPER) else {}
    adds = settings.get(ADDED, False) and settings.get(PASSES, 1) > 1  # one pass has nothing to add
    return {**later, **settings, **({ADDED: adds} if kind(settings) == HYPER else {})}


def kind(settings: Mapping[str, Any]) -> str:
    """`module@Class` of the model, without `feedback.`."""
    return str(settings.get("arch.name")).removeprefix("feedback.")


def section(cell: Cell) -> str:
    """The heading of a cell's section."""
    own = cell.settings["active_dataset"]
    base = cell.settings.get("base.dataset", own)
    return f"{own}, base of {own}" if base == own else f"{own}, base of {base}"


def parameters(cell: Cell) -> float:
    """Number of trained parameters, taken from one run of the cell."""
    return next(iter(cell.runs.values())).results.get(PARAMETERS, 0.0)


def _base(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith("base.")} | {"": settings["active_dataset"]}


def _name(settings: Mapping[str, Any]) -> str:
    get, what = settings.get, kind(settings)
    of = f"{get('base.dataset')} -> {get('active_dataset')}" if "base.dataset" in settings else get("active_dataset")
    if loops := get("base.arch.loops"):
        of = f"{of}, base looped {loops} times"
    if what in (BASE, LOOPED):
        return f"{of}: base" + (f", looped {get('arch.loops')} times" if what == LOOPED else "")
    if what == LORA:
        return f"{of}: static LoRA, rank {get(RANK)}" + (f", scale {get(SCALE)}" if get(SCALE) != "sqrt" else "")
    if what == TUNED:
        return f"{of}: fine-tuning of {', '.join(get('arch.targets', ()))}"
    words = [f"{of}: {get(MODE)}", f"rank {get(RANK)}"]
    words += ["reversed"] if get(REVERSE) else []
    words += [f"reads {get(READS)}"] if get(READS) != "hidden" else []
    words += [f"scale {get(SCALE)}"] if get(SCALE, "sqrt") != "sqrt" else []
    words += [f"{get(PASSES)} passes" + (" that add up" if get(ADDED) else "")] if get(PASSES, 1) > 1 else []
    return ", ".join(words)
