"""Where metrics go. A sink has one `write(step, values)` and may fail: it is then dropped with one warning."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.io import say

Values = Mapping[str, float | int | None]


class Sink(Protocol):
    """One destination of metrics; only rank 0 has any."""

    def write(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line: the primary record of a run, all digits kept; null where nothing was counted."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Values) -> None:
        # Strict JSON knows no NaN: a mean that is not finite is null, and train/skipped_steps says why.
        numbers = {
            name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ConsoleSink:
    """Lines for a person. A long run prints at most one every 2 s, evaluations always (`ProgressBar` shows the way)."""

    SHORT_RUN = 30  # so few steps that every one may have its line
    PAUSE_S = 2.0
    WIDTH = 140

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._width = len(str(total_steps))
        self._last = 0.0

    def write(self, step: int, values: Values) -> None:
        evaluation = any(name.startswith("eval/") for name in values)
        now = time.monotonic()
        quiet = self._total > self.SHORT_RUN and now - self._last < self.PAUSE_S
        if quiet and not evaluation and step not in (1, self._total):
            return
        self._last = now
        head = f"step {step:>{self._width}}/{self._total}"
        tail = self._pace(values)
        room = self.WIDTH - len(head) - len(tail)
        for part in self._parts(values):
            if (room := room - len(part) - 2) < 0:
                break  # the rest is in metrics.jsonl
            head += f"  {part}"
        say(head + tail)

    @staticmethod
    def _parts(values: Values) -> list[str]:
        """`name value`, in the task's order, without what only the file needs."""
        shown = {name: value for name, value in values.items() if not name.endswith("_live") and name[:5] != "time/"}
        if not shown.get("train/skipped_steps"):
            shown.pop("train/skipped_steps", None)
        return [f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in shown.items()]

    @staticmethod
    def _pace(values: Values) -> str:
        rate, left = values.get("time/examples_per_s"), values.get("time/eta_s")
        text = "" if rate is None else f"  {rate:.0f} ex/s"
        return text if left is None else f"{text}  eta {int(left) // 60}:{int(left) % 60:02d}"

    def close(self) -> None:
        """Nothing is held open."""


class WandbSink:
    """Weights & Biases, with a run id that is kept in the run directory, so that a resumed run goes on under it."""

    def __init__(self, run_dir: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb  # an extra, and slow to import

        id_file = run_dir / "wandb_id.txt"
        run_id = id_file.read_text().strip() if id_file.exists() else wandb.util.generate_id()
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=os.environ.get("WANDB_DIR", str(run_dir)),
            config=dict(config),
        )  # fmt: skip
        id_file.write_text(run_id + "\n")

    def write(self, step: int, values: Values) -> None:
        self._run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        self._run.finish()


class Sinks:
    """All sinks of a run. A sink that raises is reported once and left out from then on: training is untouched."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}

    def add(self, name: str, make: Callable[[], Sink], hint: str = "") -> None:
        """Open a sink; one that cannot be opened is skipped with a warning that ends in `hint`."""
        try:
            self._sinks[name] = make()
        except Exception as error:
            say(f"warning: no {name} metrics ({_reason(error)}){hint}")

    def write(self, step: int, values: Values) -> None:
        """Hand `values` to every sink that still works."""
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(step, values)
            except Exception as error:
                say(f"warning: {name} metrics stop here ({_reason(error)}), training goes on")
                del self._sinks[name]

    def close(self) -> None:
        """Close every sink; a failure to close is only reported."""
        for name, sink in self._sinks.items():
            try:
                sink.close()
            except Exception as error:
                say(f"warning: {name} metrics did not close ({_reason(error)})")
        self._sinks.clear()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
