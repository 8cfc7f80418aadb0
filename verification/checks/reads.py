"""Which config keys the code reads: what nothing reads cannot be configured."""

from __future__ import annotations

import ast
from typing import Any

from engine.cli.keys import keys_of
from verification.chain import Chain
from verification.checks.registry import Family, declared, family_of, register_family
from verification.schemas import is_dataclass_node
from verification.source import SLOTS, ClassInfo, Module, Repo, attribute_reads, walk

# Read by Hydra, by the command line or by interpolation only.
FOREIGN_KEYS = frozenset(("script",))


def reads_of(repo: Repo, modules: list[Module]) -> set[str]:
    """Attribute names that modules read, cross-checks of config classes left out: a check is no use."""
    found: set[str] = set()
    for module in modules:
        found |= _reads(module.text, module)
    return found


_known: dict[str, set[str]] = {}
"""Text of a module -> what it reads."""


def _reads(text: str, module: Module) -> set[str]:
    if text not in _known:
        _known[text] = attribute_reads(module.tree, frozenset(_checks(module)))
    return _known[text]


def _checks(module: Module) -> list[ast.AST]:
    """__post_init__ of the module's dataclasses, and the methods that only it calls."""
    found: list[ast.AST] = []
    for node in walk(module.tree):
        if not isinstance(node, ast.ClassDef) or not is_dataclass_node(node):
            continue
        methods = {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}
        start = methods.get("__post_init__")
        if start is None:
            continue
        found.append(start)
        others = {name: attribute_reads(m) for name, m in methods.items() if name != "__post_init__"}
        for name in attribute_reads(start) & others.keys():
            if name.startswith("_") and not any(name in reads for other, reads in others.items() if other != name):
                found.append(methods[name])
    return found


def config_class(chain: Chain) -> ClassInfo | None:
    """The class that the model's `Config` names."""
    cls = chain.model.cls if chain.model else None
    return nested_config(chain.repo, cls) if cls else None


def nested_config(repo: Repo, cls: ClassInfo) -> ClassInfo | None:
    """The dataclass behind `Config: ClassVar = ...`."""
    found = cls.variable("Config")
    if found is None or not isinstance(found[0], ast.expr):
        return None
    return repo.named_class(found[1].module, found[0])


def fields_of(cls: ClassInfo) -> dict[str, tuple[str, int]]:
    """Fields of a dataclass and its bases: name -> (file, line)."""
    found: dict[str, tuple[str, int]] = {}
    for owner in reversed(cls.mro):
        for node in owner.node.body:
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and "ClassVar" not in ast.unparse(node.annotation)
            ):
                found[node.target.id] = (owner.file, node.lineno)
    return found


def nested_fields(repo: Repo, cls: ClassInfo) -> dict[str, tuple[str, int]]:
    """Fields of the dataclasses that a dataclass's own fields are of, by dotted name."""
    found: dict[str, tuple[str, int]] = {}
    for owner in cls.mro:
        for node in owner.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = node.annotation  # without the marks of an Annotated
                if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated":
                    kind = kind.slice.elts[0]  # type: ignore[attr-defined]
                for name in (n for n in ast.walk(kind) if isinstance(n, ast.Name)):
                    inner = repo.named_class(owner.module, name)
                    if inner is not None and is_dataclass_node(inner.node):
                        found |= {f"{node.target.id}.{key}": place for key, place in fields_of(inner).items()}
    return found


def unread_arch(chain: Chain) -> dict[str, tuple[str, int]]:
    """Fields of the model's config that no module of the model reads, those that its family calls dead left out."""
    config = config_class(chain)
    if config is None or chain.model is None or chain.model.cls is None:
        return {}
    modules = {
        m.name: m for name in (chain.model.module, config.module.name) for m in chain.repo.closure(name, ("models",))
    }
    fields = fields_of(config) | nested_fields(chain.repo, config)
    reads, family = reads_of(chain.repo, list(modules.values())), family_of(chain)
    return {
        name: place
        for name, place in fields.items()
        if name.rpartition(".")[2] not in reads and not dead_reason(family, f"arch.{name}", chain.resolved or {})
    }


def unread_schema(chain: Chain) -> list[str]:
    """Keys of the script's schema that neither the script nor engine, tasks or data code read."""
    script = chain.script
    if script is None or chain.schema is None:
        return []
    key = ("unread", script.file)
    if key not in chain.repo.memo:
        packages = (*SLOTS, "engine")
        modules = chain.repo.closure(script.module.name, packages)
        reads = reads_of(chain.repo, modules)
        text = "".join(
            (chain.repo.text(f"config/{folder}/{p.name}") or "")
            for folder in ("base", "arch")
            for p in sorted((chain.repo.root / "config" / folder).glob("*.yaml"))
        )
        used = {name for name in keys_of(chain.schema) if f"${{{name}}}" in text or f"${{oc.select:{name}," in text}
        chain.repo.memo[key] = [
            n for n in keys_of(chain.schema) if n.rpartition(".")[2] not in reads | used | FOREIGN_KEYS
        ]
    return chain.repo.memo[key]


def dead_reason(family: Family, key: str, config: dict[str, Any]) -> str:
    """Why a key has no effect under this config, "" where it has one."""
    for name, dead, words in (*EVERYWHERE, *family.dead):
        if name == key and dead(config):
            return words
    return ""


def _arch(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("arch") or {}


EVERYWHERE = (
    ("ema_rate", lambda c: not c.get("ema"), "ema=false"),
    *(
        (key, lambda c: not c.get("enable_wandb"), "enable_wandb=false")
        for key in ("wandb_entity", "wandb_group", "wandb_tags")
    ),
    (
        "project_name",
        lambda c: "run_dir" in c and not _in(c, "project_name") and not c.get("enable_wandb"),
        "run_dir does not contain it, wandb is off",
    ),
)
_EMBEDDING_OFF = (
    lambda c: _arch(c).get("puzzle_emb_ndim") == 0,
    "arch.puzzle_emb_ndim=0: there is no puzzle embedding",
)
_ATTENTION_OFF = (lambda c: bool(_arch(c).get("mlp_t")), "arch.mlp_t=true: there is no attention")

_NO_RECURSION = (
    lambda c: str(_arch(c).get("name")).endswith("@TransformerBaseline"),
    "the transformer baseline has one stack, sized by arch.H_layers, and calls it once",
)


def _in(config: dict[str, Any], key: str) -> bool:
    return str(config.get(key)) in str(config.get("run_dir")) or not config.get("run_dir")


def _head(config: dict[str, Any]) -> dict[str, Any]:
    return _arch(config).get("subgoal_head") or {}


def _loss(config: dict[str, Any]) -> dict[str, Any]:
    return _arch(config).get("loss") or {}


def _uncredited(config: dict[str, Any]) -> bool:
    return _head(config).get("goal_credit") == "none"


def _weight(config: dict[str, Any]) -> Any:
    return (config.get("loss") or {}).get("feudal_loss_weight")


_NO_HEAD = (lambda c: not _head(c), "there is no arch.subgoal_head")
_NOT_GATED = (lambda c: _head(c).get("gating") is False, "arch.subgoal_head.gating=false: there is no gate")
_NO_CREDIT = "arch.subgoal_head.goal_credit=none: no gradient reaches the manager"
_NOT_INJECTED = (
    lambda c: _head(c).get("inject_subgoal") is False,
    "arch.subgoal_head.inject_subgoal=false: goals are not injected",
)
_FIXED_PASSES = (
    lambda c: _arch(c).get("fixed_refinement_steps") is not None,
    "arch.fixed_refinement_steps sets the length of every episode",
)
_FEUDAL = (
    (
        "loss.feudal_loss_weight",
        lambda c: "feudal_loss_weight" not in _loss(c),
        "the loss of this architecture has no intrinsic term",
    ),
    ("loss.feudal_loss_weight", *_NO_HEAD),
    (
        "loss.feudal_loss_weight",
        lambda c: _loss(c).get("feudal_loss_weight") != _weight(c),
        "arch.loss.feudal_loss_weight is given too, and wins",
    ),
    *((f"arch.loss.{name}", *_NO_HEAD) for name in ("feudal_loss_weight", "feudal_grad", "feudal_gate")),
    (
        "arch.loss.feudal_grad",
        lambda c: not _loss(c).get("feudal_loss_weight"),
        "the weight of the intrinsic loss is 0",
    ),
    (
        "arch.subgoal_head.manager_period",
        lambda c: _head(c).get("schedule") is not None,
        "arch.subgoal_head.schedule takes its place",
    ),
    *(
        (key, *_NOT_GATED)
        for key in ("arch.subgoal_head.temperature", "arch.subgoal_head.gate_bias_init", "arch.loss.feudal_gate")
    ),
    ("arch.loss.feudal_gate", lambda c: _loss(c).get("feudal_gate") == "live" and _uncredited(c), _NO_CREDIT),
    ("arch.loss.feudal_grad", lambda c: _loss(c).get("feudal_grad") == "both" and _uncredited(c), _NO_CREDIT),
    (
        "arch.subgoal_head.gate_bias_init",
        lambda c: _head(c).get("projection_bias") is False,
        "arch.subgoal_head.projection_bias=false: the gate has no bias",
    ),
    *((f"arch.subgoal_head.{name}", *_NOT_INJECTED) for name in ("goal_scale", "inject_at", "inject_init")),
    *((f"arch.{name}", *_FIXED_PASSES) for name in ("halt_max_steps", "halt_exploration_prob", "eval_halting")),
)

register_family(
    Family(
        "recursive_reasoning",
        dead=(
            *_FEUDAL,
            ("puzzle_emb_lr", *_EMBEDDING_OFF),
            ("puzzle_emb_weight_decay", *_EMBEDDING_OFF),
            (
                "arch.puzzle_emb_len",
                lambda c: _arch(c).get("puzzle_emb_ndim") == 0 and bool(_arch(c).get("puzzle_emb_len")),
                _EMBEDDING_OFF[1],
            ),
            ("arch.num_heads", *_ATTENTION_OFF),
            ("arch.head_dim", *_ATTENTION_OFF),
            *((f"arch.{name}", *_NO_RECURSION) for name in ("H_cycles", "L_cycles", "L_layers")),
            (
                "arch.rope_theta",
                lambda c: bool(_arch(c).get("mlp_t")) or _arch(c).get("pos_encodings") not in ("rope", "rope_2d"),
                "there are no rotary positions",
            ),
            (
                "arch.halt_exploration_prob",
                lambda c: _arch(c).get("halt_max_steps") == 1,
                "arch.halt_max_steps=1: every row halts",
            ),
            (
                "min_eval_interval",
                lambda c: c.get("eval_interval") is None,
                "eval_interval=null: no evaluation before the end",
            ),
            *(
                (
                    key,
                    lambda c: c.get("eval_interval") in (None, c.get("epochs")),
                    "no evaluation before the end: nothing is selected, and every group is trained on",
                )
                for key in ("select_on", "validation_groups")
            ),
            ("validation_groups", lambda c: c.get("select_on") == "test", "select_on=test: nothing is held back"),
            (
                "eval_max_examples",
                lambda c: c.get("eval_interval") is None,
                "eval_interval=null: only the last evaluation is made, final_eval_max_examples is its size",
            ),
            (
                "final_eval_max_examples",
                lambda c: not c.get("final_eval", True) and c.get("eval_interval") is None,
                "final_eval=false",
            ),
            (
                "lr",
                lambda c: bool(c.get("freeze_weights")),
                "freeze_weights=true: only the puzzle embedding is trained",
            ),
            ("weight_decay", lambda c: bool(c.get("freeze_weights")), "freeze_weights=true"),
        ),
        intent={
            "family": lambda chain: declared(chain, "FAMILY"),
            "manager": lambda chain: "none" if not _head(chain.resolved or {}) else "subgoal_head",
            "period": lambda chain: _head(chain.resolved or {}).get("manager_period"),
            "injection": lambda chain: _head(chain.resolved or {}).get("inject_subgoal"),
            "goals": lambda chain: _head(chain.resolved or {}).get("goal_source", "none"),
            "gating": lambda chain: _head(chain.resolved or {}).get("gating"),
            "feudal_weight": lambda chain: _loss(chain.resolved or {}).get("feudal_loss_weight"),
        },
    )
)
