"""Every key of the feedback scripts, with type, default and meaning: the schema of `config/cfg_feed*.yaml`.

Sizes, lengths and rates default to the published ones; other differences are noted at the key. The sections of a config
file (`datasets`, `model`, `diffusion`, `training`) map to the same keys, see aliases.py. An epoch is one pass over the
training documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from engine.config import NOT_IDENTITY as RUN_NOT_IDENTITY, RunConfig, is_folder_name
from engine.fields import Inert, NotBlank, Range, check_fields
from engine.io import did_you_mean
from engine.loop.schedule import Decay
from engine.registry import ROOT
from models.feedback.adapter_config import HyperConfig
from models.feedback.config import BaseConfig
from tasks.feedback.aliases import DONE_ANYWAY, FOREIGN_KEYS

INDOMAIN_KEYS = ("indomain_checkpoint_dir", "indomain_checkpoint_name")
MOST_LEVELS = 4096
"""Limit of eval_t_grid: more than most texts have tokens."""
EPOCHS = 100
"""Default number of epochs for a data set that `epochs` does not list."""
NOT_IDENTITY = {
    **RUN_NOT_IDENTITY,
    "save_epoch_interval": "launch: what to keep",
    "out_dir": "launch: where runs lie",
    **dict.fromkeys(("ff_run_name", "fb_run_name", "fb_rec_run_name"), "logging: a label"),
    **dict.fromkeys(
        (
            *("evaluators", "answer_examples", "num_samples"),
            *("generation_steps", "generation_schedule", "temperature", "block_length"),
        ),
        "logging: text is shown and judged, not trained on",
    ),
}


@dataclass(kw_only=True)
class DatasetConfig:
    """An entry of `datasets`."""

    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = {
        "config_name": "a launch downloads nothing; python -m dataset.build_text_dataset does",
        "max_seq_length": "block_size is the longest piece, and arch.block_size what positions there are",
    }

    name: Annotated[str, NotBlank("a text data set: gsm8k, wikitext, or one of your own")]
    """What it is called under data/, together with its tokenizer: data/<name>_<tokenizer_name>."""
    path: Annotated[str | None, NotBlank("a folder")] = None
    """Folder of a built text data set (docs/text-data.md) to use in place of the one under data/."""
    tokenizer_name: str = "byte"
    """Its tokenizer."""
    block_size: Annotated[int, Range(2)] = 512
    """Longest piece of a document, in tokens."""

    def __post_init__(self) -> None:
        check_fields(self, "datasets.*")

    @property
    def folder(self) -> str:
        """The folder of its token files."""
        return self.path or f"data/{self.name}_{self.tokenizer_name}"


@dataclass(kw_only=True)
class FeedforwardConfig(RunConfig):
    """The base: a language model that fills in masked text."""

    SHARDS: ClassVar[bool] = True
    REQUIRED: ClassVar[Mapping[str, str]] = {"active_dataset": "gsm8k"}
    CONFIG_FILE: ClassVar[str] = str(ROOT / "config.json")
    NOT_IDENTITY: ClassVar[Mapping[str, str]] = NOT_IDENTITY
    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = FOREIGN_KEYS
    DONE_ANYWAY: ClassVar[Mapping[str, tuple[Any, ...]]] = DONE_ANYWAY
    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": BaseConfig}

    arch: dict[str, Any]
    """The model: `name: module@Class` under models/, its hyperparameters, its `loss:` block (config/arch/)."""

    active_dataset: str = ""
    """The data set to train on: a key of `datasets`. Required."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    """The available data sets: key -> name, path, tokenizer_name, block_size."""
    offline: Literal["stand_in", "error"] = "stand_in"
    """If a data set is missing: build its generated stand-in and say so, or end with an error."""
    out_dir: Annotated[str, NotBlank("a folder")] = ".out"
    """Folder of all runs: <out_dir>/<active_dataset>/<run name>_<time>."""
    ff_run_name: str = "ff_model"
    """Prefix of the folder name of a base."""
    fb_run_name: str = "fb_model"
    """Prefix of the folder name of a hypernetwork with a block for each block of the base."""
    fb_rec_run_name: str = "fb_rec_model"
    """Prefix of the folder name of a recurrent hypernetwork."""
    checkpoint_dir: str | None = None
    """With resume: the run to resume, a name under <out_dir>/<active_dataset>/ or a path; null: the newest."""
    checkpoint_name: str | None = None
    """With resume: its checkpoint, such as epoch_ckpt_gsm8k.pt; null: the newest."""
    compile: Literal["auto", "off", "block", "full", "true", "false"] = "auto"  # type: ignore[assignment]
    """torch.compile: each block once, or the forward pass with its loss; auto: on CUDA in a long run; true is block."""
    step_graph: Annotated[Literal["auto", "off"], Inert("", "its batches differ in shape")] = "auto"  # type: ignore[assignment]
    """Not available here: no step is captured."""
    enable_csv: Annotated[bool, Inert("", "metrics.csv is the published table of evaluations")] = False
    """No effect here: metrics.csv is always written, and metrics.jsonl has all figures."""

    epochs: dict[str, int] = field(default_factory=dict)
    """Data set -> passes over its training documents; 100 if a data set is not listed."""
    total_steps: Annotated[int | None, Range(1)] = None
    """Length of the run in steps, regardless of `epochs`; null: as given by the epochs."""
    batch_size: Annotated[int, Range(1)] = 64
    """Pieces of documents per step, over all processes."""
    learning_rate: Annotated[float, Range(0)] = 3e-4
    """Peak learning rate."""
    decay_lr: bool = True
    """Warm-up, then cosine decay to min_lr; false: constant."""
    warmup_ratio: Annotated[float, Range(0, below=1), Inert("decay_lr=false")] = 0.1
    """Warm-up as a share of the run: step s of w has s / w of the peak."""
    min_lr: Annotated[float, Range(0), Inert("decay_lr=false")] = 3e-5
    """Learning rate at the end."""
    weight_decay: Annotated[
        float,
        Range(0),
        Inert("arch.name=feedback.static_lora@StaticLora", "a static LoRA has no decayed matrix"),
    ] = 0.1
    """Decoupled weight decay of matrices; embeddings, gates and other vectors have none (published: 0.01 for
    everything)."""
    beta1: Annotated[float, Range(0, below=1)] = 0.9
    """First-moment decay of AdamW."""
    beta2: Annotated[float, Range(0, below=1)] = 0.99
    """Second-moment decay of AdamW (published: 0.999)."""
    grad_clip: float | None = 1.0
    """Maximum norm of the gradient; 0: no clipping."""
    eps: Annotated[float, Range(0, below=1)] = 1e-3
    """Minimum masking rate: p = (1 - eps) t + eps."""
    stratified: bool = True
    """Spread the times t of a batch evenly over 0 to 1, which reduces noise in the loss; false (published): draw each
    independently."""
    log_interval: Annotated[int, Range(1)] = 10
    """Steps between lines of metrics."""

    select_on: Literal["validation", "test"] = "validation"
    """Split that selects the best checkpoint and stops early: held-out training documents, one in 20, or (published)
    the test split."""
    eval_interval: Annotated[int | None, Range(1)] = None
    """Steps between evaluations; null: at the end of each epoch."""
    save_epoch_interval: Annotated[int | None, Range(1)] = 10
    """Also keep the checkpoint of every Nth epoch: epoch_ckpt_<dataset>_<epoch>.pt links to it; null: none."""
    eval_max_examples: Annotated[int | None, Range(1)] = None
    """Maximum number of pieces of documents to evaluate, always the same ones; null: all."""
    eval_samples: Annotated[int, Range(1)] = 1
    """Evaluations of each piece, with masks of different rates."""
    eval_t_grid: Annotated[
        int | list[float], Inert("arch.objective=autoregressive", "an autoregressive base has no masks")
    ] = 16
    """Masking times t of evaluations, of which each piece has one in turn: n for 1/n, 2/n, ..., 1; or a list."""
    evaluators: list[dict[str, Any]] = field(default_factory=list)
    """Evaluators of the answers written by the last evaluation, e.g. `{name: final_number@FinalNumber}`."""
    answer_examples: Annotated[int | None, Range(1), Inert("evaluators=[]")] = 64
    """Documents to answer for the evaluators, always the same ones; null: all that fit into a block."""
    num_samples: Annotated[int, Range(0)] = 1
    """Test documents for which each evaluation writes a continuation; 0: none."""
    generation_steps: Annotated[int, Range(1)] = 10
    """Steps in which an answer or sample is filled in."""
    generation_schedule: Literal["cosine", "linear"] = "cosine"
    """Tokens fixed per step: few at first, then more; or the same number in each."""
    temperature: Annotated[float, Range(0)] = 0.0
    """Sampling temperature of answers and samples; 0: the most likely token."""
    block_length: Annotated[int | None, Range(1)] = None
    """Fill in blocks of this many tokens from left to right, each in generation_steps; null: all at once."""

    def __post_init__(self) -> None:
        if self.grad_clip == 0:
            self.grad_clip = None
        self.enable_csv = False  # the report writes a file of the same name
        self.compile = {"true": "block", "false": "off"}.get(self.compile, self.compile)  # type: ignore[assignment]
        super().__post_init__()
        for key in ("ff_run_name", "fb_run_name", "fb_rec_run_name"):
            if not (name := getattr(self, key)).strip() or not is_folder_name(name):
                raise ValueError(f"{key}={name[:40]!r}: expected what begins a folder's name; a path is out_dir's")
        resumes = self.resume == "true" and not self.datasets  # the resumed run brings its own datasets
        if self.active_dataset not in self.datasets and not resumes:
            known = ", ".join(self.datasets) or "none"
            if not self.active_dataset:
                raise ValueError(f"active_dataset is required and has no value: choose a key of datasets, {known}")
            raise ValueError(
                f"active_dataset={self.active_dataset} is not a key of datasets, which has {known}: "
                + did_you_mean(self.active_dataset, self.datasets)
            )
        grid = self.eval_t_grid
        whole = isinstance(grid, int) and 1 <= grid <= MOST_LEVELS
        if not whole and not (isinstance(grid, list) and grid and all(0 < t <= 1 for t in grid)):
            raise ValueError(
                f"eval_t_grid={grid}: expected a number of levels from 1 to {MOST_LEVELS}, or a list of times t, each "
                "more than 0 and at most 1: eval_t_grid=16, or eval_t_grid=[0.25,0.5,1.0]"
            )
        for name, count in self.epochs.items():
            if count < 1:
                raise ValueError(f"epochs.{name}={count}: expected at least 1")
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}: lower it, or --no-decay_lr"
            )

    @property
    def dataset(self) -> DatasetConfig:
        """The entry of the active data set."""
        return self.datasets[self.active_dataset]

    @property
    def eval_levels(self) -> tuple[float, ...]:
        """The times t of the evaluation's masks."""
        grid = self.eval_t_grid
        return tuple(grid) if isinstance(grid, list) else tuple(level / grid for level in range(1, grid + 1))

    @property
    def decay(self) -> Decay:
        """The decay of the learning rate after the warm-up."""
        return Decay(name="cosine" if self.decay_lr else "none")


@dataclass(kw_only=True)
class FeedbackConfig(FeedforwardConfig):
    """A hypernetwork, or another adapter, of a frozen base."""

    SHARDS: ClassVar[bool] = False
    NOT_IDENTITY: ClassVar[Mapping[str, str]] = {
        **NOT_IDENTITY,
        "model": "launch: the base's checkpoint decides",
        **dict.fromkeys(INDOMAIN_KEYS, "logging: a figure more, nothing is trained on it"),
        "feedback_every": "logging: text is shown and judged, not trained on",
    }
    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = {
        "arch.lora_rank": "this architecture trains whole matrices: leave it out",
        "arch.forward_dtype": "this architecture computes in its base's dtype: leave it out",
    }
    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": HyperConfig}
    REQUIRED: ClassVar[Mapping[str, str]] = {
        **FeedforwardConfig.REQUIRED,
        "ff_checkpoint_dir": ".out/gsm8k/ff_model_2025-08-17_10-00-00",
        "ff_checkpoint_name": "epoch_ckpt_gsm8k.pt",
        "arch.lora_rank": "4",
    }
    FOLLOWS: ClassVar[Mapping[str, str]] = {"arch.lora_rank": "lora_rank"}

    ff_checkpoint_dir: Annotated[str, NotBlank("the run of a base")]
    """The base: a run of feedforward_train.py, a name under <out_dir>/<active_dataset>/ or a path."""
    ff_checkpoint_name: Annotated[str, NotBlank("a checkpoint of that run, such as epoch_ckpt_gsm8k.pt")]
    """Checkpoint of the base: a name in that folder."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the base in a config file; the base's own checkpoint takes precedence, and differences are
    printed."""
    learning_rate: Annotated[float, Range(0)] = 3e-4
    """Peak learning rate of the hypernetwork."""
    indomain_checkpoint_dir: Annotated[str | None, NotBlank("a run of feedforward_train.py")] = None
    """Base trained on the active data set, given as ff_checkpoint_dir is: evaluations report the fraction of the gap
    to it that the deltas close; null: not reported."""
    indomain_checkpoint_name: Annotated[
        str | None, NotBlank("a checkpoint of that run"), Inert("indomain_checkpoint_dir=null")
    ] = None
    """Checkpoint of the in-domain base; null: best_ckpt_<active_dataset>.pt."""
    feedback_every: Annotated[int, Range(1)] = 1
    """Recompute the deltas in every Nth step of filling in text; the steps between reuse them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch.get("lora_rank", 1) is None and self.resume != "true":
            raise ValueError("lora_rank is required and has no value: add --lora_rank 4")
