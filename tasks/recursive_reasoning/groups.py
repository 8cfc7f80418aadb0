"""The optimizer groups of a recursive model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from engine.task import ParamGroup, UsageError
from models.recursive_reasoning.act import ACTModel
from tasks.optimizers import optimizer_settings

ADAM_ATAN2 = "adam_atan2"


def param_groups(
    model: ACTModel,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    embedding_lr: float = 0.0,
    embedding_weight_decay: float = 0.0,
    freeze_weights: bool = False,
    scales: Mapping[str, float] | None = None,
    optimizer: Mapping[str, Any] = MappingProxyType({"name": ADAM_ATAN2}),
) -> list[ParamGroup]:
    """The published optimizers: SignSGD for the puzzle embedding (if there is one), then AdamATan2 for the network.

    `optimizer` replaces AdamATan2, whose options default to `betas` and `weight_decay`. A matrix optimizer takes the
    hidden matrices of the blocks, its `rest` the other parameters of the same group.
    `scales`: network group -> its learning rate as a multiple of `lr`; 1 if not listed.

    Raises:
        UsageError: freeze_weights without a puzzle embedding leaves nothing to train.
    """
    groups = []
    table = model.puzzle_emb
    if table is not None:
        decay = {"weight_decay": embedding_weight_decay}
        groups.append(
            ParamGroup(name="puzzle_emb", optimizer="sparse_sign_sgd", lr=embedding_lr, params=table, options=decay)
        )
    if not freeze_weights:
        first, *rest = optimizer_settings(optimizer)
        published = {"beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}
        network, matrices = dict(model.named_parameters()), model.matrices() if rest else {}
        for group, params in model.param_groups().items():
            own = {id(param) for param in params}
            part = {name: param for name, param in network.items() if id(param) in own}
            halves = {group: (first, part)}
            if rest:
                hidden = {name: param for name, param in part.items() if name in matrices}
                others = {name: param for name, param in part.items() if name not in matrices}
                halves = {f"{group}_matrices": (first, hidden), group: (rest[0], others)}
            for name, (choice, members) in halves.items():
                rate = (lr if choice.lr is None else choice.lr) * (scales or {}).get(group, 1.0)
                options = {**(published if choice.name == ADAM_ATAN2 else {}), **choice.options}
                stacked = {each: rows for each in members if (rows := matrices.get(each))}
                if members:
                    groups.append(
                        ParamGroup(
                            name=name,
                            optimizer=choice.name,
                            lr=rate,
                            params=members,
                            options=options,
                            fused_rows=stacked,
                        )
                    )
    if not groups:
        raise UsageError(
            "freeze_weights=true with arch.puzzle_emb_ndim=0 leaves nothing to train: set arch.puzzle_emb_ndim > 0"
        )
    return groups
