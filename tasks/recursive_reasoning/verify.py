"""What verification has to know about recursive reasoning with puzzle embeddings: a tiny run, its length."""

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
"""A 4x4 board of PAD, blank and four digits; 24 identifiers of which a training batch touches 8."""
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
"""What every tiny run of pretrain.py has: size, length and place, nothing of how it learns."""
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
"""Evaluators that the tiny boards do not suit."""
AS_EVALUATED = {"cycles_schedule": None, "latent_init": "learned", "update_noise": 0.0, "late_states": 0.0, "chains": 1}
"""Probes compare training with evaluation, which is always at full depth and draws numbers of its own."""


# --- the tiny instance ------------------------------------------------------------------------------------------------


def shrink(resolved: Mapping[str, Any], data: Path, sizes: Mapping[str, int] = SIZES) -> Settings:
    """Settings of a tiny pretrain.py run: the arch shrunk with all that is measured by its width, the run short."""
    suited = evaluators_but(OF_OTHER_DATA, resolved)
    tiny = smaller(resolved, sizes, PINNED | {"data_paths": [str(data)], "evaluators": suited})
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
    """The evaluators in `settings` whose names begin with none of the prefixes."""
    return [one for one in settings.get("evaluators") or () if not str(one.get("name")).startswith(prefixes)]


def write_boards(root: Path, train: int = 0, test: int = 0) -> None:
    """Boards of random digits, the same half covered; a few identifiers are never used."""

    def draw(random: Any, count: int) -> tuple[Any, Any]:
        labels = random.integers(2, VOCAB, (count, SEQ_LEN))
        covered = random.random((count, SEQ_LEN)) < 0.5
        return labels * ~covered + covered, labels

    splits = {"train": (2 * BATCH, 1, train), "test": (BATCH, 2 * BATCH, test)}
    write_puzzles(root, draw, splits, words=VOCAB, builder="dataset.build_sudoku_dataset")


def full_shape(config: Any) -> Any:
    """The unshrunk model stands on the probes' boards."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, IDENTIFIERS)


def alternatives(data: Path, write: Callable[..., None] = write_boards) -> dict[str, tuple[Settings, Settings]]:
    """Other values of keys whose type gives none, or none that fits; `write` makes another data set beside `data`."""
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
    """Optimizer steps as the sampler counts them (exact for puzzles of equal size)."""
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
    """The puzzle embedding where there is one, the network where it is not frozen."""
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
