"""Faults of recipes and architecture files (the guide's steps 3 and 4)."""

from __future__ import annotations

from tests.verification.mutations import SMALL, Fault, commands, copy, cut, move, put, swap

RECIPE = "config/cfg_pretrain_sudoku_4x4.yaml"
ARCH = "config/arch/trm.yaml"
TRM = "models/recursive_reasoning/trm.py"
CONFIG = "models/recursive_reasoning/config.py"
NAME = "name: recursive_reasoning.trm@TRM\n"

RECIPES = (
    Fault(
        name="arch-default-missing-file",
        what="the recipe's arch default points to a file that does not exist",
        codes=("CFG210",),
        follows=("JOB030",),
        edits=(swap(RECIPE, "- arch: trm", "- arch: trm_mlp"),),
    ),
    Fault(
        name="arch-file-renamed",
        what="the architecture file was renamed, the recipes were not",
        codes=("CFG210",),
        follows=("JOB030",),
        edits=(move(ARCH, "config/arch/tiny_recursive.yaml"),),
    ),
    Fault(
        name="arch-default-dropped",
        what="the recipe has lost its arch default",
        codes=("CFG210",),
        follows=("JOB030", "ARC310", "ARC314"),
        edits=(cut(RECIPE, "  - arch: trm\n"),),
    ),
    Fault(
        name="arch-old",
        what="the recipe uses arch/trm_old.yaml",
        codes=("JOB021",),
        edits=(copy(ARCH, "config/arch/trm_old.yaml"), swap(RECIPE, "- arch: trm", "- arch: trm_old")),
    ),
    Fault(
        name="self-before-arch",
        what="`_self_` before `arch`: the recipe's own hyper-parameters lose",
        codes=("CFG211",),
        level="WARN",
        edits=(swap(RECIPE, "  - arch: trm\n  - _self_\n", "  - _self_\n  - arch: trm\n"),),
    ),
    Fault(
        name="recipe-unknown-key",
        what="a misspelt key in the recipe",
        codes=("JOB030",),
        edits=(swap(RECIPE, "ema_rate: 0.98", "ema_rat: 0.98"),),
    ),
    Fault(
        name="recipe-arch-unknown-key",
        what="a misspelt hyper-parameter in the recipe's arch block",
        codes=("ARC330",),
        edits=(swap(RECIPE, "  L_cycles: 1\n", "  L_cyles: 1\n"),),
    ),
    Fault(
        name="exploration-out-of-range",
        what="halt_exploration_prob 1.5",
        codes=("CFG230",),
        follows=("ARC330",),
        edits=(swap(ARCH, "halt_exploration_prob: 0.1 ", "halt_exploration_prob: 1.5 "),),
    ),
    Fault(
        name="evaluator-old",
        what="an evaluator that was set aside as _backup",
        codes=("ARC313",),
        edits=(copy("evaluators/steps.py", "evaluators/steps_backup.py"),),
        job=f"{SMALL} 'evaluators=[{{name: steps_backup@PerStepAccuracy}}]'",
    ),
    Fault(
        name="warmup-longer-than-max-steps",
        what="a job cut to 100 steps that warms up for 2,000",
        codes=("CFG250",),
        jobs="[ ] python pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp max_steps=100 run_name=first\n",
    ),
)

ARCHITECTURES = (
    Fault(
        name="name-form",
        what="`recursive_reasoning.trm:TRM` in place of `@`",
        codes=("ARC310",),
        edits=(swap(ARCH, NAME, "name: recursive_reasoning.trm:TRM\n"),),
    ),
    Fault(
        name="name-lower-case",
        what="the class in lower case",
        codes=("ARC310",),
        follows=("ARC312",),
        edits=(swap(ARCH, NAME, "name: recursive_reasoning.trm@trm\n"),),
    ),
    Fault(
        name="module-misspelt",
        what="a module that does not exist",
        codes=("ARC311",),
        edits=(swap(ARCH, NAME, "name: recursive_reasoning.trn@TRM\n"),),
    ),
    Fault(
        name="module-moved",
        what="models/recursive_reasoning/trm.py was moved, the arch file was not",
        codes=("ARC311",),
        edits=(move(TRM, "models/recursive_reasoning/tiny.py"),),
    ),
    Fault(
        name="class-misspelt",
        what="a class that the module does not have",
        codes=("ARC312",),
        edits=(swap(ARCH, NAME, "name: recursive_reasoning.trm@TRMM\n"),),
    ),
    Fault(
        name="class-renamed",
        what="the class was renamed, the arch file was not",
        codes=("ARC312",),
        edits=(
            swap(TRM, "class TRM(RecursiveModel)", "class TinyRecursiveModel(RecursiveModel)"),
            swap(TRM, '__all__ = ["TRM", ', '__all__ = ["TinyRecursiveModel", '),
        ),
    ),
    Fault(
        name="class-not-exported",
        what="the class moved to another module and is not exported here any more",
        codes=("ARC312",),
        edits=(
            move(TRM, "models/recursive_reasoning/tiny.py"),
            put(
                TRM,
                '"""TRM moved."""\n\nfrom models.recursive_reasoning.tiny import TRMConfig\n\n__all__ = ["TRMConfig"]\n',
            ),
        ),
    ),
    Fault(
        name="class-not-in-all",
        what="the class is defined but left out of `__all__`",
        codes=("ARC312",),
        edits=(swap(TRM, '__all__ = ["TRM", "TRMConfig"]', '__all__ = ["TRMConfig"]'),),
    ),
    Fault(
        name="config-class-named",
        what="the arch names the Config in place of the model",
        codes=("MOD410",),
        follows=("MOD420", "SCR112", "SCR121", "ARC330", "ARC320"),
        edits=(swap(ARCH, NAME, "name: recursive_reasoning.trm@TRMConfig\n"),),
    ),
    Fault(
        name="module-original",
        what="the arch still names trm_original",
        codes=("ARC313",),
        edits=(
            copy(TRM, "models/recursive_reasoning/trm_original.py"),
            swap(ARCH, NAME, "name: recursive_reasoning.trm_original@TRM\n"),
        ),
    ),
    Fault(
        name="class-old",
        what="the class kept as TRM_old is what trains",
        codes=("ARC313",),
        edits=(
            swap(TRM, "class TRM(RecursiveModel)", "class TRM_old(RecursiveModel)"),
            swap(TRM, '__all__ = ["TRM", ', '__all__ = ["TRM_old", '),
            swap(ARCH, NAME, "name: recursive_reasoning.trm@TRM_old\n"),
        ),
    ),
    Fault(
        name="loss-class-missing",
        what="a loss head that does not exist",
        codes=("ARC314",),
        edits=(swap(ARCH, "losses@ACTLossHead", "losses@ACTLoss"),),
    ),
    Fault(
        name="loss-module-missing",
        what="a loss module that does not exist",
        codes=("ARC314",),
        edits=(swap(ARCH, "losses@ACTLossHead", "losses.acts@ACTLossHead"),),
    ),
    Fault(
        name="loss-type-misspelt",
        what="a token loss that does not exist",
        codes=("ARC314",),
        follows=("JOB030",),
        edits=(swap(ARCH, "loss_type: stablemax_cross_entropy ", "loss_type: stablemaxcross_entropy "),),
    ),
    Fault(
        name="loss-block-missing",
        what="the arch names no loss",
        codes=("ARC314",),
        edits=(cut(ARCH, "  name: losses@ACTLossHead\n"),),
    ),
    Fault(
        name="exploration-removed",
        what="halt_exploration_prob is gone from the arch file",
        codes=("ARC321",),
        follows=("CFG230",),
        edits=(swap(ARCH, "halt_exploration_prob: 0.1 ", "# halt_exploration_prob: 0.1 "),),
    ),
    Fault(
        name="fixed-steps-added",
        what="num_act_steps, the field of the fixed mode, for a dynamic model",
        codes=("ARC320",),
        follows=("ARC330",),
        edits=(swap(ARCH, "halt_max_steps: 16\n", "halt_max_steps: 16\nnum_act_steps: 16\n"),),
    ),
    Fault(
        name="yaml-key-config-lacks",
        what="a field of the arch file that the Config does not have",
        codes=("ARC330",),
        edits=(swap(ARCH, "puzzle_emb_ndim:", "dropout: 0.1\npuzzle_emb_ndim:"),),
    ),
    Fault(
        name="config-field-yaml-lacks",
        what="an arch file that does not name the dataclass of its defaults",
        codes=("ARC330",),
        level="INFO",
        edits=(cut(ARCH, "  - /defaults/models/recursive_reasoning/config/TRMConfig@_here_\n"),),
    ),
    Fault(
        name="config-field-unread",
        what="a Config field that no line of the model reads",
        codes=("ARC330",),
        edits=(
            swap(CONFIG, "    puzzle_emb_len: int = 16\n", "    dropout: float = 0.0\n    puzzle_emb_len: int = 16\n"),
            swap(ARCH, "puzzle_emb_ndim:", "dropout: 0.0\npuzzle_emb_ndim:"),
        ),
    ),
    Fault(
        name="dead-override-unread",
        what="an override of a Config field that no line of the model reads",
        codes=("JOB031",),
        follows=("ARC330",),
        edits=(
            swap(CONFIG, "    puzzle_emb_len: int = 16\n", "    dropout: float = 0.0\n    puzzle_emb_len: int = 16\n"),
            swap(ARCH, "puzzle_emb_ndim:", "dropout: 0.0\npuzzle_emb_ndim:"),
        ),
        job=f"{SMALL} arch.dropout=0.1",
    ),
)

# name | codes (those that follow) | what | command | intent
COMMANDS = commands(f"""
halt-at-once | CFG230 | halt_max_steps 1 with dynamic halting: no row ever thinks twice | {SMALL} arch.halt_max_steps=1
evaluator-misspelt | CFG240 | an evaluator class that does not exist | {SMALL} 'evaluators=[{{name: steps@PerStepAcuracy}}]'
evaluator-module-misspelt | CFG240 | an evaluator module that does not exist | {SMALL} 'evaluators=[{{name: step@PerStepAccuracy}}]'
evaluator-unnamed | CFG240 | an evaluator without its name | {SMALL} 'evaluators=[{{confidence: 0.9}}]'
eval-interval | JOB030 | eval_interval 3 does not divide 10 epochs | {SMALL} epochs=10 eval_interval=3
warmup-longer-than-run | CFG250 | 2,000 steps of warm-up in a run of some 312 | {SMALL} lr_warmup_steps=2000
warmup-most-of-run | WARN CFG250 | 200 steps of warm-up in a run of some 312 | {SMALL} lr_warmup_steps=200
frozen-without-embedding | CFG251 | freeze_weights without a puzzle embedding trains nothing | {SMALL} freeze_weights=true
frozen-embedding-lr-0 | CFG251 | freeze_weights with puzzle_emb_lr 0 trains nothing | {SMALL} freeze_weights=true arch.puzzle_emb_ndim=64
lr-0 | CFG251 | every learning rate is 0 | {SMALL} lr=0
""")

FAULTS = (*COMMANDS, *RECIPES, *ARCHITECTURES)
