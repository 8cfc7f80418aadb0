"""What verification has to know about recursive reasoning with puzzle embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.held_back import validation_count
from engine.fields import value_at
from verification.data import puzzle_data
from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding, need_model
from verification.spec import QUESTIONS, Settings, Verification, smaller
from verification.subject import Subject

BATCH = 8
HIDDEN, HEADS = 64, 4
SIZES = {"*_layers": 1, "*_cycles": 2, "halt_max_steps": 4}
SEQ_LEN, VOCAB, IDENTIFIERS = 16, 6, 24
"""A 4x4 board of PAD, blank and four digits; 24 identifiers of which a training batch touches 8."""
PINNED: Settings = {
    "data_paths": [],
    "data_paths_test": [],
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


AS_EVALUATED = {
    "cycles_schedule": None,
    "latent_init": "learned",
    "update_noise": 0.0,
    "late_states": 0.0,
    "chains": 1,
}


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny pretrain.py run: the arch shrunk, the run short."""
    tiny = smaller(resolved, SIZES, PINNED | {"data_paths": [str(data)]})
    return tiny | {"arch": narrower(tiny["arch"])}


def narrower(arch: Mapping[str, Any]) -> Settings:
    """The architecture with its width cut down, and all that is measured by the width."""
    tiny = dict(arch)
    # probes compare training with evaluation, which is always at full depth and draws numbers of its own
    tiny |= {key: value for key, value in AS_EVALUATED.items() if tiny.get(key)}
    hidden, heads = arch.get("hidden_size"), arch.get("num_heads")
    if not isinstance(hidden, int) or hidden <= HIDDEN:
        return tiny
    tiny["hidden_size"] = HIDDEN
    for key, block in arch.items():  # parts with a width of their own, a manager say: in proportion
        if isinstance(block, Mapping) and block.get("hidden_size") == hidden:
            sizes = {name: block[name] for name in ("hidden_size", "goal_dim") if isinstance(block.get(name), int)}
            tiny[key] = {**block, **{name: max(1, size * HIDDEN // hidden) for name, size in sizes.items()}}
    if isinstance(heads, int):
        tiny["num_heads"] = max(n for n in range(1, HEADS + 1) if HIDDEN % n == 0 and n <= max(1, heads))
    width, places = arch.get("puzzle_emb_ndim"), arch.get("puzzle_emb_len")
    if isinstance(width, int) and width > 0:
        tiny["puzzle_emb_ndim"] = max(1, width * HIDDEN // hidden)
        if isinstance(places, int) and places > 0:  # as many positions as asked for, up to the published 16
            tiny["puzzle_emb_len"] = max(min(places, 16), -(-tiny["puzzle_emb_ndim"] // HIDDEN))
    return tiny


def write_boards(root: Path, train: int = 0, test: int = 0) -> None:
    """16 training and 8 test boards of random digits, each with an identifier of its own (a few are never used)."""
    import numpy as np

    from dataset.writing import SplitArrays, write_dataset

    def split(count: int, first: int, seed: int) -> SplitArrays:
        random = np.random.default_rng((first, seed))
        labels = random.integers(2, VOCAB, (count, SEQ_LEN))
        inputs = np.where(random.random((count, SEQ_LEN)) < 0.5, 1, labels)
        steps = np.arange(count + 1)
        return SplitArrays(inputs, labels, np.arange(first, first + count), steps, steps)

    write_dataset(
        root,
        {"train": split(2 * BATCH, 1, train), "test": split(BATCH, 2 * BATCH, test)},
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        card={"source": "generated", "name": "probe", "builder": "dataset.build_sudoku_dataset"},
        identifiers=["<blank>", *(f"board-{n}" for n in range(1, IDENTIFIERS))],
    )
    (root / "test_puzzles.json").write_text("{}", encoding="utf-8")  # what arc@ARC reads; none of the boards is asked


def full_shape(config: Any) -> Any:
    """The unshrunk model stands on the probes' boards."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, IDENTIFIERS)


def alternatives(data: Path, write: Callable[..., None] = write_boards) -> dict[str, tuple[Settings, Settings]]:
    """Other values of keys whose type tells none, or none that fits; `write` makes another data set beside `data`."""
    write(other := data.with_name(f"{data.name}_other"), train=1, test=1)
    widths = {"arch.hidden_size": HIDDEN // 2, "arch.subgoal_head.hidden_size": HIDDEN // 2}
    return {
        "data_paths": ({}, {"data_paths": [str(other)]}),
        "data_paths_test": ({}, {"data_paths_test": [str(other)]}),
        "evaluators": ({}, {"evaluators": [{"name": "steps@PerStepAccuracy"}]}),
        "optimizer": ({}, {"optimizer": {"name": "adamw"}}),
        "freeze_weights": ({"arch.puzzle_emb_ndim": HIDDEN}, {"freeze_weights": True}),
        "arch.cycles_schedule": ({}, {"arch.cycles_schedule": [[0.0, 1, 1]]}),
        "arch.late_states": ({}, {"arch.late_states": 1.0}),
        "arch.late_steps": ({"arch.late_states": 1.0}, {"arch.late_steps": [2]}),
        "arch.chains": ({"arch.no_ACT_continue": True}, {"arch.chains": 2}),
        "arch.head_dim": ({}, {"arch.head_dim": HIDDEN // HEADS // 2}),
        "arch.hidden_size": ({}, widths),
        "arch.subgoal_head.hidden_size": ({}, widths),
        "arch.subgoal_head.schedule": ({}, {"arch.subgoal_head.schedule": [1, 2]}),
    }


# --- length and rates -------------------------------------------------------------------------------------------------


def training_groups(subject: Subject) -> int | None:
    """Groups that are trained on, less those held back for validation; None where the data do not say."""
    config, data = subject.resolved or {}, [entry for entry in subject.data if entry.key == "data_paths"]
    if not data or any(entry.groups is None for entry in data):
        return None
    groups = sum(entry.groups or 0 for entry in data)
    if config.get("select_on") == "validation" and config.get("eval_interval") not in (None, config.get("epochs")):
        groups -= validation_count(groups, config.get("validation_groups")) if groups > 1 else 0
    return groups


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps as the sampler counts them (exact for puzzles of equal size)."""
    config, groups = subject.resolved or {}, training_groups(subject)
    sizes = [(entry.groups or 0, entry.mean_examples) for entry in subject.data if entry.key == "data_paths"]
    epochs, batch = config.get("epochs"), config.get("global_batch_size")
    per_iteration = config.get("eval_interval") or epochs
    counts = all(isinstance(value, int) and value > 0 for value in (epochs, batch, per_iteration))
    if groups is None or not counts or not all(mean for _, mean in sizes):
        return None
    mean = sum(number * (mean or 0) for number, mean in sizes) / max(sum(number for number, _ in sizes), 1)
    if not mean:
        return None
    groups_of_batch = -(-batch // mean)  # type: ignore[operator]
    steps = (epochs // per_iteration) * int(groups * per_iteration // groups_of_batch)  # type: ignore[operator]
    return min(steps, config.get("total_steps") or steps)


def rates(subject: Subject) -> dict[str, str]:
    """The puzzle embedding where there is one, the network where it is not frozen."""
    table = {"puzzle_emb": "puzzle_emb_lr"} if subject.arch.get("puzzle_emb_ndim", 1) else {}
    return table | ({} if (subject.resolved or {}).get("freeze_weights") else {"trunk": "lr"})


# --- the manager ------------------------------------------------------------------------------------------------------

HEAD, WEIGHT = "arch.subgoal_head.", "arch.loss.feudal_loss_weight"
Problem = tuple[str, str, str, str]
"""A key, the key of an intent that marks it as meant ("": none can), what is odd, what to do."""


def manager(subject: Subject) -> Iterator[Finding]:
    """ARC340: the manager's goals are used, weighed and scored as they are meant to be."""
    model = need_model(subject)
    own, weight = subject.arch.get("subgoal_head"), value_at(subject.resolved, WEIGHT)
    if "subgoal_head" not in model.fields and weight is None:
        raise NotApplicable("the architecture has no manager")
    problems = list(_odd(subject.arch, own, weight)) if isinstance(weight, int | float) else []
    for key, intent, text, fix in problems:  # a debug preset cuts episodes short and means nothing by it
        level = "INFO" if subject.choices.get("debug") or intent in (subject.intent or {}) else "WARN"
        yield finding("ARC340", level, text, *subject.arch_place(key), fix)
    if not problems:
        text = f"goals held for {own.get('manager_period')} passes, loss weight {weight}" if own else "no manager"
        yield finding("ARC340", "PASS", text, *subject.trace.key_line("arch.subgoal_head"))


def _odd(arch: Settings, head: Settings | None, weight: float) -> Iterator[Problem]:
    if not head:
        if weight > 0:
            text = f"feudal_loss_weight={weight} without arch.subgoal_head: the feudal loss will not be computed"
            yield (
                WEIGHT,
                "manager",
                text,
                "meant as plain HRM? Then nothing; else leave arch.subgoal_head in the config",
            )
        return
    if weight >= 0.2:
        text = f"feudal_loss_weight={weight}: every published sweep found harm from 0.2 on"
        yield WEIGHT, "feudal_weight", text, "meant as a cell of a sweep? Then nothing; else 0.02 to 0.05"
    if weight > 0 and head.get("inject_subgoal") is False:
        fix = "meant as the ablation of the loss alone? Then nothing; else set the weight to 0"
        text = f"inject_subgoal=false with feudal_loss_weight={weight}: the worker is scored by goals it is never given"
        yield f"{HEAD}inject_subgoal", "injection", text, fix
    dim, size = head.get("goal_dim"), arch.get("hidden_size")
    if isinstance(dim, int) and isinstance(size, int) and dim > size:
        text = f"goal_dim={dim} > hidden_size={size}: works, adds parameters, but worker states span {size} directions"
        yield f"{HEAD}goal_dim", f"{HEAD}goal_dim", text, f"meant so? Then nothing; else a goal_dim of at most {size}"
    fixed = arch.get("fixed_refinement_steps")
    name = "fixed_refinement_steps" if fixed else "halt_max_steps"
    most, period, schedule = fixed or arch.get(name), head.get("manager_period"), head.get("schedule")
    if not isinstance(most, int) or not isinstance(period, int):
        return
    if most == 1:
        text = f"{name}=1: a goal comes after the first pass and is never used, the feudal loss is always 0"
        yield f"{HEAD}manager_period", "", text, f"at least {name}=2"
    elif schedule and min(schedule) >= most:
        text = f"schedule={schedule} with {name}={most}: no goal is ever used, the feudal loss is always 0"
        yield f"{HEAD}schedule", "", text, f"a first pass below {most}"
    elif not schedule and period >= most - 1:
        text = f"manager_period={period} with {name}={most}: one goal for the whole episode"
        yield f"{HEAD}manager_period", "period", text, "meant so? Then nothing; else a shorter period or more passes"


# --- observed ---------------------------------------------------------------------------------------------------------


def goals(tiny: Any) -> Iterator[str]:
    """ARC340: what one step adds to the loss under three weights; the goals of passes 2 and 3, given a period of 2."""
    import torch

    from verification.probes.instance import Recorder, Unobservable, finish_step, set_halting

    if not tiny.arch.get("subgoal_head") or tiny.arch["loss"].get("feudal_loss_weight") is None:
        raise Unobservable("there is no manager, or its goals are not scored")
    period = {"halt_max_steps": 4, "fixed_refinement_steps": None, "subgoal_head.schedule": None}
    plain = {**period, "subgoal_head.manager_period": 2, "subgoal_head.gating": False, "loss.feudal_gate": "none"}
    totals: dict[float, tuple[float, ...]] = {}
    for weight in (0.0, 0.25, 1.0):
        task = tiny.build(**plain, **{"loss.feudal_loss_weight": weight}).task
        set_halting(task.module, willing=False)
        recorder = Recorder(task.module)
        for number in range(1, 5):
            with torch.no_grad():
                total, _, metrics = next(task.loss(batch) for batch in task.micro_batches(number))
            finish_step(task)
            if number == 2:
                names = ("feudal_loss", "feudal_cos", "feudal_active_frac")
                totals[weight] = (float(total), *(float(metrics[name][0]) for name in names))
    base, loss, cos, used = totals[0.0]
    for weight, (total, *_) in totals.items():
        if abs(total - base - weight * loss) > 1e-3 * max(1.0, abs(base)):
            yield f"feudal_loss_weight={weight} adds {total - base:.4g} to the loss, the intrinsic loss is {loss:.4g}"
    if abs(loss - (used - cos)) > 1e-3 * max(1.0, used):
        yield f"the intrinsic loss of {used:.0f} rows is {loss:.4g}, their 1 - cosine {used - cos:.4g}"
    _, second, third, _ = (call.output.aux["goal"] for call in recorder.calls)
    if not torch.allclose(second, third, atol=1e-5):
        yield "with manager_period=2 rows have other goals in their third pass than in their second"


def probes() -> Iterator[Any]:
    """What is observed of a manager."""
    from verification.probes.registry import Probe

    fix = "total + weight * sum of (1 - cosine); a goal is kept until the next one is due"
    yield Probe(
        code="ARC340",
        run=goals,
        about="loss",
        after=("SCR120", "MOD420", "MOD421", "MOD440"),
        fix=fix,
        passed="the intrinsic loss is added by its weight, and a goal is held for its period",
    )


VERIFICATION = Verification(
    act=True,
    data=puzzle_data,
    questions=QUESTIONS,
    steps=count_steps,
    rates=rates,
    rules=(Rule(("ARC340",), manager),),
    intents={
        "manager": lambda subject: "subgoal_head" if subject.arch.get("subgoal_head") else "none",
        "goals": lambda subject: value_at(subject.arch, "subgoal_head.goal_source", "none"),
        "period": f"{HEAD}manager_period",
        "injection": f"{HEAD}inject_subgoal",
        "gating": f"{HEAD}gating",
        "feudal_weight": WEIGHT,
    },
    shrink=shrink,
    write_data=write_boards,
    full_shape=full_shape,
    alternatives=alternatives,
    pinned=PINNED,
    decides=("evaluators", "freeze_weights", "grad_clip"),
    probes=probes,
    exercised={"evaluators": [{"name": "steps@PerStepAccuracy"}]},
)
