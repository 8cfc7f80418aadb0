"""The record of a sampled completion that evaluation, checkpoints and reports use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion of the prompt. Log-probabilities are in nats, at temperature 1, over the whole vocabulary."""

    text: str
    """Without the end token or stop string."""
    option: str | None = None
    """The option of the concept that it names first, e.g. cat; None without one."""
    open_text: str = ""
    """The text after it."""
    reason: str = "no_concept"
    """Why it is not valid: no_concept (one of the concepts is missing), empty_open (nothing follows), truncated (cut
    off before the open block); "" for a valid one."""
    further: Sequence[str] = ()
    """The option of each further concept, if all are named."""
    tokens: int = 0
    """Number of tokens, end token included."""
    logp: float = 0.0
    """Log-probability of all its tokens under the model that sampled it."""
    ref_logp: float = 0.0
    """The same under the base."""

    @property
    def valid(self) -> bool:
        """Whether it names an option and continues."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """The fields for files and checkpoints; `further` only if not empty."""
        values = {**asdict(self), "further": list(self.further)}
        return {name: value for name, value in values.items() if name != "further" or value}
