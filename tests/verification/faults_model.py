"""Faults of the model source (the guide's steps 5 and 6)."""

from __future__ import annotations

from tests.verification.mutations import SMALL, Fault, append, cut, swap, swap_all

ACT = "models/recursive_reasoning/act.py"
TRM = "models/recursive_reasoning/trm.py"
BRANCH = """        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)
"""
EMBED = "            x = self.inner.embed(data)\n            latents, aux = self.inner.recur(latents, x)\n            logits"
CARRY = "ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux)"
EVAL_STEP = "carry = self._eval_step(carry, x, self.halt_max_steps)\n"
EVAL_LOOP = f"            for _ in range(self.halt_max_steps):\n                {EVAL_STEP}"

FAULTS = (
    Fault(
        name="forward-unconditional",
        what="forward does not branch on self.training",
        codes=("MOD420",),
        edits=(swap(ACT, BRANCH, "        return self._forward_train_original(batch, carry)\n"),),
    ),
    Fault(
        name="name-of-another-class",
        what="arch/trm.yaml, with the defaults of TRM, names HRM",
        codes=("ARC330",),
        edits=(
            swap("config/arch/trm.yaml", "name: recursive_reasoning.trm@TRM\n", "name: recursive_reasoning.hrm@HRM\n"),
        ),
    ),
    Fault(
        name="never-explores",
        what="no row explores, whatever halt_exploration_prob says",
        codes=("DYN707",),
        edits=(swap(ACT, "exploration[:, 0] < self.halt_exploration_prob", "exploration[:, 0] < 0"),),
    ),
    Fault(
        name="cycles-capped",
        what="two H cycles, however many the config asks for",
        codes=("MOD422",),
        job=f"{SMALL} arch.H_cycles=4",
        edits=(swap(TRM, "cycle_plan(config.H_cycles,", "cycle_plan(min(config.H_cycles, 2),"),),
    ),
    Fault(
        name="carry-lost-at-step-5",
        what="a row begins anew after five steps, though it has not halted",
        codes=("MOD422",),
        job=f"{SMALL} arch.halt_max_steps=8",
        edits=(swap(ACT, "        halted = carry.halted\n", "        halted = carry.halted | (carry.steps >= 5)\n"),),
    ),
    Fault(
        name="steps-capped",
        what="rows halt after four steps, however many the config asks for",
        codes=("MOD422",),
        job=f"{SMALL} arch.halt_max_steps=8",
        edits=(swap_all(ACT, "last = steps >= self.halt_max_steps", "last = steps >= min(self.halt_max_steps, 4)"),),
    ),
    Fault(
        name="forward-swapped",
        what="forward takes the evaluation path in training",
        codes=("MOD420",),
        follows=("MOD421", "MOD432", "MOD440"),
        edits=(swap(ACT, BRANCH, BRANCH.replace("if self.training", "if not self.training")),),
    ),
    Fault(
        name="forward-on-another-flag",
        what="forward branches on whether a carry was given",
        codes=("MOD420",),
        edits=(swap(ACT, BRANCH, BRANCH.replace("if self.training", "if carry is not None")),),
    ),
    Fault(
        name="method-says-online",
        what="a dynamic step under the name of the fixed mode, _forward_train_online",
        codes=("MOD421",),
        edits=(swap_all(ACT, "_forward_train_original", "_forward_train_online"),),
    ),
    Fault(
        name="method-missing",
        what="forward calls a training method that does not exist",
        codes=("MOD420",),
        edits=(swap(ACT, "    def _forward_train_original(", "    def _train_original("),),
    ),
    Fault(
        name="subclass-overrides-forward",
        what="TRM overrides the training step by a loop over fixed steps",
        codes=("MOD421",),
        follows=("MOD440", "MOD430"),
        edits=(
            append(
                TRM,
                "\n    def _forward_train_original(self, batch, carry):\n"
                "        for _ in range(self.halt_max_steps):\n"
                "            output = super()._forward_train_original(batch, carry)\n"
                "            carry = output.carry\n"
                "        return output\n",
            ),
        ),
    ),
    Fault(
        name="act-mode-fixed",
        what="the class declares ACT_MODE fixed",
        codes=("MOD421",),
        follows=("ARC320", "SCR130", "CFG230"),
        edits=(swap(ACT, 'ACT_MODE: ClassVar[str] = "dynamic"', 'ACT_MODE: ClassVar[str] = "fixed"'),),
    ),
    Fault(
        name="act-mode-fixed-in-subclass",
        what="TRM declares ACT_MODE fixed over its base's dynamic",
        codes=("MOD421",),
        follows=("ARC320", "SCR130", "CFG230"),
        edits=(
            swap(
                TRM, "    Config: ClassVar = TRMConfig\n", '    Config: ClassVar = TRMConfig\n    ACT_MODE = "fixed"\n'
            ),
        ),
    ),
    Fault(
        name="act-mode-undeclared",
        what="no class declares ACT_MODE",
        codes=("MOD421",),
        follows=("ARC320",),
        edits=(cut(ACT, '    ACT_MODE: ClassVar[str] = "dynamic"\n'),),
    ),
    Fault(
        name="not-a-module",
        what="the class has lost its base",
        codes=("MOD410",),
        follows=("MOD420", "SCR112", "SCR121", "ARC320"),
        edits=(swap(TRM, "class TRM(RecursiveModel):", "class TRM:"),),
    ),
    Fault(
        name="halted-not-carried",
        what="the returned carry is all halted: every row takes a fresh example at every step",
        codes=("MOD440",),
        edits=(swap(ACT, CARRY, CARRY.replace("halted,", "torch.ones_like(halted),")),),
    ),
    Fault(
        name="latents-not-carried",
        what="the returned carry holds the start latents: no step builds on the last",
        codes=("MOD440",),
        edits=(swap(ACT, CARRY, CARRY.replace("(latents,", "(self.inner.initial(steps.shape[0]),")),),
    ),
    Fault(
        name="steps-not-carried",
        what="the returned step counter is 0: no row reaches its last step",
        codes=("MOD440",),
        edits=(swap(ACT, CARRY, CARRY.replace(" steps,", " torch.zeros_like(steps),")),),
    ),
    Fault(
        name="carry-ignored",
        what="the rows are opened without the carry",
        codes=("MOD440",),
        edits=(
            swap(
                ACT,
                "        latents, steps, data = self._open_rows(batch, carry)\n",
                "        latents, steps, data = self._open_rows(batch, None)\n",
            ),
        ),
    ),
    Fault(
        name="labels-of-batch-in-model",
        what="the returned data, labels among them, are those of the incoming batch",
        codes=("MOD441",),
        follows=("MOD440",),
        edits=(swap(ACT, CARRY, CARRY.replace("halted, data)", "halted, batch)")),),
    ),
    Fault(
        name="labels-of-batch-mixed",
        what="only the labels are taken from the incoming batch",
        codes=("MOD441",),
        follows=("MOD440",),
        edits=(swap(ACT, CARRY, CARRY.replace("halted, data)", 'halted, {**data, "labels": batch["labels"]})')),),
    ),
    Fault(
        name="embedding-of-batch",
        what="the model thinks about the incoming batch, not about its own example",
        codes=("MOD441",),
        follows=("MOD440",),
        edits=(swap(ACT, EMBED, EMBED.replace("embed(data)", "embed(batch)")),),
    ),
    Fault(
        name="embedding-cached",
        what="the input embedding is computed only when a row resets",
        codes=("MOD431",),
        edits=(
            swap(
                ACT,
                EMBED,
                EMBED.replace(
                    "            x = self.inner.embed(data)\n",
                    "            if carry is None or carry.halted.any():\n"
                    "                self.cached = self.inner.embed(data)\n            x = self.cached\n",
                ),
            ),
        ),
    ),
    Fault(
        name="embedding-detached",
        what=".detach() on the input embedding: neither tokens nor puzzle vectors learn",
        codes=("MOD432",),
        edits=(swap(ACT, EMBED, EMBED.replace("embed(data)", "embed(data).detach()")),),
    ),
    Fault(
        name="embedding-detached-later",
        what="the input embedding is detached through another name",
        codes=("MOD432",),
        edits=(swap(ACT, EMBED, EMBED.replace("embed(data)\n", "embed(data)\n            x = x.detach()\n")),),
    ),
    Fault(
        name="embedding-without-grad",
        what="the input embedding under no_grad",
        codes=("MOD432",),
        edits=(
            swap(
                ACT,
                EMBED,
                EMBED.replace(
                    "            x = self.inner.embed(data)\n",
                    "            with torch.no_grad():\n                x = self.inner.embed(data)\n",
                ),
            ),
        ),
    ),
    Fault(
        name="recursion-without-grad",
        what="the recursion under no_grad: only the output heads learn",
        codes=("MOD432",),
        edits=(
            swap(
                ACT,
                EMBED,
                EMBED.replace(
                    "            latents, aux = self.inner.recur(latents, x)\n",
                    "            with torch.no_grad():\n                latents, aux = self.inner.recur(latents, x)\n",
                ),
            ),
        ),
    ),
    Fault(
        name="latents-detached-early",
        what="the latents are detached before the heads read them",
        codes=("MOD432",),
        edits=(
            swap(
                ACT,
                EMBED,
                EMBED.replace(
                    "            logits",
                    "            latents = {name: latent.detach() for name, latent in latents.items()}\n            logits",
                ),
            ),
        ),
    ),
    Fault(
        name="training-step-without-grad",
        what="@torch.no_grad() over the training step",
        codes=("MOD432",),
        edits=(
            swap(ACT, "    def _forward_train_original(", "    @torch.no_grad()\n    def _forward_train_original("),
        ),
    ),
    Fault(
        name="gradient-kept-over-steps",
        what="the carried latents keep their graph: backpropagation through all earlier steps",
        codes=("MOD440",),
        edits=(cut(ACT, "            latents = {name: latent.detach() for name, latent in latents.items()}\n"),),
    ),
    Fault(
        name="eval-explores",
        what="evaluation draws random numbers",
        codes=("MOD450",),
        level="WARN",
        edits=(
            swap(
                ACT,
                EVAL_LOOP,
                EVAL_LOOP
                + "                if torch.rand(()) < self.halt_exploration_prob:\n                    break\n",
            ),
        ),
    ),
    Fault(
        name="eval-stops-early",
        what="evaluation stops at the first halted batch in place of taking all steps",
        codes=("MOD450",),
        level="WARN",
        edits=(
            swap(
                ACT,
                EVAL_LOOP,
                EVAL_LOOP
                + "                if (self.inner.q_values(carry.latents)[0] > 0).all():\n                    break\n",
            ),
        ),
    ),
    Fault(
        name="eval-one-step",
        what="evaluation takes one ACT step only",
        codes=("MOD450",),
        level="WARN",
        edits=(swap(ACT, EVAL_LOOP, f"            {EVAL_STEP}"),),
    ),
)
