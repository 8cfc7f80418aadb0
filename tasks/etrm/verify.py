"""The verification of recursive reasoning over demonstrations: a tiny run for probes, and run length. Its rules are in
rules.py, its probes in probes.py."""

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
    "diagnostics_interval": 1000,  # diagnostics would embed rows again
}
"""Settings of every tiny pretrain_etrm.py run: sizes, length, paths. Loading and freezing have their own probes."""
ADAPTING = ("arc_search@", "arc_adapt@")
"""Evaluators that search or train at test time: they need gradients, which other evaluations must not keep."""


# --- the tiny instance ------------------------------------------------------------------------------------------------


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: a small model, a short run, launch keys at their defaults."""
    tiny = recursive_reasoning.shrink(resolved, data, SIZES)
    arch = tiny["arch"]
    if "num_act_steps" in arch:
        arch["num_act_steps"] = max(2, arch["num_act_steps"])  # a single step would not differ from a dynamic model's
    if "encoder_num_layers" in arch:
        arch["encoder_num_layers"] = 1  # null means the encoder's own default, up to six
    evaluators = recursive_reasoning.evaluators_but(ADAPTING, tiny)
    return tiny | PINNED | {"data_paths": [str(data)], "evaluators": evaluators}


def write_patterns(root: Path, train: int = 0, test: int = 0) -> None:
    """Write 16 training and 8 test tasks on 4x4 grids, each with its own permutation and three demonstrations."""
    import numpy as np

    def draw(random: Any, count: int) -> tuple[Any, Any]:
        inputs = random.integers(2, VOCAB, (count, DEMONSTRATIONS + 1, SEQ_LEN))
        rule = random.permuted(np.tile(np.arange(VOCAB - 2), (count, 1)), axis=1)
        labels = 2 + np.take_along_axis(rule[:, None], inputs - 2, axis=2)
        return inputs.reshape(-1, SEQ_LEN), labels.reshape(-1, SEQ_LEN)

    splits = {"train": (2 * BATCH, 1, train), "test": (BATCH, 2 * BATCH + 1, test)}
    write_puzzles(root, draw, splits, vocab_size=VOCAB, demonstrations=DEMONSTRATIONS)


def full_shape(config: Any) -> Any:
    """The data shape for the full-size model: that of the tiny grids."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, 3 * BATCH + 1)


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Alternative values for keys whose type gives no suitable one."""
    own: dict[str, tuple[Settings, Settings]] = {"arch.encoder_type": ({}, {"arch.encoder_type": "lpn_standard"})}
    return recursive_reasoning.alternatives(data, write_patterns) | own


def probes() -> Iterable[Any]:
    """The probes of models with an encoder."""
    from tasks.etrm.probes import PROBES

    return PROBES


def count_steps(subject: Subject) -> int | None:
    """Number of optimizer steps, as `tasks.etrm.task.SlotPlan` counts them; None if unknown."""
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
