"""TRM with an encoder, fixed mode ("online"): `num_act_steps` steps of each example in one optimizer step.

The demonstrations are encoded before the first step and the context serves all of them; its gradient is that of the
mean loss of all steps, so nothing of it is stale. Shapes: B rows, A = num_act_steps, T cells, V words.
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
    """As TRMWithEncoder, without a carry between optimizer steps and without halting."""

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
        """As TRMWithEncoder; `carry` is ignored, every batch is begun and finished."""
        if self.training:
            return self._forward_train_online(batch)
        return self._forward_eval(batch)

    def _forward_train_online(self, batch: dict[str, Tensor]) -> ACTOutput:
        """Every step of every example, step by step along the rows: row a·B + b is step a + 1 of example b, [A·B, ...].

        Rows of the last step have halted. The carry has no latents: nothing is carried on. That of `aux` is of B rows.
        """
        latents, steps, data = self._open_rows(batch, None)
        made: list[tuple[Tensor, Tensor, Tensor]] = []
        with self.inner.casts():
            x = self.inner.embed(data)  # once; the graph of the context serves every step
            for _ in range(self.num_act_steps):
                latents, aux = self.inner.recur(latents, x)
                made.append((self.inner.logits(latents), *self.inner.q_values(latents)))
                latents = {name: latent.detach() for name, latent in latents.items()}
        logits, q_halt, q_continue = (torch.cat(parts) for parts in zip(*made, strict=True))
        taken = torch.arange(1, self.num_act_steps + 1, dtype=steps.dtype, device=steps.device)
        taken = taken.repeat_interleave(len(steps))
        rows = {"labels": data["labels"].repeat(self.num_act_steps, 1)}
        if "kl" in aux:  # every row of the loss has the term of its example
            aux = {**aux, "kl": aux["kl"].repeat(self.num_act_steps)}
        carry = ACTCarry({}, taken, taken == self.num_act_steps, rows)
        return ACTOutput(carry, logits, q_halt, q_continue, aux=aux)
