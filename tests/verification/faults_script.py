"""Faults of the entry script and the task (the guide's step 2)."""

from __future__ import annotations

from tests.verification.mutations import Fault, append, copy, cut, put, swap

SCRIPT = "pretrain.py"
FAMILY = "tasks/recursive_reasoning/family.py"
BUILD = "tasks/recursive_reasoning/build.py"
TASK = "tasks/recursive_reasoning/task.py"
ACT = "models/recursive_reasoning/act.py"
TRM = "models/recursive_reasoning/trm.py"
RECIPE = "config/cfg_pretrain_sudoku_4x4.yaml"
STORE = "        self._carries[piece] = output.carry\n"
CALL = "        output: ACTOutput = self.module(batch, self._carries[piece])\n"
HYDRA = '@hydra.main(config_path="config", config_name="cfg_pretrain", version_base=None)\n'
REQUIRE = '    requires={"FAMILY": "recursive_reasoning", "DATA_MODE": "embedding"},\n'
RESOLVE = "    return building.create_model(FAMILY.read_arch(config), shape, runtime)\n"
LOAD = """load_synced_config(
        hydra_config, rank=RANK, world_size=WORLD_SIZE, schema=FAMILY.schema, entry=FAMILY.entry
    )"""
TRUNK = "        network = dict(model.named_parameters())\n"
LANGUAGE_MODEL = '''"""A model of another family."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(kw_only=True)
class GPTConfig:
    hidden_size: int = 64
    """Width."""


class GPT(nn.Module):
    FAMILY: ClassVar[str] = "language_model"
    DATA_MODE: ClassVar[str] = "text"
    Config: ClassVar = GPTConfig

    def __init__(self, config, shape):
        super().__init__()
        self.head = nn.Linear(config.hidden_size, 2)

    def forward(self, batch):
        return self.head(batch)
'''

SCRIPTS = (
    Fault(
        name="decorator-config-missing",
        what="@hydra.main names a config that does not exist",
        codes=("SCR110",),
        edits=(swap(SCRIPT, HYDRA, HYDRA.replace('"cfg_pretrain"', '"cfg_pretrain_default"')),),
    ),
    Fault(
        name="decorator-path-wrong",
        what="@hydra.main names a config folder that does not exist",
        codes=("SCR110",),
        follows=("JOB020",),
        edits=(swap(SCRIPT, HYDRA, HYDRA.replace('"config"', '"configs"')),),
    ),
    Fault(
        name="decorator-missing",
        what="launch has lost its @hydra.main",
        codes=("SCR110",),
        edits=(cut(SCRIPT, HYDRA),),
    ),
    Fault(
        name="decorator-twice",
        what="a second entry with @hydra.main in the script",
        codes=("SCR110",),
        follows=("SCR120",),
        edits=(
            append(
                SCRIPT, f"\n\n{HYDRA}def launch_again(hydra_config: DictConfig) -> None:\n    launch(hydra_config)\n"
            ),
        ),
    ),
    Fault(
        name="decorator-of-another-script",
        what="@hydra.main names the recipe of train.py",
        codes=("SCR111",),
        edits=(
            copy(RECIPE, "config/cfg_train.yaml"),
            swap("config/cfg_train.yaml", "data_paths:", "script: train.py\n\ndata_paths:"),
            swap(SCRIPT, HYDRA, HYDRA.replace('"cfg_pretrain"', '"cfg_train"')),
        ),
    ),
    Fault(
        name="config-unchecked",
        what="the script no longer calls load_synced_config",
        codes=("SCR120",),
        edits=(swap(SCRIPT, f"config = {LOAD}", "config = FAMILY.schema(**hydra_config)"),),
    ),
    Fault(
        name="config-changed-before-the-check",
        what="the script puts another learning rate into the composed config",
        codes=("SCR120",),
        edits=(
            swap(
                SCRIPT, "        hydra_config, rank=RANK", "        DictConfig({**hydra_config, 'lr': 3e-5}), rank=RANK"
            ),
        ),
    ),
    Fault(
        name="config-changed-after-the-check",
        what="the script halts all runs after two steps",
        codes=("SCR120",),
        edits=(swap(SCRIPT, "    run(config, make", "    config.arch['halt_max_steps'] = 2\n    run(config, make"),),
    ),
    Fault(
        name="test-trained-on",
        what="the training data are read from the test split",
        codes=("SCR122",),
        edits=(swap(BUILD, 'load_splits(folders, "train")', 'load_splits(folders, "test")'),),
    ),
    Fault(
        name="train-evaluated",
        what="the evaluation reads the training split",
        codes=("SCR122",),
        edits=(swap(BUILD, 'load_splits(tests, "test", like=train)', 'load_splits(tests, "train", like=train)'),),
    ),
    Fault(
        name="model-before-config",
        what="the model is created before the config is checked",
        codes=("SCR120",),
        edits=(
            swap(SCRIPT, f"    config = {LOAD}", f"    create_model(hydra_config, None, None)\n    config = {LOAD}"),
        ),
    ),
    Fault(
        name="model-hard-coded",
        what="create_model builds TRM whatever arch.name says",
        codes=("SCR120",),
        edits=(
            swap(
                BUILD,
                RESOLVE,
                "    from models.recursive_reasoning.trm import TRM\n\n    arch = FAMILY.read_arch(config)\n"
                "    return TRM(arch.model_config, shape), arch.loss_class(arch.loss_config)\n",
            ),
        ),
    ),
    Fault(
        name="create-model-bypassed",
        what="build makes its model itself, create_model is left over",
        codes=("SCR120",),
        edits=(
            swap(
                BUILD,
                "    model, loss_head = create_model(config, shape, runtime)\n",
                "    from losses import ACTLossConfig, ACTLossHead\n"
                "    from models.recursive_reasoning.trm import TRM, TRMConfig\n\n"
                "    model, loss_head = TRM(TRMConfig(), shape), ACTLossHead(ACTLossConfig())\n",
            ),
        ),
    ),
    Fault(
        name="run-missing",
        what="launch checks the config and never runs",
        codes=("SCR120",),
        edits=(
            cut(
                SCRIPT,
                "    run(config, make, entry=FAMILY.entry, check=partial(check_launch, FAMILY), compare=compare_signatures)\n",
            ),
        ),
    ),
    Fault(
        name="family-unchecked",
        what="the script accepts an architecture of any family",
        codes=("SCR112",),
        edits=(swap(FAMILY, REQUIRE, "    requires={},\n"),),
    ),
    Fault(
        name="family-of-arch",
        what="a job composes the arch of a language model into pretrain.py",
        codes=("SCR112",),
        follows=("SCR121", "JOB030", "MOD410", "MOD420", "ARC320"),
        edits=(
            put("models/language/__init__.py", '"""Language models."""\n'),
            put("models/language/gpt.py", LANGUAGE_MODEL),
            put(
                "config/arch/gpt_mine.yaml",
                "name: language.gpt@GPT\nloss:\n  name: losses@ACTLossHead\nhidden_size: 64\n",
            ),
        ),
        job="python pretrain.py --config-name=cfg_pretrain arch=gpt_mine",
    ),
    Fault(
        name="family-misdeclared",
        what="TRM declares another FAMILY than the script works with",
        codes=("SCR112",),
        edits=(
            swap(
                TRM, "    Config: ClassVar = TRMConfig\n", '    Config: ClassVar = TRMConfig\n    FAMILY = "feudal"\n'
            ),
        ),
    ),
    Fault(
        name="data-mode-of-class",
        what="TRM declares encoder mode, the script feeds puzzle embeddings",
        codes=("SCR112",),
        edits=(
            swap(
                TRM,
                "    Config: ClassVar = TRMConfig\n",
                '    Config: ClassVar = TRMConfig\n    DATA_MODE = "encoder"\n',
            ),
        ),
    ),
    Fault(
        name="data-mode-of-script",
        what="the script asks for encoder mode, the models have embeddings",
        codes=("SCR112",),
        follows=("DAT510", "SCR121"),
        edits=(swap(FAMILY, REQUIRE, REQUIRE.replace('"embedding"', '"encoder"')),),
    ),
    Fault(
        name="data-class-of-another-mode",
        what="the embedding script loads the batches of the encoder mode",
        codes=("SCR121",),
        edits=(
            swap(
                "dataset/sampler.py",
                'DATA_MODE: ClassVar[str] = "embedding"  #',
                'DATA_MODE: ClassVar[str] = "encoder"  #',
            ),
        ),
    ),
    Fault(
        name="schema-key-unread",
        what="a key of the schema that the script reads no more",
        codes=("CFG255",),
        edits=(
            swap(
                BUILD,
                "evaluated = epochs.evaluation_steps(config.min_eval_interval)",
                "evaluated = epochs.evaluation_steps(0)",
            ),
        ),
    ),
    Fault(
        name="rate-not-handed-on",
        what="the optimizer is built with the default learning rate",
        codes=("CFG255",),
        probes=True,
        edits=(swap(BUILD, "        lr=config.lr,\n", "        lr=1e-4,\n"),),
    ),
    Fault(
        name="betas-swapped",
        what="beta1 and beta2 change places on their way to the optimizer",
        codes=("CFG255",),
        probes=True,
        edits=(swap(BUILD, "betas=(config.beta1, config.beta2)", "betas=(config.beta2, config.beta1)"),),
    ),
    Fault(
        name="seed-of-the-order-fixed",
        what="the order of the training data has a seed of its own",
        codes=("CFG255",),
        probes=True,
        edits=(swap(BUILD, "seed=config.seed,", "seed=0,"),),
    ),
    Fault(
        name="comment-fixed-steps",
        what="a comment of the task still speaks of fixed steps",
        codes=("SCR140",),
        level="WARN",
        edits=(swap(TASK, CALL, f"        # fixed steps: the num_act_steps loop runs inside the model\n{CALL}"),),
    ),
    Fault(
        name="docstring-cached-encoder",
        what="the script's docstring says that the encoding is cached in the carry",
        codes=("SCR140",),
        level="WARN",
        edits=(swap(SCRIPT, "This file only wires:", "The encoding is cached in carry. This file only wires:"),),
    ),
    Fault(
        name="evaluators-swallowed",
        what="a bare except around the check of the evaluators: a broken one is found at the end of the run",
        codes=("SCR141",),
        level="WARN",
        edits=(
            swap(
                BUILD,
                "    create_evaluators(config.evaluators)\n",
                "    try:\n        create_evaluators(config.evaluators)\n    except Exception:\n        pass\n",
            ),
        ),
    ),
    Fault(
        name="evaluators-swallowed-by-the-engine",
        what="the registry leaves out an evaluator that cannot be made",
        codes=("SCR141",),
        level="WARN",
        edits=(
            swap(
                "engine/registry.py",
                "        made.append(cls(build_config(cls, block, where)))\n",
                "        try:\n            made.append(cls(build_config(cls, block, where)))\n        except:\n            pass\n",
            ),
        ),
    ),
    Fault(
        name="nothing-measured",
        what="no evaluator is named, and the task returns no metric of its own",
        codes=("CFG240",),
        edits=(swap(TASK, ' | self._evaluate(self.final_sampler if final else self.eval_sampler, "eval")', ""),),
    ),
    Fault(
        name="evaluation-swallowed",
        what="a bare except around an evaluator's update in the task",
        codes=("SCR141",),
        level="WARN",
        edits=(
            swap(
                TASK,
                "                evaluator.update(batch, steps, result.preds, valid)\n",
                "                try:\n                    evaluator.update(batch, steps, result.preds, valid)\n"
                "                except:\n                    continue\n",
            ),
        ),
    ),
)

TASKS = (
    Fault(
        name="carry-reset-each-batch",
        what="the task gives the model no carry: every step starts anew",
        codes=("MOD440",),
        edits=(swap(TASK, CALL, CALL.replace("self._carries[piece]", "None")),),
    ),
    Fault(
        name="carry-argument-dropped",
        what="the carry is stored but not passed on",
        codes=("MOD440",),
        edits=(swap(TASK, CALL, CALL.replace(", self._carries[piece]", "")),),
    ),
    Fault(
        name="carry-not-stored",
        what="the task forgets the returned carry",
        codes=("SCR130",),
        follows=("MOD440",),
        edits=(cut(TASK, STORE),),
    ),
    Fault(
        name="carry-stored-elsewhere",
        what="the returned carry is put where nothing reads it",
        codes=("MOD440",),
        edits=(swap(TASK, STORE, "        self.last_carry = output.carry\n"),),
    ),
    Fault(
        name="carry-cleared-per-batch",
        what="micro_batches clears all carries at every step",
        codes=("MOD440",),
        edits=(
            swap(
                TASK,
                "        iteration, index = self.plan.locate(step)\n",
                "        self._carries = [None] * self.runtime.accumulation\n"
                "        iteration, index = self.plan.locate(step)\n",
            ),
        ),
    ),
    Fault(
        name="carry-cleared-after-step",
        what="after_step drops the carries",
        codes=("MOD440",),
        edits=(
            swap(
                TASK,
                "        for carry in self._carries:\n",
                "        for piece in range(len(self._carries)):\n            self._carries[piece] = None\n"
                "        for carry in self._carries:\n",
            ),
        ),
    ),
    Fault(
        name="fixed-loop-in-task",
        what="the task loops over the ACT steps of one batch: fixed mode around a dynamic model",
        codes=("SCR130",),
        follows=("MOD440",),
        edits=(
            swap(
                TASK,
                CALL + STORE,
                "        carry = None\n        for _ in range(self.model.halt_max_steps):\n"
                "            output: ACTOutput = self.module(batch, carry)\n            carry = output.carry\n" + STORE,
            ),
        ),
    ),
    Fault(
        name="labels-of-batch-in-task",
        what="the loss compares with the incoming batch's labels, not with the slot's own example",
        codes=("MOD441",),
        edits=(
            swap(
                TASK,
                "        result = self.loss_head(output)\n",
                "        result = self.loss_head(replace(output, carry=replace(output.carry, data=batch)))\n",
            ),
        ),
    ),
    Fault(
        name="forward-without-grad-in-task",
        what="the task runs the model under no_grad: nothing learns",
        codes=("MOD432",),
        edits=(swap(TASK, CALL, f"        with torch.no_grad():\n    {CALL}"),),
    ),
    Fault(
        name="task-never-trains",
        what="micro_batches leaves the model in evaluation mode after the first evaluation",
        codes=("MOD420",),
        edits=(cut(TASK, "        self.module.train()\n"),),
    ),
    Fault(
        name="optimizer-skips-head",
        what="the optimizer group leaves out the halting head",
        codes=("MOD460",),
        edits=(
            swap(
                TASK,
                TRUNK,
                '        network = {n: p for n, p in model.named_parameters() if "q_head" not in n}\n',
            ),
        ),
    ),
    Fault(
        name="optimizer-skips-embedding",
        what="the puzzle embedding is in no optimizer group",
        codes=("MOD460",),
        edits=(swap(TASK, "    table = model.puzzle_emb\n", "    table = None\n"),),
        job="python pretrain.py --config-name=cfg_pretrain device=cpu",
    ),
)

FAULTS = (*SCRIPTS, *TASKS)
