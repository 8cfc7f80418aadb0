"""The settings of train_animal.py as Python objects: five dataclasses with the documented fields and defaults.

Their defaults are not those of the command line, which stand in `tasks/animal/args.py`; both are documented. `flags`
turns all but the model into the words of a command.
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
    """A model to train, and what reads its texts."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    text_processor: RawTextProcessor
    sentence_transformer: Any = None
    """Whose `encode(list of texts)` gives the vectors that are clustered; None: chosen as by embedder=auto."""


@dataclass
class TextGenerationConfig:
    """What is sampled at each step."""

    prompt: str
    max_new_tokens: int = 40
    batch_size: int = 16
    generation_config: GenerationConfig | None = None
    """Its temperature, top_p and top_k are taken, where it is given."""


@dataclass
class DiversityConfig:
    """What is to become diverse, and how much it counts."""

    concept_name: str
    n_clusters: int = 5
    w_c: float = 0.5
    """Weight of the concept loss."""
    w_o: float = 0.5
    """Weight of the open block loss."""
    num_samples: int = 100
    """Samples that fill the buffer before the first step."""
    buffer_size: int = 500
    """Most samples of one option in the buffer."""
    update_clusters_every: int = 20
    """New samples of an option after which its clusters are refitted."""
    min_samples_for_clustering: int = 10
    """Samples of an option before its clusters are fitted at all."""


@dataclass
class TrainingConfig:
    """How long and how fast."""

    num_epochs: int = 10
    num_steps_per_epoch: int = 10
    learning_rate: float = 5e-5
    final_learning_rate: float = 1e-6
    warmup_steps: int = 0
    lr_scheduler_type: str = "cosine"
    output_dir: str = "diversity_model"


@dataclass
class WandbConfig:
    """Whether Weights & Biases has the metrics, too."""

    use_wandb: bool = False
    wandb_project: str = "gfn-diversity"
    wandb_name: str | None = None


def flags(*settings: TextGenerationConfig | DiversityConfig | TrainingConfig | WandbConfig) -> list[str]:
    """The flags of train_animal.py that mean the same; what is None is left to the command line's default."""
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
