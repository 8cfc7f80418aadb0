"""TRM with an encoder, fixed mode ("online"): `num_act_steps` ACT steps of each example in one optimizer step.

The demonstrations are encoded once, before the first step, and the encoder gets the gradient of the mean loss over all
steps, so the context is never stale. Shapes: B rows, A = num_act_steps, T cells, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from models.recursive_reasoning.act import ACTCarry, ACTOutput, PuzzleShape
from models.recursive_reasoning.etrm import TRMWithEncoder
from models.recursive_reasoning.etrm_config import TRMWithEncoderOnlineConfig

__all__ = ["TRMWithEncoderOnline", "TRMWithEncoderOnlineConfig"]


class TRMWithEncoderOnline(TRMWithEncoder):
    """TRMWithEncoder without halting and without a carry between optimizer steps."""

    Config: ClassVar = TRMWithEncoderOnlineConfig
    ACT_MODE: ClassVar[str] = "fixed"
    ENCODER_POLICY: ClassVar[str] = "cache_first_step"

    def __init__(
        self,
        config: TRMWithEncoderOnlineConfig,
        shape: PuzzleShape,
        *,
        auto_dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        super().__init__(config, shape, auto_dtype=auto_dtype, attention=attention)
        self.num_act_steps = self.halt_max_steps = config.num_act_steps

    def forward(self, batch: dict[str, Tensor], carry: ACTCarry | None = None) -> ACTOutput:
        """As TRMWithEncoder; `carry` is ignored, since every example is finished within the step."""
        if self.training:
            return self._forward_train_online(batch)
        return self._forward_eval(batch)

    def _forward_train_online(self, batch: dict[str, Tensor]) -> ACTOutput:
        """All steps of all examples, stacked along the rows [A·B, ...]: row a·B + b is step a + 1 of example b.

        Rows of the last step have halted. The carry has no latents. `aux` has B rows, except for the KL.
        """
        latents, steps, data = self._reset_halted(batch, None)
        outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        with self.inner.casts():
            x = self.inner.embed(data)  # once: all steps share the graph of the context
            for _ in range(self.num_act_steps):
                latents, aux = self.inner.recur(latents, x)
                outputs.append((self.inner.logits(latents), *self.inner.q_values(latents)))
                latents = {name: latent.detach() for name, latent in latents.items()}
        logits, q_halt, q_continue = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        taken = torch.arange(1, self.num_act_steps + 1, dtype=steps.dtype, device=steps.device)
        taken = taken.repeat_interleave(len(steps))
        rows = {"labels": data["labels"].repeat(self.num_act_steps, 1)}
        if "kl" in aux:  # each row of the loss needs the KL of its example
            aux = {**aux, "kl": aux["kl"].repeat(self.num_act_steps)}
        carry = ACTCarry({}, taken, taken == self.num_act_steps, rows)
        return ACTOutput(carry, logits, q_halt, q_continue, aux=aux)
