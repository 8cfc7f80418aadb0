"""The settings of train_animal.py as Python objects: five dataclasses with the documented fields and defaults.

Their defaults differ from those of the command line (`tasks/animal/args.py`); both are documented. `flags` converts all
but the model into command-line flags.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tasks.animal.blocks import RawTextProcessor

if TYPE_CHECKING:  # extras
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@dataclass
class ModelConfig:
    """The model to train, with its tokenizer, text processor and embedder."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    text_processor: RawTextProcessor
    sentence_transformer: Any = None
    """Its `encode(list of texts)` returns the embeddings to cluster; None: chosen as by embedder=auto."""


@dataclass
class TextGenerationConfig:
    """The samples of each step."""

    prompt: str
    max_new_tokens: int = 40
    batch_size: int = 16
    generation_config: GenerationConfig | None = None
    """If given, its temperature, top_p and top_k are used."""


@dataclass
class DiversityConfig:
    """The concept to diversify, weights of the losses, and the buffer."""

    concept_name: str
    n_clusters: int = 5
    w_c: float = 0.5
    """Weight of the concept loss."""
    w_o: float = 0.5
    """Weight of the open block loss."""
    num_samples: int = 100
    """Samples that fill the buffer before the first step."""
    buffer_size: int = 500
    """Maximum samples of each option in the buffer."""
    update_clusters_every: int = 20
    """New samples of an option after which its clusters are refitted."""
    min_samples_for_clustering: int = 10
    """Minimum samples of an option before it is clustered."""


@dataclass
class TrainingConfig:
    """Length of the run and learning rate."""

    num_epochs: int = 10
    num_steps_per_epoch: int = 10
    learning_rate: float = 5e-5
    final_learning_rate: float = 1e-6
    warmup_steps: int = 0
    lr_scheduler_type: str = "cosine"
    output_dir: str = "diversity_model"


@dataclass
class WandbConfig:
    """Logging to Weights & Biases."""

    use_wandb: bool = False
    wandb_project: str = "gfn-diversity"
    wandb_name: str | None = None


def flags(*settings: TextGenerationConfig | DiversityConfig | TrainingConfig | WandbConfig) -> list[str]:
    """The equivalent flags of train_animal.py; fields that are None keep the command line's default."""
    words: list[str] = []
    for each in settings:
        for name, value in ((field.name, getattr(each, field.name)) for field in fields(each)):
            if name == "generation_config":
                chosen = {key: getattr(value, key, None) for key in ("temperature", "top_p", "top_k")}
                words += [f"--{key}={number}" for key, number in chosen.items() if number is not None]
            elif name == "use_wandb":
                words += ["--use_wandb"] * bool(value)
            elif value is not None:
                words.append(f"--{name}={value}")
    return words
