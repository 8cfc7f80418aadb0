"""The config that all entry scripts share, and how a composed one becomes a checked object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from engine.errors import UsageError
from engine.fields import Inert, NotBlank, Range, check_fields
from engine.schema import is_contradiction, structure, with_defaults

C = TypeVar("C", bound="RunConfig")
E = TypeVar("E", bound=BaseException)
# first line of a stored config: a resume needs the chosen groups, which the YAML alone does not have
HEADER = "# composed from "

MOST_THREADS = 1024  # per process: beyond the machine's limit the thread library crashes
LONGEST_NAME = 200  # file systems allow 255 bytes; a set-aside run and a temporary file add some

NOT_IDENTITY: Mapping[str, str] = {
    "script": "launch: the entry is stored beside the config",
    "device": "device: the same run continues on another machine",
    "attention": "device: kernels differ in rounding only",
    "threads": "device: speed only",
    **dict.fromkeys(("deterministic", "compile", "step_graph"), "device: rounding only"),
    "parallel": "device: flat, ddp and fsdp give the same numbers",
    "accumulation": "device: the gradient is that of the global batch however it is split",
    **dict.fromkeys(("max_steps", "max_seconds"), "budget: where to stop, not what to do on the way"),
    "max_skipped_steps": "budget: when to give up",
    **dict.fromkeys(("early_stop_patience", "early_stop_min_delta"), "budget: when to stop"),
    **dict.fromkeys(("log_interval", "profile_steps", "enable_csv", "enable_tensorboard", "enable_wandb"), "logging"),
    "stats_interval": "logging: norms are read, nothing is changed",
    **dict.fromkeys(("wandb_entity", "wandb_group"), "logging: a label"),
    "wandb_tags": "logging: labels",
    "verify": "launch: what is checked, not what is done",
    "project_name": "logging: a label (and part of the folder's name)",
    "run_name": "logging: a label; an unfinished run resumes also under a time-stamped name",
    **dict.fromkeys(("checkpoint_interval", "checkpoint_background"), "launch: how often and how to save"),
    **dict.fromkeys(("keep_last", "keep_every"), "launch: what to keep"),
    **dict.fromkeys(("resume", "resume_from", "skip_finished"), "launch"),
    "run_dir": "launch: where the run is stored",
}
"""Keys that are not part of a run's identity, with reasons. A script's schema may have its own table."""

RETIRED = {"compile_cuda_graphs": "it is gone; step_graph=auto is the graph of a whole step"}
"""Keys in stored configs of older runs that nothing reads any more -> their replacement."""

OURS = "LOOPFORGE_"  # prefix of the environment variables between our own processes
SLURM = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_TMPDIR")
ENVIRONMENT = {"HOME", "HOSTNAME", "LOGNAME", "PWD", "SCRATCH", "TMPDIR", "USER", "WORK", *SLURM}
"""Variables that `${oc.env:NAME}` may read: names of places, people and jobs."""


def _environment_value(name: str = "", *default: Any) -> Any:
    """`${oc.env:NAME}` and `${oc.env:NAME,default}`. Resolved configs are stored with runs, so no secret may be read.

    Raises: UsageError for a variable that is not in ENVIRONMENT, or is not set and has no default.
    """
    if name not in ENVIRONMENT and not name.startswith(OURS):
        raise UsageError(
            f"${{oc.env:{name}}}: its value would be stored with the run, so a config reads only "
            f"{', '.join(sorted(ENVIRONMENT))}; if it is not a secret, the shell can write it: key=${name}"
        )
    if name in os.environ:
        return os.environ[name]
    if not default:
        raise UsageError(
            f"${{oc.env:{name}}}: this variable is not set: write the value, or ${{oc.env:{name},DEFAULT}}"
        )
    return default[0] if default[0] is None else str(default[0])


OmegaConf.register_new_resolver("oc.env", _environment_value, replace=True)


def is_folder_name(text: str) -> bool:
    """Whether a folder may have that name; spaces, quotes and all alphabets are fine."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # an incomplete character, from a terminal with another encoding
        return False
    return size <= LONGEST_NAME and "/" not in text and "\0" not in text


def _unused_label(config: Mapping[str, Any]) -> bool:
    """Whether project_name is used by neither the run's folder nor wandb."""
    run_dir = config.get("run_dir")
    named = not run_dir or str(config.get("project_name")) in str(run_dir)
    return "run_dir" in config and not named and not config.get("enable_wandb")


_EMA_SHARE = Inert("ema_share!=null", "ema_share sets the decay")


@dataclass(kw_only=True)
class RunConfig:
    """The keys of every entry script (config/base/run.yaml). Steps are optimizer steps."""

    SHARDS: ClassVar[bool] = False
    """Whether the script supports parallel=fsdp."""
    SHARED: ClassVar[bool] = True
    """Whether the defaults come with config/base/run.yaml; those of a script's schema come with its own base file."""
    NOT_IDENTITY: ClassVar[Mapping[str, str]] = NOT_IDENTITY
    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = RETIRED | {"hydra.launcher.n_jobs": "add hydra/launcher=joblib"}
    """Keys of similar programs (or, ending in `_`, a prefix of keys) -> our replacement, for messages."""
    BEFORE: ClassVar[Mapping[str, Any]] = {"eval_seed": "${seed}"}
    """Keys added later -> what a run stored without them did: a value, or another key's value as `${key}`."""
    BATCH_KEYS: ClassVar[tuple[str, ...]] = ()
    """Keys whose product is each process's share of the batch, rows first; empty if one key is the global batch."""
    FOLLOWS: ClassVar[Mapping[str, str]] = {}
    """Keys that take their value from another key unless they are set -> that key, for messages."""
    REQUIRED: ClassVar[Mapping[str, str]] = {}
    """Keys that every command has to give -> an example."""
    CONFIG_FILE: ClassVar[str | None] = None
    """The JSON file to read if a command has no --config."""
    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {}
    """Blocks of free keys -> the dataclass that declares their keys, for --help."""

    script: str | None = None
    """Entry script of this file, e.g. pretrain.py; other scripts refuse it."""

    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:N."""
    attention: Literal["auto", "sdpa", "flash", "math"] = "auto"
    """Attention kernel; math is the slow, exact reference."""
    threads: Annotated[int | None, Range(1, MOST_THREADS)] = None
    """CPU threads of torch for each process; null leaves torch's choice."""
    deterministic: bool = False
    """Ask torch for deterministic kernels (slower; an operation without one is an error)."""
    seed: Annotated[int, Range(0, below=2**63)] = 0
    """Every random number of training follows from it."""
    eval_seed: Annotated[int, Range(0, below=2**63)] = 0
    """Seed of the subset that an evaluation uses if it does not use all examples; independent of the training seed."""
    parallel: Literal["flat", "ddp", "fsdp"] = "flat"
    """How ranks share gradients: one flat all-reduce, torch's DDP, or FSDP2 (sharded parameters). Same numbers."""
    accumulation: Annotated[int, Range(1)] = 1
    """Micro-batches per step: pretrain.py splits its batch (less memory); in train.py they make the batch larger."""
    compile: Literal["auto", "off", "block", "full"] = "auto"
    """torch.compile for training steps: each block, or the whole forward pass with its loss; auto: on CUDA in long
    runs."""
    step_graph: Literal["auto", "off", "on"] = "auto"
    """Run each step as one CUDA graph (one process only); auto: if the script's steps support it."""

    max_steps: Annotated[int | None, Range(1)] = None
    """Stop after this many steps in total (including those before a resume); null: run to the end."""
    max_seconds: Annotated[float | None, Range(above=0)] = None
    """Stop after this many seconds of training steps in total (compiling counts, evaluating and saving do not); null:
    no limit."""
    grad_clip: Annotated[float | None, Range(above=0)] = None
    """Maximum norm of the global gradient; null: no clipping."""
    ema: bool = False
    """Keep an exponential moving average of the weights and evaluate with it."""
    ema_rate: Annotated[float, Range(0, below=1, hint="e.g. ema_rate=0.999"), Inert("ema=false"), _EMA_SHARE] = 0.999
    """Decay of that average per step."""
    ema_share: Annotated[float | None, Range(above=0, high=1), Inert("ema=false")] = None
    """Time constant of that average as a share of the run's steps n: the decay is exp(-1 / (ema_share n))."""
    max_skipped_steps: Annotated[int, Range(0)] = 10
    """Steps in a row with non-finite gradients, each skipped, before the run fails."""
    early_stop_patience: Annotated[int | None, Range(1)] = None
    """Stop after this many evaluations in a row without a better primary metric; null: never."""
    early_stop_min_delta: Annotated[float, Range(0), Inert("early_stop_patience=null")] = 0.0
    """A metric counts as better only if it improves by more than this."""

    log_interval: Annotated[int, Range(1)] = 1
    """Steps between lines of metrics."""
    stats_interval: Annotated[int | None, Range(1)] = None
    """Steps between logged norms of gradients, weights and updates for each parameter group; null: none."""
    profile_steps: Annotated[int | None, Range(1)] = None
    """Profile this many steps of this process after two warm-up steps, into RUN/profile; null: none."""
    checkpoint_interval: Annotated[int | None, Range(1)] = None
    """Steps between checkpoints; null: only at evaluations, signals and the end."""
    checkpoint_background: bool | None = None
    """Write periodic checkpoints in the background, from a copy in memory; null: for models of 256 MB and more."""
    keep_last: Annotated[int, Range(1)] = 2
    """Number of newest checkpoints to keep (best and latest are always kept)."""
    keep_every: Annotated[int | None, Range(1)] = None
    """Also keep every checkpoint whose step is a multiple of this."""
    resume: Literal["auto", "true", "false"] = "auto"
    """auto resumes an unfinished run of the same identity, true requires one, false starts a new run."""
    resume_from: str = "latest"
    """latest, best, step_N, or the path of a checkpoint."""
    skip_finished: bool | None = None
    """Do nothing if a run of this identity and length is finished; null: in sweeps only."""

    verify: Literal["off", "warn", "strict"] = "strict"
    """Verify the path from command to model before a launch: strict stops at a FAIL, warn only prints it, off skips
    it."""
    project_name: Annotated[str | None, Inert(_unused_label, "run_dir does not contain it, wandb is off")] = None
    """Project of the run: a folder under checkpoints/ and the wandb project."""
    run_name: str | None = None
    """Name of the run; null: generated from recipe and identity."""
    run_dir: Annotated[str | None, NotBlank("a folder")] = None
    """Folder for everything that the run writes."""
    enable_csv: bool = False
    """Also write metrics.csv, one table with a column for each metric (metrics.jsonl is always written)."""
    enable_tensorboard: bool = False
    """Also log to TensorBoard, under RUN/tensorboard."""
    enable_wandb: bool = False
    """Also log to Weights & Biases; the variables WANDB_MODE, WANDB_DIR and WANDB_DISABLED are honoured."""
    wandb_entity: Annotated[str | None, Inert("enable_wandb=false")] = None
    """wandb user or team; null: the account's own."""
    wandb_group: Annotated[str | None, Inert("enable_wandb=false")] = None
    """wandb group, to show several runs as one."""
    wandb_tags: Annotated[list[str], Inert("enable_wandb=false")] = field(default_factory=list)
    """wandb tags."""

    @property
    def before(self) -> Mapping[str, Any]:
        """BEFORE, and further keys that depend on choices of the config."""
        return self.BEFORE

    @property
    def from_file(self) -> bool:
        """Whether this config is read from a run's files (resume=true, a reopened checkpoint): its data must exist, and
        are never built or downloaded.
        """
        return self.resume == "true"

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("project_name", "run_name"):
            name = getattr(self, key)
            parts = [] if name is None else name.split("/") if key == "project_name" else [name]
            if not all(part.strip() and part not in (".", "..") and is_folder_name(part) for part in parts):
                what = f"a folder's name of at most {LONGEST_NAME} bytes, not '.' or '..'"
                slash = "; a path is run_dir's" if key == "run_name" and "/" in str(name) else ""
                raise ValueError(f"{key}={(name or '')[:40]!r}: expected {what}{slash}")
        if self.parallel == "fsdp" and not self.SHARDS:
            raise ValueError("parallel=fsdp: only train.py and feedforward_train.py take it, here it is flat or ddp")
        if self.step_graph == "on" and self.device.partition(":")[0] in ("cpu", "mps"):
            raise ValueError(f"step_graph=on is for device=cuda, this is device={self.device}: leave it at auto")
        if self.resume == "false" and self.resume_from != "latest":
            raise ValueError(f"resume=false contradicts resume_from={self.resume_from}: drop one of them")


@dataclass(frozen=True)
class ConfigSource:
    """Where a config came from. `yaml` keeps the interpolations; its first line names the choices."""

    yaml: str
    resolved: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    config_name: str | None = None
    choices: dict[str, str | None] = field(default_factory=dict)
    overlay: bool = False
    """Whether the overrides are for a stored run's config (resume=true): they need not fit the recipe's values."""


def load_synced_config(
    hydra_config: DictConfig,
    rank: int = 0,
    world_size: int = 1,
    *,
    schema: type[C],
    entry: str | None = None,
) -> C:
    """Resolve and check a composed config; every rank returns rank 0's (over the process group).

    `entry` is the running script's name (Hydra's job name if None), compared with the config's `script`.
    Raises: UsageError for anything wrong in the config.
    """
    source = _source(hydra_config)
    _check_script(source, entry)
    config = read_source(schema, source)  # each rank checks its own first, so that a bad config hangs no rank
    if world_size > 1:
        from engine.distributed import broadcast_object  # lazily: it imports numpy

        config = read_source(schema, ConfigSource(**broadcast_object(vars(source) if rank == 0 else None)))
    return config


def read_source(schema: type[C], source: ConfigSource) -> C:
    """The checked config of `source`. If it is an overlay whose values contradict the recipe, only the keys that find
    the stored run: the rest is checked together with the run's config.

    Raises: UsageError.
    """
    source = replace(source, resolved=with_defaults(schema, source.resolved))
    try:
        config = structure(schema, source.resolved)
    except UsageError as error:
        if not source.overlay or not is_contradiction(error):
            raise with_place(error, source) from error
        needed = [each.name for each in fields(schema) if each.default is each.default_factory]  # both missing
        finding = {key: value for key, value in source.resolved.items() if key in {*schema.NOT_IDENTITY, *needed}}
        config = structure(schema, with_defaults(schema, finding))
    vars(config)["_source"] = source
    return config


def with_place(error: UsageError, source: ConfigSource) -> UsageError:
    """`error`, prefixed with `config/x.yaml line 3: ` if a file sets the key that it begins with."""
    from engine.cli.files import place_of

    place = place_of(str(error), hydra_folders(), source)
    return UsageError(f"{place}{error}") if place else error


def _check_script(source: ConfigSource, entry: str | None) -> None:
    """Refuse `script=` of another entry script; a recipe of another one is refused before (`check_recipe`)."""
    running = entry or (HydraConfig.get().job.name if HydraConfig.initialized() else None)
    declared = source.resolved.get("script")
    if not isinstance(declared, str) or not running or Path(declared).stem == Path(running).stem:
        return
    raise UsageError(f"script={declared} is not {Path(running).stem}.py: drop it, or run python {declared}")


def source_of(config: RunConfig) -> ConfigSource:
    """The source (YAML, resolved values, overrides, group choices) of a config from `load_synced_config`."""
    source: ConfigSource = vars(config)["_source"]
    return source


def _source(hydra_config: DictConfig) -> ConfigSource:
    resolved = resolved_container(hydra_config)
    name, overrides, choices = None, [], {}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        name, overrides = hydra.job.config_name, task_overrides()
        choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    header = HEADER + json.dumps({"config_name": name, "choices": choices}) + "\n"
    text = header + OmegaConf.to_yaml(hydra_config, resolve=False)
    overlay = str(resolved.get("resume")).lower() == "true"
    return ConfigSource(text, resolved, overrides, name, choices, overlay)


def resolved_container(config: DictConfig) -> dict[str, Any]:
    """The plain values of a composed or stored config. Raises: UsageError for a missing or unresolvable one."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} is required and has no value: set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        refused = cause_of(error, UsageError)
        raise UsageError(f"{error.full_key or 'config'}: {str(refused or error.msg).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def task_overrides() -> list[str]:
    """The overrides of this command or job as written, with interpolations unresolved."""
    written: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(word) for word in written]


def cause_of(error: BaseException, kind: type[E]) -> E | None:
    """The first error of a kind in the chain of causes of `error`, itself included; None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause


def hydra_folders() -> list[Path]:
    """Hydra's search path for configs, of what it has composed in this process; empty if it has not."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    return [Path(one.path) for one in sources if one.schema == "file"]
