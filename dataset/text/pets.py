"""A generated corpus of sentences that say whether dogs or cats are loved more, and a check of its grammar.

Data for diversity fine-tuning without a network: a small language model trained on it says dog in seven sentences of
eight and mostly gives the first of six reasons, so its outputs can be made more diverse, and whether a sentence still
makes sense is decidable. One answer in a hundred has two neighbouring words swapped: as in real text, unlikely outputs
are partly nonsense, and a higher temperature gives more of both.

    answer   = opener, "dogs" | "cats", "because they will", reason of that animal, "."
    answer'  = "I", liking, "is the", "dog" | "cat", "because it will", reason of that animal, "."
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed import keyed_numpy

QUESTION = "In 20 words, say whether you love dog or cat more, and give a reason; Answer:"
"""The prompt of the user's guide."""
ANIMAL = "The animal"
"""The default of --prompt."""
PROMPTS = {QUESTION: 0.75, ANIMAL: 0.25}
OPENERS = {"I love": 0.6, "I prefer": 0.25, "Give me": 0.15}
LIKINGS = {"I love most": 0.7, "I would choose": 0.3}
OPTIONS = {"dog": 0.88, "cat": 0.12}
WEIGHTS = (0.5, 0.2, 0.12, 0.09, 0.06, 0.03)
"""Probabilities of the reasons of either animal, in their order."""
REASONS = {
    "dog": (
        "guard the house at night",
        "run beside me in the park",
        "fetch every stick from the lake",
        "comfort a sad friend",
        "learn clever tricks quickly",
        "herd lost sheep home",
    ),
    "cat": (
        "sleep in the sun all day",
        "purr softly on my lap",
        "catch mice in the barn",
        "wash without any help",
        "climb up tall trees",
        "chase red balls of wool",
    ),
}
SLIP = 0.01
"""Probability of an answer with two words swapped."""
TRAIN, VALID = 4_000, 400


def answer(random: np.random.Generator, prompt: str) -> str:
    """A sentence that continues `prompt`, without the space between them."""
    option = _draw(random, OPTIONS)
    reason = _draw(random, dict(zip(REASONS[option], WEIGHTS, strict=True)))
    if prompt == QUESTION:
        return f"{_draw(random, OPENERS)} {option}s because they will {reason}."
    return f"{_draw(random, LIKINGS)} is the {option} because it will {reason}."


def _draw(random: np.random.Generator, weights: dict[str, float]) -> str:
    return str(random.choice(list(weights), p=list(weights.values())))


def _with_slip(random: np.random.Generator, text: str) -> str:
    words = text.split()
    first = int(random.integers(len(words) - 1))
    if random.random() < SLIP:
        words[first : first + 2] = reversed(words[first : first + 2])
    return " ".join(words)


def _pattern() -> re.Pattern[str]:
    def one_of(texts: Any) -> str:
        return f"(?:{'|'.join(map(re.escape, texts))})"

    several = "|".join(f"{option}s because they will {one_of(of)}" for option, of in REASONS.items())
    single = "|".join(f"{option} because it will {one_of(of)}" for option, of in REASONS.items())
    return re.compile(rf"{one_of(OPENERS)} (?:{several})\.|{one_of(LIKINGS)} is the (?:{single})\.")


_GRAMMAR = _pattern()


def in_grammar(text: str) -> bool:
    """Whether a completion, stripped of white space, is a sentence of the grammar."""
    return _GRAMMAR.fullmatch(text.strip()) is not None


def pets(folder: Path) -> dict[str, Any]:
    """Write lines of a prompt and its answer, in two splits."""
    for split, count in (("train", TRAIN), ("valid", VALID)):
        random = keyed_numpy(0, f"text/pets/{split}")
        prompts = [_draw(random, PROMPTS) for _ in range(count)]
        lines = [f"{prompt} {_with_slip(random, answer(random, prompt))}" for prompt in prompts]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"generator": f"{TRAIN} + {VALID} sentences about dogs and cats from a grammar, seed 0"}
