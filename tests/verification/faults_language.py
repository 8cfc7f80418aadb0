"""Faults of language-model training: jobs of train.py, its recipes, its code."""

from __future__ import annotations

from tests.verification.mutations import faults, right

CPU = "python train.py --config-name=cfg_train_cpu"
FILES = {
    "TASK": "tasks/language_model/task.py",
    "GPT": "models/language_models/gpt.py",
    "BASE": "config/base/train.yaml",
    "RECIPE": "config/cfg_train_cpu.yaml",
}

FAULTS = faults(
    r"""
lm-gpt2-on-characters | DAT540 | GPT-2's weights on characters, whose numbers it reads as its own words | python train.py --init_from=gpt2 --dataset=shakespeare_char
lm-mixture-of-tokenizers | WARN DAT541 | a mixture of characters and BPE over one token table | + --training_mode=multidataset --dataset_list shakespeare_char wikitext
lm-streams-of-two-texts | WARN DAT542 | streams that annotate two different texts | + --training_mode=multicontext --multicontext_datasets shakespeare_char stdlib_class
lm-streams-without-their-mode | JOB030 | multicontext_datasets without training_mode=multicontext | + --multicontext_datasets shakespeare_char shakespeare_class
lm-probabilities-without-their-mode | JOB030 | dataset_sampling_probs for one data set | + --dataset_sampling_probs 0.5 0.5
lm-data-missing | WARN JOB033 | a data set that nobody built and no name stands for | + --dataset=shakespear_char
lm-dead-min-lr | WARN JOB031 | `min_lr` where nothing lowers the learning rate | python train.py --min_lr=1e-5
lm-dead-beta2 | WARN JOB031 | `beta2` for SGD | + --optimizer=sgd --beta2=0.95
lm-dead-temperature | WARN JOB031 | `temperature` where no samples are written | + --temperature=0.5
lm-warm-up-longer-than-the-run | CFG250 | 20 iterations, all of them warm-up | python train.py --max_iters=20 --warmup_iters=100
lm-horizon-beyond-the-run | WARN CFG256 | the run was shortened, its schedule was not | + --max_iters=500
lm-intent-of-another-mode | JOB034 | meant a mixture, trains on one data set |  | training_mode=multidataset
lm-arch-of-puzzles | SCR112 (MOD410 SCR130) | a language model's script with the architecture of puzzles | python train.py arch=trm
lm-arch-for-pretrain | SCR112 (ARC330 JOB030 MOD410 MOD420 MOD421 CFG230) | a script of puzzles with a GPT | python pretrain.py arch=gpt
lm-copies-its-input | DYN706 | the targets are the tokens that the model is given
  TASK
  -             yield tokens[cut], targets[cut], stream
  +             yield tokens[cut], tokens[cut], stream
lm-validates-on-training-text | SCR122 | val_loss is the loss of the training text
  TASK | "eval/val_loss": self.criterion(losses["val"]) => "eval/val_loss": self.criterion(losses["train"])
lm-length-fixed | OBSERVED CFG255 | the run has the default number of iterations
  tasks/language_model/build.py
  -     steps = 0 if config.eval_only else config.max_iters
  +     steps = 0 if config.eval_only else 3500
lm-scores-its-input | MOD441 | the loss compares with the tokens that the model was given
  TASK
  -         result = self.loss_head(output, targets)
  +         result = self.loss_head(output, tokens)
lm-never-trains-again | MOD420 | the task calls eval() and never train()
  TASK
  -         self.module.train()
lm-evaluates-with-dropout | WARN MOD450 | the evaluation does not call eval()
  TASK
  -         self.model.eval()
lm-parameters-left-out | MOD460 | the model leaves what is not a matrix out of its parameter groups
  GPT
                for name, parameter in module.named_parameters(recurse=False):
  +                 if parameter.dim() < 2:
  +                     continue
lm-optimizer-of-its-own | MOD460 | the task gives all parameters to one group, without the model's
  TASK | in model.param_groups().items(): => in {"all": dict(model.named_parameters())}.items():
lm-recipe-of-another-script | SCR111 | the recipe of train.py does not declare its script
  BASE
  - script: train.py
lm-recipe-overridden-by-its-arch | WARN CFG211 | _self_ before arch: the sizes of gpt.yaml win over the recipe's
  RECIPE
  -   - _self_
  RECIPE
      - base/train
  +   - _self_
lm-gpt2-on-a-folder-of-characters | DAT540 | the same on a data set that is there | python train.py --init_from=gpt2 --dataset=mine
  put data/mine/train.bin | 0123456789
  put data/mine/val.bin | 0123456789
  put data/mine/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char", "tokens": {"train": 5, "val": 10}}
lm-streams-of-unequal-length | DAT542 | streams of 5 and 4 tokens | + --training_mode=multicontext --multicontext_datasets mine its_classes
  put data/mine/train.bin | 0123456789
  put data/mine/val.bin | 0123456789
  put data/mine/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char", "tokens": {"train": 5, "val": 10}}
  put data/its_classes/train.bin | 0123456789
  put data/its_classes/val.bin | 0123456789
  put data/its_classes/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char_class", "tokens": {"train": 4, "val": 10}}
lm-streams-cut-to-one-length | WARN DAT542 | the same, cut to the shorter one | + --training_mode=multicontext --multicontext_datasets mine its_classes multicontext_align=truncate
  put data/mine/train.bin | 0123456789
  put data/mine/val.bin | 0123456789
  put data/mine/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char", "tokens": {"train": 5, "val": 10}}
  put data/its_classes/train.bin | 0123456789
  put data/its_classes/val.bin | 0123456789
  put data/its_classes/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char_class", "tokens": {"train": 4, "val": 10}}
lm-data-without-validation | DAT510 | a data set without val.bin | + --dataset=mine
  put data/mine/train.bin | 0123456789
  put data/mine/meta.json | {"vocab_size": 9, "dtype": "uint16", "tokenizer": "char", "tokens": {"train": 5, "val": 10}}
lm-learning-rate-zero | CFG251 | a job with learning rate 0
  > [ ] + --learning_rate=0 --no-decay_lr
lm-out-dir-twice | WARN JOB032 | two jobs write to one folder
  > [ ] + --out_dir=out/a
  > [ ] + --out_dir=out/a seed=1
lm-key-nobody-reads | CFG255 | train.py's schema declares a key that nothing reads
  tasks/language_model/args.py
  +     eval_often: bool = False
        eval_only: bool = False
  BASE
  +
  + eval_often: false
""",
    files=FILES,
    job=CPU,
)

GOOD = right(
    r"""
lm-cpu | CFG250 CFG256 DAT541 | the CPU recipe of train.py
lm-resume |  | init_from=resume with nothing but the folder | python train.py --init_from=resume --out_dir=out/x
lm-mixture-with-tables | DAT541 | a mixture of tokenizers with a token table for each | + --training_mode=multidataset --dataset_list shakespeare_char wikitext --multidataset_wte
lm-schedule-not-used | CFG256 JOB031 | a schedule that is held at its peak | + --no-decay_lr
lm-gpt2-on-a-folder-of-its-tokens | DAT540 | data without meta.json are of GPT-2's tokens, as nanoGPT has it | python train.py --init_from=gpt2 --dataset=mine
  put data/mine/train.bin | 0123456789
  put data/mine/val.bin | 0123456789
lm-any-optimizer | JOB031 | an optimizer without a file, through the generic one | + --optimizer adan
""",
    files=FILES,
    job=CPU,
)
