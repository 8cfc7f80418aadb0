"""Sinks for experiment trackers: TensorBoard and Weights & Biases. Both are extras, imported only if enabled.

`open_sinks` opens all sinks of a run, these and those of `engine/loggers/sinks.py`.
"""

from __future__ import annotations

import os
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from engine.config import RunConfig, source_of
from engine.io import print_rank0
from engine.loggers.sinks import CsvSink, JsonlSink, Sinks, Values, WholeFile

FINISH_S = 60  # how long a finished run waits for wandb's server; what is not sent by then, `wandb sync` uploads


class TensorBoardSink:
    """Event files in RUN/tensorboard; a resume makes readers drop events after its checkpoint.

    Records are written synchronously: TensorBoard's own writer uses a thread, which prints a traceback if the disk is
    full, and loses its buffer if the process is killed.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # an extra
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        number = len(list(folder.glob("events.out.tfevents.*")))  # readers sort files by name
        self._file = WholeFile(folder / f"events.out.tfevents.{int(time.time()):010d}.{number:04d}")
        self._records, self._event, self._summary = RecordWriter(self._file), event_pb2.Event, summary_pb2.Summary
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, step: int, values: Values) -> None:
        numbers = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None
        ]
        self._add(step=step, summary=self._summary(value=numbers))

    def close(self) -> None:
        self._file.close()


class WandbSink:
    """Weights & Biases, with a run id that is stored in the run directory for a resume.

    wandb's own variables apply: WANDB_MODE=online (default), offline or disabled, and WANDB_DIR.
    """

    def __init__(self, run_dir: Path, **settings: Any) -> None:
        """`settings` are those of wandb.init: project, name, config, entity, group, tags."""
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_S))
        import wandb  # an extra, and slow to import

        online = wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False):  # an unattended run must not wait for an answer
            raise PermissionError("no login")
        id_file = run_dir / "wandb_id.txt"
        self._table: Any = lambda rows: wandb.Table([*(rows or [{}])[0]], [[*row.values()] for row in rows])
        run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex[:8]
        folder = os.environ.get("WANDB_DIR", str(run_dir))
        self._run = wandb.init(id=run_id, resume="allow", dir=folder, **settings)
        id_file.write_text(run_id + "\n")
        # The server keeps steps after the checkpoint and accepts no earlier ones, so repeated steps are not logged.
        self._first = self._run.step if self._run.resumed else 0
        if self._run.offline:
            print_rank0(f"wandb       offline: wandb sync {folder}/wandb/offline-run-*-{run_id} uploads it later")

    def write(self, step: int, values: Values) -> None:
        if step >= self._first:
            shown = {k: self._table(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
            self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def open_sinks(sinks: Sinks, config: RunConfig, folder: Path, *, entry: str, step: int) -> None:
    """Open the sinks that `config` enables in the run directory `folder`, for a run at `step`."""
    sinks.add("jsonl", lambda: JsonlSink(folder / "metrics.jsonl"))
    if config.enable_csv:
        sinks.add("csv", lambda: CsvSink(folder / "metrics.csv", folder / "metrics.jsonl"))
    if config.enable_tensorboard:
        make_tensorboard = partial(TensorBoardSink, folder / "tensorboard", step=step)
        sinks.add("tensorboard", make_tensorboard, hint=": pip install -e '.[tensorboard]'; training continues")
    labels = {"project": config.project_name or entry, "name": config.run_name or folder.name}
    own = {"entity": config.wandb_entity, "group": config.wandb_group, "tags": config.wandb_tags or None}
    if config.enable_wandb and os.environ.get("WANDB_DISABLED", "").lower() in ("", "0", "false", "no"):
        make_wandb = partial(WandbSink, folder, config=source_of(config).resolved, **labels, **own)
        hint = ": pip install -e '.[wandb]', and wandb login or WANDB_MODE=offline; training continues"
        sinks.add("wandb", make_wandb, hint=hint)
    elif config.enable_wandb:
        print_rank0("wandb       off: WANDB_DISABLED is set")
