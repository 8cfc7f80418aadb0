"""TRM whose task embedding is made by an encoder of the demonstrations: few-shot learning of tasks never seen.

    c = Encoder({(x_i, y_i)});   x = [scale · c; embed(query)];   then TRM's recursion over x      (models/encoders/)

Dynamic ("original"): one ACT step for each optimizer step, and the demonstrations of every row are encoded anew at each
one, so that every row trains the encoder at every step. Fixed ("online", etrm_online.py): all steps of an example in
one optimizer step, its demonstrations encoded once for all of them.

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
from models.layers import GridEmbedding, composed
from models.recursive_reasoning.act import ACTCarry, ACTOutput, Aux, Latents, PuzzleShape
from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig
from models.recursive_reasoning.inner import INPUT, RecursiveInner
from models.recursive_reasoning.trm import TRM

__all__ = ["TRMWithEncoder", "TRMWithEncoderConfig"]

DEMONSTRATIONS = ("demo_inputs", "demo_labels", "demo_mask")
_CONTEXT, _CELLS, _KL, _MU, _SIGMA = "context", "cells", "kl", "mu", "sigma"


class EncoderInner(RecursiveInner):
    """RecursiveInner with an encoder; a recurrent one's state lies among the latents, and is carried, reset and stored
    like them. Keys besides `encoder.*` (and `context_gain`) are those of TRM."""

    fills_prefix = False  # the context does

    def __init__(self, config: TRMWithEncoderConfig, shape: PuzzleShape, *, attention: str, **kwargs: Any) -> None:
        super().__init__(config, shape, attention=attention, **kwargs)
        self.encoder = encoder_class(config.encoder_type)(config, shape, dtype=self.dtype, attention=attention)
        self.context_scale = config.context_scale
        self.context_gain = nn.Parameter(torch.ones(())) if config.context_scale == "learned" else None
        self.embed_places = None
        if config.grid_embedding:  # the encoder has refused grids that are not square
            side, std = math.isqrt(shape.seq_len), 1 / self.scale
            self.embed_places = GridEmbedding(side, config.hidden_size, init_std=std, cast_to=self.dtype)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """The start of every latent, and of a recurrent encoder's state."""
        return super().initial(rows) | self.encoder.initial(rows)

    def embed(self, data: Mapping[str, Tensor]) -> Any:
        """The demonstrations encoded, [B, C, D], the query's cells embedded, [B, T, D], and the KL of each row."""
        demo_inputs, demo_labels, demo_mask = (data[name] for name in DEMONSTRATIONS)
        encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
        if "shift" in data:
            encoded.context = self.encoder.moved(encoded, data["shift"])
        x = {_CONTEXT: encoded.context, _CELLS: self.embed_cells(data["inputs"])}
        return x if encoded.kl is None else {**x, _KL: encoded.kl, _MU: encoded.centre, _SIGMA: encoded.sigma}

    def embed_cells(self, inputs: Tensor) -> Tensor:
        """The query's cells [B, T] -> [B, T, D]."""
        cells: Tensor = self.embed_tokens(inputs)
        if self.embed_places is not None:
            cells = 0.707106781 * (cells + self.embed_places())  # keeps the variance at that of one summand
        return cells

    def recur(self, latents: Mapping[str, Tensor], x: Any) -> tuple[Latents, Aux]:
        """All cycles of one ACT step; `aux` has its context and, of a variational encoder, KL, mean and sigma."""
        state = {name: value for name, value in latents.items() if name not in self.latent_names}
        encoded: EncoderOutput = self.encoder.refined(x[_CONTEXT], state)
        moved = self.thought(latents, encoded.context, x[_CELLS])
        aux = {_CONTEXT: encoded.context} | {name: x[name] for name in (_KL, _MU, _SIGMA) if name in x}
        return {**moved, **encoded.state}, aux

    def thought(self, latents: Mapping[str, Tensor], context: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """TRM's step: latents [B,S,D], context [B,C,D], embedded cells [B,T,D] -> latents."""
        x = self.placed(torch.cat((self._scaled(context).to(cells.dtype), cells), dim=1))
        return self.moved(self.updated({**latents, INPUT: x}))

    def _scaled(self, context: Tensor) -> Tensor:
        """Tokens of RMS 1 -> of the RMS that the cells have, 1/sqrt(D) ahead of the common factor sqrt(D)."""
        if self.context_scale == "none":
            return context
        context = context / self.scale
        return context if self.context_gain is None else context * self.context_gain.to(context.dtype)


class TRMWithEncoder(TRM):
    """The batch has besides a query `demo_inputs`, `demo_labels` [B,K,T] and `demo_mask` [B,K] (true:
    there is one). No parameter belongs to a puzzle, and `puzzle_identifiers` are not examined."""

    Config: ClassVar = TRMWithEncoderConfig
    Inner: ClassVar = EncoderInner
    DATA_MODE: ClassVar[str] = "encoder"
    ENCODER_POLICY: ClassVar[str] = "reencode"

    def forward(self, batch: dict[str, Tensor], carry: ACTCarry | None = None) -> ACTOutput:
        """As ACTModel; `batch` may have `noise` [B, Z] for the sampling of a variational encoder in training, and
        `shift` [B, ...], what a search has found to be added to its latent, or to the context of another."""
        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)

    @property
    def encoder(self) -> Any:
        """The `DemoEncoder`."""
        return self.inner.encoder

    def encode(self, batch: Mapping[str, Tensor]) -> EncoderOutput:
        """The demonstrations of `batch`, [B,K,T] and their mask; a recurrent encoder takes its first step."""
        with self.inner.casts():
            encoded: EncoderOutput = self.encoder(*(batch[name] for name in DEMONSTRATIONS), noise=batch.get("noise"))
            rows = len(encoded.context)
            encoded.context = self.encoder.refined(encoded.context, self.encoder.initial(rows)).context
        return encoded

    def decode_with_context(self, batch: Mapping[str, Tensor], context: Tensor, act_steps: int = 1) -> ACTOutput:
        """`act_steps` steps over the queries `inputs` [B,T] under a given context [B,C,D], from fresh latents.

        Gradients flow into the context (and what else requires them) through the last cycle of the last step, in the
        caller's grad mode. For search and training at test time.
        """
        inner, rows = self.inner, batch["inputs"].shape[0]
        latents = {name: value for name, value in inner.initial(rows).items() if name in inner.latent_names}
        with inner.casts():
            cells = inner.embed_cells(batch["inputs"])
            for step in range(act_steps):
                with torch.set_grad_enabled(torch.is_grad_enabled() and step == act_steps - 1):
                    latents = inner.thought(latents, context, cells)
            q_halt, q_continue = inner.q_values(latents)
            logits = inner.logits(latents)
        steps = torch.full((rows,), act_steps, dtype=torch.int32, device=logits.device)
        carry = ACTCarry(latents, steps, torch.ones_like(steps, dtype=torch.bool), dict(batch))
        return ACTOutput(carry, logits, q_halt, q_continue)

    @contextmanager
    def vmappable(self) -> Iterator[None]:
        """Block in which torch.func.vmap can run the model: torch's own operations, and shapes that do not depend on
        the data."""
        with composed(), sdpa_kernel(SDPBackend.MATH), self.encoder.pairs.unpacked():
            yield

    @torch.no_grad()
    def step_with_context(
        self, batch: dict[str, Tensor], carry: ACTCarry | None, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(labels [B,T], logits [B,T,V]) of the training step from `carry`, had the encoder made `context` [B,C,D]."""
        latents, _, data = self._open_rows(batch, carry)
        with self.inner.casts():
            moved = self.inner.thought(latents, context, self.inner.embed_cells(data["inputs"]))
            return data["labels"], self.inner.logits(moved)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and decoder (`trunk`), so that each can have its own rate, or none."""
        encoder = list(self.encoder.parameters())
        own = {id(param) for param in encoder}
        return {"encoder": encoder, "trunk": [param for param in self.parameters() if id(param) not in own]}

    @property
    def noise_width(self) -> int:
        """Normal numbers that each fresh example of training comes with: one draw for the whole episode."""
        width: int = self.encoder.noise_width
        return width
