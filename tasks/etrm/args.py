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
    """Recursive reasoning over demonstrations. Steps below are optimizer steps: one ACT step for each slot, or, of a
    model with a fixed number of them, a whole example."""

    NESTED_SCHEMAS: ClassVar[Mapping[str, type]] = {"arch": TRMWithEncoderConfig}

    step_graph: Annotated[  # type: ignore[assignment]
        Literal["auto", "off"], Inert("", "the host asks which demonstrations there are, and how long they are")
    ] = "auto"
    """No step is captured."""
    max_train_groups: Annotated[int | None, Range(1)] = None
    """Train on the first groups (tasks) only; null takes all."""

    query_policy: Literal["test_only", "leave_one_out", "mixed"] = _RANDOM.query_policy
    """What training asks: a test, shown all demonstrations; any pair, shown the others; or by chance one of the two."""
    demo_order: Literal["random", "file"] = _RANDOM.demo_order
    """Order of the demonstrations of a training example."""
    demo_dropout: Annotated[float, Range(0, below=1)] = _RANDOM.demo_dropout
    """Chance of each demonstration to be left out of a training example."""
    min_demos: Annotated[int, Range(1), Inert("demo_dropout=0", "demo_dropout=0: nothing is left out")] = (
        _RANDOM.min_demos
    )
    """Demonstrations that dropout leaves, where a task has so many."""
    max_demos: Annotated[int, Range(1)] = _RANDOM.max_demos
    """Most demonstrations of a training example; an evaluation shows all that there are."""

    train_search_steps: Annotated[int, Range(0)] = 0
    """Updates of a latent search at the beginning of each training example, on the demonstrations that it is shown."""
    train_search_step_size: Annotated[
        float, Range(above=0), Inert("train_search_steps=0", "train_search_steps=0: training does not search")
    ] = 0.1
    """Step size of that search."""

    encoder_lr_scale: Annotated[float, Range(above=0)] = 1.0
    """Learning rate of the encoder, as a multiple of lr."""
    freeze_encoder_steps: Annotated[int, Range(0)] = 0
    """Steps at the start in which the encoder does not change."""
    freeze_decoder_steps: Annotated[int, Range(0)] = 0
    """Steps at the start in which all but the encoder does not change."""
    load_pretrained_decoder: str | None = None
    """A run of pretrain.py, or a checkpoint of one, that a new run takes its decoder from (not its encoder)."""
    allow_decoder_mismatch: Annotated[
        bool, Inert("load_pretrained_decoder=null", "load_pretrained_decoder=null: no decoder is loaded")
    ] = False
    """Take a decoder that was trained with other cycles."""

    diagnostics_interval: Annotated[int, Range(1)] = 50
    """Steps between the diagnostics that need a forward pass or an eigenvalue problem: context_use, eff_rank."""
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
        """What training examples ask and show. Raises: ValueError."""
        return Showing(
            query_policy=self.query_policy,
            demo_order=self.demo_order,
            demo_dropout=self.demo_dropout,
            min_demos=self.min_demos,
            max_demos=self.max_demos,
        )
