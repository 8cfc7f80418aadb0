"""Faults of job lines, their files, and what a job line overrides (the guide's step 1)."""

from __future__ import annotations

from tests.verification.mutations import faults

FAULTS = faults(
    r"""
launcher-misspelt | JOB010 | a launcher that does not exist | pyhton pretrain.py device=cpu
script-misspelt | JOB010 | a script that does not exist | python pretrian.py
script-unnamed | JOB010 | a command without a script | python --config-name=cfg_pretrain
ranks-of-a-sweep | JOB012 | a sweep under torchrun | torchrun --nproc-per-node=2 pretrain.py -m lr=1,2
heads-do-not-divide | JOB030 | 4 heads of a width of 30 | python pretrain.py arch.hidden_size=30
dead-heads | WARN JOB031 | heads of a model that mixes without attention | + arch.num_heads=2
run-name-contradicts-rate | WARN JOB032 | run name says lr0.1, the rate is 0.2 | + run_name=hrm_lr0.1 lr=0.2 arch=hrm
run-name-of-a-sweep-contradicts-rate | WARN JOB032 | run name says lr-1e-4, the rate is 1e-3 | + run_name=trm_lr-1e-4_seed0 lr=1e-3
run-name-contradicts-weight | WARN JOB032 | run name says weight_0.05 | python pretrain.py arch=hrm_feudal arch.loss.feudal_loss_weight=0.1 run_name=feudal_weight_0.05
intent-misspelt | WARN JOB034 | an intent that nobody understands |  | exploraton=0.1
script-cannot-be-imported | JOB010 | the script imports what is not installed
  pretrain.py
    import hydra
  + import hydroplane
nproc-does-not-divide | JOB012 | 768 rows on 5 GPUs | torchrun --nproc-per-node=5 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp
accumulation-does-not-divide | JOB012 | 768 rows on 4 GPUs in 5 pieces each | torchrun --nproc-per-node=4 pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp accumulation=5
config-misspelt | JOB020 | a config name that does not exist | python pretrain.py --config-name=cfg_pretrain_suduko_4x4
key-misspelt | JOB030 | `lrr=1e-3` | + lrr=1e-3
arch-key-misspelt | JOB030 | `arch.L_cyles=4` | + arch.L_cyles=4
loss-key-in-arch | JOB030 | `arch.loss_type=...` where `arch.loss.loss_type` is meant | + arch.loss_type=softmax_cross_entropy
plus-misspelt | JOB030 | `+arch.L_cyles=4` composes: the plus makes the misspelt key | + +arch.L_cyles=4
plus-top-misspelt | JOB030 | `+epoch=3` | + +epoch=3
group-misspelt | JOB030 (CFG210) | `arch=trn` | + arch=trn
debug-misspelt | JOB030 | `+debug=tinny` | + +debug=tinny
type-error | JOB030 | `epochs=1.5` | + epochs=1.5
type-error-text | JOB030 | `lr=fast` | + lr=fast
choice-misspelt | JOB030 | `arch.pos_encodings=ropes` | + arch.pos_encodings=ropes
tilde-required | JOB030 | `~data_paths`: a required key is gone | + ~data_paths
dead-rope | WARN JOB031 | `arch.rope_theta` where positions are not rotary | + arch.rope_theta=5000
dead-ema-rate | WARN JOB031 | `ema_rate` with `ema=false` | + ema=false ema_rate=0.9
dead-puzzle-lr | WARN JOB031 | `puzzle_emb_lr` for a model without puzzle embedding | + puzzle_emb_lr=0.01
dead-min-eval | WARN JOB031 | `min_eval_interval` without evaluations to skip | + min_eval_interval=2
dead-lr-frozen | WARN JOB031 | `lr` with `freeze_weights=true`: the network does not learn | + arch.puzzle_emb_ndim=64 puzzle_emb_lr=0.01 freeze_weights=true lr=1e-3
run-name-contradicts-arch | WARN JOB032 | run name hrm_4x4, architecture TRM | + run_name=hrm_4x4
run-name-contradicts-value | WARN JOB032 | run name says Lcycles4, the value is 6 | + arch.L_cycles=6 run_name=trm_Lcycles4
run-name-contradicts-explore | WARN JOB032 | run name says explore0.7, the value is 0.5 | + arch.halt_exploration_prob=0.5 run_name=trm_explore0.7
data-missing | WARN JOB033 | a data path that neither exists nor can be built | + data_paths=[data/sudoku-44]
resume-from-missing | WARN JOB033 | a checkpoint path that does not exist | + resume=true resume_from=checkpoints/pretrain/gone/step_100
intent-arch | JOB034 | meant HRM, trains TRM |  | arch=hrm
intent-act | JOB034 | meant fixed steps, halts dynamically |  | act=fixed
intent-mode | JOB034 | meant encoder mode |  | mode=encoder
intent-value | JOB034 | meant L_cycles=4, the recipe sets 1 |  | arch.L_cycles=4
data-encoder-name | WARN DAT511 | a data path that says encoder, for a script with puzzle embeddings | + data_paths=[data/arc-encoder-mode]
script-renamed | JOB010 | pretrain.py was renamed, the job was not
  move pretrain.py pretrain_puzzle.py
script-old | JOB011 (SCR111 SCR120) | the job still starts the copy that was kept as pretrain_old.py | python pretrain_old.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu
  copy pretrain.py pretrain_old.py
script-original | JOB011 (SCR120) | recipe and job both name pretrain_original.py | python pretrain_original.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu
  move pretrain.py pretrain_original.py
  BASE
  - script: pretrain.py
  + script: pretrain_original.py
config-renamed | JOB020 | the recipe was renamed, the job was not
  move RECIPE config/cfg_pretrain_sudoku_small.yaml
config-old | JOB021 | the recipe was set aside as _old and the job follows it | python pretrain.py --config-name=cfg_pretrain_sudoku_4x4_old device=cpu
  move RECIPE config/cfg_pretrain_sudoku_4x4_old.yaml
config-removed | JOB021 | a config of an approach that was given up (config/REMOVED.txt)
  config/REMOVED.txt
  + cfg_pretrain_sudoku_4x4: replaced by the 6x6 recipe
config-of-another-script | SCR111 | pretrain.py is started with the recipe of train.py | python pretrain.py --config-name=cfg_train
  copy RECIPE config/cfg_train.yaml
  OTHER_RECIPE
      - _self_
  +
  + script: train.py
config-without-script | SCR111 | the recipe declares no script, so nothing ties it to pretrain.py
  BASE
  - script: pretrain.py
script-key-outdated | SCR111 | the recipes still name the script that was renamed
  BASE | script: pretrain.py => script: pretrain_trm.py
job-malformed | JOB001 | a job line without its `[ ]`
  > [ ] + run_name=first
  > + run_name=second
job-unclosed-quote | JOB001 | a quote that is never closed
  > [ ] + 'run_name=first
job-unknown-mark | JOB001 | a mark that the runner does not know
  > [?] + run_name=first
job-stale-running | WARN JOB002 | marked as running by a process that is gone
  > [-] + run_name=first [4194303]
job-twice | WARN JOB002 | the same pending job twice
  > [ ] + run_name=first
  > [ ] + run_name=first
job-run-name-twice | WARN JOB032 | two different jobs write to the same run
  > [ ] + run_name=first
  > [ ] + lr=1e-3 run_name=first
job-without-evaluation | WARN CFG240 | a job whose run is never evaluated
  > [ ] + run_name=first final_eval=false
job-name-before-command | JOB010 | the name of the job stands before its command
  > [ ] SF1: + run_name=first
job-intent-of-next | JOB034 | the intent above the job says HRM, the job trains TRM
  > #@ intent: arch=hrm
  > [ ] + run_name=first
data-encoder-mode | DAT510 | data whose dataset.json says encoder mode, for a script with puzzle embeddings | + data_paths=[data/mine]
  put data/mine/train/dataset.json | {"data_mode": "encoder", "seq_len": 16, "vocab_size": 6}
  put data/mine/test/dataset.json | {"data_mode": "encoder", "seq_len": 16, "vocab_size": 6}
data-with-demonstrations | DAT510 | data with demonstrations (all__num_demos.npy) under an undeclared mode | + data_paths=[data/mine]
  put data/mine/train/dataset.json | {"seq_len": 16, "vocab_size": 6}
  put data/mine/train/all__num_demos.npy
  put data/mine/test/dataset.json | {"seq_len": 16, "vocab_size": 6}
  put data/mine/test/all__num_demos.npy
data-test-encoder-mode | DAT510 | the held-out data are of encoder mode | + data_paths_test=[data/mine]
  put data/mine/train/dataset.json | {"data_mode": "encoder", "seq_len": 16, "vocab_size": 6}
  put data/mine/test/dataset.json | {"data_mode": "encoder", "seq_len": 16, "vocab_size": 6}
data-without-split | DAT510 | a data folder without a test split | + data_paths=[data/mine]
  put data/mine/train/dataset.json | {"data_mode": "embedding", "seq_len": 16, "vocab_size": 6}
page-names-gone-config | EVERYTHING DOC810 | the README tells to run a recipe that does not exist
  remove README.md docs jobs
  README.md
  + ```bash
  + python pretrain.py --config-name=cfg_pretrain_gone
  + ```
page-names-gone-script | EVERYTHING DOC810 | a page tells to run a script that does not exist
  remove README.md docs jobs
  docs/runs.md
  + ```bash
  + python pretrain_gone.py device=cpu
  + ```
page-misspells-key | EVERYTHING DOC810 | a page's command has a misspelt key
  remove README.md docs jobs
  docs/runs.md
  + ```bash
  + python pretrain.py warmup_steps=10
  + ```
""",
)
