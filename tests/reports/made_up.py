"""Run folders as a finished launch leaves them, made up: for reports that only read."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_clock = itertools.count(1_700_000_000)


def write_run(
    folder: Path,
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    state: str = "done",
    step: int = 100,
    data: str = "d",
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Each run is a second newer than the one before. `data` is the content hash of its data set."""
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(dict(config)))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": step}))
    content = {"step": step, "results": dict(results), **(summary or {})}
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps({"data_cards": [{"path": "x", "content_hash": data}]}))
    now = next(_clock)
    os.utime(folder / "summary.json", (now, now))
    return folder
