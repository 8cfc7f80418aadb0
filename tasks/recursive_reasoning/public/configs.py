"""Convert all_config.yaml of the public TRM and HRM code to our config keys, and back.

Tensor shapes give widths, depths and data sizes. They do not give the number of cycles or of heads, and a wrong guess
loads without error but answers wrongly (40 % becomes 4 % with L_cycles 6 instead of 4). Those keys come from
all_config.yaml or from the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.errors import UsageError
from engine.io import did_you_mean
from engine.registry import create_evaluators, resolve
from engine.schema import structure, with_defaults
from models.layers.mlp import MULTIPLE, swiglu_inner_size
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.public.sizes import Sizes

LOSS = "losses@ACTLossHead"
LOSS_TYPES = ("stablemax_cross_entropy", "softmax_cross_entropy")


@dataclass(frozen=True)
class Kind:
    """A published model class."""

    ours: str
    public: str
    """Its name in the TRM repository."""
    calls: tuple[str, ...] = ("H_cycles", "L_cycles")
    """Keys that say how often its stacks are called."""
    unread: tuple[str, ...] = ()
    """Our keys that the published class does not read, because they are fixed there."""


KINDS = {
    "trm": Kind(
        "recursive_reasoning.trm@TRM",
        "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
        unread=("H_layers",),
    ),
    "trm_singlez": Kind(
        "recursive_reasoning.trm_singlez@TRMSingleZ",
        "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
        unread=("H_layers",),
    ),
    "trm_hier6": Kind(
        "recursive_reasoning.trm_hier6@TRMHier6",
        "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
        unread=("H_layers", "L_latents"),
    ),
    "hrm": Kind(
        "recursive_reasoning.hrm@HRM",
        "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
        unread=("puzzle_emb_len", "no_ACT_continue"),
    ),
    "transformers_baseline": Kind(
        "recursive_reasoning.transformers_baseline@TransformerBaseline",
        "recursive_reasoning.transformers_baseline@Model_ACTV2",
        calls=(),
        unread=("puzzle_emb_len", "no_ACT_continue", "H_cycles", "L_cycles", "L_layers"),
    ),
}
MODULES = {**{kind: kind for kind in KINDS}, "hrm_act_v1": "hrm"}
"""Last component of a module name in all_config.yaml -> kind."""
OURS_ONLY = (
    *("eval_halting", "head_dim", "inner_multiple", "gate_norm", "registers", "latent_init", "damping", "update_noise"),
    *("chains", "late_states", "late_steps", "cycles_schedule"),
)
"""Our keys without a counterpart in the public code; the export refuses values that change the computation."""
SAME = (
    "data_paths_test",
    "global_batch_size",
    "epochs",
    "eval_interval",
    "min_eval_interval",
    "checkpoint_every_eval",
    "lr",
    "lr_min_ratio",
    "lr_warmup_steps",
    "weight_decay",
    "beta1",
    "beta2",
    "puzzle_emb_lr",
    "puzzle_emb_weight_decay",
    "freeze_weights",
    "ema",
    "ema_rate",
    "seed",
)
"""Keys with the same name and meaning in both."""
OF_THE_LAUNCH = ("project_name", "run_name", "checkpoint_path", "load_checkpoint", "eval_save_outputs")


# --- theirs to ours ---------------------------------------------------------------------------------------------------


def arch_block(
    config: Mapping[str, Any] | None, sizes: Sizes, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(a complete `arch` block in our keys, contradictions to the shapes). all_config.yaml (`config`, None without such
    a file) overrides shapes, and `overrides`, the keys that the user set, overrides both.

    Raises: UsageError for an unknown model, or keys that neither shapes nor config determine.
    """
    stated = _stated(config or {}, sizes) | dict(overrides)
    kind = KINDS[sizes.kind]
    model: Any = resolve(kind.ours, "models", "arch.name").Config  # type: ignore[attr-defined]
    known = {field.name for field in fields(model)} - set(kind.unread)
    if unknown := [key for key in overrides if key not in known]:
        raise UsageError(f"arch.{unknown[0]}: {sizes.kind} has no such key: {did_you_mean(unknown[0], known)}")
    stated = {key: value for key, value in stated.items() if key in known and value is not None}
    if "pos_encodings" in stated and stated["pos_encodings"] not in ("rope", "learned"):
        stated["pos_encodings"] = "none"  # any other value means none there
    arch = {"forward_dtype": "bfloat16", **sizes.arch, **stated}
    if arch["mlp_t"]:
        arch.setdefault("pos_encodings", "none")
    _require(arch, kind, sizes, config)
    width, mixed = arch["hidden_size"], sizes.mixed
    if "expansion" not in arch and isinstance(width, int) and width > 0:
        usual = swiglu_inner_size(width, 4.0) == sizes.inner
        arch["expansion"] = 4.0 if usual else 1.5 * sizes.inner / width
    heads = arch.get("num_heads")
    if mixed is not None and isinstance(heads, int) and heads > 0 and mixed % heads == 0 and mixed != width:
        arch["head_dim"] = mixed // heads  # as in the published baseline, whose 12 heads of 42 do not make up 512
    complete = asdict(structure(model, arch, "arch"))
    differing = [
        f"{key} is {stated[key]}, the file has {value}"
        for key, value in sizes.arch.items()
        if stated.get(key, value) != value
    ]
    if arch.get("pos_encodings") == "learned" and "pos_encodings" not in sizes.arch:
        differing.append("pos_encodings is learned, the file has no table of positions")
    loss = _block(_block(config).get("arch")).get("loss")
    loss_type = _block(loss).get("loss_type")
    block = {"name": LOSS, "loss_type": loss_type if loss_type in LOSS_TYPES else LOSS_TYPES[0], "precision": "float32"}
    return {"name": kind.ours, "loss": block, **complete}, differing


def _block(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _stated(config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The keys of all_config.yaml's `arch` block. Raises: UsageError if it names a model of another kind."""
    arch = dict(_block(config.get("arch")))
    name = arch.pop("name", None)
    arch.pop("loss", None)
    if name is not None:
        module = str(name).partition("@")[0].rpartition(".")[2]
        if MODULES.get(module) is None:
            raise UsageError(f"all_config.yaml: arch.name {name!r} is not one of {', '.join(MODULES)}")
        if MODULES[module] != sizes.kind:
            raise UsageError(f"all_config.yaml names {name}, but the tensors are those of a {sizes.kind}")
    return arch


def _require(arch: Mapping[str, Any], kind: Kind, sizes: Sizes, config: Mapping[str, Any] | None) -> None:
    needed = [*kind.calls, "halt_max_steps"]
    needed += [] if arch["mlp_t"] else ["num_heads", "pos_encodings"]
    if not config and arch["puzzle_emb_ndim"] and "puzzle_emb_len" not in kind.unread:
        needed.append("puzzle_emb_len")
    missing = [key for key in needed if key not in arch]
    if missing:
        where = "does not give it" if config else "is missing" if config is None else "is empty"
        keys = " ".join(f"arch.{key}=..." for key in missing)
        raise UsageError(
            f"shapes do not reveal {', '.join(missing)}, and all_config.yaml {where}: put the file beside the state "
            f"dict, or add {keys}"
        )


def run_config(
    config: Mapping[str, Any], arch: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(the full config of a run of ours, keys of all_config.yaml that have no counterpart)."""
    paths = config.get("data_paths") or config.get("data_path") or []
    ours: dict[str, Any] = {
        "script": "pretrain.py",
        "arch": dict(arch),
        "data_paths": [paths] if isinstance(paths, str) else paths,
        "data_order": "published",
        "select_on": "test",
        **{key: config[key] for key in SAME if config.get(key) is not None},
    }
    evaluators, left = [], []
    blocks = config.get("evaluators") or []
    for block in blocks if isinstance(blocks, list) else [blocks]:
        try:
            create_evaluators([block])
            evaluators.append(block)
        except (UsageError, AttributeError, TypeError):
            left.append(f"evaluators: {_block(block).get('name', block)}")
    ours["evaluators"] = evaluators
    known = {*SAME, *OF_THE_LAUNCH, "arch", "data_paths", "data_path", "evaluators"}
    left += [key for key in config if key not in known]
    return with_defaults(PretrainConfig, {**ours, **overrides}), left


# --- ours to theirs ---------------------------------------------------------------------------------------------------


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run of ours in the keys of the public code.

    Raises: UsageError for a model or a value that the public code does not have.
    """
    arch = dict(config["arch"])
    name, loss = arch.pop("name"), _block(arch.pop("loss", None))
    kind_name = next((key for key, kind in KINDS.items() if kind.ours == name), None)
    if kind_name is None:
        names = ", ".join(kind.ours for kind in KINDS.values())
        raise UsageError(f"arch.name={name} has no counterpart in the public code: it has {names}")
    kind = KINDS[kind_name]
    model: Any = resolve(kind.ours, "models", "arch.name")
    full = asdict(model.Config(**arch))
    _refuse_ours(full, kind_name)
    dtype = "bfloat16" if full["forward_dtype"] == "auto" else full["forward_dtype"]
    keys = [key for key in full if key not in (*OURS_ONLY, *kind.unread)]
    return {
        "arch": {
            "name": kind.public,
            "loss": {"name": LOSS, "loss_type": loss.get("loss_type", LOSS_TYPES[0])},
            **({"H_layers": 0} if "H_layers" in kind.unread else {}),
            **{key: full[key] for key in keys},
            **({} if full["puzzle_emb_ndim"] or "puzzle_emb_len" in kind.unread else {"puzzle_emb_len": 0}),
            "forward_dtype": dtype,
        },
        "data_paths": config.get("data_paths"),
        "evaluators": config.get("evaluators"),
        **{key: config[key] for key in SAME if key in config},
    }


def _refuse_ours(arch: Mapping[str, Any], kind: str) -> None:
    """Raise UsageError for a value that the public class does not support."""
    usual = arch["hidden_size"] // arch["num_heads"]
    few = -(-arch["puzzle_emb_ndim"] // arch["hidden_size"])
    refusals = {
        "pos_encodings": arch["pos_encodings"] == "rope_2d",
        "head_dim": not arch["mlp_t"] and arch["head_dim"] not in (0, usual),
        "eval_halting": arch["eval_halting"] != "fixed",
        "inner_multiple": arch["inner_multiple"] != MULTIPLE,
        "gate_norm": arch["gate_norm"],
        "registers": arch["registers"] and not arch["puzzle_emb_ndim"],
        "latent_init": arch["latent_init"] != "learned",
        "damping": arch["damping"],
        "update_noise": arch["update_noise"],
        "chains": arch["chains"] != 1,
        "L_latents": arch.get("L_latents", 6) != 6,
        "no_ACT_continue": "no_ACT_continue" in KINDS[kind].unread and arch["no_ACT_continue"],
        "puzzle_emb_len": "puzzle_emb_len" in KINDS[kind].unread and arch["puzzle_emb_len"] not in (0, few),
    }
    if bad := next((key for key, refused in refusals.items() if refused), None):
        raise UsageError(f"arch.{bad}={arch[bad]} has no counterpart in the public {kind}")


def set_values(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse `arch.KEY=VALUE` and `KEY=VALUE` of a command line: (arch keys, other keys). Raises: UsageError."""
    import yaml

    arch: dict[str, Any] = {}
    others: dict[str, Any] = {}
    known = {field.name for field in fields(PretrainConfig)} - {"arch"}
    for word in words:
        key, equals, text = word.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            equals, value = "", None
        if not equals or not key:
            raise UsageError(f"{word}: expected KEY=VALUE, e.g. arch.H_cycles=3")
        if key.startswith("arch."):
            arch[key.removeprefix("arch.")] = value
        elif key in known:
            others[key] = value
        else:
            raise UsageError(f"{word}: unknown key: {did_you_mean(key, known)}")
    return arch, others
