"""Faults of language-model training: jobs of train.py, its recipes, its code."""

from __future__ import annotations

from tests.verification.mutations import Fault, append, commands, cut, put, right_commands, swap

CPU = "python train.py --config-name=cfg_train_cpu"
TASK = "tasks/language_model/task.py"
GPT = "models/language_models/gpt.py"
BASE = "config/base/train.yaml"
RECIPE = "config/cfg_train_cpu.yaml"
META = '{"vocab_size": 9, "dtype": "uint16", "tokenizer": "%s", "tokens": {"train": %d, "val": 10}}'
TOKENS = "0123456789"


def _text(name: str, kind: str, tokens: int) -> tuple:
    return (
        put(f"data/{name}/train.bin", TOKENS),
        put(f"data/{name}/val.bin", TOKENS),
        put(f"data/{name}/meta.json", META % (kind, tokens)),
    )


# name | codes (those that follow) | what | command | intent
COMMANDS = commands(f"""
lm-gpt2-on-characters | DAT540 | GPT-2's weights on characters, whose numbers it reads as its own words | python train.py --init_from=gpt2 --dataset=shakespeare_char
lm-mixture-of-tokenizers | WARN DAT541 | a mixture of characters and BPE over one token table | {CPU} --training_mode=multidataset --dataset_list shakespeare_char wikitext
lm-streams-of-two-texts | WARN DAT542 | streams that annotate two different texts | {CPU} --training_mode=multicontext --multicontext_datasets shakespeare_char stdlib_class
lm-streams-without-their-mode | JOB030 | multicontext_datasets without training_mode=multicontext | {CPU} --multicontext_datasets shakespeare_char shakespeare_class
lm-probabilities-without-their-mode | JOB030 | dataset_sampling_probs for one data set | {CPU} --dataset_sampling_probs 0.5 0.5
lm-data-missing | WARN JOB033 | a data set that nobody built and no name stands for | {CPU} --dataset=shakespear_char
lm-dead-min-lr | WARN JOB031 | `min_lr` where nothing lowers the learning rate | python train.py --min_lr=1e-5
lm-dead-beta2 | WARN JOB031 | `beta2` for SGD | {CPU} --optimizer=sgd --beta2=0.95
lm-dead-temperature | WARN JOB031 | `temperature` where no samples are written | {CPU} --temperature=0.5
lm-warm-up-longer-than-the-run | CFG250 | 20 iterations, all of them warm-up | python train.py --max_iters=20 --warmup_iters=100
lm-horizon-beyond-the-run | WARN CFG256 | the run was shortened, its schedule was not | {CPU} --max_iters=500
lm-intent-of-another-mode | JOB034 | meant a mixture, trains on one data set | {CPU} | training_mode=multidataset
lm-arch-of-puzzles | SCR112 (MOD410 SCR130) | a language model's script with the architecture of puzzles | python train.py arch=trm
lm-arch-for-pretrain | SCR112 (ARC330 JOB030 MOD410 MOD420 MOD421 CFG230) | a script of puzzles with a GPT | python pretrain.py arch=gpt
""")

FAULTS = (
    *COMMANDS,
    Fault(
        name="lm-gpt2-on-a-folder-of-characters",
        what="the same on a data set that is there",
        codes=("DAT540",),
        edits=_text("mine", "char", 5),
        job="python train.py --init_from=gpt2 --dataset=mine",
    ),
    Fault(
        name="lm-copies-its-input",
        what="the targets are the tokens that the model is given",
        codes=("DYN706",),
        job=CPU,
        edits=(
            swap(
                TASK,
                "            yield tokens[cut], targets[cut], stream",
                "            yield tokens[cut], tokens[cut], stream",
            ),
        ),
    ),
    Fault(
        name="lm-validates-on-training-text",
        what="val_loss is the loss of the training text",
        codes=("SCR122",),
        job=CPU,
        edits=(
            swap(
                TASK,
                '"eval/val_loss": self.criterion(losses["val"])',
                '"eval/val_loss": self.criterion(losses["train"])',
            ),
        ),
    ),
    Fault(
        name="lm-length-fixed",
        what="the run has the default number of iterations",
        codes=("CFG255",),
        probes=True,
        job=CPU,
        edits=(swap("tasks/language_model/build.py", "else config.max_iters\n", "else 3500\n"),),
    ),
    Fault(
        name="lm-streams-of-unequal-length",
        what="streams of 5 and 4 tokens",
        codes=("DAT542",),
        edits=(*_text("mine", "char", 5), *_text("its_classes", "char_class", 4)),
        job=f"{CPU} --training_mode=multicontext --multicontext_datasets mine its_classes",
    ),
    Fault(
        name="lm-data-without-validation",
        what="a data set without val.bin",
        codes=("DAT510",),
        edits=_text("mine", "char", 5)[::2],
        job=f"{CPU} --dataset=mine",
    ),
    Fault(
        name="lm-learning-rate-zero",
        what="a job with learning rate 0",
        codes=("CFG251",),
        jobs=f"[ ] {CPU} --learning_rate=0 --no-decay_lr\n",
    ),
    Fault(
        name="lm-out-dir-twice",
        what="two jobs write to one folder",
        codes=("JOB032",),
        level="WARN",
        jobs=f"[ ] {CPU} --out_dir=out/a\n[ ] {CPU} --out_dir=out/a seed=1\n",
    ),
    Fault(
        name="lm-scores-its-input",
        what="the loss compares with the tokens that the model was given",
        codes=("MOD441",),
        edits=(
            swap(
                TASK,
                "result = self.loss_head(output, targets)\n        return",
                "result = self.loss_head(output, tokens)\n        return",
            ),
        ),
        job=CPU,
    ),
    Fault(
        name="lm-never-trains-again",
        what="the task calls eval() and never train()",
        codes=("MOD420",),
        edits=(cut(TASK, "        self.module.train()\n"),),
        job=CPU,
    ),
    Fault(
        name="lm-evaluates-with-dropout",
        what="the evaluation does not call eval()",
        codes=("MOD450",),
        level="WARN",
        edits=(cut(TASK, "        self.model.eval()\n"),),
        job=CPU,
    ),
    Fault(
        name="lm-parameters-left-out",
        what="the model leaves what is no matrix out of its parameter groups",
        codes=("MOD460",),
        edits=(
            swap(
                GPT,
                "                if module in heads:\n",
                "                if parameter.dim() < 2:\n                    continue\n                if module in heads:\n",
            ),
        ),
        job=CPU,
    ),
    Fault(
        name="lm-optimizer-of-its-own",
        what="the task gives all parameters to one group, without the model's",
        codes=("MOD460",),
        edits=(swap(TASK, "in model.param_groups().items():", 'in {"all": dict(model.named_parameters())}.items():'),),
        job=CPU,
    ),
    Fault(
        name="lm-key-nobody-reads",
        what="train.py's schema declares a key that nothing reads",
        codes=("CFG255",),
        edits=(
            swap(
                "tasks/language_model/args.py",
                "    eval_only: bool = False\n",
                "    eval_often: bool = False\n    eval_only: bool = False\n",
            ),
            append(BASE, "\neval_often: false\n"),
        ),
        job=CPU,
    ),
    Fault(
        name="lm-recipe-of-another-script",
        what="the recipe of train.py does not say whose it is",
        codes=("SCR111",),
        edits=(cut(BASE, "script: train.py\n"),),
        job=CPU,
    ),
    Fault(
        name="lm-recipe-overridden-by-its-arch",
        what="_self_ before arch: the sizes of gpt.yaml win over the recipe's",
        codes=("CFG211",),
        level="WARN",
        edits=(cut(RECIPE, "  - _self_\n"), swap(RECIPE, "  - arch: gpt\n", "  - _self_\n  - arch: gpt\n")),
        job=CPU,
    ),
)

# name | codes that must be quiet | what | command
RIGHT_COMMANDS = right_commands(f"""
lm-cpu | CFG250 CFG256 DAT541 | the CPU recipe of train.py | {CPU}
lm-resume | | init_from=resume with nothing but the folder | python train.py --init_from=resume --out_dir=out/x
lm-mixture-with-tables | DAT541 | a mixture of tokenizers with a token table for each | {CPU} --training_mode=multidataset --dataset_list shakespeare_char wikitext --multidataset_wte
lm-schedule-not-used | CFG256 JOB031 | a schedule that is held at its peak | {CPU} --no-decay_lr
lm-any-optimizer | JOB031 | an optimizer without a file, through the generic one | {CPU} --optimizer adan
""")

GOOD = (*RIGHT_COMMANDS,)
