"""What verification has to know about recursive reasoning over demonstrations; its rules are in rules.py, its probes in
probes.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.etrm.rules import DECODER, ENCODER_RULES
from tasks.puzzle_data import RULES, puzzle_data, training_groups, write_puzzles
from tasks.recursive_reasoning import verify as recursive_reasoning
from tasks.recursive_reasoning.verify import BATCH, SEQ_LEN
from verification.spec import QUESTIONS, Settings, Verification
from verification.subject import Subject

DEMONSTRATIONS, VOCAB = 3, 12
SIZES = recursive_reasoning.SIZES | {"context_len": 4, "latent_dim": 8, "num_act_steps": 4}
PINNED: Settings = recursive_reasoning.PINNED | {
    "max_train_groups": None,
    DECODER: None,
    "allow_decoder_mismatch": False,
    "freeze_encoder_steps": 0,
    "freeze_decoder_steps": 0,
    "diagnostics_interval": 1000,  # inspecting the context embeds rows again
}
"""What every tiny run of pretrain_etrm.py has: size, length, place. Loading and freezing have probes of their own."""
ADAPTING = ("arc_search@", "arc_adapt@")
"""Evaluators that search or train at test time: they need gradients, which an evaluation otherwise must not keep."""


# --- the tiny instance ------------------------------------------------------------------------------------------------


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: the arch shrunk, the run short, launch keys left at their defaults."""
    tiny = recursive_reasoning.shrink(resolved, data, SIZES)
    arch = tiny["arch"]
    if "num_act_steps" in arch:
        arch["num_act_steps"] = max(2, arch["num_act_steps"])  # a single step is as much that of a dynamic model
    if "encoder_num_layers" in arch:
        arch["encoder_num_layers"] = 1  # null are those of the table, up to six
    suited = recursive_reasoning.evaluators_but(ADAPTING, tiny)
    return tiny | PINNED | {"data_paths": [str(data)], "evaluators": suited}


def write_patterns(root: Path, train: int = 0, test: int = 0) -> None:
    """16 training and 8 test tasks on 4x4 grids, each with its own pattern and three demonstrations."""
    import numpy as np

    def draw(random: Any, count: int) -> tuple[Any, Any]:
        inputs = random.integers(2, VOCAB, (count, DEMONSTRATIONS + 1, SEQ_LEN))
        rule = random.permuted(np.tile(np.arange(VOCAB - 2), (count, 1)), axis=1)
        labels = 2 + np.take_along_axis(rule[:, None], inputs - 2, axis=2)
        return inputs.reshape(-1, SEQ_LEN), labels.reshape(-1, SEQ_LEN)

    splits = {"train": (2 * BATCH, 1, train), "test": (BATCH, 2 * BATCH + 1, test)}
    write_puzzles(root, draw, splits, words=VOCAB, demonstrations=DEMONSTRATIONS)


def full_shape(config: Any) -> Any:
    """The unshrunk model stands on the probes' grids."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, 3 * BATCH + 1)


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Other values of keys whose type gives none, or none that fits."""
    own: dict[str, tuple[Settings, Settings]] = {"arch.encoder_type": ({}, {"arch.encoder_type": "lpn_standard"})}
    return recursive_reasoning.alternatives(data, write_patterns) | own


def probes() -> Iterable[Any]:
    """Those of encoders."""
    from tasks.etrm.probes import PROBES

    return PROBES


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps as `tasks.etrm.task.SlotPlan` counts them."""
    config = subject.resolved or {}
    groups = training_groups(config, subject.data)
    epochs, batch, most = (config.get(key) for key in ("epochs", "global_batch_size", "max_train_groups"))
    if groups is None or not (isinstance(epochs, int) and isinstance(batch, int) and epochs > 0 and batch > 0):
        return None
    return max(1, (min(groups, most) if isinstance(most, int) else groups) * epochs // batch)


VERIFICATION = Verification(
    act=True,
    shrink=shrink,
    write_data=write_patterns,
    full_shape=full_shape,
    alternatives=alternatives,
    pinned=PINNED,
    decides=("evaluators", "grad_clip", "query_policy", "demo_dropout"),
    exercised={"evaluators": [{"name": "steps@PerStepAccuracy"}]},
    encoder="encoder",
    table_key="puzzle_identifiers",
    sized="on this board size",
    probes=probes,
    data=puzzle_data,
    questions=QUESTIONS,
    steps=count_steps,
    named_values=recursive_reasoning.NAMED_VALUES,
    rates=lambda subject: {"encoder": "lr", "decoder": "lr"},
    rules=(*RULES, *ENCODER_RULES),
)
