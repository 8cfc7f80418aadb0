"""Keys of `arch.loss` for each loss. Needs no torch, so that --help can read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.fields import Inert, Range, check_fields
from models.recursive_reasoning.etrm_config import IN_HYBRID, IN_LPN, IN_PERCEIVER, IN_RECURRENT, IN_STANDARD

_NO_ENCODER = Inert("arch.encoder_type=null", "there is no encoder of demonstrations")
_NO_HEAD = Inert("arch.subgoal_head=null", "there is no arch.subgoal_head")
_NO_WEIGHT = Inert("arch.loss.feudal_loss_weight=0", "the weight of the intrinsic loss is 0")


@dataclass(kw_only=True)
class HaltingLossConfig:
    """Keys of every ACT loss. Raises ValueError for invalid values; the message names the override."""

    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"
    """Token loss."""
    precision: Literal["float32", "float64"] = "float32"
    """Dtype of the token loss; float64 is the published code's choice for stablemax (differs by less than
    1e-6)."""
    label_smoothing: Annotated[float, Range(0, below=1)] = 0.0
    """Share of each label that is spread uniformly over the vocabulary."""
    q_weight: Annotated[float, Range(0)] = 0.5
    """Weight of the losses of the halting head relative to the token loss."""

    def __post_init__(self) -> None:
        check_fields(self, "arch.loss")


@dataclass(kw_only=True)
class ACTLossConfig(HaltingLossConfig):
    """The keys of every ACT loss, and the KL weight of variational encoders."""

    kl_weight: Annotated[float, Range(0), _NO_ENCODER, IN_STANDARD, IN_HYBRID, IN_LPN, IN_RECURRENT, IN_PERCEIVER] = (
        1e-4
    )
    """Weight of the KL divergence of each row's latent from its prior, for variational encoders (arXiv 2411.08706:
    1e-4)."""


@dataclass(kw_only=True)
class FeudalLossConfig(ACTLossConfig):
    """The keys of the ACT loss, and those of the intrinsic loss."""

    kl_weight: Annotated[float, Range(0), Inert("", _NO_ENCODER.why)] = 1e-4
    """Not used: there is no encoder of demonstrations."""

    feudal_loss_weight: Annotated[float, Range(0), _NO_HEAD] = 0.1
    """Weight of the intrinsic loss in the total; 0: only report it."""
    use_alignment_loss: Annotated[bool, _NO_HEAD, _NO_WEIGHT] = True
    """Add the intrinsic loss; false: only report it, as with weight 0."""
    feudal_grad: Annotated[
        Literal["worker", "both", "manager"],
        _NO_HEAD,
        _NO_WEIGHT,
        Inert("arch.loss.use_alignment_loss=false", "arch.loss.use_alignment_loss=false: it is only reported"),
        Inert(
            "arch.loss.feudal_grad=both and arch.subgoal_head.goal_credit=none",
            "arch.subgoal_head.goal_credit=none: no gradient reaches the manager",
        ),
    ] = "worker"
    """What the intrinsic loss trains: the worker to follow the goal, both, or the goal to match the worker (goals that
    the loss can change collapse)."""
    feudal_gate: Annotated[
        Literal["detach", "none", "live"],
        _NO_HEAD,
        Inert("arch.subgoal_head.gating=false", "arch.subgoal_head.gating=false: there is no gate"),
        Inert(
            "arch.loss.feudal_gate=live and arch.subgoal_head.goal_credit=none",
            "arch.subgoal_head.goal_credit=none: no gradient reaches the manager",
        ),
    ] = "detach"
    """Factor on a row's intrinsic loss: its gate without gradient, 1, or its gate with gradient (which learns to
    close)."""
    manager_loss_weight: Annotated[
        float,
        Range(0),
        _NO_HEAD,
        Inert("arch.subgoal_head.manager_mode=task", "arch.subgoal_head.manager_mode=task: it learns from the task"),
        Inert("arch.subgoal_head.goal_source!=learned", "arch.subgoal_head.goal_source!=learned: it gives none itself"),
    ] = 0.1
    """Weight of the manager's own objective in the total."""


@dataclass(kw_only=True)
class LMLossConfig:
    """Keys of the language-model loss. Raises ValueError for invalid values; the message names the override."""

    stream_weights: Annotated[
        list[float] | None, Inert("training_mode!=multicontext", "training_mode is not multicontext")
    ] = None
    """Weights of the streams in the mean of their losses (multicontext); null: all the same."""
    chunk_tokens: Annotated[int, Range(0)] = 0
    """Positions whose logits exist at one time; their backward pass makes them again. 0: all. Saves memory with large
    vocabularies and costs one more product with the head."""

    def __post_init__(self) -> None:
        check_fields(self, "arch.loss")
        weights = self.stream_weights
        if weights is not None and (not weights or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"arch.loss.stream_weights={weights}: expected numbers of 0 or more, not all 0")


@dataclass(kw_only=True)
class DiversityLossConfig:
    """Keys of the diversity loss."""

    objective: Literal["kl", "kl_exact", "tb"] = "kl"
    """The documented histogram loss; the same with the exact probability of every option; or trajectory balance."""
    w_c: Annotated[float, Range(0), Inert("arch.loss.objective=tb", "tb has alpha_c")] = 0.8
    """Weight of the concept loss."""
    w_o: Annotated[float, Range(0), Inert("arch.loss.objective=tb", "tb has alpha_o")] = 0.2
    """Weight of the open block loss."""
    w_kl: Annotated[float, Range(0), Inert("arch.loss.objective=tb", "tb's reward contains the base")] = 0.0
    """Weight of the KL divergence from the base."""
    alpha_c: Annotated[float, Range(0), Inert("arch.loss.objective!=tb", "only tb has a reward")] = 1.0
    """How strongly the reward equalises the options: 0 keeps the base's shares, 1 makes them equal."""
    alpha_o: Annotated[float, Range(0), Inert("arch.loss.objective!=tb", "only tb has a reward")] = 1.0
    """The same for the clusters of each option."""
    invalid_penalty: Annotated[float, Range(0), Inert("arch.loss.objective!=tb", "only tb has a reward")] = 4.0
    """Nats by which the reward of a text without an option is below the base."""

    def __post_init__(self) -> None:
        check_fields(self, "arch.loss")
        if self.objective != "tb" and self.w_c == self.w_o == 0:
            raise ValueError("w_c=0 and w_o=0: nothing would become more diverse, give one of them a weight")

    @property
    def terms(self) -> str:
        """The active terms, as text."""
        if self.objective == "tb":
            return (
                f"trajectory balance, reward = base evened out (alpha_c {self.alpha_c:g}, alpha_o {self.alpha_o:g}, "
                f"invalid -{self.invalid_penalty:g})"
            )
        concept = "exact concept" if self.objective == "kl_exact" else "concept"
        parts = ((self.w_c, concept), (self.w_o, "open block"), (self.w_kl, "KL to the base"))
        return " + ".join(f"{weight:g} {name}" for weight, name in parts if weight)
