"""The verification of language models: run length and schedule, and a tiny run for probes of next-token prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.text_data import RULES, text_data, write_tokens
from verification.finding import Finding, Level
from verification.rule import NotApplicable, Rule, finding, inert, need_config
from verification.spec import EVERY, QUESTIONS, Settings, Verification, smaller, stated_steps
from verification.subject import Subject

HEADS, HEAD_DIM = 4, 8
SIZES = {"n_layer": 2, "block_size": 16, "window_size": 6}
SETS, VOCAB, TOKENS = 8, 11, {"train": 400, "val": 60}
"""Tiny data sets: how many, their vocabulary size and lengths. They are aligned, so that they also serve as streams."""
DEFAULT_VOCAB = 256
"""Vocabulary size assumed for data that is not here."""
PINNED: Settings = {
    "batch_size": 4,
    "max_iters": 64,
    "lr_decay_iters": 64,
    "warmup_iters": 1,
    "eval_interval": 64,
    "eval_iters": 2,
    "eval_only": False,
    "offline": "error",
    "early_stop_patience": None,
    "init_from": "scratch",
    "prev_run_ckpt": None,
}
"""Settings of every tiny train.py run: sizes, length and paths, but nothing that changes how it learns."""
DATA = ("dataset", "dataset_list", "multicontext_datasets")
MIXTURE = tuple(
    f"dataset_{key}" for key in ("sampling_probs", "sampling_probs_final", "interleaving", "interleaving_shuffle")
)


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny train.py run; the data sets of a mixture alternate, so that a few steps see all of them."""
    lists = [*(resolved.get("dataset_list") or ()), *(resolved.get("multicontext_datasets") or ())]
    place = {n: str(data / str(i % SETS)) for i, n in enumerate(dict.fromkeys([resolved.get("dataset"), *lists]))}
    changes: Settings = {"dataset_interleaving": resolved.get("training_mode") == "multidataset"}
    changes["max_steps"] = max(EVERY["max_steps"], len(resolved.get("dataset_list") or ()))
    for key in DATA:
        value = resolved.get(key)
        changes[key] = [place[name] for name in value] if isinstance(value, list) else place.get(value)
    tiny = smaller({**resolved, "arch": narrower(resolved.get("arch") or {})}, SIZES, PINNED, without=MIXTURE)
    return tiny | changes


def narrower(arch: Mapping[str, Any]) -> Settings:
    """The architecture with a smaller width and the same ratio of heads to KV groups."""
    heads, groups, width = arch.get("n_head"), arch.get("n_kv_group"), arch.get("n_embd")
    if not isinstance(heads, int) or not isinstance(width, int) or width <= HEADS * HEAD_DIM:
        return dict(arch)
    few = min(heads, HEADS)
    tiny = {**arch, "n_head": few, "n_embd": few * HEAD_DIM}
    if isinstance(groups, int):
        tiny["n_kv_group"] = max(1, few * groups // heads)
    if isinstance(arch.get("rope_length"), int):
        tiny["rope_length"] = min(arch["rope_length"], HEAD_DIM)
    return tiny


def write_texts(root: Path, train: int = 0, test: int = 0) -> None:
    """Write SETS data sets of random tokens, all of the same length."""
    for number in range(SETS):
        write_tokens(root / str(number), TOKENS, VOCAB, (train, test), key=(number,))


def others(batch: Any) -> tuple[Any, Any]:
    """Two variants of a micro-batch: one with other targets, one with other tokens."""
    tokens, following, stream = batch
    return (tokens, (following + 1) % VOCAB, stream), ((tokens + 1) % VOCAB, following, stream)


def full_shape(config: Any) -> Any:
    """The model's vocabulary sizes, from the data if it is here, else DEFAULT_VOCAB."""
    from dataset.text.loading import dataset_folders, model_sizes
    from dataset.text.meta import read_meta
    from models.language_models.gpt import LMShape

    folders = dataset_folders(config)
    sizes = [read_meta(folder).vocab_size if folder.is_dir() else DEFAULT_VOCAB for folder in folders]
    return LMShape(model_sizes(config, sizes))


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Alternative values for keys whose type gives no suitable one."""
    first, second = ([str(data / str(number)) for number in pair] for pair in ((0, 1), (2, 3)))
    alone: Settings = {
        "dataset": first[1],
        "optimizer": {"name": "adam", "options": {}},
        "lr_scheduler": {"name": "linear", "options": {}},
    }
    mixture: Settings = {"training_mode": "multidataset", "dataset_list": first}
    streams: Settings = {"training_mode": "multicontext", "multicontext_datasets": first}
    dependent: list[tuple[Settings, str, Any]] = [
        (mixture, "dataset_list", second),
        (mixture, "dataset_interleaving", True),
        (mixture, "multidataset_wte", True),
        (streams, "multicontext_datasets", second),
        ({"arch.use_qk_norm_scale": False, "arch.qk_norm_gain": 1.0}, "arch.use_qk_norm", False),
        ({"arch.use_qk_norm": True}, "arch.use_qk_norm_scale", True),
        ({"arch.use_qk_norm": True}, "arch.qk_norm_gain", 1.5),
        ({"arch.pos_encodings": "rope"}, "arch.rope_length", 4),
        ({"arch.head_init_std": None}, "arch.wte_weight_tying", True),
        ({"arch.wte_weight_tying": False}, "arch.head_init_std", 0.5),
    ]
    changes: dict[str, tuple[Settings, Settings]] = {key: (held, {key: value}) for held, key, value in dependent}
    return changes | {key: ({}, {key: value}) for key, value in alone.items()} | {"training_mode": ({}, mixture)}


# --- rules ------------------------------------------------------------------------------------------------------------


def horizon(subject: Subject) -> Iterator[Finding]:
    """CFG256: the learning rate reaches min_lr at the end of the run."""
    config, place = need_config(subject), subject.trace.key_line("lr_decay_iters")
    if reason := inert(subject, "lr_decay_iters") or inert(subject, "max_iters"):
        raise NotApplicable(reason)
    end, last, warmup = (config.get(key) for key in ("lr_decay_iters", "max_iters", "warmup_iters"))
    if not (isinstance(end, int) and isinstance(last, int) and isinstance(warmup, int)):
        raise NotApplicable("a length is not a number (JOB030)")
    if end <= warmup:
        text = f"lr_decay_iters={end} lies within the warm-up of {warmup}: the rate falls to min_lr at once"
        yield finding("CFG256", "WARN", text, *place)
    elif end != last:
        how = "never reaches min_lr" if end > last else f"stays at min_lr for {last - end} iterations"
        level: Level = "INFO" if subject.kind == "launch" else "WARN"  # at a launch the script prints it
        text = f"lr_decay_iters={end}, the run has {last} iterations: the learning rate {how}"
        yield finding("CFG256", level, text, *place, f"lr_decay_iters={last}")
    else:
        yield finding("CFG256", "PASS", f"the rate reaches min_lr with the run's end, at {end}", *place)


VERIFICATION = Verification(
    data=text_data,
    named_values={"hidden": "arch.n_embd", "heads": "arch.n_head", "layers": "arch.n_layer"},
    steps=stated_steps("max_iters"),
    rates=lambda subject: {"network": "learning_rate"},
    idle="WARN",
    rules=(Rule(("CFG256",), horizon), *RULES),
    questions=(
        ("Which training mode is intended (single, multidataset, multicontext)?", "training_mode", "training_mode"),
        ("Which data?", "data", "data"),
        ("Which weights does it start from?", "initial_weights", "init_from"),
        QUESTIONS[-1],
    ),
    shrink=shrink,
    write_data=write_texts,
    full_shape=full_shape,
    text=lambda batch: (*batch[:2], {} if batch[2] is None else {"stream": batch[2]}),
    others=others,
    alternatives=alternatives,
    pinned=(*PINNED, *DATA, *MIXTURE, "gpt2_type"),
    decides=("training_mode", "multidataset_wte", "multidataset_criterion", "multicontext_align", "optimizer"),
    rows=lambda ranks: {"batch_size": 2 * PINNED["batch_size"] // ranks},
    sized=f"(vocabularies of {DEFAULT_VOCAB} where the data are not here)",
)
