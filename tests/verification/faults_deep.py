"""Faults that no reading of the source can be asked to find: the chain is right, what it computes is not. Found by probes."""

from __future__ import annotations

from tests.verification.mutations import Fault, cut, swap

ACT = "models/recursive_reasoning/act.py"
TRM = "models/recursive_reasoning/trm.py"
INNER = "models/recursive_reasoning/inner.py"
RECURSION = "models/recursive_reasoning/recursion.py"
TABLE = "models/sparse_embedding.py"
LOSS = "losses/act.py"
TASK = "tasks/recursive_reasoning/task.py"
EMBED = "        with self.inner.casts():\n            x = self.inner.embed(data)\n"
CUT = "torch.where(carry.halted[:, None, None], x, x.detach())"
LEAST = "        return (last | willing) & (steps >= least)\n"

FAULTS = (
    Fault(
        name="deep-window-0",
        what="the gradient window holds no update: the network never learns",
        codes=("DYN703",),
        edits=(swap(TRM, "low, high), config.L_cycles + 1", "low, high), 0"),),
    ),
    Fault(
        name="deep-recursion-without-grad",
        what="the last updates run under no_grad too, three calls below the training step",
        codes=("DYN703",),
        edits=(
            swap(
                RECURSION,
                "        _run(plan[:split], state, call)\n    _run(plan[split:], state, call)\n",
                "        _run(plan[:split], state, call)\n        _run(plan[split:], state, call)\n",
            ),
        ),
    ),
    Fault(
        name="deep-embedding-kept",
        what="the embedding of the first step is kept for all later ones",
        codes=("DYN701",),
        edits=(swap(ACT, EMBED, EMBED.replace("x = ", "x = self.x = self.x if carry is not None else ")),),
    ),
    Fault(
        name="deep-embedding-of-halted-rows",
        what="only rows that start an example train the embedding",
        codes=("DYN702",),
        edits=(swap(ACT, EMBED, f"{EMBED}            x = x if carry is None else {CUT}\n"),),
    ),
    Fault(
        name="deep-ranks-share-rows",
        what="every rank takes the first rows of the global batch",
        codes=("DYN717",),
        edits=(
            swap(
                TASK,
                "low, high = local_rows(self.global_rows)",
                "low, high = 0, self.global_rows // self.runtime.world_size",
            ),
        ),
    ),
    Fault(
        name="deep-tokens-detached",
        what="the token embedding is detached inside the inner model",
        codes=("DYN703",),
        edits=(swap(INNER, 'self.embed_tokens(data["inputs"])', 'self.embed_tokens(data["inputs"]).detach()'),),
    ),
    Fault(
        name="deep-q-head-unused",
        what="the halting loss has weight 0",
        codes=("DYN703",),
        edits=(swap(LOSS, "_Q_WEIGHT = 0.5", "_Q_WEIGHT = 0.0"),),
    ),
    Fault(
        name="deep-embedding-never-pending",
        what="the puzzle rows are looked up, but their gradient is kept nowhere",
        codes=("DYN718",),
        edits=(cut(TABLE, "            self.pending.append((ids, rows))\n"),),
    ),
    Fault(
        name="deep-embedding-other-rows",
        what="the embedding looks up neighbouring rows",
        codes=("DYN718",),
        edits=(
            swap(
                TABLE,
                "            self.pending.append((ids, rows))",
                "            self.pending.append((ids - 1, rows))",
            ),
        ),
    ),
    Fault(
        name="deep-halted-inverted",
        what="running rows take the fresh example, halted ones go on",
        codes=("DYN705",),
        edits=(swap(ACT, "        halted = carry.halted\n", "        halted = ~carry.halted\n"),),
    ),
    Fault(
        name="deep-latents-not-reset",
        what="a fresh example starts from the latents of the one before",
        codes=("DYN705",),
        edits=(
            swap(
                ACT,
                "        latents = {name: _where_rows(halted, start[name], carry.latents[name]) for name in start}\n",
                "        latents = carry.latents\n",
            ),
        ),
    ),
    Fault(
        name="deep-steps-not-reset",
        what="the step counter of a fresh example goes on counting",
        codes=("DYN705",),
        edits=(
            swap(ACT, "return latents, carry.steps.masked_fill(halted, 0), data", "return latents, carry.steps, data"),
        ),
    ),
    Fault(
        name="deep-labels-not-carried",
        what="every row takes the labels of the incoming batch when it is opened",
        codes=("DYN706",),
        edits=(
            swap(
                ACT,
                "        return latents, carry.steps.masked_fill(halted, 0), data\n",
                '        data["labels"] = offered["labels"]\n'
                "        return latents, carry.steps.masked_fill(halted, 0), data\n",
            ),
        ),
    ),
    Fault(
        name="deep-no-last-step",
        what="a row that never wants to halt never halts",
        codes=("DYN707",),
        edits=(swap(ACT, LEAST, LEAST.replace("(last | willing)", "willing")),),
    ),
    Fault(
        name="deep-exploration-dropped",
        what="the exploration numbers are drawn and not used",
        codes=("DYN707",),
        edits=(swap(ACT, LEAST, LEAST.replace(" & (steps >= least)", "")),),
    ),
    Fault(
        name="deep-exploration-inverted",
        what="rows explore with probability 1 - halt_exploration_prob",
        codes=("DYN707",),
        edits=(swap(ACT, "exploration[:, 0] < self.halt", "exploration[:, 0] >= self.halt"),),
    ),
    Fault(
        name="deep-halt-on-wrong-sign",
        what="rows halt on q_halt < 0",
        codes=("DYN707",),
        edits=(swap(ACT, "return q_halt > 0 if", "return q_halt < 0 if"),),
    ),
    Fault(
        name="deep-eval-noise",
        what="noise on the starts of the latents, in evaluation too",
        codes=("DYN709",),
        edits=(
            swap(
                INNER,
                "start.expand(rows, self.length, -1) for",
                "start.expand(rows, self.length, -1) + torch.randn(rows, self.length, 1) for",
            ),
        ),
    ),
    Fault(
        name="deep-label-leak",
        what="the first token of the labels is part of the input embedding",
        codes=("DYN712",),
        edits=(
            swap(
                INNER,
                '        x = self.embed_tokens(data["inputs"])\n',
                '        x = self.embed_tokens(data["inputs"])\n'
                '        x = x + self.embed_tokens(data["labels"][:, :1].clamp(min=0))\n',
            ),
        ),
    ),
    Fault(
        name="deep-optimizer-skips-stack",
        what="the optimizer group is filtered by a name that no longer fits",
        codes=("DYN703",),
        edits=(
            swap(
                TASK,
                "        network = dict(model.named_parameters())\n",
                '        network = {n: p for n, p in model.named_parameters() if not n.startswith("inner.L_")}\n',
            ),
        ),
    ),
)
