"""The ablation of HRM's manager as a study: which runs belong to it, and how its cells are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from reports.naming import as_text
from reports.study import Cell, Study, comparison_warnings, natural_key
from tasks.recursive_reasoning.args import PretrainConfig

BASELINE, FULL = "baseline", "feudal"
MODELS = ("HRM", "HRMFeudal")
HEAD, WEIGHT = "arch.subgoal_head", "arch.loss.feudal_loss_weight"
PERIOD = f"{HEAD}.manager_period"
HEAD_PREFIXES = (
    f"{HEAD}.",
    *(f"arch.loss.{name}" for name in ("feudal_", "use_alignment_loss", "manager_loss_weight")),
)
FULL_VALUES = {f"{HEAD}.inject_subgoal": True, f"{HEAD}.goal_source": "learned", f"{HEAD}.gating": True}
TIE_BREAKS = {WEIGHT: 0.1, PERIOD: 4}
"""A cell is named feudal if it has the full values, and for other keys the most common one; ties go to these."""
PHRASES = {
    f"{WEIGHT}=0": "no loss",
    f"{HEAD}.inject_subgoal=False": "no injection",
    f"{HEAD}.gating=False": "no gate",
    f"{HEAD}.goal_source=random": "random goals",
    f"{HEAD}.goal_source=zero": "zero goals",
}
SHORT_NAMES = {WEIGHT: "weight", PERIOD: "period"}


def has_head(settings: Mapping[str, Any]) -> bool:
    """Whether a run has a manager."""
    return PERIOD in settings


@dataclass(frozen=True, kw_only=True)
class FeudalStudy(Study):
    """Names cells by what they remove from the full manager, or by the value they change."""

    baseline: Mapping[str, Any] = field(default_factory=lambda: {HEAD: None})
    ignored: frozenset[str] = frozenset({*PretrainConfig.NOT_IDENTITY, "loss", "data_paths", "data_paths_test"})
    expected: str = "run of HRM"
    no_baseline: str = "there is no run without a head (~arch.subgoal_head): no difference from a baseline can be given"

    def check(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raise UsageError for a run of another model."""
        arch = config.get("arch")
        name = arch.get("name") if isinstance(arch, Mapping) else None
        if not isinstance(name, str):
            raise UsageError(f"{path} has no readable config of pretrain.py (config.resolved.yaml)")
        if (model := name.partition("@")[2]) not in MODELS:
            raise UsageError(f"{path} is a run of {model}: expected HRM (arch=hrm_feudal or arch=hrm)")

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings without keys that follow from others or, without a head, have no effect."""
        settings = super().settings(config)
        for name in ("arch.name", "arch.loss.name", f"{HEAD}.hidden_size"):
            settings.pop(name, None)
        if settings.get(f"{HEAD}.goal_dim") == settings.get("arch.hidden_size"):
            settings.pop(f"{HEAD}.goal_dim", None)
        head = has_head(settings)
        return {name: value for name, value in settings.items() if head or not self.is_factor(name)}

    def is_factor(self, key: str) -> bool:
        """Whether a key belongs to the manager or its loss."""
        return key.startswith(HEAD_PREFIXES)

    def is_baseline(self, settings: Mapping[str, Any]) -> bool:
        """Whether the cell has no manager."""
        return not has_head(settings)

    def names(self, settings: Sequence[Mapping[str, Any]]) -> list[str]:
        """A name for each cell: baseline, feudal, or its differences from the usual values."""
        usual = self._usual_values(settings)
        return [self._name(each, usual) for each in settings]

    def rank(self, cell: Cell) -> int:
        """Sort key: the baseline, the full manager, then the others."""
        return {BASELINE: 0, FULL: 1}.get(cell.name, 2)

    def _usual_values(self, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For each key the value that a cell name omits; keys of the head are compared among runs that have one."""
        usual: dict[str, Any] = {}
        for key in sorted({key for each in settings for key in each}):
            values = [each.get(key) for each in settings if has_head(each) or not self.is_factor(key)]
            counts = Counter(value for value in values if not (key == WEIGHT and value == 0))
            commonest = [value for value in counts if counts[value] == max(counts.values())]
            preferred = TIE_BREAKS.get(key)
            tie = preferred if preferred in commonest or not commonest else min(commonest, key=natural_key)
            usual[key] = FULL_VALUES.get(key, tie)
        return usual

    def _name(self, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
        head = has_head(settings)
        of_head, others = [], []
        for key in sorted(usual):
            value = settings.get(key)
            if value == usual[key] or (self.is_factor(key) and not head):
                continue
            last = SHORT_NAMES.get(key, key.rpartition(".")[2])
            if self.is_factor(key):
                plain = f"{value:g}" if isinstance(value, float) else str(value)
                of_head.append(PHRASES.get(f"{key}={plain}", f"{last} {as_text(value)}"))
            else:
                others.append(f"{last}={as_text(value)}")
        return ", ".join([*(of_head or [FULL] if head else [BASELINE]), *others])


def warnings_of(cells: Sequence[Cell], metric: str, study: Study) -> list[str]:
    """Warnings about cells that are hard to compare, and about a metric at its floor or ceiling."""
    lines = comparison_warnings(cells, study)
    scores = [run.results[metric] for cell in cells for run in cell.runs.values()]
    if metric == "eval/exact_accuracy" and not any(scores):
        lines.append("exact accuracy is 0 everywhere: --metric accuracy shows more")
    elif "accuracy" in metric and min(scores) > 0.98:
        lines.append("every run is above 0.98: nothing is left to gain, use harder data or fewer steps")
    return lines
