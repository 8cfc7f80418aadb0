"""Faults of the entry script and the task (the guide's step 2)."""

from __future__ import annotations

from tests.verification.mutations import faults

FAULTS = faults(
    r'''
decorator-config-missing | SCR110 | @hydra.main names a config that does not exist
  SCRIPT
  - @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
  + @hydra.main(config_path="config", config_name="cfg_pretrain_default", version_base=None)
decorator-path-wrong | SCR110 (JOB020) | @hydra.main names a config folder that does not exist
  SCRIPT
  - @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
  + @hydra.main(config_path="configs", config_name="cfg_pretrain", version_base=None)
decorator-missing | SCR110 | launch has lost its @hydra.main
  SCRIPT
  - @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
decorator-twice | SCR110 (SCR120) | a second entry with @hydra.main in the script
  SCRIPT
  +
  +
  + @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
  + def launch_again(hydra_config: DictConfig) -> None:
  +     launch(hydra_config)
decorator-of-another-script | SCR111 | @hydra.main names the recipe of train.py
  copy RECIPE config/cfg_train.yaml
  config/cfg_train.yaml
      - _self_
  +
  + script: train.py
  SCRIPT
  - @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
  + @hydra.main(config_path="config", config_name="cfg_train", version_base=None)
config-unchecked | SCR120 | the script no longer calls load_synced_config
  SCRIPT
  -     config = load_synced_config(
  -         hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
  -     )
  +     config = FAMILY.schema(**hydra_config)
config-changed-before-the-check | SCR120 | the script puts another learning rate into the composed config
  SCRIPT
  -         hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
  +         DictConfig({**hydra_config, 'lr': 3e-5}), rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
config-changed-after-the-check | SCR120 | the script halts all runs after two steps
  SCRIPT
        make = partial(build, create_model=create_model)
  +     config.arch['halt_max_steps'] = 2
test-trained-on | SCR122 | the training data are read from the test split
  BUILD | load_splits(folders, "train") => load_splits(folders, "test")
train-evaluated | SCR122 | the evaluation reads the training split
  BUILD | load_splits(tests, "test", like=train) => load_splits(tests, "train", like=train)
model-before-config | SCR120 | the model is created before the config is checked
  SCRIPT
            return job.metric
  +     create_model(hydra_config, None, None)
model-hard-coded | SCR120 | create_model builds TRM whatever arch.name says
  BUILD
  -     return building.create_model(FAMILY.read_arch(config), shape, runtime)
  +     from models.recursive_reasoning.trm import TRM
  +
  +     arch = FAMILY.read_arch(config)
  +     return TRM(arch.model_config, shape), arch.loss_class(arch.loss_config)
create-model-bypassed | SCR120 | build makes its model itself, create_model is left over
  BUILD
  -     model, loss_head = create_model(config, shape, runtime)
  +     from losses import ACTLossConfig, ACTLossHead
  +     from models.recursive_reasoning.trm import TRM, TRMConfig
  +
  +     model, loss_head = TRM(TRMConfig(hidden_size=32, num_heads=4), shape), ACTLossHead(ACTLossConfig())
run-missing | SCR120 | launch checks the config and never runs
  SCRIPT
  -     run(config, make, entry=FAMILY.entry, check=partial(check_launch, FAMILY), compare=compare_signatures)
family-unchecked | SCR112 | the script accepts an architecture of any family
  FAMILY
  -     requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "embedding"},
  +     requires={},
family-misdeclared | SCR112 | TRM declares another FAMILY than the script works with
  TRM
        Config: ClassVar = TRMConfig
  +     FAMILY = "feudal"
data-mode-of-class | SCR112 | TRM declares encoder mode, the script feeds puzzle embeddings
  TRM
        Config: ClassVar = TRMConfig
  +     DATA_MODE = "encoder"
data-mode-of-script | SCR112 (DAT510 SCR121) | the script asks for encoder mode, the models have embeddings
  FAMILY
  -     requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "embedding"},
  +     requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "encoder"},
data-class-of-another-mode | SCR121 | the embedding script loads the batches of the encoder mode
  dataset/sampler.py | DATA_MODE: ClassVar[str] = "embedding"  # => DATA_MODE: ClassVar[str] = "encoder"  #
schema-key-unread | CFG255 | a key of the schema that the script reads no more
  BUILD | evaluated = epochs.evaluation_steps(config.min_eval_interval) => evaluated = epochs.evaluation_steps(0)
rate-not-handed-on | OBSERVED CFG255 | the optimizer is built with the default learning rate
  BUILD
  -         lr=config.lr,
  +         lr=1e-4,
betas-swapped | OBSERVED CFG255 | beta1 and beta2 change places on their way to the optimizer
  BUILD | betas=(config.beta1, config.beta2) => betas=(config.beta2, config.beta1)
seed-of-the-order-fixed | OBSERVED CFG255 | the order of the training data has its own seed
  BUILD | seed=config.seed, => seed=0,
comment-fixed-steps | WARN SCR140 | a comment of the task still speaks of fixed steps
  TASK
            piece, batch = micro_batch
  +         # fixed steps: the num_act_steps loop runs inside the model
docstring-cached-encoder | WARN SCR140 | the script's docstring says that the encoding is cached in the carry
  SCRIPT | This file only wires: => The encoding is cached in carry. This file only wires:
evaluators-swallowed | WARN SCR141 | a bare except around the check of the evaluators: a broken one is found at the end of the run
  BUILD
  -     create_evaluators(config.evaluators)
  +     try:
  +         create_evaluators(config.evaluators)
  +     except Exception:
  +         pass
evaluators-swallowed-by-the-engine | WARN SCR141 | the registry leaves out an evaluator that cannot be made
  engine/registry.py
  -         evaluators.append(cls(build_config(cls, block, where)))
  +         try:
  +             evaluators.append(cls(build_config(cls, block, where)))
  +         except:
  +             pass
nothing-measured | CFG240 | no evaluator is named, and the task returns no metric of its own
  TASK
  -         return values | self._evaluate(self.final_sampler if final else self.eval_sampler, "eval", self.evaluators)
  +         return values
evaluation-swallowed | WARN SCR141 | a bare except around an evaluator's update in the task
  TASK
  -                 evaluator.update(batch, steps, result.preds, valid)
  +                 try:
  +                     evaluator.update(batch, steps, result.preds, valid)
  +                 except:
  +                     continue
carry-reset-each-batch | MOD440 | the task gives the model no carry: every step starts anew
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  +         output: ACTOutput = self.module(batch, None)
carry-argument-dropped | MOD440 | the carry is stored but not passed on
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  +         output: ACTOutput = self.module(batch)
carry-not-stored | SCR130 (MOD440) | the task forgets the returned carry
  TASK
  -         self._carries[piece] = output.carry
carry-stored-elsewhere | MOD440 | the returned carry is put where nothing reads it
  TASK
  -         self._carries[piece] = output.carry
  +         self.last_carry = output.carry
fixed-loop-in-task | SCR130 (MOD440) | the task loops over the ACT steps of one batch: fixed mode around a dynamic model
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  +         carry = None
  +         for _ in range(self.model.halt_max_steps):
  +             output: ACTOutput = self.module(batch, carry)
  +             carry = output.carry
labels-of-batch-in-task | MOD441 | the loss compares with the incoming batch's labels, not with the slot's own example
  TASK
  -         result = self.loss_head(output)
  +         result = self.loss_head(replace(output, carry=replace(output.carry, data=batch)))
forward-without-grad-in-task | MOD432 | the task runs the model under no_grad: nothing learns
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  +         with torch.no_grad():
  +             output: ACTOutput = self.module(batch, self._carries[piece])
task-never-trains | MOD420 | micro_batches leaves the model in evaluation mode after the first evaluation
  TASK
  -         self.module.train()
optimizer-skips-head | MOD460 | the optimizer group leaves out the halting head
  GROUPS | network, matrices = dict(model.named_parameters()) => network, matrices = {n: p for n, p in model.named_parameters() if "q_head" not in n}
optimizer-skips-embedding | MOD460 | the puzzle embedding is in no optimizer group | python pretrain.py --config-name=cfg_pretrain device=cpu
  GROUPS | table = model.puzzle_emb => table = None
family-of-arch | SCR112 (SCR121 JOB030 MOD410 MOD420 ARC320) | a job composes the arch of a language model into pretrain.py | python pretrain.py --config-name=cfg_pretrain arch=gpt_mine
  models/language/__init__.py
  + """Language models."""
  models/language/gpt.py
  + """A model of another family."""
  +
  + from dataclasses import dataclass
  + from typing import ClassVar
  +
  + from torch import nn
  +
  +
  + @dataclass(kw_only=True)
  + class GPTConfig:
  +     hidden_size: int = 64
  +     """Width."""
  +
  +
  + class GPT(nn.Module):
  +     FAMILY: ClassVar[str] = "language_model"
  +     DATA_MODE: ClassVar[str] = "text"
  +     Config: ClassVar = GPTConfig
  +
  +     def __init__(self, config, shape):
  +         super().__init__()
  +         self.head = nn.Linear(config.hidden_size, 2)
  +
  +     def forward(self, batch):
  +         return self.head(batch)
  config/arch/gpt_mine.yaml
  + name: language.gpt@GPT
  + loss:
  +   name: losses@ACTLossHead
  + hidden_size: 64
carry-cleared-per-batch | MOD440 | micro_batches clears all carries at every step
  TASK
  +         self._carries = [None] * self.runtime.accumulation
            iteration, index = self.plan.locate(step)
carry-cleared-after-step | MOD440 | after_step drops the carries
  TASK
  +         for piece in range(len(self._carries)):
  +             self._carries[piece] = None
            for carry in self._carries:
''',
)
