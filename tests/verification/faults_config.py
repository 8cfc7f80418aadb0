"""Faults of recipes and architecture files (the guide's steps 3 and 4)."""

from __future__ import annotations

from tests.verification.mutations import faults

FAULTS = faults(
    r'''
halt-at-once | CFG230 | halt_max_steps 1 with dynamic halting: no row ever thinks twice | + arch.halt_max_steps=1
evaluator-key | CFG240 | a key that the evaluator does not have | + 'evaluators=[{name: steps@PerStepAccuracy, typo: 1}]'
arch-of-a-layer | SCR112 (ARC330 JOB030 MOD410 ARC310) | a layer in place of a model | + arch.name=layers.block@ReasoningBlock
warmup-of-the-recipe | CFG250 | one epoch of the 6x6 recipe, all warm-up | python pretrain.py --config-name=cfg_pretrain_sudoku_6x6 epochs=1 eval_interval=1 global_batch_size=2000
warmup-of-the-default | WARN CFG250 | a short run with the default warm-up | python pretrain.py epochs=10 eval_interval=10 global_batch_size=800
evaluator-misspelt | CFG240 | an evaluator class that does not exist | + 'evaluators=[{name: steps@PerStepAcuracy}]'
evaluator-module-misspelt | CFG240 | an evaluator module that does not exist | + 'evaluators=[{name: step@PerStepAccuracy}]'
evaluator-unnamed | CFG240 | an evaluator without its name | + 'evaluators=[{confidence: 0.9}]'
eval-interval | JOB030 | eval_interval 3 does not divide 10 epochs | + epochs=10 eval_interval=3
warmup-longer-than-run | CFG250 | 2,000 steps of warm-up in a run of some 312 | + lr_warmup_steps=2000
warmup-most-of-run | WARN CFG250 | 200 steps of warm-up in a run of some 312 | + lr_warmup_steps=200
frozen-without-embedding | CFG251 | freeze_weights without a puzzle embedding trains nothing | + freeze_weights=true
frozen-embedding-lr-0 | CFG251 | freeze_weights with puzzle_emb_lr 0 trains nothing | + freeze_weights=true arch.puzzle_emb_ndim=64
lr-0 | CFG251 | every learning rate is 0 | + lr=0
beta2-of-sgd | WARN JOB031 | `beta2` for SGD, which has no second moment | + optimizer=sgd beta2=0.9
arch-default-missing-file | CFG210 (JOB030) | the recipe's arch default points to a file that does not exist
  RECIPE | - arch: trm => - arch: trm_mlp
arch-file-renamed | CFG210 (JOB030) | the architecture file was renamed, the recipes were not
  move ARCH config/arch/tiny_recursive.yaml
arch-default-dropped | CFG210 (JOB030 ARC310 ARC314) | the recipe has lost its arch default
  RECIPE
  -   - arch: trm
arch-old | JOB021 | the recipe uses arch/trm_old.yaml
  copy ARCH config/arch/trm_old.yaml
  RECIPE | - arch: trm => - arch: trm_old
self-before-arch | WARN CFG211 | `_self_` before `arch`: the recipe's own hyper-parameters lose
  RECIPE
  +   - _self_
      - arch: trm
  -   - _self_
recipe-unknown-key | JOB030 | a misspelt key in the recipe
  RECIPE | ema_rate: 0.98 => ema_rat: 0.98
recipe-arch-unknown-key | ARC330 | a misspelt hyper-parameter in the recipe's arch block
  RECIPE
  -   L_cycles: 1
  +   L_cyles: 1
exploration-out-of-range | CFG230 (ARC330) | halt_exploration_prob 1.5
  ARCH
  - halt_exploration_prob: 0.1             # share of steps that continue even if the halting head would stop
  + halt_exploration_prob: 1.5             # share of steps that continue even if the halting head would stop
evaluator-old | ARC313 | an evaluator that was set aside as _backup | + 'evaluators=[{name: steps_backup@PerStepAccuracy}]'
  copy evaluators/steps.py evaluators/steps_backup.py
name-form | ARC310 | `recursive_reasoning.trm:TRM` in place of `@`
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm:TRM
name-lower-case | ARC310 (ARC312) | the class in lower case
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm@trm
module-misspelt | ARC311 | a module that does not exist
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trn@TRM
module-moved | ARC311 | models/recursive_reasoning/trm.py was moved, the arch file was not
  move TRM models/recursive_reasoning/tiny.py
class-misspelt | ARC312 | a class that the module does not have
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm@TRMM
class-renamed | ARC312 | the class was renamed, the arch file was not
  TRM | class TRM(RecursiveModel) => class TinyRecursiveModel(RecursiveModel)
  TRM
  - __all__ = ["TRM", "TRMConfig"]
  + __all__ = ["TinyRecursiveModel", "TRMConfig"]
class-not-in-all | ARC312 | the class is defined but left out of `__all__`
  TRM | __all__ = ["TRM", "TRMConfig"] => __all__ = ["TRMConfig"]
config-class-named | MOD410 (MOD420 SCR112 SCR121 ARC330 ARC320) | the arch names the Config in place of the model
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm@TRMConfig
module-original | ARC313 | the arch still names trm_original
  copy TRM models/recursive_reasoning/trm_original.py
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm_original@TRM
class-old | ARC313 | the class kept as TRM_old is what trains
  TRM | class TRM(RecursiveModel) => class TRM_old(RecursiveModel)
  TRM
  - __all__ = ["TRM", "TRMConfig"]
  + __all__ = ["TRM_old", "TRMConfig"]
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning.trm@TRM_old
loss-class-missing | ARC314 | a loss head that does not exist
  ARCH | losses@ACTLossHead => losses@ACTLoss
loss-module-missing | ARC314 | a loss module that does not exist
  ARCH | losses@ACTLossHead => losses.acts@ACTLossHead
loss-type-misspelt | ARC314 (JOB030) | a token loss that does not exist
  ARCH
    name: losses@ACTLossHead
  +   loss_type: stablemaxcross_entropy
loss-block-missing | ARC314 | the arch names no loss
  ARCH
  -   name: losses@ACTLossHead
exploration-removed | ARC321 (CFG230) | halt_exploration_prob is gone from the arch file
  ARCH
  - halt_exploration_prob: 0.1             # share of steps that continue even if the halting head would stop
  + # halt_exploration_prob: 0.1             # share of steps that continue even if the halting head would stop
fixed-steps-added | ARC320 (ARC330) | num_act_steps, the field of the fixed mode, for a dynamic model
  ARCH
    halt_max_steps: 16
  + num_act_steps: 16
yaml-key-config-lacks | ARC330 | a field of the arch file that the Config does not have
  ARCH
    no_ACT_continue: true                  # halt on q_halt > 0; false: on q_halt > q_continue, with a second forward for its target

  + dropout: 0.1
config-field-yaml-lacks | INFO ARC330 | an arch file that does not name the dataclass of its defaults
  ARCH
  -   - /defaults/models/recursive_reasoning/config/TRMConfig@_here_
warmup-longer-than-max-steps | CFG250 | a job cut to 100 steps that warms up for 2,000
  > [ ] python pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp max_steps=100 run_name=first
class-not-exported | ARC312 | the class moved to another module and is not exported here any more
  move TRM models/recursive_reasoning/tiny.py
  TRM
  + """TRM moved."""
  +
  + from models.recursive_reasoning.tiny import TRMConfig
  +
  + __all__ = ["TRMConfig"]
config-field-unread | ARC330 | a Config field that no line of the model reads
  models/recursive_reasoning/config.py
  +     dropout: float = 0.0
        puzzle_emb_len: int = 16
  ARCH
  + dropout: 0.0
    puzzle_emb_ndim: ${.hidden_size}       # 0 switches the puzzle embedding and its prefix off
config-field-only-checked | ARC330 | a Config field that __post_init__ checks, and makes into what nothing reads
  models/recursive_reasoning/config.py
  +     dropout: float = 0.0
        puzzle_emb_len: int = 16
  models/recursive_reasoning/config.py
            self._check_heads()
  +         if self.dropout > 1:
  +             raise ValueError("dropout: expected at most 1")
  +         self.kept = 1 - self.dropout
  ARCH
  + dropout: 0.0
    puzzle_emb_ndim: ${.hidden_size}       # 0 switches the puzzle embedding and its prefix off
dead-override-unread | JOB031 (ARC330) | an override of a Config field that no line of the model reads | + arch.dropout=0.1
  models/recursive_reasoning/config.py
  +     dropout: float = 0.0
        puzzle_emb_len: int = 16
  ARCH
  + dropout: 0.0
    puzzle_emb_ndim: ${.hidden_size}       # 0 switches the puzzle embedding and its prefix off
''',
)
