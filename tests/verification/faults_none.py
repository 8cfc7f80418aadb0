"""What looks unusual and is right: every one must stay without a failure."""

from __future__ import annotations

from tests.verification.mutations import right

GOOD = right(
    r'''
small |  | the demo's recipe
large |  | the published recipe on four GPUs | torchrun --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp
config-name-last |  | --config-name after the overrides | python pretrain.py lr=1e-3 --config-name=cfg_pretrain_sudoku_4x4
rendezvous | JOB012 | the guide's torchrun line with rendezvous flags | torchrun --nproc-per-node 4 --rdzv_backend=c10d --rdzv_endpoint=localhost:0 --nnodes=1 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp
lr-0-embedding |  | lr 0 with an embedding that learns | python pretrain.py lr=0
intent-right | JOB034 | an intent that holds |  | mode=embedding act=dynamic arch=trm arch.L_cycles=1
intent-of-the-guide | JOB034 | every key of an intent for an encoder | python pretrain_etrm.py arch.encoder_type=hybrid_standard | mode=encoder act=dynamic encoder=hybrid_standard cache=reencode data=encoder init=scratch
run-name-in-short | JOB032 | a run name that shortens its encoder | python pretrain_etrm.py arch.encoder_type=hybrid_standard run_name=SF1_hybrid_std
run-name-right | JOB032 | a run name that states the actual value | + arch.L_cycles=4 run_name=trm_Lcycles4
run-name-of-a-sweep | JOB032 | a run name as a sweep gives it | + lr=1e-4 run_name=trm_lr-1e-04_seed-0_try2
run-name-of-the-script | JOB032 | a run name that the recipe makes, which holds the script's | python pretrain_etrm.py arch=etrm_online run_name=pretrain_etrm_fewshot-1234abcd
run-name-original |  | `original` in a run name is not a suffix | + run_name=trm_original
live-ema | JOB031 | ema_rate with ema | + ema_rate=0.99
hydra-by-another-name |  | the decorator imported by name, its arguments by place
  pretrain.py
  - import hydra
  + from hydra import main as hydra_main
  pretrain.py
  - @hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)
  + @hydra_main("config", "cfg_pretrain", None)
forward-passed-on |  | a mixin whose forward passes on whatever it is given
  TRM
  - class TRM(RecursiveModel):
  + class Mixin:
  +     def forward(self, *args, **kwargs):
  +         return super().forward(*args, **kwargs)
  +
  +
  + class TRM(Mixin, RecursiveModel):
class-re-exported-by-package |  | the arch names the package, which exports the class
  models/recursive_reasoning/__init__.py
  +
  + from models.recursive_reasoning.trm import TRM
  ARCH
  - name: recursive_reasoning.trm@TRM
  + name: recursive_reasoning@TRM
derived-recipe |  | a recipe on top of another one | python pretrain.py --config-name=cfg_pretrain_sudoku_4x4_long
  config/cfg_pretrain_sudoku_4x4_long.yaml
  + defaults:
  +   - cfg_pretrain_sudoku_4x4
  +   - _self_
  +
  + epochs: 4
  + lr: 1.0e-3
old-in-a-word |  | `old` inside a name is not a suffix | python pretrain.py --config-name=cfg_pretrain_threshold
  copy RECIPE config/cfg_pretrain_threshold.yaml
unused-backup |  | a backup copy that nothing uses fails no job
  copy ARCH config/arch/trm_old.yaml
  copy TRM models/recursive_reasoning/trm_old.py
retired-elsewhere |  | a retired config that the job does not use
  config/REMOVED.txt
  + cfg_pretrain_sudoku_5x5: never worked
detach-outside-the-graph | MOD432 | a detached copy for a metric beside the value that learns
  ACT
                x = self.inner.embed(data)
  +             self.input_norm = x.detach().norm()
forward-with-else |  | forward with an else branch
  ACT
  -         return self._forward_eval(batch)
  +         else:
  +             return self._forward_eval(batch)
method-says-dynamic |  | _forward_train_dynamic, the other right name
  ACT | return self._forward_train_original( => return self._forward_train_dynamic(
  ACT | def _forward_train_original( => def _forward_train_dynamic(
carry-by-local-name |  | the carry goes through local names
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  -         self._carries[piece] = output.carry
  +         carry = self._carries[piece]
  +         output = self.module(batch, carry)
  +         carry = output.carry
  +         self._carries[piece] = carry
forward-conditional-expression |  | forward as a conditional expression
  ACT
  -         if self.training:
  -             return self._forward_train_original(batch, carry)
  -         return self._forward_eval(batch)
  +         train = self._forward_train_original
  +         return train(batch, carry) if self.training else self._forward_eval(batch)
forward-by-table |  | forward chooses its method in a table
  ACT
  -         if self.training:
  -             return self._forward_train_original(batch, carry)
  -         return self._forward_eval(batch)
  +         table = {True: lambda: self._forward_train_original(batch, carry),
  +                  False: lambda: self._forward_eval(batch)}
  +         return table[self.training]()
steps-counted-by-a-method |  | steps counted with add
  ACT
  -                 steps = steps + 1
  +                 steps = steps.add(1)
carry-through-helper |  | the task calls the model in a helper, the carry by name
  TASK
  -         output: ACTOutput = self.module(batch, self._carries[piece])
  -         self._carries[piece] = output.carry
  +         output = self._think(piece, batch)
  TASK
            return {"emb_norm": (norms.sum(), rows), "emb_untrained": ((norms == 0).sum(), rows)}
  +
  +     def _think(self, piece: int, batch: Batch) -> ACTOutput:
  +         output = self.module(carry=self._carries[piece], batch=batch)
  +         self._carries.__setitem__(piece, output.carry)
  +         return output
error-raised-by-a-helper | SCR141 | an except whose helper raises
  TASK
  -                 evaluator.update(batch, steps, result.preds, valid)
  +                 try:
  +                     evaluator.update(batch, steps, result.preds, valid)
  +                 except Exception as error:
  +                     _give_up(error)
  TASK
  +
  +
  + def _give_up(error: Exception) -> None:
  +     raise RuntimeError('broken') from error
quoted-hash |  | a # inside a quoted value
  > [ ] + 'run_name="first#2"'
digits-in-path |  | digits in brackets inside a path are not processes
  > [ ] + 'run_dir="/tmp/runs[4711]/a"' run_name=first
commented-job |  | a job that is commented out
  > # [ ] python pretrain_old.py --config-name=cfg_gone
  > [ ] + run_name=first
done-and-failed | JOB002 JOB032 | finished and failed jobs beside a pending one
  > [x] + run_name=a
  > [!] + run_name=b
  > [ ] + run_name=c
class-re-exported |  | the class moved and is re-exported from its old module
  move TRM models/recursive_reasoning/tiny.py
  TRM
  + """TRM lives in tiny.py."""
  +
  + from models.recursive_reasoning.tiny import TRM, TRMConfig
  +
  + __all__ = ["TRM", "TRMConfig"]
class-re-exported-renamed |  | the class is re-exported under another name
  move TRM models/recursive_reasoning/tiny.py
  models/recursive_reasoning/tiny.py | class TRM(RecursiveModel) => class Tiny(RecursiveModel)
  models/recursive_reasoning/tiny.py
  - __all__ = ["TRM", "TRMConfig"]
  + __all__ = ["Tiny", "TRMConfig"]
  TRM
  + """TRM lives in tiny.py."""
  +
  + from models.recursive_reasoning.tiny import Tiny as TRM
  + from models.recursive_reasoning.tiny import TRMConfig
  +
  + __all__ = ["TRM", "TRMConfig"]
new-model |  | the model of docs/architecture.md, added as told there | + arch.name=recursive_reasoning.mine@Mine +arch.extra_updates=2
  models/recursive_reasoning/mine.py
  + """TRM with one more update of z_H at the end of each cycle."""
  +
  + from dataclasses import dataclass
  + from typing import ClassVar
  +
  + from models.recursive_reasoning.inner import INPUT
  + from models.recursive_reasoning.model import RecursiveModel
  + from models.recursive_reasoning.recursion import Update
  + from models.recursive_reasoning.trm import TRMConfig
  +
  +
  + @dataclass(kw_only=True)
  + class MineConfig(TRMConfig):
  +     extra_updates: int = 1
  +     """Further updates of z_H per cycle."""
  +
  +
  + class Mine(RecursiveModel):
  +     Config: ClassVar = MineConfig
  +
  +     @staticmethod
  +     def cycles(config: MineConfig) -> tuple[tuple[Update, ...], int]:
  +         low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
  +         high = Update("L_level", "z_H", ("z_H",), ("z_L",))
  +         cycle = (low,) * config.L_cycles + (high,) * (1 + config.extra_updates)
  +         return cycle * config.H_cycles, len(cycle)
keys-read-in-other-ways | ARC330 JOB031 | keys read by an f-string, a match, a constant tuple of names, and made into others | + arch.name=recursive_reasoning.mine@Mine +arch.low_extra=2 +arch.more_lows=1 +arch.more_highs=1 +arch.pairs=2 +arch.spare=null +arch.doubled=1
  models/recursive_reasoning/mine.py
  + from dataclasses import dataclass
  + from typing import ClassVar
  +
  + from models.recursive_reasoning.inner import INPUT
  + from models.recursive_reasoning.model import RecursiveModel
  + from models.recursive_reasoning.recursion import Update
  + from models.recursive_reasoning.trm import TRMConfig
  +
  + MORE = ("more_lows", "L_cycles")
  +
  +
  + @dataclass(kw_only=True)
  + class MineConfig(TRMConfig):
  +     low_extra: int = 0
  +     """Updates of z_L, read by an f-string."""
  +     more_lows: int = 0
  +     """Updates of z_L, read in a loop over names."""
  +     more_highs: int = 0
  +     """Updates of z_H, read by a match."""
  +     pairs: int = 1
  +     """What `updates` is made of."""
  +     spare: int | None = None
  +     """Null takes `doubled`, which nothing else reads."""
  +     doubled: int = 1
  +     """Updates at the end."""
  +
  +     def __post_init__(self) -> None:
  +         super().__post_init__()
  +         self.updates = 2 * self.pairs
  +         if self.spare is None:
  +             self.spare = self.doubled
  +
  +
  + class Mine(RecursiveModel):
  +     Config: ClassVar = MineConfig
  +
  +     @staticmethod
  +     def cycles(config: MineConfig) -> tuple[tuple[Update, ...], int]:
  +         low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
  +         high = Update("L_level", "z_H", ("z_H",), ("z_L",))
  +         lows = sum(getattr(config, name) for name in MORE)
  +         for level in ("low", "lower"):
  +             lows += getattr(config, f"{level}_extra", 0)
  +         match config:
  +             case MineConfig(more_highs=highs):
  +                 highs += config.updates + config.spare
  +         cycle = (low,) * lows + (high,) * highs
  +         return cycle * config.H_cycles, len(cycle)
keys-unpacked | ARC330 JOB031 | a model that gives its whole config to a function, which names what it takes | + arch.name=recursive_reasoning.mine@Mine +arch.extra_lows=1
  models/recursive_reasoning/mine.py
  + from dataclasses import dataclass
  + from typing import ClassVar
  +
  + from models.recursive_reasoning.inner import INPUT
  + from models.recursive_reasoning.model import RecursiveModel
  + from models.recursive_reasoning.recursion import Update
  + from models.recursive_reasoning.trm import TRMConfig
  +
  +
  + @dataclass(kw_only=True)
  + class MineConfig(TRMConfig):
  +     extra_lows: int = 0
  +     """Further updates of z_L per cycle."""
  +
  +
  + def updates(L_cycles, extra_lows, **rest):
  +     low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
  +     return (low,) * (L_cycles + extra_lows)
  +
  +
  + class Mine(RecursiveModel):
  +     Config: ClassVar = MineConfig
  +
  +     @staticmethod
  +     def cycles(config: MineConfig) -> tuple[tuple[Update, ...], int]:
  +         cycle = (*updates(**vars(config)), Update("L_level", "z_H", ("z_H",), ("z_L",)))
  +         return cycle * config.H_cycles, len(cycle)
schema-key-by-name | CFG255 | a key of the run that the family reads by a name put together
  BUILD
  - evaluated = epochs.evaluation_steps(config.min_eval_interval)
  + evaluated = epochs.evaluation_steps(getattr(config, "_".join(["min", "eval", "interval"])))
key-read-by-name |  | a model that reads its key by its name | + arch.name=recursive_reasoning.mine@Mine +arch.extra_updates=2 +arch.extra_lows=1
  models/recursive_reasoning/mine.py
  + from dataclasses import asdict, dataclass
  + from typing import ClassVar
  +
  + from models.recursive_reasoning.inner import INPUT
  + from models.recursive_reasoning.model import RecursiveModel
  + from models.recursive_reasoning.recursion import Update
  + from models.recursive_reasoning.trm import TRMConfig
  +
  +
  + @dataclass(kw_only=True)
  + class MineConfig(TRMConfig):
  +     extra_updates: int = 1
  +     """Further updates of z_H per cycle."""
  +     extra_lows: int = 0
  +     """Further updates of z_L per cycle."""
  +
  +
  + class Mine(RecursiveModel):
  +     Config: ClassVar = MineConfig
  +
  +     @staticmethod
  +     def cycles(config: MineConfig) -> tuple[tuple[Update, ...], int]:
  +         low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
  +         high = Update("L_level", "z_H", ("z_H",), ("z_L",))
  +         lows = sum(getattr(config, key) for key in ("L_cycles", "extra_lows"))
  +         cycle = (low,) * lows + (high,) * (1 + asdict(config)["extra_updates"])
  +         return cycle * config.H_cycles, len(cycle)
''',
)
