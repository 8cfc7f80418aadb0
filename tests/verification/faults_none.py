"""What looks unusual and is right: every one must stay without a failure."""

from __future__ import annotations

from tests.verification.faults_script import HYDRA
from tests.verification.mutations import LARGE, SMALL, Good, append, copy, move, put, right_commands, swap

RECIPE = "config/cfg_pretrain_sudoku_4x4.yaml"
ARCH = "config/arch/trm.yaml"
TRM = "models/recursive_reasoning/trm.py"
NAME = "name: recursive_reasoning.trm@TRM\n"
ACT = "models/recursive_reasoning/act.py"
MINE = '''"""TRM with one more update of z_H at the end of each cycle."""

from dataclasses import dataclass
from typing import ClassVar

from models.recursive_reasoning.inner import INPUT
from models.recursive_reasoning.model import RecursiveModel
from models.recursive_reasoning.recursion import Update
from models.recursive_reasoning.trm import TRMConfig


@dataclass(kw_only=True)
class MineConfig(TRMConfig):
    extra_updates: int = 1
    """Further updates of z_H per cycle."""


class Mine(RecursiveModel):
    Config: ClassVar = MineConfig

    @staticmethod
    def cycles(config: MineConfig) -> tuple[tuple[Update, ...], int]:
        low = Update("L_level", "z_L", ("z_L",), ("z_H", INPUT))
        high = Update("L_level", "z_H", ("z_H",), ("z_L",))
        cycle = (low,) * config.L_cycles + (high,) * (1 + config.extra_updates)
        return cycle * config.H_cycles, len(cycle)
'''

COMMANDS = (
    Good(name="quoted-hash", what="a # inside a quoted value", jobs=f"[ ] {SMALL} 'run_name=\"first#2\"'\n"),
    Good(
        name="digits-in-path",
        what="digits in brackets inside a path are no process",
        jobs=f"[ ] {SMALL} 'run_dir=\"/tmp/runs[4711]/a\"' run_name=first\n",
    ),
    Good(
        name="commented-job",
        what="a job that is commented out",
        jobs=f"# [ ] python pretrain_old.py --config-name=cfg_gone\n[ ] {SMALL} run_name=first\n",
    ),
    Good(
        name="done-and-failed",
        what="finished and failed jobs beside a pending one",
        jobs=f"[x] {SMALL} run_name=a\n[!] {SMALL} run_name=b\n[ ] {SMALL} run_name=c\n",
        quiet=("JOB002", "JOB032"),
    ),
)

TREES = (
    Good(name="untouched", what="the repository as it is: jobs, recipes and pages", everything=True),
    Good(
        name="class-re-exported",
        what="the class moved and is re-exported from its old module",
        edits=(
            move(TRM, "models/recursive_reasoning/tiny.py"),
            put(
                TRM,
                '"""TRM lives in tiny.py."""\n\nfrom models.recursive_reasoning.tiny import TRM, TRMConfig\n\n'
                '__all__ = ["TRM", "TRMConfig"]\n',
            ),
        ),
    ),
    Good(
        name="hydra-by-another-name",
        what="the decorator imported by name, its arguments by place",
        edits=(
            swap("pretrain.py", "import hydra\n", "from hydra import main as hydra_main\n"),
            swap("pretrain.py", HYDRA, '@hydra_main("config", "cfg_pretrain", None)\n'),
        ),
    ),
    Good(
        name="forward-passed-on",
        what="a mixin whose forward passes on whatever it is given",
        edits=(
            swap(
                TRM,
                "class TRM(RecursiveModel)",
                "class Mixin:\n    def forward(self, *args, **kwargs):\n        return super().forward(*args, **kwargs)\n\n\n"
                "class TRM(Mixin, RecursiveModel)",
            ),
        ),
    ),
    Good(
        name="class-re-exported-renamed",
        what="the class is re-exported under another name",
        edits=(
            move(TRM, "models/recursive_reasoning/tiny.py"),
            swap("models/recursive_reasoning/tiny.py", "class TRM(RecursiveModel)", "class Tiny(RecursiveModel)"),
            swap("models/recursive_reasoning/tiny.py", '__all__ = ["TRM", ', '__all__ = ["Tiny", '),
            put(
                TRM,
                '"""TRM lives in tiny.py."""\n\nfrom models.recursive_reasoning.tiny import Tiny as TRM\n'
                "from models.recursive_reasoning.tiny import TRMConfig\n\n"
                '__all__ = ["TRM", "TRMConfig"]\n',
            ),
        ),
    ),
    Good(
        name="class-re-exported-by-package",
        what="the arch names the package, which exports the class",
        edits=(
            append("models/recursive_reasoning/__init__.py", "\nfrom models.recursive_reasoning.trm import TRM\n"),
            swap(ARCH, NAME, "name: recursive_reasoning@TRM\n"),
        ),
    ),
    Good(
        name="new-model",
        what="the model of docs/architecture.md, added as told there",
        edits=(put("models/recursive_reasoning/mine.py", MINE),),
        job=f"{SMALL} arch.name=recursive_reasoning.mine@Mine +arch.extra_updates=2",
    ),
    Good(
        name="derived-recipe",
        what="a recipe on top of another one",
        edits=(
            put(
                "config/cfg_pretrain_sudoku_4x4_long.yaml",
                "defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\n\nepochs: 4\nlr: 1.0e-3\n",
            ),
        ),
        job="python pretrain.py --config-name=cfg_pretrain_sudoku_4x4_long",
    ),
    Good(
        name="old-in-a-word",
        what="`old` inside a name is no suffix",
        edits=(copy(RECIPE, "config/cfg_pretrain_threshold.yaml"),),
        job="python pretrain.py --config-name=cfg_pretrain_threshold",
    ),
    Good(
        name="unused-backup",
        what="a backup copy that nothing uses fails no job",
        edits=(copy(ARCH, "config/arch/trm_old.yaml"), copy(TRM, "models/recursive_reasoning/trm_old.py")),
    ),
    Good(
        name="retired-elsewhere",
        what="a retired config that the job does not use",
        edits=(append("config/REMOVED.txt", "cfg_pretrain_sudoku_5x5: never worked\n"),),
    ),
    Good(
        name="detach-outside-the-graph",
        what="a detached copy for a metric beside the value that learns",
        edits=(
            swap(
                ACT,
                "            x = self.inner.embed(data)\n            latents, aux = self.inner.recur(latents, x)\n            logits",
                "            x = self.inner.embed(data)\n            self.input_norm = x.detach().norm()\n"
                "            latents, aux = self.inner.recur(latents, x)\n            logits",
            ),
        ),
        quiet=("MOD432",),
    ),
    Good(
        name="forward-with-else",
        what="forward with an else branch",
        edits=(
            swap(
                ACT,
                "            return self._forward_train_original(batch, carry)\n        return self._forward_eval(batch)\n",
                "            return self._forward_train_original(batch, carry)\n"
                "        else:\n            return self._forward_eval(batch)\n",
            ),
        ),
    ),
    Good(
        name="method-says-dynamic",
        what="_forward_train_dynamic, the other right name",
        edits=(
            swap(ACT, "return self._forward_train_original(", "return self._forward_train_dynamic("),
            swap(ACT, "def _forward_train_original(", "def _forward_train_dynamic("),
        ),
    ),
    Good(
        name="carry-by-local-name",
        what="the carry goes through local names",
        edits=(
            swap(
                "tasks/recursive_reasoning/task.py",
                "        output: ACTOutput = self.module(batch, self._carries[piece])\n"
                "        self._carries[piece] = output.carry\n",
                "        carry = self._carries[piece]\n        output = self.module(batch, carry)\n"
                "        carry = output.carry\n        self._carries[piece] = carry\n",
            ),
        ),
    ),
)

BRANCH = """        if self.training:
            return self._forward_train_original(batch, carry)
        return self._forward_eval(batch)
"""
TASK = "tasks/recursive_reasoning/task.py"
UPDATE = "                evaluator.update(batch, steps, result.preds, valid)\n"
FORMS = (
    Good(
        name="forward-conditional-expression",
        what="forward as a conditional expression",
        edits=(
            swap(
                ACT,
                BRANCH,
                "        train = self._forward_train_original\n"
                "        return train(batch, carry) if self.training else self._forward_eval(batch)\n",
            ),
        ),
    ),
    Good(
        name="forward-by-table",
        what="forward chooses its method in a table",
        edits=(
            swap(
                ACT,
                BRANCH,
                "        table = {True: lambda: self._forward_train_original(batch, carry),\n"
                "                 False: lambda: self._forward_eval(batch)}\n        return table[self.training]()\n",
            ),
        ),
    ),
    Good(
        name="steps-counted-by-a-method",
        what="steps counted with add",
        edits=(swap(ACT, "                steps = steps + 1\n", "                steps = steps.add(1)\n"),),
    ),
    Good(
        name="carry-through-helper",
        what="the task calls the model in a helper, the carry by name",
        edits=(
            swap(
                TASK,
                "        output: ACTOutput = self.module(batch, self._carries[piece])\n"
                "        self._carries[piece] = output.carry\n",
                "        output = self._think(piece, batch)\n",
            ),
            swap(
                TASK,
                "    def after_step(self)",
                "    def _think(self, piece: int, batch: Batch) -> ACTOutput:\n"
                "        output = self.module(carry=self._carries[piece], batch=batch)\n"
                "        self._carries.__setitem__(piece, output.carry)\n        return output\n\n"
                "    def after_step(self)",
            ),
        ),
    ),
    Good(
        name="error-raised-by-a-helper",
        what="an except whose helper raises",
        edits=(
            swap(
                TASK,
                UPDATE,
                "                try:\n                    evaluator.update(batch, steps, result.preds, valid)\n"
                "                except Exception as error:\n                    _give_up(error)\n",
            ),
            append(TASK, "\n\ndef _give_up(error: Exception) -> None:\n    raise RuntimeError('broken') from error\n"),
        ),
        quiet=("SCR141",),
    ),
)

# name | codes that must be quiet | what | command
RIGHT_COMMANDS = right_commands(f"""
small | | the demo's recipe | {SMALL}
large | | the published recipe on four GPUs | {LARGE}
default | | no --config-name: the decorator's config | python pretrain.py device=cpu
config-name-space | | --config-name NAME | python pretrain.py --config-name cfg_pretrain_sudoku_4x4
config-name-cn | | -cn NAME | python pretrain.py -cn cfg_pretrain_sudoku_4x4
config-name-cn-equals | | -cn=NAME | python pretrain.py -cn=cfg_pretrain_sudoku_4x4
config-name-last | | --config-name after the overrides | python pretrain.py lr=1e-3 --config-name=cfg_pretrain_sudoku_4x4
flag-style | | flags in place of overrides | {SMALL} --lr 1e-3 --no-ema --arch.L_cycles 2
environment | | variables before the launcher | CUDA_VISIBLE_DEVICES=0,1 OMP_NUM_THREADS=1 {LARGE}
rendezvous | JOB012 | the guide's torchrun line with rendezvous flags | {LARGE.replace("--nproc-per-node=4", "--nproc-per-node 4 --rdzv_backend=c10d --rdzv_endpoint=localhost:0 --nnodes=1")}
standalone | JOB012 | torchrun --standalone | {LARGE.replace("--nproc", "--standalone --nproc")}
quoted-spaces | | a quoted value with spaces | {SMALL} 'evaluators=[{{name: steps@PerStepAccuracy, confidence: 0.9}}]'
multirun | | a sweep | python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 +debug=tiny -m lr=1e-3,1e-2
debug | | +debug=tiny | {SMALL} +debug=tiny
group-choice | | another architecture of the same family | {SMALL} arch=hrm
plus-plus | | ++ on an existing key | {SMALL} ++lr=1e-3
plus-on-existing | | `+` on an existing key, which a launch takes too | {SMALL} +lr=1e-3
smoke | | max_steps cuts the run short, the warm-up with it | python pretrain.py device=cpu max_steps=30
frozen-with-embedding | CFG251 | only the embedding is trained | python pretrain.py freeze_weights=true
lr-0-embedding | | lr 0 with an embedding that learns | python pretrain.py lr=0
halt-always-explore | | halt_exploration_prob 1 | {SMALL} arch.halt_exploration_prob=1.0
no-exploration | | halt_exploration_prob 0 is a decision too | {SMALL} arch.halt_exploration_prob=0
intent-right | JOB034 | an intent that holds | {SMALL} | mode=embedding act=dynamic arch=trm arch.L_cycles=1
run-name-right | JOB032 | a run name that says what is so | {SMALL} arch.L_cycles=4 run_name=trm_Lcycles4
run-name-of-a-sweep | JOB032 | a run name as a sweep gives it | {SMALL} lr=1e-4 run_name=trm_lr-1e-04_seed-0_try2
run-name-original | | `original` in a run name is no suffix | {SMALL} run_name=trm_original
live-ema | JOB031 | ema_rate with ema | {SMALL} ema_rate=0.99
""")

GOOD = (*RIGHT_COMMANDS, *COMMANDS, *TREES, *FORMS)
