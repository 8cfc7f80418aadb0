"""The tables of keys in docs/, made from the schemas; tests/e2e/test_docs.py holds the pages against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import MISSING

from engine.cli.keys import Key, keys_of
from engine.config import NOT_IDENTITY, RunConfig
from tasks.animal.args import AnimalConfig
from tasks.etrm.args import ETRMConfig
from tasks.feedback.args import FeedbackConfig, FeedforwardConfig
from tasks.language_model.args import TrainConfig
from tasks.recursive_reasoning.args import PretrainConfig

HEAD = ("| key | type | default | meaning |", "|---|---|---|---|")


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def value_text(value: object) -> str:
    words = {True: "true", False: "false", None: "null"}
    if value is MISSING:
        return "required"
    if isinstance(value, str) and not (value and value.isprintable()):  # a line break ends a row
        return f"`{json.dumps(value)}`"
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def key_row(name: str, key: Key) -> str:
    return row(f"`{name}`", key.type_text, value_text(key.default), key.meaning)


def rows(schema: type, skip: Container[str] = (), prefix: str = "") -> list[str]:
    """A line for each key of a schema but those in `skip`."""
    return [key_row(prefix + name, key) for name, key in keys_of(schema).items() if name not in skip]


def same_in(schema: type, *others: type) -> set[str]:
    """The keys that are what another schema has: the same default and meaning."""
    known = [keys_of(other) for other in others]
    return {
        name
        for name, key in keys_of(schema).items()
        if any(
            name in keys and (keys[name].default, keys[name].meaning) == (key.default, key.meaning) for keys in known
        )
    }


def table(*parts: list[str]) -> str:
    return "\n".join([*HEAD, *(line for part in parts for line in part)])


def arch_keys() -> str:
    from models.recursive_reasoning.config import (
        HRMConfig,
        RecursiveConfig,
        TransformerBaselineConfig,
        TRMHier6Config,  # all of TRM's keys and one more
    )

    schemas = {"TRM": TRMHier6Config, "HRM": HRMConfig, "baseline": TransformerBaselineConfig}
    keys = {title: keys_of(schema) for title, schema in schemas.items()}
    shared, unused = keys_of(RecursiveConfig), ("H_cycles", "L_cycles", "L_layers")
    lines = [row("key", "type", *schemas, "meaning"), "|---|---|---|---|---|---|"]
    for name, key in keys["TRM"].items():
        cells = [value_text(known[name].default) if name in known else "" for known in keys.values()]
        cells[2] = "" if name in unused else cells[2]
        lines.append(row(f"`arch.{name}`", key.type_text, *cells, shared.get(name, key).meaning))
    return "\n".join(lines)


def manager_keys() -> str:
    from losses.config import ACTLossConfig, FeudalLossConfig
    from models.recursive_reasoning.subgoal_config import HRMConfig, HRMFeudalConfig

    return table(
        rows(HRMFeudalConfig, keys_of(HRMConfig), "arch."),
        rows(FeudalLossConfig, keys_of(ACTLossConfig), "arch.loss."),
    )


def manager_choice() -> str:
    """The keys of a manager that experiments begin with."""
    from losses.config import FeudalLossConfig
    from models.recursive_reasoning.subgoal_config import HRMFeudalConfig

    model, loss = keys_of(HRMFeudalConfig), keys_of(FeudalLossConfig)
    head = ("manager_period", "schedule", "goal_dim", "gating", "inject_subgoal", "goal_source")
    names = [f"subgoal_head.{name}" for name in head] + ["halt_max_steps", "H_cycles", "L_cycles"]
    first = key_row("arch.loss.feudal_loss_weight", loss["feudal_loss_weight"])
    return table([first, *(key_row(f"arch.{name}", model[name]) for name in names)])


def encoder_keys() -> str:
    """What ETRM has and TRM lacks; keys that never have an effect are left out."""
    from losses.config import ACTLossConfig, HaltingLossConfig
    from models.recursive_reasoning.etrm_config import TRMConfig, TRMWithEncoderConfig, TRMWithEncoderOnlineConfig

    return table(
        rows(TRMWithEncoderConfig, keys_of(TRMConfig), "arch."),
        rows(TRMWithEncoderOnlineConfig, keys_of(TRMWithEncoderConfig), "arch."),
        rows(ACTLossConfig, keys_of(HaltingLossConfig), "arch.loss."),
    )


def encoder_types() -> str:
    from models.encoders.registry import encoder_class, encoder_types

    lines = [row("`arch.encoder_type`", "layers", "aggregation", "latent", "what it is"), "|---|---|---|---|---|"]
    for name in encoder_types():
        cls = encoder_class(name)
        latent = "yes" if cls.VARIATIONAL else ""
        what = " ".join((cls.__doc__ or "").split())
        lines.append(row(f"`{name}`", str(cls.LAYERS), f"`{cls.AGGREGATION}`", latent, what))
    return "\n".join(lines)


def fitting_keys() -> str:
    """Keys of the evaluators that fit something to a task's demonstrations, with those that all three have."""
    from evaluators.adaptation.ballots import BallotsConfig
    from evaluators.adaptation.search import SearchConfig
    from evaluators.adaptation.training import TrainingConfig

    lines = [row("of", "key", "type", "default", "meaning"), "|---|---|---|---|---|"]
    for title, schema in (("all three", BallotsConfig), ("search", SearchConfig), ("training", TrainingConfig)):
        lines += [row(title, line.strip("| ")).replace("\\|", "|") for line in rows(schema)]
    return "\n".join(lines)


def feedback_arch_keys() -> str:
    from models.feedback.adapter_config import FineTuneConfig, HyperConfig, StaticLoraConfig
    from models.feedback.config import BaseConfig, LoopedConfig

    schemas = {
        "feedforward": BaseConfig,
        "feedforward_looped": LoopedConfig,
        "feedbackward": HyperConfig,
        "static_lora": StaticLoraConfig,
        "attn_finetune": FineTuneConfig,
    }
    archs: dict[str, list[str]] = {}
    for arch, schema in schemas.items():
        for line in rows(schema, prefix="arch."):
            archs.setdefault(line, []).append(f"`{arch}`")
    lines = [row("`arch`", "key", "type", "default", "meaning"), "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {', '.join(names)} {line}" for line, names in archs.items())])


def identity(keys: Mapping[str, str]) -> str:
    return "\n".join(["| key | why it may differ |", "|---|---|", *(row(f"`{k}`", v) for k, v in keys.items())])


def train_identity() -> str:
    """What train.py's table has beside the other, or lacks."""
    more = {key: why for key, why in TrainConfig.NOT_IDENTITY.items() if key not in NOT_IDENTITY}
    lacks = [key for key in NOT_IDENTITY if key not in TrainConfig.NOT_IDENTITY]
    return "\n".join([identity(more), *(row(f"`{key}`", "must *not* differ here") for key in lacks)])


def gpt_keys() -> str:
    from models.language_models.config import GPTConfig

    return table(rows(GPTConfig, prefix="arch."))


def animal_keys() -> str:
    from losses.config import DiversityLossConfig
    from models.animal.config import LoraConfig

    own = rows(AnimalConfig, set(keys_of(RunConfig)) - {"seed", "grad_clip", "log_interval"})
    return table(own, rows(LoraConfig, prefix="arch."), rows(DiversityLossConfig, prefix="arch.loss."))


OTHERWISE_IN_TRAIN = {"compile", "seed", "grad_clip", "log_interval", "accumulation"}
"""Keys of every script that are others in train.py."""
TABLES: dict[str, Callable[[], str]] = {
    "animal keys": animal_keys,
    "run keys": lambda: table(rows(RunConfig)),
    "train keys": lambda: table(rows(TrainConfig, set(keys_of(RunConfig)) - OTHERWISE_IN_TRAIN)),
    "gpt keys": gpt_keys,
    "pretrain keys": lambda: table(rows(PretrainConfig, keys_of(RunConfig))),
    "etrm keys": lambda: table(rows(ETRMConfig, keys_of(PretrainConfig))),
    "encoder types": encoder_types,
    "encoder keys": encoder_keys,
    "fitting keys": fitting_keys,
    "arch keys": arch_keys,
    "manager keys": manager_keys,
    "manager choice": manager_choice,
    "feedback keys": lambda: table(
        rows(FeedforwardConfig, same_in(FeedforwardConfig, RunConfig)),
        rows(FeedbackConfig, same_in(FeedbackConfig, RunConfig, FeedforwardConfig)),
    ),
    "feedback arch keys": feedback_arch_keys,
    "not identity": lambda: identity(NOT_IDENTITY),
    "identity of train": train_identity,
}
