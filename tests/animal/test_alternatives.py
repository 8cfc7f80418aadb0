"""What objective=kl_exact puts in the place of the option that a completion named."""

from __future__ import annotations

import torch

from tasks.animal.alternatives import alternatives
from tasks.animal.blocks import RawTextProcessor
from tasks.animal.concepts import Concept
from tasks.animal.sampler import Rollouts

PIECES = ["<end>", "I", " love", " the", " cat", " c", "ats", " dogs", " dog", " kitten", " kittens", " pup", " puppy"]
PIECES += [" Cat", " Kitten", " Dog", "s", " run", " pup", "pies"]
ANIMAL = Concept("animal", {"cat": ["kitten"], "dog": ["puppy", "pup"]})


class Tokenizer:
    """Of each text the fewest of the pieces, longest first; what they cannot spell becomes the end token."""

    eos_token_id = 0

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(PIECES[i] for i in ids if i)

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        ids: list[int] = []
        while text:
            fitting = [piece for piece in PIECES if text.startswith(piece)]
            if not fitting:
                return {"input_ids": [0]}
            ids.append(PIECES.index(max(fitting, key=len)))
            text = text[len(PIECES[ids[-1]]) :]
        return {"input_ids": ids}


def named(*pieces: str) -> list[list[str]]:
    """The words of each option that are put in the place of the one that the completion names."""
    processor = RawTextProcessor(Tokenizer(), ANIMAL)
    ids = [PIECES.index(piece) for piece in pieces]
    rows = alternatives(processor, Rollouts(torch.tensor([ids]), [processor.split(ids)]), pad=0)
    assert not rows.concept.any()
    words: list[list[str]] = [[], []]
    for row, mask, option in zip(rows.ids, rows.mask, rows.option, strict=True):
        words[int(option)].append(processor.decode(row[mask].tolist()))
        assert processor.decode(row.tolist()[: int(mask.long().argmax())]) == "I love"
    return [sorted(each) for each in words]


def test_every_word_for_an_option_has_its_probability_in_that_option() -> None:
    """Whichever was said. Of words of which one begins with the tokens of another the shorter has the probability."""
    cats = [" cat", " kitten", " kittens"]
    dogs = [" dog", " dogs", " pup", " puppy"]
    for said in (" dogs", " kitten", " puppy"):
        assert named("I", " love", said, " run", " run") == [cats, dogs]
    assert named("I", " love", " Dog", " run", " run") == [[" Cat", " Kitten"], [" Dog"]]


def test_each_of_several_concepts_has_its_alternatives_at_its_own_place() -> None:
    article = Concept("article", {"the": [], "a": []})
    processor = RawTextProcessor(Tokenizer(), ANIMAL, further=[article])
    ids = [PIECES.index(piece) for piece in ("I", " love", " the", " cat", " run")]
    rows = alternatives(processor, Rollouts(torch.tensor([ids]), [processor.split(ids)]), pad=0)
    made = {
        (int(concept), processor.decode(row[: int(mask.nonzero().max()) + 1].tolist()), int(mask.long().argmax()))
        for concept, row, mask in zip(rows.concept, rows.ids, rows.mask, strict=True)
    }
    cats = {f"I love the {word}" for word in ("cat", "kitten", "kittens", "dog", "dogs", "pup", "puppy")}
    assert made == {(0, text, 3) for text in cats} | {(1, "I love the", 2)}  # there is no token for " a"


def test_a_text_without_an_option_has_no_alternatives() -> None:
    assert named("I", " love", " the", " run") == [[], []]
