"""One sampled completion, as evaluation, buffer and reports know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion of the prompt. Log-probabilities are in nats, at temperature 1, over the whole vocabulary."""

    text: str
    """Without the end token and what stopped it."""
    option: str | None = None
    """The option of the concept that it names first, e.g. cat; None where it names none."""
    open_text: str = ""
    """What follows that; "" where nothing does."""
    reason: str = "no_concept"
    """Why it is not valid: no_concept (of several: one is missing), empty_open (nothing follows), truncated (cut off
    before); "" for a valid one."""
    further: Sequence[str] = ()
    """The option of each further concept, where all are named."""
    tokens: int = 0
    """Its length, end token included."""
    logp: float = 0.0
    """Log-probability of all its tokens under the model that wrote it."""
    ref_logp: float = 0.0
    """The same under the base."""

    @property
    def valid(self) -> bool:
        """Whether it names an option and continues."""
        return not self.reason

    def as_dict(self) -> dict[str, Any]:
        """Its fields, as files and checkpoints have them: `further` only where there is a further concept."""
        values = {**asdict(self), "further": list(self.further)}
        return {name: value for name, value in values.items() if name != "further" or value}
