"""Checkpoints as the public TRM and HRM code writes them, made of its description alone: no module of ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from tests.models import naive

CLASSES = {
    "trm": ("recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", 0, 2),
    "singlez": ("recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1", 0, 2),
    "hier6": ("recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1", 0, 2),
    "hrm": ("hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1", 2, 1),
    "baseline": ("recursive_reasoning.transformers_baseline@Model_ACTV2", 2, 0),
}
"""kind -> class in all_config.yaml, blocks of H_level, blocks of L_level."""
STARTS = {
    "trm": ("H", "L"),
    "singlez": ("L",),
    "hier6": ("H", *(f"L{i}" for i in range(1, 7))),
    "hrm": ("H", "L"),
    "baseline": ("H",),
}
INNER = {16: 256, 18: 256, 20: 256, 32: 256}
"""Width -> inner width of a SwiGLU of expansion 4."""


def make(
    kind: str, *, words: int, length: int, identifiers: int, width: int = 32, **changes: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(all_config.yaml, state dict as `inner.NAME`) of a small model."""
    name, high, low = CLASSES[kind]
    arch: dict[str, Any] = {
        "name": name,
        "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 3,
        "H_cycles": 2,
        "L_cycles": 2,
        "H_layers": high or 4,
        "L_layers": low or 2,
        "hidden_size": width,
        "num_heads": 4,
        "expansion": 4,
        "puzzle_emb_ndim": width,
        "pos_encodings": "rope",
        "forward_dtype": "float32",
        "mlp_t": False,
        **({"puzzle_emb_len": 4, "no_ACT_continue": True} if kind in ("trm", "singlez", "hier6") else {}),
        **changes,
    }
    prefix = arch.get("puzzle_emb_len", 1)
    g = torch.Generator().manual_seed(3)
    draw = lambda *size, std=1.0: torch.randn(*size, generator=g) * std  # noqa: E731
    state = {f"inner.{start}_init": draw(width).bfloat16() for start in STARTS[kind]}
    state["inner.embed_tokens.embedding_weight"] = draw(words, width, std=width**-0.5)
    state["inner.lm_head.weight"] = draw(words, width, std=width**-0.5)
    state["inner.q_head.weight"], state["inner.q_head.bias"] = draw(2, width, std=0.4), torch.tensor([-0.1, 0.1])
    if arch["puzzle_emb_ndim"]:
        state["inner.puzzle_emb.weights"] = draw(identifiers, arch["puzzle_emb_ndim"], std=0.5)
    if arch["pos_encodings"] == "learned":
        state["inner.embed_pos.embedding_weight"] = draw(prefix + length, width, std=width**-0.5)
    for level, depth in (("H", high), ("L", low)):
        for number in range(depth):
            block = f"inner.{level}_level.layers.{number}"
            heads = width // arch["num_heads"] * arch["num_heads"]
            if arch["mlp_t"]:
                size = prefix + length
                state[f"{block}.mlp_t.gate_up_proj.weight"] = draw(2 * INNER[size], size, std=size**-0.5)
                state[f"{block}.mlp_t.down_proj.weight"] = draw(size, INNER[size], std=INNER[size] ** -0.5)
            else:
                state[f"{block}.self_attn.qkv_proj.weight"] = draw(3 * heads, width, std=width**-0.5)
                state[f"{block}.self_attn.o_proj.weight"] = draw(width, heads, std=heads**-0.5)
            state[f"{block}.mlp.gate_up_proj.weight"] = draw(2 * INNER[width], width, std=width**-0.5)
            state[f"{block}.mlp.down_proj.weight"] = draw(width, INNER[width], std=INNER[width] ** -0.5)
    config = {
        "arch": arch,
        ("data_path" if kind == "hrm" else "data_paths"): "data/x" if kind == "hrm" else ["data/x"],
        "evaluators": [],
        "global_batch_size": 8,
        "epochs": 20,
        "eval_interval": 10,
        "lr": 1e-4,
        "lr_min_ratio": 1.0,
        "lr_warmup_steps": 5,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "puzzle_emb_lr": 1e-2,
        "puzzle_emb_weight_decay": 0.1,
        "project_name": "X-ACT-torch",
        "run_name": "funny words",
        "checkpoint_path": "checkpoints/X-ACT-torch/funny words",
        "seed": 0,
        "eval_save_outputs": [],
        **({} if kind == "hrm" else {"ema": True, "ema_rate": 0.999, "load_checkpoint": None}),
    }
    return config, state


def write(
    folder: Path,
    config: dict[str, Any] | None,
    state: dict[str, torch.Tensor],
    *,
    name: str = "step_70",
    prefix: str = "_orig_mod.model.",
) -> Path:
    """The files of a public run."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "all_config.yaml").write_text(yaml.dump(config))
    torch.save({prefix + key: value for key, value in state.items()}, folder / name)
    return folder


@torch.no_grad()
def answer(kind: str, config: dict[str, Any], state: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]):
    """(logits, q_halt, q_continue) after a whole evaluation episode, in float64 and plain loops."""
    arch = SimpleNamespace(**{**config["arch"], "rope_theta": 10000.0})
    arch.prefix_len = getattr(arch, "puzzle_emb_len", 1) if kind in ("trm", "singlez", "hier6") else 1
    w = {name: tensor.double() for name, tensor in state.items()}
    rows = w["inner.puzzle_emb.weights"][batch["puzzle_identifiers"].long()]
    size = (len(rows), arch.prefix_len + batch["inputs"].shape[1], -1)
    z = {name: w[f"inner.{name.removeprefix('z_')}_init"].expand(*size).clone() for name in naive.latents(kind)}
    for _ in range(arch.halt_max_steps):
        z, logits, halt, go_on = naive.step(kind, z, batch, w, arch, rows)
    return logits, halt, go_on
