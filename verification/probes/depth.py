"""The depth that the config asks for, at its full numbers; the other probes see one with few steps and cycles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.cli.keys import keys_of
from verification.probes.episodes import CLOSE, evaluations
from verification.probes.instance import Tiny, first_batch, set_halting
from verification.probes.registry import observes


@observes(
    "MOD422",
    act=True,
    after=("SCR120", "MOD420", "MOD421", "SCR130", "MOD440"),
    passed="as many steps and cycles as the arch block says",
)
def depth(tiny: Tiny) -> Iterator[str]:
    """An example that never wants to halt, for all its steps; and every number of cycles beside one less."""
    arch = tiny.full_arch
    unused = {name for name, key in keys_of(getattr(tiny.model_class, "Config", None)).items() if key.unused}
    counts = {key: value for key, value in arch.items() if key.endswith("_cycles") and key not in unused}
    cycles = [key for key, value in counts.items() if isinstance(value, int) and value > 1]
    for key in cycles:
        if torch.equal(*(_answer(tiny, key, arch[key] - less) for less in (0, 1))):
            yield f"arch.{key}={arch[key]} answers what {arch[key] - 1} answers: not all of them are run"
    last = arch.get("halt_max_steps")
    if not isinstance(last, int):
        return
    task = tiny.build(halt_max_steps=last).task
    model, batch, state = task.module, first_batch(task), None
    set_halting(model, willing=False)
    with torch.no_grad():
        for number in range(1, last + 1):
            output = model(batch, state)
            state = output.carry
            if bool(state.halted.any()) != (number == last):
                yield f"rows that never want to halt do so after {number} of arch.halt_max_steps={last} steps"
                return
        answer = model.eval()(batch).logits
    sampled = getattr(tiny.model_class, "ENCODER_POLICY", "none") not in ("none", None)
    if not sampled and not torch.allclose(output.logits, answer, atol=CLOSE) and not any(evaluations(tiny)):  # MOD450
        yield f"{last} training steps do not answer what an evaluation of arch.halt_max_steps={last} steps answers"


def _answer(tiny: Tiny, key: str, value: int) -> Tensor:
    changed: dict[str, Any] = {key: value}
    task = tiny.build(**changed).task
    with torch.no_grad():
        logits: Tensor = task.module.eval()(first_batch(task)).logits
    return logits
