"""The family records of feedback models (imports no torch): the base and two kinds of hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.registry import Family
from tasks.feedback.aliases import ADAPTER_ALIASES, BASE_ALIASES
from tasks.feedback.args import FeedbackConfig, FeedforwardConfig
from tasks.feedback.runs import BASE_KEYS, rewriter


def data_folders(config: Mapping[str, Any]) -> list[str]:
    """The data folder of a stored config."""
    datasets, name = config.get("datasets"), config.get("active_dataset")
    entry = datasets.get(name) if isinstance(datasets, Mapping) else None
    if not isinstance(entry, Mapping):
        return []
    return [str(entry.get("path") or f"data/{entry.get('name')}_{entry.get('tokenizer_name', 'byte')}")]


def _adapter(entry: str, run_key: str) -> Family:
    return Family(
        entry=entry,
        package="tasks.feedback",
        config_name=f"cfg_{entry}",
        schema=FeedbackConfig,
        requires={"FAMILY": "feedback", "DATA_MODE": "frozen_base"},
        aliases=ADAPTER_ALIASES,
        rewrite=rewriter(entry, run_key, BASE_KEYS),
        data_folders=data_folders,
    )


FEEDFORWARD = Family(
    entry="feedforward_train",
    package="tasks.feedback",
    config_name="cfg_feedforward_train",
    schema=FeedforwardConfig,
    requires={"FAMILY": "feedback", "DATA_MODE": "tokens"},
    aliases=BASE_ALIASES,
    rewrite=rewriter("feedforward_train", "ff_run_name"),
    data_folders=data_folders,
)
FEEDBACKWARD = _adapter("feedbackward_alt_train", "fb_run_name")
FEEDBACKWARD_REC = _adapter("feedbackward_rec_alt_train", "fb_rec_run_name")
