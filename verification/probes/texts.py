"""Language models: their tiny instance, and the probes that read tokens: next tokens only, no look ahead, read keys.

Shapes: B rows, T tokens, K streams, V words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import NOT_IDENTITY
from engine.registry import Family as Entry
from verification.checks.language import NAME, OPTIMIZER_KEYS
from verification.checks.reads import dead_reason
from verification.checks.registry import FAMILIES
from verification.probes.instance import Tiny
from verification.probes.registry import Note, observes
from verification.probes.run_keys import run_notes
from verification.probes.shrink import Family, Settings, register_family

LAYERS, HEADS, HEAD_DIM, LENGTH, WINDOW = 2, 4, 8, 16, 6
SETS, WORDS, TOKENS = 8, 11, {"train": 400, "val": 60}
"""Data sets of the tiny instances: aligned with each other, so that they also serve as streams."""
UNKNOWN_WORDS = 256
PINNED: Settings = {
    "device": "cpu", "seed": 0, "batch_size": 4, "max_iters": 64, "lr_decay_iters": 64, "warmup_iters": 1,
    "eval_interval": 64, "eval_iters": 2, "eval_only": False, "max_steps": 3, "log_interval": 1000, "offline": "error",
    "early_stop_patience": None, "init_from": "scratch", "prev_run_ckpt": None,
}  # fmt: skip
"""What every tiny run of train.py has: size, length and place, nothing of how it learns."""
DATA = ("dataset", "dataset_list", "multicontext_datasets")
_HOW = ("sampling_probs", "sampling_probs_final", "interleaving", "interleaving_shuffle")
MIXTURE = tuple(f"dataset_{key}" for key in _HOW)


def shrink_text(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny train.py run; the data sets of a mixture take turns, so that a few steps meet all of them."""
    tiny = {key: value for key, value in resolved.items() if key not in NOT_IDENTITY and key not in (*MIXTURE, "hydra")}
    tiny["arch"] = shrink_gpt(resolved.get("arch") or {})
    lists = [*(resolved.get("dataset_list") or ()), *(resolved.get("multicontext_datasets") or ())]
    names = [resolved.get("dataset"), *lists]
    place = {name: str(data / str(number % SETS)) for number, name in enumerate(dict.fromkeys(names))}
    for key in DATA:
        value = resolved.get(key)
        tiny[key] = [place[name] for name in value] if isinstance(value, list) else place.get(value)
    mixed = resolved.get("training_mode") == "multidataset"
    steps = max(PINNED["max_steps"], len(resolved.get("dataset_list") or ()))
    return tiny | PINNED | {"dataset_interleaving": mixed, "max_steps": steps}


def shrink_gpt(arch: Mapping[str, Any]) -> Settings:
    """The architecture with every size cut down; unknown keys pass through unchanged."""
    tiny = dict(arch)
    heads, groups, width = arch.get("n_head"), arch.get("n_kv_group"), arch.get("n_embd")
    if isinstance(heads, int) and isinstance(width, int) and width > HEADS * HEAD_DIM:
        tiny["n_head"] = min(heads, HEADS)
        tiny["n_embd"] = tiny["n_head"] * HEAD_DIM
        if isinstance(groups, int):
            wanted = max(1, tiny["n_head"] * groups // heads)
            tiny["n_kv_group"] = max(n for n in range(1, wanted + 1) if tiny["n_head"] % n == 0)
        if isinstance(arch.get("rope_length"), int):
            tiny["rope_length"] = min(arch["rope_length"], HEAD_DIM)
    for key, most in (("n_layer", LAYERS), ("block_size", LENGTH), ("window_size", WINDOW)):
        if isinstance(arch.get(key), int):
            tiny[key] = min(arch[key], most)
    return tiny | ({"forward_dtype": "float32"} if "forward_dtype" in arch else {})


def write_texts(root: Path) -> None:
    """SETS folders of random tokens, equally long."""
    import numpy as np

    random = np.random.default_rng(0)
    for number in range(SETS):
        folder = root / str(number)
        folder.mkdir(parents=True)
        for split, count in TOKENS.items():
            random.integers(0, WORDS, count).astype("<u2").tofile(folder / f"{split}.bin")
        meta = {"vocab_size": WORDS, "dtype": "uint16", "tokens": TOKENS}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def build_text(script: Entry, config: Any, runtime: Any) -> Any:
    """The unshrunk model that the family's own `create_model` makes; vocabularies of data that are here."""
    from dataset.text.meta import read_meta
    from dataset.text.opening import dataset_folders
    from models.language_models.gpt import LMShape

    folders = dataset_folders(config)
    sizes = [read_meta(folder).vocab_size if folder.is_dir() else UNKNOWN_WORDS for folder in folders]
    own = config.training_mode == "multicontext" or config.multidataset_wte
    return script.create_model(config, LMShape(tuple(sizes) if own else (max(sizes),)), runtime)[0]


register_family(
    Family(
        name=NAME, data_mode="tokens", write_data=write_texts, shrink=shrink_text, build_full=build_text,
        pinned=frozenset({*PINNED, *DATA, *MIXTURE, "gpt2_type", *OPTIMIZER_KEYS}),  # the last: see JOB031
        rows=lambda ranks: {"batch_size": 2 * PINNED["batch_size"] // ranks},
        sized=f"(vocabularies of {UNKNOWN_WORDS} where the data are not here)",
    )
)  # fmt: skip


@observes(
    "DYN706",
    passed="the target of each place is the next token of its own text",
    fix="targets are the tokens from the second of the window on: x = w[:-1], y = w[1:]",
    data_modes=("tokens",),
)
def targets(tiny: Tiny) -> Iterator[str | Note]:
    """The micro-batches of three steps."""
    task = tiny.build().task
    for number in (1, 2, 3):
        for tokens, wanted, _ in task.micro_batches(number):
            if not torch.equal(wanted[..., :-1], tokens[..., 1:]):
                yield f"step {number}: targets are not the tokens that follow"


@observes(
    "DYN709",
    passed="two evaluations give the same numbers and leave the model as it was",
    fix="no sampling and no dropout in an evaluation; its windows are keyed by the seed",
    data_modes=("tokens",),
)
def evaluation(tiny: Tiny) -> Iterator[str | Note]:
    """The whole evaluation, twice under different global seeds."""
    task = tiny.build().task
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    results = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        results.append(task.evaluate(final=True))
    if differing := [name for name, value in results[0].items() if repr(value) != repr(results[1].get(name))]:
        yield f"two evaluations of the same weights give different {', '.join(sorted(differing)[:4])}"
    after = task.module.state_dict()
    if moved := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        yield f"an evaluation changed {', '.join(moved[:4])}"


@observes(
    "DYN712",
    passed="no prediction depends on a later token, in training and in evaluation",
    fix="a causal mask in every layer that mixes places",
    data_modes=("tokens",),
)
def later_tokens(tiny: Tiny) -> Iterator[str | Note]:
    """The logits of the first half of the places, with the true second half and with other tokens there."""
    task = tiny.build().task
    tokens, _, stream = next(iter(task.micro_batches(1)))
    half = tokens.shape[-1] // 2
    other = tokens.clone()
    other[..., half:] = (other[..., half:] + 1) % WORDS
    for training in (True, False):
        task.module.train(training)
        told, changed = (_logits(task.module, ids, stream, half) for ids in (tokens, other))
        if any(not torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(told, changed, strict=True)):
            yield f"in {'training' if training else 'evaluation'} predictions depend on tokens that come after them"


def _logits(model: Any, ids: Tensor, stream: int | None, half: int) -> list[Tensor]:
    torch.manual_seed(5)  # of dropout
    with torch.no_grad():
        output = model(ids) if stream is None else model(ids, stream=stream)
        return [output.logits(number)[:, :half] for number in range(len(output.streams))]


@observes(
    "DYN716",
    passed="every arch key is read, and every run key given on the command line changes something that can be observed",
    fix="drop the override, or switch on what reads it",
    data_modes=("tokens",),
)
def read_keys(tiny: Tiny) -> Iterator[str | Note]:
    """Arch keys that model and loss never read in two steps and an evaluation; run keys that change nothing."""
    settings = {**tiny.settings, "arch": tiny.full_arch}
    dead = [key for key in tiny.unread_keys() if not dead_reason(FAMILIES[NAME], key, settings)]
    for key in dead:
        if key.removeprefix("arch.") in tiny.overridden:
            yield f"{key} is dead: nothing reads it"
        else:
            yield Note("WARN", f"nothing reads {key}: a key of the config that does nothing")
    yield from run_notes(tiny)
