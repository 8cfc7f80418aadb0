"""The verification of recursive reasoning with puzzle embeddings: a tiny run for probes, run length, learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.fields import value_at
from models.recursive_reasoning.subgoal_config import BLOCK, WEIGHT
from tasks.puzzle_data import RULES, puzzle_data, training_groups, write_puzzles
from tasks.recursive_reasoning.rules import GOALS, MANAGER
from verification.spec import QUESTIONS, Settings, Verification, in_proportion, smaller
from verification.subject import Subject

BATCH = 8
HIDDEN, HEADS = 64, 4
SIZES = {"*_layers": 1, "*_cycles": 2, "halt_max_steps": 4}
SEQ_LEN, VOCAB, IDENTIFIERS = 16, 6, 24
"""A 4x4 board with PAD, blank and four digits; a training batch uses 8 of the 24 identifiers."""
PINNED: Settings = {
    "data_paths": [],
    "data_paths_test": [],
    "offline": "error",
    "global_batch_size": BATCH,
    "epochs": 64,
    "eval_interval": None,
    "min_eval_interval": 0,
    "final_eval": True,
    "eval_batch_size": BATCH,
    "eval_max_examples": BATCH,
    "final_eval_max_examples": BATCH,
    "lr_warmup_steps": 1,
}
"""Settings of every tiny pretrain.py run: sizes, length and paths, but nothing that changes how it learns."""
NAMED_VALUES = {
    "explore": "arch.halt_exploration_prob",
    "halt": "arch.halt_max_steps",
    "hidden": "arch.hidden_size",
    "heads": "arch.num_heads",
    "layers": "arch.L_layers",
    "hcycles": "arch.H_cycles",
    "lcycles": "arch.L_cycles",
}
OF_OTHER_DATA = ("maze@",)
"""Prefixes of evaluators that need other data than the tiny boards."""
AS_EVALUATED = {"cycles_schedule": None, "latent_init": "learned", "update_noise": 0.0, "late_states": 0.0, "chains": 1}
"""Probes compare training with evaluation, which always runs at full depth and draws its own random numbers."""


# --- the tiny instance ------------------------------------------------------------------------------------------------


def shrink(resolved: Mapping[str, Any], data: Path, sizes: Mapping[str, int] = SIZES) -> Settings:
    """Settings of a tiny pretrain.py run: a short run of a small model, with all sizes that scale with its width."""
    evaluators = evaluators_but(OF_OTHER_DATA, resolved)
    tiny = smaller(resolved, sizes, PINNED | {"data_paths": [str(data)], "evaluators": evaluators})
    arch = tiny["arch"]
    arch |= {key: value for key, value in AS_EVALUATED.items() if arch.get(key)}
    hidden, heads, places = (arch.get(key) for key in ("hidden_size", "num_heads", "puzzle_emb_len"))
    if not isinstance(hidden, int) or hidden <= HIDDEN:
        return tiny
    arch = in_proportion(arch, HIDDEN / hidden, ("hidden_size", "goal_dim", "puzzle_emb_ndim"))
    if isinstance(heads, int):
        arch["num_heads"] = max(n for n in (1, 2, HEADS) if n <= max(1, heads))
    if isinstance(places, int) and places > 0:  # as many positions as asked for, up to the published 16
        arch["puzzle_emb_len"] = max(min(places, 16), -(-arch.get("puzzle_emb_ndim", 0) // HIDDEN))
    return tiny | {"arch": arch}


def evaluators_but(prefixes: tuple[str, ...], settings: Mapping[str, Any]) -> list[Any]:
    """The evaluators in `settings` whose names start with none of the prefixes."""
    return [one for one in settings.get("evaluators") or () if not str(one.get("name")).startswith(prefixes)]


def write_boards(root: Path, train: int = 0, test: int = 0) -> None:
    """Write boards of random digits, about half of the cells blank; a few identifiers are never used."""

    def draw(random: Any, count: int) -> tuple[Any, Any]:
        labels = random.integers(2, VOCAB, (count, SEQ_LEN))
        blank = random.random((count, SEQ_LEN)) < 0.5
        return labels * ~blank + blank, labels

    splits = {"train": (2 * BATCH, 1, train), "test": (BATCH, 2 * BATCH, test)}
    write_puzzles(root, draw, splits, vocab_size=VOCAB, builder="dataset.build_sudoku_dataset")


def full_shape(config: Any) -> Any:
    """The data shape for the full-size model: that of the tiny boards."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, IDENTIFIERS)


def alternatives(data: Path, write: Callable[..., None] = write_boards) -> dict[str, tuple[Settings, Settings]]:
    """Alternative values for keys whose type gives no suitable one; `write` writes another data set next to `data`."""
    write(other := data.with_name(f"{data.name}_other"), train=1, test=1)
    widths = dict.fromkeys(("arch.hidden_size", "arch.subgoal_head.hidden_size"), HIDDEN // 2)
    others: Settings = {
        "data_paths": [str(other)],
        "data_paths_test": [str(other)],
        "evaluators": [{"name": "steps@PerStepAccuracy"}],
        "optimizer": {"name": "adamw"},
        "arch.cycles_schedule": [[0.0, 1, 1]],
        "arch.late_states": 1.0,
        "arch.head_dim": HIDDEN // HEADS // 2,
        "arch.subgoal_head.schedule": [1, 2],
    }
    alone: dict[str, tuple[Settings, Settings]] = {key: ({}, {key: value}) for key, value in others.items()}
    return alone | {
        "freeze_weights": ({"arch.puzzle_emb_ndim": HIDDEN}, {"freeze_weights": True}),
        "arch.late_steps": ({"arch.late_states": 1.0}, {"arch.late_steps": [2]}),
        "arch.chains": ({"arch.no_ACT_continue": True}, {"arch.chains": 2}),
        **{key: ({}, widths) for key in widths},
    }


# --- length and rates -------------------------------------------------------------------------------------------------


def count_steps(subject: Subject) -> int | None:
    """Number of optimizer steps, counted as the sampler does (exact for puzzles of equal size); None if unknown."""
    config = subject.resolved or {}
    groups = training_groups(config, subject.data)
    sizes = [(entry.groups or 0, entry.mean_examples or 0) for entry in subject.data if entry.key == "data_paths"]
    epochs, batch = config.get("epochs"), config.get("global_batch_size")
    each = config.get("eval_interval") or epochs
    if not (groups and isinstance(epochs, int) and isinstance(batch, int) and isinstance(each, int)):
        return None
    if min(epochs, batch, each, *(mean for _, mean in sizes)) <= 0:
        return None
    mean = sum(number * mean for number, mean in sizes) / sum(number for number, _ in sizes)
    steps = (epochs // each) * int(groups * each // -(-batch // mean))
    return min(steps, config.get("total_steps") or steps)


def rates(subject: Subject) -> dict[str, str]:
    """Parameter group -> key of its learning rate: the puzzle embedding if there is one, the network unless frozen."""
    table = {"puzzle_emb": "puzzle_emb_lr"} if subject.arch.get("puzzle_emb_ndim", 1) else {}
    return table | ({} if (subject.resolved or {}).get("freeze_weights") else {"trunk": "lr"})


VERIFICATION = Verification(
    act=True,
    shrink=shrink,
    write_data=write_boards,
    full_shape=full_shape,
    alternatives=alternatives,
    pinned=PINNED,
    decides=("evaluators", "freeze_weights", "grad_clip"),
    exercised={"evaluators": [{"name": "steps@PerStepAccuracy"}]},
    encoder="encoder",
    table_key="puzzle_identifiers",
    sized="on this board size",
    terms=(GOALS,),
    data=puzzle_data,
    questions=QUESTIONS,
    steps=count_steps,
    rates=rates,
    named_values=NAMED_VALUES
    | {
        "weight": WEIGHT,
        "period": f"{BLOCK}.manager_period",
        "goaldim": f"{BLOCK}.goal_dim",
    },
    rules=(*RULES, MANAGER),
    intents={
        "manager": lambda subject: "subgoal_head" if subject.arch.get("subgoal_head") else "none",
        "goals": lambda subject: value_at(subject.arch, "subgoal_head.goal_source", "none"),
        "period": f"{BLOCK}.manager_period",
        "injection": f"{BLOCK}.inject_subgoal",
        "gating": f"{BLOCK}.gating",
        "feudal_weight": WEIGHT,
    },
)
