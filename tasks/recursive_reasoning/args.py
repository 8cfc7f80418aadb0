"""Every key of `pretrain.py`, with type, default and meaning: the strict schema of its `config/cfg_pretrain*.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from engine.config import NOT_IDENTITY, RunConfig
from engine.fields import Inert, NotBlank, Range, check_fields, value_at
from engine.io import user_path
from models.recursive_reasoning.config import RecursiveConfig


def _no_intrinsic_loss(config: Mapping[str, Any]) -> bool:
    return value_at(config, "arch.loss.feudal_loss_weight") is None


def _outweighed(config: Mapping[str, Any]) -> bool:
    return value_at(config, "arch.loss.feudal_loss_weight") != value_at(config, "loss.feudal_loss_weight")


def _no_halting(config: Mapping[str, Any]) -> bool:
    return value_at(config, "arch.num_act_steps") is not None


def _nothing_selected(config: Mapping[str, Any]) -> bool:
    return config.get("eval_interval") in (None, config.get("epochs"))


_NO_CHOICE = Inert(
    _nothing_selected, "no evaluation before the end: nothing is selected, and every group is trained on"
)
_NO_EVALUATION = Inert("eval_interval=null", "eval_interval=null: only the last evaluation is made")
_NO_FINAL = Inert("final_eval=false and eval_interval=null", "final_eval=false")
_NO_EMBEDDING = Inert("arch.puzzle_emb_ndim=0", "arch.puzzle_emb_ndim=0: there is no puzzle embedding")


@dataclass(kw_only=True)
class LossWeights:
    """Weights of terms that only some losses have; the arch file of such a loss takes them from here."""

    feudal_loss_weight: Annotated[
        float,
        Range(0),
        Inert(_no_intrinsic_loss, "the loss of this architecture has no intrinsic term"),
        Inert("arch.subgoal_head=null", "there is no arch.subgoal_head"),
        Inert(_outweighed, "arch.loss.feudal_loss_weight is given too, and wins"),
    ] = 0.1
    """Weight of the intrinsic loss of arch=hrm_feudal. `arch.loss.feudal_loss_weight` wins if both are given."""

    def __post_init__(self) -> None:
        check_fields(self, "loss")


@dataclass(kw_only=True)
class EpisodeConfig(RunConfig):
    """Keys shared by all scripts of recursive models. Steps are optimizer steps, one ACT step for each slot."""

    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = {
        "learning_rate": "did you mean 'lr'?",
        "load_checkpoint": "load_pretrained_decoder=RUN begins with the decoder of a run of pretrain.py",
        "eval_save_outputs": "scripts/visualize.py and scripts/predict.py show and write a run's answers",
        "max_eval_groups": "did you mean 'eval_max_groups'?",
        "log_predictions_": "scripts/visualize.py shows and writes a run's answers",
    }
    NOT_IDENTITY: ClassVar[Mapping[str, str]] = {
        **NOT_IDENTITY,
        "checkpoint_carry": "launch: what to save",
        "halting_metrics": "logging: steps are counted, nothing is changed",
    }

    arch: dict[str, Any]
    """The architecture: `name: module@Class` under models/, its hyperparameters, its `loss:` block (config/arch/)."""

    data_paths: list[str]
    """Data folders; several are trained on together. A missing default data set is built on first use."""
    data_paths_test: list[str] = field(default_factory=list)
    """Folders to evaluate on; empty means the test splits of `data_paths`."""
    offline: Literal["stand_in", "error"] = "stand_in"
    """If a published data set is missing: build its generated stand-in and say so, or end with an error."""
    evaluators: list[dict[str, Any]] = field(default_factory=list)
    """Extra evaluators, each `{name: module@Class, ...}` under evaluators/."""

    global_batch_size: Annotated[int, Range(1)] = 768
    """Slots over all ranks and micro-batches. Row i of the batch always belongs to slot i."""
    epochs: Annotated[int, Range(1)] = 50000
    """Passes over the groups of the training data, counted as if every slot took an example at every step."""
    total_steps: Annotated[int | None, Range(1)] = None
    """Step at which the run and its schedules end, if the epochs do not end first; null: with the epochs."""
    eval_interval: Annotated[int | None, Range(1)] = None
    """Epochs between evaluations (must divide epochs); null: only at the end."""
    select_on: Annotated[Literal["validation", "test"], _NO_CHOICE] = "validation"
    """Split that selects the best checkpoint and stops early: held-out training groups, or (as published) the test
    split."""
    validation_groups: Annotated[
        int | None, Range(1), _NO_CHOICE, Inert("select_on=test", "select_on=test: nothing is held back")
    ] = None
    """Training groups held out for validation if there are evaluations during training; null: one in 20, at most
    256."""
    min_eval_interval: Annotated[
        int, Range(0), Inert("eval_interval=null", "eval_interval=null: no evaluation before the end")
    ] = 0
    """Number of evaluations to skip at the start of training."""
    final_eval: bool = True
    """Evaluate after the last step, even if max_steps or eval_interval does not."""
    checkpoint_every_eval: bool = True
    """Save a checkpoint with every evaluation (one is always saved at the end)."""
    checkpoint_carry: bool = True
    """Save the carry (1.4 GB on ARC with 768 slots); false: after a resume all slots start afresh, so not bit for
    bit."""
    halting_metrics: Annotated[bool, Inert(_no_halting, "arch.num_act_steps sets the steps of every row")] = False
    """Also log the share of rows that halt at each ACT step, and the shares of offered examples taken and dropped."""
    eval_max_examples: Annotated[
        int | None,
        Range(1),
        Inert(
            "eval_interval=null",
            "eval_interval=null: only the last evaluation is made, final_eval_max_examples is its size",
        ),
    ] = None
    """Size of the fixed random subset for evaluations during training; null: the whole split."""
    final_eval_max_examples: Annotated[int | None, Range(1), _NO_FINAL] = None
    """The same for the last evaluation."""
    eval_max_groups: Annotated[int | None, Range(1), _NO_EVALUATION] = None
    """Evaluate only this many first groups (ARC: tasks) of the split during training; null: all."""
    final_eval_max_groups: Annotated[int | None, Range(1), _NO_FINAL] = None
    """The same for the last evaluation."""
    eval_max_augmentations: Annotated[int | None, Range(1), _NO_EVALUATION] = None
    """Evaluate only this many first puzzles of each group (ARC: a task and its augmented copies) in training; null:
    all."""
    final_eval_max_augmentations: Annotated[int | None, Range(1), _NO_FINAL] = None
    """The same for the last evaluation."""
    eval_batch_size: Annotated[int | None, Range(1)] = None
    """Rows of one evaluation batch over all ranks; null: global_batch_size."""

    lr: Annotated[float, Range(0)] = 1e-4
    """Peak learning rate of the network."""
    lr_min_ratio: Annotated[float, Range(0, 1)] = 1.0
    """Final learning rate of the cosine decay as a share of the peak; 1: constant after the warm-up."""
    lr_warmup_steps: Annotated[int, Range(0)] = 2000
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decoupled weight decay of the network, for every parameter."""
    beta1: Annotated[float, Range(0, below=1)] = 0.9
    """First-moment decay of Adam-style optimizers."""
    beta2: Annotated[float, Range(0, below=1)] = 0.95
    """Second-moment decay of Adam-style optimizers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data_paths:
            raise ValueError("data_paths is empty: name at least one folder, e.g. data_paths=[data/sudoku-4x4]")
        for key in ("data_paths", "data_paths_test"):
            folders = [user_path(path).resolve() for path in getattr(self, key)]
            if twice := {folder for folder in folders if folders.count(folder) > 1}:
                raise ValueError(f"{key} names {min(twice)} twice: each set belongs there once")
        if self.eval_interval is not None and self.epochs % self.eval_interval:
            raise ValueError(
                f"eval_interval={self.eval_interval} does not divide epochs={self.epochs}: "
                f"choose e.g. eval_interval={_nearest_divisor(self.epochs, self.eval_interval)}"
            )


@dataclass(kw_only=True)
class PretrainConfig(EpisodeConfig):
    """Recursive reasoning with puzzle embeddings. Steps are optimizer steps, one ACT step for each slot."""

    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": RecursiveConfig}
    BEFORE: ClassVar[Mapping[str, Any]] = {
        **RunConfig.BEFORE,
        "data_order": "published",
        "select_on": "test",
        "validation_groups": None,
        **dict.fromkeys(("eval_max_groups", "final_eval_max_groups"), None),
        **dict.fromkeys(("eval_max_augmentations", "final_eval_max_augmentations"), None),
        "load_checkpoint": None,
    }

    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adam_atan2"})
    """Optimizer of the network (group config/optimizer); `rest`: the one for parameters that Muon does not update."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights that are passed on to the `loss:` block of the architecture."""
    data_order: Literal["hashed", "published"] = "hashed"
    """Seed of the order of training groups: a hash of seed and iteration, or their sum, as in the public code."""
    online_augmentation: bool = False
    """Augment each training example at random whenever it is offered, in addition to the stored copies; never into one
    with the answer of a test example. For data sets with symmetries: Sudoku, mazes."""
    epochs: Annotated[int, Range(1)] = 50000
    """Nominal passes over the groups of the training data: a slot that has not halted drops the example it is
    offered."""
    lr: Annotated[
        float, Range(0), Inert("freeze_weights=true", "freeze_weights=true: only the puzzle embedding is trained")
    ] = 1e-4
    """Peak learning rate of the network."""
    weight_decay: Annotated[float, Range(0), Inert("freeze_weights=true")] = 0.1
    """Decoupled weight decay of the network, for every parameter."""
    puzzle_emb_lr: Annotated[float, Range(0), _NO_EMBEDDING] = 1e-2
    """Peak learning rate of the puzzle embeddings (SignSGD)."""
    puzzle_emb_weight_decay: Annotated[float, Range(0), _NO_EMBEDDING] = 0.1
    """Decoupled weight decay of the embedding rows that a batch uses."""
    freeze_weights: bool = False
    """Train only the puzzle embeddings."""
    load_checkpoint: Annotated[str | None, NotBlank("a run or a checkpoint")] = None
    """Run or checkpoint of this script whose weights a new run starts from. Puzzle embeddings are matched by puzzle
    name; a new puzzle starts from their mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_checkpoint is not None and "/" in self.resume_from:
            raise ValueError(
                f"load_checkpoint={self.load_checkpoint} begins at step 0 with the weights alone, resume_from="
                f"{self.resume_from} at a later one with everything: drop one of them"
            )


def _nearest_divisor(number: int, near: int) -> int:
    """The divisor of `number` nearest to `near`, among those found in at most a million divisions."""
    small = [d for d in range(1, min(math.isqrt(number), 1_000_000) + 1) if number % d == 0]
    return min((each for d in small for each in (d, number // d)), key=lambda d: (abs(d - near), d))
