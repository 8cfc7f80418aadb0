"""Every key of `train.py`, with type, default and meaning: the strict schema of its `config/cfg_train*.yaml`.

The model's own keys are under `arch` (config/arch/gpt.yaml, models/language_models/config.py); their documented flags
(`--n_layer 4`) are aliases, see ALIASES. An iteration is an optimizer step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from engine.cli.translate import Groups, quote
from engine.config import NOT_IDENTITY as RUN_NOT_IDENTITY, RunConfig
from engine.errors import UsageError
from engine.fields import Inert, NotBlank, Range, value_at
from engine.io import did_you_mean, user_path
from engine.loop.schedule import Decay
from models.language_models.config import GPTConfig
from models.language_models.gpt2_config import GPT2_SIZES
from tasks.language_model.source import start_arch

LISTS = ("dataset_list", "multicontext_datasets", "dataset_sampling_probs", "dataset_sampling_probs_final")
ALIASES = {
    **{name.name: f"arch.{name.name}" for name in fields(GPTConfig)},
    "checkpoint_path": "run_dir",
    "wandb_log": "enable_wandb",
    "wandb_project": "project_name",
    "wandb_run_name": "run_name",
    "gradient_accumulation_steps": "accumulation",
    "dtype": "arch.forward_dtype",
    "patience": "early_stop_patience",
}
_OPTION = "an option of the optimizer: optimizer.options.NAME=VALUE (config/optimizer)"
_CURVE = "the curve ends at lr_decay_iters and min_lr; the rest are lr_scheduler.options (config/lr_scheduler)"
_KEEP = "checkpoint_interval, keep_last and keep_every decide what is kept; the best and the newest always are"
_SAMPLES = "samples are text alone, drawn by temperature and top_k"
_CONFIG = "--config file.json reads one; out_dir keeps config.yaml and config.resolved.yaml"
_PLACES = "pos_encodings=learned|rope|none"
FOREIGN_KEYS = {
    "gns_": "the batch does not follow the gradient noise scale: give batch_size; stats_interval=N measures gradients",
    **dict.fromkeys(("adamw_", "sgd_", "opt_", "lookahead_", "ademamix_", "sophiag_", "shampoo_"), _OPTION),
    **dict.fromkeys(
        ("cosine_t_max", "cosine_eta_min", "exponential_gamma", "step_lr_", "plateau_", "lr_decay_match_"), _CURVE
    ),
    **dict.fromkeys(("always_save_", "never_save_", "only_save_", "save_major_"), _KEEP),
    **dict.fromkeys(("use_rotary_", "use_abs_pos_"), _PLACES),
    **dict.fromkeys(("load_config_json", "save_config_json"), _CONFIG),
    "lr": "did you mean 'learning_rate'?",
    "dataset_sampling_learning_rate": "all data sets share one learning rate",
    "allow_arch_change": "a resumed run keeps its architecture; --init_from=prev_run begins another with its weights",
    "init_from_ckpt": "--init_from=resume takes the newest checkpoint, resume_from=best another",
    "sample_each_eval": "max_sample_tokens=N samples after each evaluation",
    "sample_only": "scripts/sample.py samples from a run",
    "sample_file": "out_dir/samples has a file for each evaluation",
    "interactive": "scripts/sample.py --prompt writes what continues a text",
    "multicontext_start": "scripts/sample.py takes a --prompt for each stream",
    "softmax_threshold": "scripts/sample.py has --min-p",
    **dict.fromkeys(("sample_metrics", "dataset_benchmarks", "cosine_penalty"), _SAMPLES),
    "init_variant": "init_std, embd_init_std, head_init_std and zero_init_proj are how weights begin",
    "vocab_sizes": "each data set says its own",
    "csv_": "enable_csv=true writes metrics.csv into out_dir",
    "tensorboard_": "enable_tensorboard=true logs into out_dir/tensorboard",
    "compute_model_stats": "stats_interval=N measures gradients, weights and updates",
    "backend": "it follows from device",
    "eta_variant": "the progress line has one estimate",
}
"""Flags of nanoGPT and ReaLLM-Forge that have another name here, or no counterpart."""
_SAMPLING = ("max_sample_tokens", "sample_start_tokens", "num_samples", "temperature", "top_k")
NOT_IDENTITY = {key: why for key, why in RUN_NOT_IDENTITY.items() if key != "accumulation"} | {
    "out_dir": "launch: where the run is stored",
    **dict.fromkeys(_SAMPLING, "logging: samples are read, not trained on"),
}
"""Unlike for other scripts, accumulation is part of the identity: here it makes the batch larger."""


def _no_horizon(config: Mapping[str, Any]) -> bool:
    name, gamma = value_at(config, "lr_scheduler.name"), value_at(config, "lr_scheduler.options.gamma")
    return name in ("step", "plateau", "inverse_sqrt") or (name == "exponential" and gamma is not None)


_CONSTANT = Inert("decay_lr=false", "decay_lr=false: the learning rate stays at its peak")
_SILENT = Inert("max_sample_tokens=null", "max_sample_tokens=null: no samples are written")
_UNTRAINED = Inert("eval_only=true", "eval_only=true: nothing is trained")


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """A GPT-style language model on one data set, a mixture of several, or aligned streams."""

    SHARDS: ClassVar[bool] = True
    NOT_IDENTITY: ClassVar[Mapping[str, str]] = NOT_IDENTITY
    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = FOREIGN_KEYS
    OPTIONS_BEFORE: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sophiah": {"p": 0.01}}
    """Optimizer -> options that its config file did not set in older versions, with the library's defaults."""
    BATCH_KEYS: ClassVar[tuple[str, ...]] = ("batch_size", "accumulation")
    FOLLOWS: ClassVar[Mapping[str, str]] = {"run_dir": "out_dir"}
    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": GPTConfig}

    arch: dict[str, Any]
    """The model: `name: module@Class` under models/, its hyperparameters, its `loss:` block (config/arch/)."""

    compile: Literal["auto", "off", "block", "full", "true", "false"] = "auto"  # type: ignore[assignment]
    """torch.compile: each block once, or the forward pass with its loss; auto: on CUDA in a long run; true is block."""

    dataset: Annotated[
        str,
        NotBlank("a data set, by its folder under data/"),
        Inert("training_mode!=single", "training_mode takes its data from a list"),
    ] = "shakespeare_char"
    """Folder of the data set: a name under data/, or a path."""
    out_dir: Annotated[str, NotBlank("the run's folder")] = "out"
    """Folder for checkpoints and logs."""
    offline: Literal["stand_in", "error"] = "stand_in"
    """If a named data set is missing: build its generated stand-in and say so, or end with an error."""

    init_from: Literal["scratch", "resume", "prev_run", "gpt2"] = "scratch"
    """Random weights; resume the run in out_dir; weights of prev_run_ckpt; OpenAI's GPT-2 (gpt2_type)."""
    gpt2_type: Annotated[str, Inert("init_from!=gpt2", "init_from is not gpt2")] = "gpt2"
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl (Hub cache), or a folder in transformers' format."""
    prev_run_ckpt: Annotated[str | None, NotBlank("a run, a checkpoint or a nanoGPT ckpt.pt")] = None
    """Run, checkpoint or nanoGPT ckpt.pt with the weights for init_from=prev_run; everything else starts afresh."""

    training_mode: Literal["single", "multidataset", "multicontext"] = "single"
    """One data set; several, each batch from one of them; or several aligned streams at once."""
    dataset_list: list[str] | None = None
    """Data sets of training_mode=multidataset; a name may occur twice."""
    dataset_sampling_probs: list[float] | None = None
    """Sampling weights of the data sets (any sum; null: uniform), or integer repeat counts with
    dataset_interleaving."""
    dataset_sampling_probs_final: list[float] | None = None
    """Weights at the end of the run."""
    dataset_sampling_probs_transition_method: Annotated[
        Literal["linear", "cosine", "exponential"],
        Inert("dataset_sampling_probs_final=null", "dataset_sampling_probs_final=null: the weights do not move"),
    ] = "linear"
    """How the weights change to dataset_sampling_probs_final."""
    dataset_interleaving: bool = False
    """Take the data sets in turn, in the order of the list, instead of at random."""
    dataset_interleaving_shuffle: bool = False
    """Reshuffle that order in every cycle."""
    multidataset_wte: bool = False
    """Give each data set its own token embedding and head over a shared trunk; false: all share one vocabulary."""
    multidataset_criterion: Annotated[
        Literal["first", "mean", "weighted"], Inert("training_mode!=multidataset", "training_mode is not multidataset")
    ] = "first"
    """Validation loss that selects the best checkpoint: that of the first data set, the mean, or weighted as
    sampled."""
    multicontext_datasets: list[str] | None = None
    """Aligned streams of training_mode=multicontext."""
    multicontext_align: Annotated[
        Literal["error", "truncate"], Inert("training_mode!=multicontext", "training_mode is not multicontext")
    ] = "error"
    """Streams of unequal length: refuse them, or cut all to the shortest."""

    accumulation: int = 1
    """Micro-batches per step: each adds batch_size sequences per process to the optimizer's batch."""
    batch_size: Annotated[int, Range(1)] = 64
    """Sequences per micro-batch and process; the batch of a step is ranks x accumulation times as large."""
    sampling_method: Literal["random", "without_replacement", "sequential"] = "random"
    """Windows at random offsets; each window once per epoch, shuffled; or in file order."""
    max_steps: Annotated[int | None, Range(1), Inert("max_steps>=max_iters", "the run ends before, at max_iters")] = (
        None
    )
    """Stop after this many iterations in all (a resumed run counts the earlier ones); null runs to the end."""
    max_iters: Annotated[int, Range(1), _UNTRAINED] = 3500
    """Iterations of the whole run."""

    eval_interval: Annotated[int, Range(1)] = 250
    """Iterations between evaluations; there is also one before the first iteration and one after the last."""
    eval_iters: Annotated[int | None, Range(1)] = 200
    """Maximum batches of each split in an evaluation; null: the whole split."""
    eval_mode: Literal["sweep", "random"] = "sweep"
    """Non-overlapping windows in fixed order (exact, cheap), or eval_iters random batches as in nanoGPT."""
    eval_train: bool = True
    """Also evaluate on an equal amount of the training split."""
    eval_only: bool = False
    """Evaluate once and exit."""

    learning_rate: Annotated[float, Range(0), _UNTRAINED] = 1e-3
    """Peak learning rate."""
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw"})
    """Optimizer (group config/optimizer): name, options, and `rest` for parameters that it does not update (Muon:
    vectors)."""
    weight_decay: Annotated[float, Range(0), _UNTRAINED] = 1e-1
    """Weight decay of matrices and embeddings, not of vectors; decoupled except in adam, sgd, rmsprop and adagrad."""
    beta1: Annotated[float, Range(0, below=1), _UNTRAINED] = 0.9
    """First-moment decay of Adam-style optimizers."""
    beta2: Annotated[float, Range(0, below=1), _UNTRAINED] = 0.99
    """Second-moment decay of Adam-style optimizers."""
    grad_clip: Annotated[float | None, Range(0)] = 1.0
    """Maximum norm of the gradient; 0: no clipping."""
    log_interval: int = 10
    """Iterations between lines of metrics."""
    seed: int = 1337
    """Every random number follows from it."""

    lr_scheduler: Annotated[Decay, _CONSTANT] = field(default_factory=Decay)
    """Learning-rate schedule (group config/lr_scheduler): none, cosine, linear, exponential, step, wsd, inverse_sqrt,
    plateau."""
    decay_lr: bool = False
    """Decay the learning rate; implied by every lr_scheduler but none, which then means cosine."""
    warmup_iters: Annotated[int, Range(0), _UNTRAINED] = 100
    """Iterations of linear warm-up."""
    lr_decay_iters: Annotated[int, Range(1), _CONSTANT, Inert(_no_horizon, "this lr_scheduler has no horizon")] = 3500
    """Iteration at which the learning rate reaches min_lr."""
    min_lr: Annotated[float, Range(0), _CONSTANT] = 1e-4
    """Minimum learning rate."""

    max_sample_tokens: Annotated[int | None, Range(1)] = None
    """Write samples of this many tokens after each evaluation; null: none."""
    sample_start_tokens: Annotated[str, _SILENT] = "\n"
    """Prompt of the samples; FILE:path reads it from a file."""
    num_samples: Annotated[int, Range(1), _SILENT] = 1
    """Samples for each value of top_k."""
    temperature: Annotated[float, Range(above=0, hint="top_k=[1] takes the likeliest token"), _SILENT] = 0.8
    """Sampling temperature."""
    top_k: Annotated[list[int], Range(1), _SILENT] = field(default_factory=lambda: [200])
    """Sample from the K most likely tokens; several values give one sample each."""

    def __post_init__(self) -> None:
        if self.grad_clip == 0:
            self.grad_clip = None
        self.compile = {"true": "block", "false": "off"}.get(self.compile, self.compile)  # type: ignore[assignment]
        super().__post_init__()
        if not self.top_k:
            raise ValueError("top_k=[]: expected integers, each at least 1, e.g. top_k=[200]")
        if self.decay.name == "exponential" and self.decay.option("gamma") is None and self.min_lr == 0:
            raise ValueError(
                "lr_scheduler=exponential reaches no min_lr of 0: give min_lr, or lr_scheduler.options.gamma=0.999"
            )
        if self.min_lr > self.learning_rate and self.decay_lr:
            raise ValueError(
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}: lower min_lr, or --no-decay_lr"
            )
        if self.eval_only and self.resume == "true":
            raise ValueError(
                "eval_only=true evaluates the weights a run starts with: scripts/evaluate.py RUN does a run's"
            )
        self._check_mode()
        self._check_start()

    def _check_mode(self) -> None:
        needed = {"multidataset": "dataset_list", "multicontext": "multicontext_datasets"}
        for mode, key in needed.items():
            if self.training_mode == mode and not getattr(self, key):
                second = "stdlib_char" if mode == "multidataset" else "shakespeare_class"  # streams annotate one text
                raise ValueError(f"training_mode={mode} needs {key}, e.g. --{key} shakespeare_char {second}")
            if self.training_mode != mode and getattr(self, key):
                raise ValueError(
                    f"{key} has no meaning with training_mode={self.training_mode}: add training_mode={mode}"
                )
        streams, loss = self.multicontext_datasets or [], self.arch.get("loss")
        weights = loss.get("stream_weights") if isinstance(loss, Mapping) else None
        if streams and isinstance(weights, list) and len(weights) != len(streams):
            raise ValueError(f"arch.loss.stream_weights={weights}: expected {len(streams)} numbers, one per stream")
        if self.training_mode != "multidataset":
            for key in (
                "dataset_sampling_probs",
                "dataset_sampling_probs_final",
                "dataset_interleaving",
                "multidataset_wte",
            ):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} has no meaning with training_mode={self.training_mode}: it mixes a dataset_list"
                    )
        if self.dataset_interleaving_shuffle and not self.dataset_interleaving:
            raise ValueError("dataset_interleaving_shuffle shuffles an order: add dataset_interleaving=true")
        if self.eval_mode == "random" and self.eval_iters is None:
            raise ValueError("eval_mode=random needs eval_iters: there is no last random batch")

    def _check_start(self) -> None:
        if (self.init_from == "prev_run") != (self.prev_run_ckpt is not None):
            raise ValueError("init_from=prev_run and prev_run_ckpt=RUN belong together: give both or none")
        if self.gpt2_type not in GPT2_SIZES and not user_path(self.gpt2_type).is_dir():
            raise ValueError(f"gpt2_type={self.gpt2_type}: expected one of {', '.join(GPT2_SIZES)}, or a folder")

    @property
    def before(self) -> Mapping[str, Any]:
        """BEFORE, plus the optimizer options that older configs did not set."""
        options = self.OPTIONS_BEFORE.get(str(self.optimizer.get("name")), {})
        return {**self.BEFORE, **{f"optimizer.options.{name}": value for name, value in options.items()}}

    @property
    def decay(self) -> Decay:
        """The decay of the learning rate that is in effect."""
        if not self.decay_lr:
            return Decay()
        return self.lr_scheduler if self.lr_scheduler.name != "none" else Decay(name="cosine")


def rewrite(words: Sequence[str], groups: Groups, typed: dict[str, str] | None = None) -> list[str]:
    """Rewrite documented overrides that map to other keys here, in Hydra's syntax.

    init_from=resume -> resume=true; init_from=gpt2-medium -> init_from=gpt2 gpt2_type=gpt2-medium; gpt2 and prev_run
    add the architecture of their weights unless one is named; an optimizer without a config file -> the generic one,
    with weight_decay if it is set; compile=true/false -> block/off; a list item with blanks is split.
    `typed` is filled with rewritten override -> what the user typed.
    """
    changed: list[str] = []
    origins = {} if typed is None else typed
    for word in words:
        key, equals, value = word.partition("=")
        name, plain = key.lstrip("+"), value.strip("'\"")
        if not equals:
            changed.append(word)
        elif name == "init_from" and plain == "resume":
            changed.append("resume=true")
            origins["resume=true"] = "init_from=resume"
        elif name == "init_from" and plain in GPT2_SIZES:
            changed += ["init_from=gpt2", *([f"gpt2_type={plain}"] if plain != "gpt2" else [])]
            origins |= {
                f"init_from=gpt2 gpt2_type={plain}": f"init_from={plain}",
                f"gpt2_type={plain}": f"init_from={plain}",
            }
        elif name == "init_from" and plain.startswith("gpt2"):
            raise UsageError(f"init_from={plain}: {did_you_mean(plain, GPT2_SIZES)}")
        elif name == "optimizer" and _without_file(plain, groups.options["optimizer"]):
            changed += ["optimizer=pytorch_optimizer", f"optimizer.name={plain}"]
            origins["optimizer.name"] = "optimizer"
        elif name == "compile" and plain in ("true", "false"):
            changed.append(f"{key}={'block' if plain == 'true' else 'off'}")
            origins[changed[-1].lstrip("+")] = f"compile={plain}"
        elif name in LISTS:
            changed.append(f"{key}={_split_items(value)}")
        else:
            changed.append(word)
    return [*changed, *_generic_weight_decay(changed), *start_arch(changed)]


def _without_file(value: str, files: Collection[str]) -> bool:
    """Whether an optimizer, or all of a sweep (a,b), have no config file, so that the generic one looks them up.

    Raises: UsageError for a sweep that mixes both kinds.
    """
    names = [name.strip() for name in value.split(",")]
    foreign = [name for name in names if name not in files]
    if not all(name.isidentifier() for name in names) or not foreign:
        return False
    if len(foreign) < len(names):
        raise UsageError(
            f"optimizer={value}: there is no optimizer={foreign[0]}: {did_you_mean(foreign[0], files)} One of the "
            "pytorch-optimizer library cannot be in a sweep with those that have a file"
        )
    return True


def _generic_weight_decay(words: Sequence[str]) -> list[str]:
    """Pass weight_decay, if the command sets it, to an optimizer without a config file that would refer to it."""
    keys = {word.lstrip("+").partition("=")[0] for word in words}
    option = "optimizer.options.weight_decay"
    generic = "optimizer=pytorch_optimizer" in (word.lstrip("+") for word in words)
    return [f"+{option}=${{weight_decay}}"] if generic and "weight_decay" in keys and option not in keys else []


def _split_items(value: str) -> str:
    """[a,'b c'] -> [a,b,c]: split items at blanks."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    items = [part for item in value[1:-1].split(",") for part in item.strip().strip("'\"").split()]
    return "[" + ",".join(quote(item) if item.startswith("~") else item for item in items) + "]"
