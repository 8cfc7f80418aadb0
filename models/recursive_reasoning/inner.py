"""Everything inside one ACT step: input embedding, recursion over the latents, output heads.

Shapes: B rows, T tokens, P prefix positions, S = P + T, D width, V vocabulary, E width of the puzzle embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    CastedEmbedding,
    CastedLinear,
    LMHead,
    ReasoningBlock,
    ReasoningStack,
    RotaryTables,
    cached_casts,
    grid_positions,
    line_positions,
    trunc_normal_,
)
from models.recursive_reasoning.act import Aux, Latents, PuzzleShape
from models.recursive_reasoning.chains import recur_chains
from models.recursive_reasoning.config import RecursiveConfig
from models.recursive_reasoning.noise import NOISE_KEY, content_keys, keyed_normal, keyed_trunc_normal
from models.recursive_reasoning.recursion import PostUpdate, Update, recur
from models.sparse_embedding import SparseEmbedding

INPUT = "x"
_Q_BIAS = -5.0  # a fresh model never halts before the last step


class RecursiveInner(nn.Module):
    """The stacks and latents named in `plan`, the input embedding, and the heads, which read latent `readout`.

    Each latent `z_N` has a fixed random initial value, buffer `N_init` [D]: untrained and the same at all positions.
    Raises ValueError if the position encoding does not fit the sequence length, or if several chains are asked of a
    plan that has only the readout latent.
    """

    fills_prefix: ClassVar[bool] = True
    """Whether the prefix holds the puzzle embedding or registers; false: a subclass fills it."""

    def __init__(
        self,
        config: RecursiveConfig,
        shape: PuzzleShape,
        *,
        plan: Sequence[Update],
        window: int,
        dtype: torch.dtype,
        attention: str,
        readout: str = "z_H",
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.plan, self.window, self.readout, self.dtype = tuple(plan), window, readout, dtype
        self.damping, self.update_noise, self.random_start = config.damping, config.update_noise, config.random_start
        self.chains = config.chains
        self.prefix_len = config.prefix_len
        self.length = self.prefix_len + shape.seq_len
        self.scale = math.sqrt(size)

        std = 1.0 / self.scale
        self.embed_tokens = CastedEmbedding(shape.vocab_size, size, init_std=std, cast_to=dtype)
        self.puzzle_emb = None
        if config.puzzle_emb_ndim:
            self.puzzle_emb = SparseEmbedding(shape.num_puzzle_identifiers, config.puzzle_emb_ndim)
        self.registers = None
        if config.registers and self.fills_prefix and self.puzzle_emb is None:
            self.registers = nn.Parameter(trunc_normal_(torch.empty(config.registers, size), std))
        self.embed_pos = None
        if config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(self.length, size, init_std=std, cast_to=dtype)
        self.rotary = self._rotary(config, dtype)

        used = {update.stack for update in self.plan}
        depths = {"H_level": config.H_layers, "L_level": config.L_layers}
        self.stack_names = [name for name in depths if name in used]
        for name in self.stack_names:
            self.add_module(name, self._stack(config, depths[name], attention))
        names = (name for update in self.plan for name in (update.target, *update.hidden, *update.injection))
        self.latent_names = tuple(dict.fromkeys(name for name in names if name.startswith("z_")))
        if self.chains > 1 and self.latent_names == (readout,):
            raise ValueError(f"arch.chains={self.chains}: the only latent of this model is {readout}: leave it at 1")
        for name in self.latent_names:
            self.register_buffer(_init_name(name), trunc_normal_(torch.empty(size), 1.0))

        self.lm_head = LMHead(size, shape.vocab_size)
        self.q_head = CastedLinear(size, 2, bias=True)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, _Q_BIAS)  # type: ignore[arg-type]

    def _stack(self, config: RecursiveConfig, layers: int, attention: str) -> ReasoningStack:
        return ReasoningStack(
            [
                ReasoningBlock(
                    size=config.hidden_size,
                    num_heads=config.num_heads,
                    head_dim=config.head_width,
                    expansion=config.expansion,
                    eps=config.rms_norm_eps,
                    length=self.length,
                    mlp_t=config.mlp_t,
                    attention=attention,
                    multiple=config.inner_multiple,
                    gate_norm=config.gate_norm,
                )
                for _ in range(layers)
            ]
        )

    def _rotary(self, config: RecursiveConfig, dtype: torch.dtype) -> RotaryTables | None:
        theta, kind = config.rope_theta, config.pos_encodings
        if kind not in ("rope", "rope_2d") or config.mlp_t:
            return None
        if kind == "rope_2d":
            cells = self.length - self.prefix_len
            side = math.isqrt(cells)
            if side * side != cells:
                raise ValueError(
                    f"arch.pos_encodings=rope_2d needs a square grid, the data have {cells} positions: "
                    "choose rope, learned or none"
                )
            positions = grid_positions(side, self.prefix_len)
        else:
            positions = line_positions(self.length)
        return RotaryTables(config.head_width, positions, theta=theta, dtype=torch.promote_types(dtype, torch.float32))

    # One ACT step, in order

    def casts(self) -> AbstractContextManager[None]:
        """Context in which each weight is cast to the compute dtype once and the copy reused."""
        return cached_casts(self, self.dtype)

    def initial(self, rows: int) -> dict[str, Tensor]:
        """Initial latents by name, [B, S, D] (broadcast views) in the compute dtype."""
        starts = {name: self.get_buffer(_init_name(name)).to(self.dtype) for name in self.latent_names}
        return {name: start.expand(rows, self.length, -1) for name, start in starts.items()}

    @property
    def needs_keys(self) -> bool:
        """Whether rows need random keys: for random initial latents, update noise, or several chains."""
        return self.random_start or self.update_noise > 0.0 or self.chains > 1

    def seeded(self, start: dict[str, Tensor], inputs: Tensor, keys: Tensor | None) -> dict[str, Tensor]:
        """Add the keys of the rows to their initial state `start`, and draw the latents if they start at random.

        Without `keys` [B] (in evaluation) they are derived from `inputs` [B, T].
        """
        keys = content_keys(inputs) if keys is None else keys
        latents = self.random_latents(keys, self.latent_names) if self.random_start else {}
        return {**start, **latents, NOISE_KEY: keys}

    def random_latents(self, keys: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Draw latents `names` from TruncN(0, 1) by `keys` [B]: [B, S, D] each, in the compute dtype."""
        shape, order = (self.length, self.embed_tokens.embedding_weight.shape[1]), self.latent_names
        return {name: keyed_trunc_normal(keys, -1 - order.index(name), shape).to(self.dtype) for name in names}

    def embed(self, data: Mapping[str, Tensor]) -> Tensor:
        """Embed inputs [B, T] and puzzle_identifiers [B] -> x [B, S, D], scaled by sqrt(D)."""
        x = self.embed_tokens(data["inputs"])
        if self.puzzle_emb is not None:
            vector = self.puzzle_emb(data["puzzle_identifiers"]).to(self.dtype)  # [B, E]
            vector = F.pad(vector, (0, self.prefix_len * x.shape[-1] - vector.shape[-1]))
            x = torch.cat((vector.view(-1, self.prefix_len, x.shape[-1]), x), dim=1)
        if self.registers is not None:
            x = torch.cat((self.registers.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        return self.add_positions(x)

    def add_positions(self, x: Tensor) -> Tensor:
        """Add learned position embeddings, if any, to prefix and tokens [B, S, D], and scale by sqrt(D)."""
        if self.embed_pos is not None:
            x = 0.707106781 * (x + self.embed_pos.table())  # 1/sqrt(2) keeps the variance
        out: Tensor = self.scale * x
        return out

    def recur(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Aux]:
        """All updates of one ACT step: (new latents, aux). Only the last `window` updates build a graph. With several
        chains, the one of largest q_halt wins."""
        values = {**latents, INPUT: x}
        return self.next_latents(self.run_plan(values) if self.chains == 1 else recur_chains(self, values)), {}

    def recur_winner(self, latents: Mapping[str, Tensor], x: Tensor, labels: Tensor) -> tuple[Latents, Aux]:
        """As `recur` with several chains, but the one of lowest cross-entropy to `labels` [B, T] wins (training)."""
        return self.next_latents(recur_chains(self, {**latents, INPUT: x}, labels)), {}

    def next_latents(self, values: Mapping[str, Tensor]) -> Latents:
        """The latents among `values`, and the random key of the next ACT step."""
        key = {NOISE_KEY: values[NOISE_KEY] + 1} if self.needs_keys else {}
        return {name: values[name] for name in self.latent_names} | key

    def run_plan(self, values: Mapping[str, Tensor], first: int = 0, end: int | None = None) -> dict[str, Tensor]:
        """Run updates `first` to `end` (exclusive) of the plan on `values`, the latents and inputs that it names."""
        rope = None if self.rotary is None else self.rotary()

        def call(stack: str, hidden: Tensor, injection: Tensor | None) -> Tensor:
            out: Tensor = self.get_submodule(stack)(hidden, injection, rope)
            return out

        return recur(self.plan[first:end], self.window, values, call, self._post_update(values), first)

    def _post_update(self, values: Mapping[str, Tensor]) -> PostUpdate | None:
        """z <- damping z + (1 - damping) f(z) + update_noise eps, eps standard normal; None if that is just f(z)."""
        if not (self.damping or self.update_noise):
            return None

        def post_update(number: int, old: Tensor, out: Tensor) -> Tensor:
            new = torch.lerp(out, old, self.damping) if self.damping else out
            if self.update_noise:
                noise = keyed_normal(values[NOISE_KEY], number, out.shape[1:])
                new = new + self.update_noise * noise.to(new.dtype)
            return new

        return post_update

    def logits(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T, V] in the compute dtype; the prefix is dropped before the projection."""
        out: Tensor = self.lm_head(latents[self.readout][:, self.prefix_len :])
        return out

    def q_values(self, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(q_halt [B], q_continue [B]), read at position 0, at least float32."""
        q: Tensor = self.q_head(latents[self.readout][:, 0])
        halt, proceed = q.to(torch.promote_types(q.dtype, torch.float32)).unbind(-1)
        return halt, proceed

    def episode_aux(self, latents: Mapping[str, Tensor]) -> Aux:
        """Extra tensors for the loss of a whole episode in evaluation; none here."""
        return {}

    # Facts about the model

    def blocks(self) -> list[nn.Module]:
        """Compile units: the blocks of all stacks."""
        return [block for name in self.stack_names for block in self.get_submodule(name).layers]  # type: ignore[union-attr]

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Matrices of the blocks by name: the rows of each matrix stacked in the parameter, else ()."""
        matrices: dict[str, tuple[int, ...]] = {}
        for name in self.stack_names:
            for number, block in enumerate(self.get_submodule(name).layers):  # type: ignore[arg-type]
                rows = block.fused_rows()
                matrices |= {f"{name}.layers.{number}.{own}": rows.get(own, ()) for own, _ in block.named_parameters()}
        return matrices

    def flops(self, plan: Sequence[Update], window: int) -> tuple[int, int]:
        """Forward FLOPs per row of one ACT step: (of all updates, of those in the gradient window)."""
        cost = {name: sum(b.flops() for b in self.get_submodule(name).layers) for name in self.stack_names}  # type: ignore[union-attr]
        costs = [cost[update.stack] for update in plan]
        return sum(costs), sum(costs[len(costs) - window :])


def _init_name(latent: str) -> str:
    return latent.removeprefix("z_") + "_init"
