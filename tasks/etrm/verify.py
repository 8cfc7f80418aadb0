"""What verification has to know about recursive reasoning over demonstrations: a small run of it, and its probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.recursive_reasoning import verify as recursive_reasoning
from tasks.recursive_reasoning.verify import BATCH
from verification.spec import Settings, Verification

SIDE, DEMONSTRATIONS, VOCAB = 4, 3, 12
CONTEXT = 4
PINNED: Settings = recursive_reasoning.PINNED | {
    "max_train_groups": None,
    "load_pretrained_decoder": None,
    "allow_decoder_mismatch": False,
    "freeze_encoder_steps": 0,
    "freeze_decoder_steps": 0,
    "diagnostics_interval": 1000,  # a look at the context embeds rows again
}
"""What every tiny run of pretrain_etrm.py has: size, length, place. Loading and freezing have probes of their own."""

ADAPTING = ("arc_search@", "arc_adapt@")
"""Evaluators that search or train at test time: they need gradients, which an evaluation otherwise must not keep."""


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: the arch shrunk, the run short, launch keys left at their defaults."""
    tiny = recursive_reasoning.shrink(resolved, data)
    arch = tiny["arch"]
    for key, most in (("context_len", CONTEXT), ("latent_dim", 8), ("num_act_steps", 4)):
        if isinstance(arch.get(key), int):
            arch[key] = min(arch[key], most)
    if "num_act_steps" in arch:
        arch["num_act_steps"] = max(2, arch["num_act_steps"])  # a single step is as much that of a dynamic model
    if "encoder_num_layers" in arch:
        arch["encoder_num_layers"] = 1  # null are those of the table, up to six
    evaluators = [one for one in resolved.get("evaluators") or () if not str(one.get("name")).startswith(ADAPTING)]
    return tiny | PINNED | {"data_paths": [str(data)], "evaluators": evaluators}


def write_patterns(root: Path, train: int = 0, test: int = 0) -> None:
    """16 training and 8 test tasks on 4x4 grids, each with its own pattern and three demonstrations."""
    import numpy as np

    from dataset.writing import SplitArrays, write_dataset

    def split(count: int, first: int, seed: int) -> Any:
        random, pairs = np.random.default_rng((first, seed)), DEMONSTRATIONS + 1
        inputs = random.integers(2, VOCAB, (count, pairs, SIDE * SIDE))
        rule = random.permuted(np.tile(np.arange(VOCAB - 2), (count, 1)), axis=1)
        labels = 2 + np.take_along_axis(rule[:, None], inputs - 2, axis=2)
        steps, numbers = np.arange(count + 1), np.arange(first, first + count)
        inputs, labels = (grids.reshape(-1, SIDE * SIDE) for grids in (inputs, labels))
        return SplitArrays(inputs, labels, numbers, steps * pairs, steps, np.full(count, DEMONSTRATIONS))

    write_dataset(
        root,
        {"train": split(2 * BATCH, 1, train), "test": split(BATCH, 2 * BATCH + 1, test)},
        vocab_size=VOCAB,
        seq_len=SIDE * SIDE,
        card={"source": "generated", "name": "probe"},
        identifiers=["<blank>", *(f"task-{n}" for n in range(1, 3 * BATCH + 1))],
        data_mode="encoder",
    )
    (root / "test_puzzles.json").write_text("{}", encoding="utf-8")  # what arc@ARC reads; none of the tasks is asked


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Other values of keys whose type tells none, or none that fits."""
    own: dict[str, tuple[Settings, Settings]] = {"arch.encoder_type": ({}, {"arch.encoder_type": "lpn_standard"})}
    return recursive_reasoning.alternatives(data, write_patterns) | own


def full_shape(config: Any) -> Any:
    """The unshrunk model stands on the probes' grids."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SIDE * SIDE, VOCAB, 3 * BATCH + 1)


def probes() -> Iterable[Any]:
    """Those of encoders, and of a fixed number of steps."""
    from tasks.etrm.probes import probes as own

    return own()


VERIFICATION = Verification(
    family="recursive_reasoning",
    data_mode="encoder",
    act=True,
    shrink=shrink,
    write_data=write_patterns,
    full_shape=full_shape,
    alternatives=alternatives,
    pinned=PINNED,
    decides=("evaluators", "grad_clip", "query_policy", "demo_dropout"),
    exercised={"evaluators": [{"name": "steps@PerStepAccuracy"}]},
    probes=probes,
)
