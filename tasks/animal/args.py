"""Every key of train_animal.py, with type, default and meaning: the schema of `config/cfg_train_animal.yaml`.

The documented flags of the adapters and the loss are under `arch`, see ALIASES. A step is an optimizer
step on one batch of fresh samples; an epoch is num_steps_per_epoch of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from engine.config import NOT_IDENTITY as RUN_NOT_IDENTITY, RunConfig
from engine.fields import Inert, NotBlank, Range
from engine.loop.schedule import Decay
from models.animal.config import LoraConfig

IN_ARCH = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
IN_LOSS = ("objective", "w_c", "w_o", "w_kl", "alpha_c", "alpha_o", "invalid_penalty")
ALIASES = {
    **{name: f"arch.{name}" for name in IN_ARCH},
    **{name: f"arch.loss.{name}" for name in IN_LOSS},
    **dict.fromkeys(("dtype", "forward_dtype"), "arch.forward_dtype"),
    "use_wandb": "enable_wandb",
    "wandb_project": "project_name",
    "wandb_name": "run_name",
    "max_grad_norm": "grad_clip",
}
NOT_IDENTITY = {
    **RUN_NOT_IDENTITY,
    "output_dir": "launch: where the run is stored",
    "eval_every_epochs": "logging: how often it is measured",
}
_TB = Inert("arch.loss.objective!=tb", "only tb replays")
_FIXED = Inert("arch.loss.objective=tb", "tb keeps the clusters of the base")


@dataclass(kw_only=True)
class AnimalConfig(RunConfig):
    """Fine-tune a language model so that its samples name all options of a concept, with diverse continuations."""

    NOT_IDENTITY: ClassVar[Mapping[str, str]] = NOT_IDENTITY
    FOLLOWS: ClassVar[Mapping[str, str]] = {"run_dir": "output_dir"}
    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": LoraConfig}
    FOREIGN_KEYS: ClassVar[Mapping[str, str]] = {
        "micro_batch_size": "accumulation=N takes the batch in N parts",
        "fixed_n_clusters": "cluster_selection=fixed, the default, always takes n_clusters",
        "concept_aliases": "concept_file has the synonyms of each option",
        "batch_size_step": "accumulation=N takes the batch in N parts",
        "save_every_epochs": "checkpoint_interval=N saves every N steps; each epoch's end is saved in any case",
        "save_total_limit": "keep_last=N keeps the N newest checkpoints, and the best",
        "resume_from_checkpoint": "the same command resumes; resume=true resume_from=best or step_N takes another one",
        "report_to": "enable_wandb=true, enable_tensorboard=true, enable_csv=true",
        "use_cpu": "device=cpu",
        "bf16": "dtype=bfloat16, which is the default where a GPU has it",
        "fp16": "dtype=float16",
        "per_device_train_batch_size": "batch_size is over all processes; accumulation=N takes it in N parts",
    }

    arch: dict[str, Any]
    """The adapters: `name: module@Class` under models/, their keys, and the `loss:` block (config/arch/animal.yaml)."""
    compile: Literal["auto", "off", "block"] = "auto"  # type: ignore[assignment]
    """block: compile the blocks of the base for the pass with gradients, whose rows are padded to max_new_tokens; auto:
    off, since sampling, most of a step, has another length at every token."""
    step_graph: Annotated[Literal["auto", "off"], Inert("", "texts are generated in its steps")] = "auto"  # type: ignore[assignment]
    """Not available here: no step is captured."""

    model_name_or_path: Annotated[str, NotBlank("a model")] = "gpt2"
    """The base model: a folder in transformers' format, or a name in the Hub cache; data/animal_lm is built on first
    use."""
    prompt: Annotated[str, NotBlank("the text to be completed")] = "The animal"
    """The text that every sample completes."""
    max_new_tokens: Annotated[int, Range(1)] = 30
    """Maximum length of a completion, in tokens."""
    batch_size: Annotated[int, Range(2)] = 32
    """Samples per step, over all processes."""
    temperature: Annotated[float, Range(above=0)] = 1.0
    """Sampling temperature in training; losses always use temperature 1."""
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    """Nucleus sampling: sample from the smallest set of most likely tokens with this total probability."""
    top_k: Annotated[int, Range(0)] = 0
    """Sample from the K most likely tokens; 0: all."""
    stop_strings: list[str] = field(default_factory=lambda: ["\n"])
    """A completion ends after one of these strings, or at the end token."""

    concept_name: Annotated[str, NotBlank("a concept")] = "animal"
    """The concept whose options should be equally frequent: an entry of the concept file."""
    concept_file: Annotated[str | None, NotBlank("a JSON file")] = None
    """JSON file, concept -> option -> synonyms; null: config/concepts.json."""
    concept_options: list[str] | None = None
    """Options of the concept, if not all of those in the file, or other ones."""
    further_concepts: list[str] = field(default_factory=list)
    """Further concepts of the file that every sample must name, with equally frequent options each."""
    n_clusters: Annotated[int, Range(2)] = 5
    """Clusters of the texts that follow each option."""
    cluster_selection: Literal["fixed", "silhouette"] = "fixed"
    """Number of clusters: n_clusters, or the one up to max_n_clusters with the highest silhouette at each fit."""
    max_n_clusters: Annotated[int | None, Range(2), Inert("cluster_selection=fixed")] = None
    """Maximum clusters per option; required by cluster_selection=silhouette."""
    num_samples: Annotated[int, Range(1)] = 320
    """Samples of the base that fill the buffer before the first step."""
    buffer_size: Annotated[int, Range(1)] = 500
    """Maximum samples of each option in the buffer."""
    update_clusters_every: Annotated[int, Range(1), _FIXED] = 100
    """New samples of an option after which its clusters are refitted."""
    min_samples_for_clustering: Annotated[int, Range(2)] = 20
    """Minimum samples of an option before it is clustered."""
    pool_clusters: bool = False
    """Options with fewer samples than that use clusters of the samples of all options."""
    embedder: Annotated[str, NotBlank("auto, tfidf, hash, or a sentence-transformers folder")] = "auto"
    """Text embedding: a sentence-transformers model by folder or name, tfidf, hash, or auto."""
    replay_fraction: Annotated[float, Range(0), _TB] = 0.25
    """Replayed samples per step, as a share of batch_size."""
    min_valid_fraction: Annotated[float, Range(0, high=1)] = 0.25
    """Minimum share of valid samples; a step with fewer is skipped, and max_skipped_steps in a row end the run."""
    max_skipped_steps: Annotated[int, Range(0)] = 5
    """End the run after more steps in a row than this that were called off."""

    num_epochs: Annotated[int, Range(1)] = 10
    """Number of epochs."""
    num_steps_per_epoch: Annotated[int, Range(1)] = 10
    """Steps per epoch."""
    learning_rate: Annotated[float, Range(0)] = 1e-4
    """Peak learning rate."""
    final_learning_rate: Annotated[float, Range(0), Inert("lr_scheduler_type=constant")] = 3e-5
    """Learning rate at the end."""
    warmup_steps: Annotated[int, Range(0), Inert("lr_scheduler_type=constant")] = 0
    """Steps of linear warm-up."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to final_learning_rate."""
    weight_decay: Annotated[float, Range(0)] = 0.0
    """Decoupled weight decay of AdamW."""
    grad_clip: float | None = 1.0
    """Maximum norm of the gradient; 0: no clipping."""
    output_dir: Annotated[str, NotBlank("a folder")] = "diversity_model"
    """Folder for the adapter, its run and its reports."""
    log_interval: int = 1
    """Steps between lines of metrics."""

    eval_samples: Annotated[int, Range(2)] = 256
    """Samples in each of the evaluations before and after training, drawn with the same random numbers."""
    eval_every_epochs: Annotated[int | None, Range(1)] = None
    """Epochs between additional evaluations; null: only before and after training."""

    def __post_init__(self) -> None:
        if self.grad_clip == 0:
            self.grad_clip = None
        super().__post_init__()
        if self.min_samples_for_clustering < self.n_clusters:
            raise ValueError(
                f"min_samples_for_clustering={self.min_samples_for_clustering} is below n_clusters={self.n_clusters}: "
                "too few samples for that many clusters, raise it"
            )
        if self.final_learning_rate > self.learning_rate and self.lr_scheduler_type != "constant":
            raise ValueError(
                f"final_learning_rate={self.final_learning_rate:g} is above learning_rate={self.learning_rate:g}: "
                "lower it, or --lr_scheduler_type constant"
            )
        if self.cluster_selection == "silhouette" and (self.max_n_clusters or 0) < self.n_clusters:
            raise ValueError(
                f"cluster_selection=silhouette chooses between n_clusters={self.n_clusters} and max_n_clusters="
                f"{'null' if self.max_n_clusters is None else self.max_n_clusters}: give max_n_clusters="
                f"{2 * self.n_clusters}, e.g."
            )
        if any(not stop for stop in self.stop_strings):
            raise ValueError("stop_strings has an empty text, which would end every completion at once")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_epochs * self.num_steps_per_epoch

    @property
    def decay(self) -> Decay:
        """The decay of the learning rate after the warm-up."""
        kinds: dict[str, Any] = {"constant": "none"}
        return Decay(name=kinds.get(self.lr_scheduler_type, self.lr_scheduler_type))
