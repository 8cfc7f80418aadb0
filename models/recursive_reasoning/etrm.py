"""TRM with a demonstration encoder in place of puzzle embeddings: few-shot learning of unseen tasks.

    c = Encoder({(x_i, y_i)});   x = [scale · c; embed(query)];   then TRM's recursion over x      (models/encoders/)

Dynamic ("original"): one ACT step per optimizer step; the demonstrations of every row are re-encoded at each step, so
every row trains the encoder at every step. Fixed ("online", etrm_online.py): all ACT steps of an example in one
optimizer step, with its demonstrations encoded once.

Shapes: B rows, K demonstrations, T cells of a grid, C context tokens, S = C + T, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.encoders import EncoderOutput, encoder_class
from models.layers import GridEmbedding, native_ops
from models.recursive_reasoning.act import ACTCarry, ACTOutput, Aux, Latents, PuzzleShape
from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig
from models.recursive_reasoning.inner import INPUT, RecursiveInner
from models.recursive_reasoning.trm import TRM

__all__ = ["TRMWithEncoder", "TRMWithEncoderConfig"]

DEMONSTRATIONS = ("demo_inputs", "demo_labels", "demo_mask")
_CONTEXT, _CELLS, _KL, _MU, _SIGMA = "context", "cells", "kl", "mu", "sigma"


class EncoderInner(RecursiveInner):
    """RecursiveInner with an encoder. The state of a recurrent encoder is kept with the latents: carried, reset and
    saved like them. State-dict keys other than `encoder.*` and `context_gain` are those of TRM."""

    fills_prefix = False  # the context fills it

    def __init__(self, config: TRMWithEncoderConfig, shape: PuzzleShape, *, attention: str, **kwargs: Any) -> None:
        super().__init__(config, shape, attention=attention, **kwargs)
        self.encoder = encoder_class(config.encoder_type)(config, shape, dtype=self.dtype, attention=attention)
        self.context_scale = config.context_scale
        self.context_gain = nn.Parameter(torch.ones(())) if config.context_scale == "learned" else None
        self.embed_places = None
        if config.grid_embedding:  # the encoder has already rejected non-square grids
            side, std = math.isqrt(shape.seq_len), 1 / self.scale
            self.embed_places = GridEmbedding(side, config.hidden_size, init_std=std, cast_to=self.dtype)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """Initial latents, and the initial state of a recurrent encoder."""
        return super().initial(rows) | self.encoder.initial(rows)

    def embed(self, data: Mapping[str, Tensor]) -> Any:
        """Encode the demonstrations and embed the query: context [B, C, D], cells [B, T, D]; from a variational encoder
        also KL, mean and sigma of each row."""
        demo_inputs, demo_labels, demo_mask = (data[name] for name in DEMONSTRATIONS)
        encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
        if "shift" in data:
            encoded.context = self.encoder.apply_shift(encoded, data["shift"])
        x = {_CONTEXT: encoded.context, _CELLS: self.embed_cells(data["inputs"])}
        return x if encoded.kl is None else {**x, _KL: encoded.kl, _MU: encoded.centre, _SIGMA: encoded.sigma}

    def embed_cells(self, inputs: Tensor) -> Tensor:
        """Embed the cells of the query, [B, T] -> [B, T, D]."""
        cells: Tensor = self.embed_tokens(inputs)
        if self.embed_places is not None:
            cells = 0.707106781 * (cells + self.embed_places())  # 1/sqrt(2) keeps the variance
        return cells

    def recur(self, latents: Mapping[str, Tensor], x: Any) -> tuple[Latents, Aux]:
        """All updates of one ACT step; `aux` has the context and, from a variational encoder, KL, mean and sigma."""
        state = {name: value for name, value in latents.items() if name not in self.latent_names}
        encoded: EncoderOutput = self.encoder.refine(x[_CONTEXT], state)
        latents = self.decode_step(latents, encoded.context, x[_CELLS])
        aux = {_CONTEXT: encoded.context} | {name: x[name] for name in (_KL, _MU, _SIGMA) if name in x}
        return {**latents, **encoded.state}, aux

    def decode_step(self, latents: Mapping[str, Tensor], context: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """One ACT step of TRM: latents [B,S,D], context [B,C,D], embedded cells [B,T,D] -> new latents."""
        x = self.add_positions(torch.cat((self._scaled(context).to(cells.dtype), cells), dim=1))
        return self.next_latents(self.run_plan({**latents, INPUT: x}))

    def _scaled(self, context: Tensor) -> Tensor:
        """Scale context tokens of RMS 1 to the RMS of the cells: 1/sqrt(D), before both are scaled by sqrt(D)."""
        if self.context_scale == "none":
            return context
        context = context / self.scale
        return context if self.context_gain is None else context * self.context_gain.to(context.dtype)


class TRMWithEncoder(TRM):
    """TRM with a demonstration encoder. The batch also has `demo_inputs`, `demo_labels` [B,K,T] and `demo_mask` [B,K]
    (false: empty slot). No parameter belongs to a single puzzle; `puzzle_identifiers` are ignored."""

    Config: ClassVar = TRMWithEncoderConfig
    Inner: ClassVar = EncoderInner
    DATA_MODE: ClassVar[str] = "encoder"
    ENCODER_POLICY: ClassVar[str] = "reencode"

    def forward(self, batch: dict[str, Tensor], carry: ACTCarry | None = None) -> ACTOutput:
        """As ACTModel; `batch` may have `noise` [B, Z], from which a variational encoder samples in training, and
        `shift` [B, ...], the result of a search, added to the latent (or to the context, if there is no latent)."""
        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)

    @property
    def encoder(self) -> Any:
        """The `DemoEncoder`."""
        return self.inner.encoder

    def encode(self, batch: Mapping[str, Tensor]) -> EncoderOutput:
        """Encode the demonstrations of `batch`; a recurrent encoder takes its first step."""
        with self.inner.casts():
            encoded: EncoderOutput = self.encoder(*(batch[name] for name in DEMONSTRATIONS), noise=batch.get("noise"))
            rows = len(encoded.context)
            encoded.context = self.encoder.refine(encoded.context, self.encoder.initial(rows)).context
        return encoded

    def decode_with_context(self, batch: Mapping[str, Tensor], context: Tensor, act_steps: int = 1) -> ACTOutput:
        """Take `act_steps` ACT steps on the queries `inputs` [B,T] with a given context [B,C,D], from fresh latents.

        For search and training at test time: if the caller enables gradients, they flow into the context (and whatever
        else requires them) through the last cycle of the last step.
        """
        inner, rows = self.inner, batch["inputs"].shape[0]
        latents = {name: value for name, value in inner.initial(rows).items() if name in inner.latent_names}
        with inner.casts():
            cells = inner.embed_cells(batch["inputs"])
            for step in range(act_steps):
                with torch.set_grad_enabled(torch.is_grad_enabled() and step == act_steps - 1):
                    latents = inner.decode_step(latents, context, cells)
            q_halt, q_continue = inner.q_values(latents)
            logits = inner.logits(latents)
        steps = torch.full((rows,), act_steps, dtype=torch.int32, device=logits.device)
        carry = ACTCarry(latents, steps, torch.ones_like(steps, dtype=torch.bool), dict(batch))
        return ACTOutput(carry, logits, q_halt, q_continue)

    @contextmanager
    def vmappable(self) -> Iterator[None]:
        """Context in which torch.func.vmap can run the model: only native torch operations, and no data-dependent
        shapes."""
        with native_ops(), sdpa_kernel(SDPBackend.MATH), self.encoder.pairs.unpacked():
            yield

    @torch.no_grad()
    def step_with_context(
        self, batch: dict[str, Tensor], carry: ACTCarry | None, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(labels [B,T], logits [B,T,V]) of the training step from `carry`, with `context` [B,C,D] in place of the
        encoder's."""
        latents, _, data = self._reset_halted(batch, carry)
        with self.inner.casts():
            latents = self.inner.decode_step(latents, context, self.inner.embed_cells(data["inputs"]))
            return data["labels"], self.inner.logits(latents)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and decoder (`trunk`), so that each can have its own learning rate or be frozen."""
        encoder = list(self.encoder.parameters())
        own = {id(param) for param in encoder}
        return {"encoder": encoder, "trunk": [param for param in self.parameters() if id(param) not in own]}

    @property
    def noise_width(self) -> int:
        """Standard normal numbers per fresh training example: one draw for the whole episode."""
        width: int = self.encoder.noise_width
        return width
