"""Faults that no reading of the source can be asked to find: the chain is right, what it computes is not. Found by probes."""

from __future__ import annotations

from tests.verification.mutations import faults

FAULTS = faults(
    r"""
deep-window-0 | DYN703 | the gradient window holds no update: the network never learns
  TRM | low, high), config.L_cycles + 1 => low, high), 0
deep-recursion-without-grad | DYN703 | the last updates run under no_grad too, three calls below the training step
  RECURSION
  -     _run(numbered[split:], state, call, post_update)
  +         _run(numbered[split:], state, call, post_update)
deep-embedding-kept | DYN701 | the embedding of the first step is kept for all later ones
  ACT
  -             x = self.inner.embed(data)
  +             x = self.x = self.x if carry is not None else self.inner.embed(data)
deep-embedding-of-halted-rows | DYN702 | only rows that start an example train the embedding
  ACT
                x = self.inner.embed(data)
  +             x = x if carry is None else torch.where(carry.halted[:, None, None], x, x.detach())
deep-ranks-share-rows | DYN717 | every rank takes the first rows of the global batch
  TASK | low, high = local_rows(self.global_rows) => low, high = 0, self.global_rows // self.runtime.world_size
deep-tokens-detached | DYN703 | the token embedding is detached inside the inner model
  INNER | self.embed_tokens(data["inputs"]) => self.embed_tokens(data["inputs"]).detach()
deep-q-head-unused | DYN703 | the halting loss has weight 0
  LOSS | lm + self.q_weight * sum => lm + 0.0 * sum
deep-embedding-never-pending | DYN718 | the puzzle rows are looked up, but their gradient is kept nowhere
  TABLE
  -             self.pending.append((ids, rows))
deep-embedding-other-rows | DYN718 | the embedding looks up neighbouring rows
  TABLE
  -             self.pending.append((ids, rows))
  +             self.pending.append((ids - 1, rows))
deep-halted-inverted | DYN705 | running rows take the fresh example, halted ones continue
  ACT
  -         halted = carry.halted
  +         halted = ~carry.halted
deep-latents-not-reset | DYN705 | a fresh example starts from the latents of the one before
  ACT
  -         latents = {name: where_rows(halted, start[name], carry.latents[name]) for name in start}
  +         latents = carry.latents
deep-steps-not-reset | DYN705 | the step counter of a fresh example keeps counting
  ACT | return latents, carry.steps.masked_fill(halted, 0), data => return latents, carry.steps, data
deep-labels-not-carried | DYN706 | every row takes the labels of the incoming batch when it is opened
  ACT
            data = {name: where_rows(halted, value, carry.data[name]) for name, value in incoming.items()}
  +         data["labels"] = incoming["labels"]
deep-no-last-step | DYN707 | a row that never wants to halt never halts
  ACT
  -         return (last | wants_halt) & (steps >= min_steps)
  +         return wants_halt & (steps >= min_steps)
deep-exploration-dropped | DYN707 | the exploration numbers are drawn and not used
  ACT
  -         return (last | wants_halt) & (steps >= min_steps)
  +         return (last | wants_halt)
deep-exploration-inverted | DYN707 | rows explore with probability 1 - halt_exploration_prob
  ACT | exploration[:, 0] < self.halt => exploration[:, 0] >= self.halt
deep-halt-on-wrong-sign | DYN707 | rows halt on q_halt < 0
  ACT | return q_halt > 0 if => return q_halt < 0 if
deep-eval-noise | DYN709 | noise on the starts of the latents, in evaluation too
  INNER | start.expand(rows, self.length, -1) for => start.expand(rows, self.length, -1) + torch.randn(rows, self.length, 1) for
deep-label-leak | DYN712 | the first token of the labels is part of the input embedding
  INNER
            x = self.embed_tokens(data["inputs"])
  +         x = x + self.embed_tokens(data["labels"][:, :1].clamp(min=0))
deep-crash | DYN700 | the answer head is called by a name that it does not have
  INNER | self.lm_head(latents => self.lm_heads(latents
deep-two-groups | DYN703 | every parameter is in two optimizer groups
  GROUPS | for group, params in model.param_groups().items(): => for group, params in (model.param_groups() | {"again": list(model.parameters())}).items():
deep-labels-never-renewed | DYN706 | a fresh example keeps the labels of the one before
  ACT
            data = {name: where_rows(halted, value, carry.data[name]) for name, value in incoming.items()}
  +         data["labels"] = carry.data["labels"]
deep-exploration-squared | DYN707 | rows explore with the square of halt_exploration_prob
  ACT | exploration[:, 0] < self.halt_exploration_prob => exploration[:, 0] < self.halt_exploration_prob**2
deep-halting-a-step-off | DYN707 | rows halt a step before halt_max_steps
  ACT | last = steps >= self.halt_max_steps =>> last = steps >= self.halt_max_steps - 1
deep-halting-head-not-asked | DYN707 | rows halt at the last step only, whatever q says
  ACT
  -         return (last | wants_halt) & (steps >= min_steps)
  +         return last
deep-eval-trains | DYN709 | an evaluation moves the weights
  ACT
  +         with torch.no_grad():
  +             self.inner.lm_head.weight.add_(1e-3)
            return ACTOutput(
                carry, self.inner.logits(carry.latents), q_halt, q_continue, aux=self.inner.episode_aux(carry.latents)
deep-table-without-group | DYN718 | no optimizer group holds the puzzle embedding
  GROUPS | table = model.puzzle_emb => table = None
deep-optimizer-skips-stack | DYN703 | the optimizer group is filtered by a name that no longer fits
  GROUPS | network, matrices = dict(model.named_parameters()) => network, matrices = {n: p for n, p in model.named_parameters() if not n.startswith("inner.L_")}
""",
    job="python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 arch.puzzle_emb_ndim=64 puzzle_emb_lr=0.01 arch.L_cycles=2",
)
