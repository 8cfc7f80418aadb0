"""Every key of `pretrain_etrm.py`, with type, default and meaning: the schema of its recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dataset.fewshot import Showing
from engine.fields import Inert, Range
from models.recursive_reasoning.etrm_config import TRMWithEncoderConfig
from tasks.recursive_reasoning.args import EpisodeConfig

_RANDOM = Showing()


@dataclass(kw_only=True)
class ETRMConfig(EpisodeConfig):
    """Recursive reasoning over demonstrations. Steps are optimizer steps: one ACT step for each slot or, for a model
    with a fixed number of ACT steps, a whole example."""

    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": TRMWithEncoderConfig}

    step_graph: Annotated[  # type: ignore[assignment]
        Literal["auto", "off"], Inert("", "the host reads the number and lengths of the demonstrations")
    ] = "auto"
    """Not available here: no step is captured."""
    max_train_groups: Annotated[int | None, Range(1)] = None
    """Train only on this many first groups (tasks); null: all."""

    query_policy: Literal["test_only", "leave_one_out", "mixed"] = _RANDOM.query_policy
    """Training question: a test pair, showing all demonstrations; any pair, showing the others; or one of the two at
    random."""
    demo_order: Literal["random", "file"] = _RANDOM.demo_order
    """Order of the demonstrations of a training example."""
    demo_dropout: Annotated[float, Range(0, below=1)] = _RANDOM.demo_dropout
    """Probability of dropping each demonstration of a training example."""
    min_demos: Annotated[int, Range(1), Inert("demo_dropout=0", "demo_dropout=0: nothing is left out")] = (
        _RANDOM.min_demos
    )
    """Minimum number of demonstrations that dropout leaves, if the task has so many."""
    max_demos: Annotated[int, Range(1)] = _RANDOM.max_demos
    """Maximum number of demonstrations of a training example; evaluations show all."""

    train_search_steps: Annotated[int, Range(0)] = 0
    """Updates of a latent search at the start of each training example, on the demonstrations that it shows."""
    train_search_step_size: Annotated[
        float, Range(above=0), Inert("train_search_steps=0", "train_search_steps=0: training does not search")
    ] = 0.1
    """Step size of that search."""

    encoder_lr_scale: Annotated[float, Range(above=0)] = 1.0
    """Learning rate of the encoder as a multiple of lr."""
    freeze_encoder_steps: Annotated[int, Range(0)] = 0
    """Steps at the start during which the encoder is frozen."""
    freeze_decoder_steps: Annotated[int, Range(0)] = 0
    """Steps at the start during which everything but the encoder is frozen."""
    load_pretrained_decoder: str | None = None
    """Run or checkpoint of pretrain.py from which a new run takes its decoder (not its encoder)."""
    allow_decoder_mismatch: Annotated[
        bool, Inert("load_pretrained_decoder=null", "load_pretrained_decoder=null: no decoder is loaded")
    ] = False
    """Accept a decoder that was trained with a different number of cycles."""

    diagnostics_interval: Annotated[int, Range(1)] = 50
    """Steps between the costly diagnostics, which need a forward pass or an eigenvalue problem: context_use,
    eff_rank."""
    stats_interval: Annotated[int | None, Range(1)] = 50
    """Steps between norms of gradient, weights and update of encoder and trunk; null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.showing()
        if both := min(self.freeze_encoder_steps, self.freeze_decoder_steps):
            raise ValueError(
                f"freeze_encoder_steps={self.freeze_encoder_steps} and freeze_decoder_steps="
                f"{self.freeze_decoder_steps}: nothing is trained for {both} steps; set one of them to 0"
            )
        if self.train_search_steps and self.arch["encoder_type"] == "recurrent":
            raise ValueError(
                f"train_search_steps={self.train_search_steps} searches a context that stays, and "
                "arch.encoder_type=recurrent changes it at every step: choose another encoder, or train_search_steps=0"
            )

    def showing(self) -> Showing:
        """The settings that choose query and demonstrations of training examples. Raises: ValueError."""
        return Showing(
            query_policy=self.query_policy,
            demo_order=self.demo_order,
            demo_dropout=self.demo_dropout,
            min_demos=self.min_demos,
            max_demos=self.max_demos,
        )
