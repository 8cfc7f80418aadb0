"""Faults of the model source (the guide's steps 5 and 6)."""

from __future__ import annotations

from tests.verification.mutations import faults

FAULTS = faults(
    r"""
forward-unconditional | MOD420 | forward does not branch on self.training
  ACT
  -         if self.training:
  -             return self._forward_train_original(batch, carry)
  -         return self._forward_eval(batch)
  +         return self._forward_train_original(batch, carry)
name-of-another-class | ARC330 | arch/trm.yaml, with the defaults of TRM, names HRM
  config/arch/trm.yaml
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.hrm@HRM
never-explores | DYN707 | no row explores, whatever halt_exploration_prob says
  ACT | exploration[:, 0] < self.halt_exploration_prob => exploration[:, 0] < 0
cycles-capped | MOD422 | two H cycles, however many the config asks for | + arch.H_cycles=4
  TRM | cycle_plan(config.H_cycles, => cycle_plan(min(config.H_cycles, 2),
carry-lost-at-step-5 | MOD422 | a row begins anew after five steps, though it has not halted | + arch.halt_max_steps=8
  ACT
  -         halted = carry.halted
  +         halted = carry.halted | (carry.steps >= 5)
steps-capped | MOD422 | rows halt after four steps, however many the config asks for | + arch.halt_max_steps=8
  ACT | last = steps >= self.halt_max_steps =>> last = steps >= min(self.halt_max_steps, 4)
forward-swapped | MOD420 (MOD421 MOD432 MOD440) | forward takes the evaluation path in training
  ACT
  -         if self.training:
  +         if not self.training:
forward-on-another-flag | MOD420 | forward branches on whether a carry was given
  ACT
  -         if self.training:
  +         if carry is not None:
method-says-online | MOD421 | a dynamic step under the name of the fixed mode, _forward_train_online
  ACT | _forward_train_original =>> _forward_train_online
method-missing | MOD420 | forward calls a training method that does not exist
  ACT
  -     def _forward_train_original(self, batch: dict[str, Tensor], carry: ACTCarry | None) -> ACTOutput:
  +     def _train_original(self, batch: dict[str, Tensor], carry: ACTCarry | None) -> ACTOutput:
subclass-overrides-forward | MOD421 (MOD440 MOD430) | TRM overrides the training step by a loop over fixed steps
  TRM
  +
  +     def _forward_train_original(self, batch, carry):
  +         for _ in range(self.halt_max_steps):
  +             output = super()._forward_train_original(batch, carry)
  +             carry = output.carry
  +         return output
act-mode-fixed | MOD421 (ARC320 SCR130 CFG230) | the class declares ACT_MODE fixed
  ACT | ACT_MODE: ClassVar[str] = "dynamic" => ACT_MODE: ClassVar[str] = "fixed"
act-mode-fixed-in-subclass | MOD421 (ARC320 SCR130 CFG230) | TRM declares ACT_MODE fixed over its base's dynamic
  TRM
        Config: ClassVar = TRMConfig
  +     ACT_MODE = "fixed"
act-mode-undeclared | MOD421 (ARC320) | no class declares ACT_MODE
  ACT
  -     ACT_MODE: ClassVar[str] = "dynamic"
not-a-module | MOD410 (MOD420 SCR112 SCR121 ARC320) | the class has lost its base
  TRM | class TRM(RecursiveModel): => class TRM:
halted-not-carried | MOD440 | the returned carry is all halted: every row takes a fresh example at every step
  ACT | ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux) => ACTOutput(ACTCarry(latents, steps, torch.ones_like(halted), data), logits, q_halt, q_continue, target, aux)
latents-not-carried | MOD440 | the returned carry holds the start latents: no step builds on the last
  ACT | ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux) => ACTOutput(ACTCarry(self.inner.initial(steps.shape[0]), steps, halted, data), logits, q_halt, q_continue, target, aux)
steps-not-carried | MOD440 | the returned step counter is 0: no row reaches its last step
  ACT | ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux) => ACTOutput(ACTCarry(latents, torch.zeros_like(steps), halted, data), logits, q_halt, q_continue, target, aux)
carry-ignored | MOD440 | the rows are opened without the carry
  ACT
  -         latents, steps, data = self._reset_halted(batch, carry)
  +         latents, steps, data = self._reset_halted(batch, None)
labels-of-batch-in-model | MOD441 (MOD440) | the returned data, labels among them, are those of the incoming batch
  ACT | ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux) => ACTOutput(ACTCarry(latents, steps, halted, batch), logits, q_halt, q_continue, target, aux)
labels-of-batch-mixed | MOD441 (MOD440) | only the labels are taken from the incoming batch
  ACT | ACTOutput(ACTCarry(latents, steps, halted, data), logits, q_halt, q_continue, target, aux) => ACTOutput(ACTCarry(latents, steps, halted, {**data, "labels": batch["labels"]}), logits, q_halt, q_continue, target, aux)
embedding-of-batch | MOD441 (MOD440) | the model thinks about the incoming batch, not about its own example
  ACT
  -             x = self.inner.embed(data)
  +             x = self.inner.embed(batch)
embedding-cached | MOD431 | the input embedding is computed only when a row resets
  ACT
  -             x = self.inner.embed(data)
  +             if carry is None or carry.halted.any():
  +                 self.cached = self.inner.embed(data)
  +             x = self.cached
embedding-detached | MOD432 | .detach() on the input embedding: neither tokens nor puzzle vectors learn
  ACT
  -             x = self.inner.embed(data)
  +             x = self.inner.embed(data).detach()
embedding-detached-later | MOD432 | the input embedding is detached through another name
  ACT
                x = self.inner.embed(data)
  +             x = x.detach()
embedding-without-grad | MOD432 | the input embedding under no_grad
  ACT
  -             x = self.inner.embed(data)
  +             with torch.no_grad():
  +                 x = self.inner.embed(data)
recursion-without-grad | MOD432 | the recursion under no_grad: only the output heads learn
  ACT
  -             latents, aux = self._recur(latents, x, data)
  +             with torch.no_grad():
  +                 latents, aux = self._recur(latents, x, data)
latents-detached-early | MOD432 | the latents are detached before the heads read them
  ACT
                latents, aux = self._recur(latents, x, data)
  +             latents = {name: latent.detach() for name, latent in latents.items()}
training-step-without-grad | MOD432 | @torch.no_grad() over the training step
  ACT
        # Training: one ACT step

  +     @torch.no_grad()
gradient-kept-over-steps | MOD440 | the carried latents keep their graph: backpropagation through all earlier steps
  ACT
  -             latents = {name: latent.detach() for name, latent in latents.items()}
eval-explores | WARN MOD450 | evaluation draws random numbers
  ACT
                    carry = self._eval_step(carry, x, self.halt_max_steps)
  +                 if torch.rand(()) < self.halt_exploration_prob:
  +                     break
eval-stops-early | WARN MOD450 | evaluation stops at the first halted batch in place of taking all steps
  ACT
                    carry = self._eval_step(carry, x, self.halt_max_steps)
  +                 if (self.inner.q_values(carry.latents)[0] > 0).all():
  +                     break
eval-one-step | WARN MOD450 | evaluation takes one ACT step only
  ACT
  -             for _ in range(self.halt_max_steps):
  -                 carry = self._eval_step(carry, x, self.halt_max_steps)
  +             carry = self._eval_step(carry, x, self.halt_max_steps)
""",
)
