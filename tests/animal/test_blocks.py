"""Completions split into blocks: the golden rows of the design, and what holds of any text."""

from __future__ import annotations

import random

import pytest

from engine.errors import UsageError
from tasks.animal.blocks import RawTextProcessor
from tasks.animal.concepts import Concept, forms, read_concept, read_concepts

ANIMAL = Concept("animal", {"cat": [], "dog": []})


class Pieces:
    """A tokenizer whose tokens are the given pieces; 0 is its end token. A piece of bytes may be part of a character."""

    eos_token_id = 0

    def __init__(self, pieces: list[str | bytes]) -> None:
        self.pieces = [b"", *(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)]

    def decode(self, ids: list[int], **kwargs: bool) -> str:
        assert kwargs == {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


def split(*pieces: str | bytes, concept: Concept = ANIMAL, end: bool = True, stop: tuple[str, ...] = ("\n",)):
    ids = [*range(1, len(pieces) + 1), *([0, 0] if end else [])]
    return RawTextProcessor(Pieces(list(pieces)), concept, stop).split(ids)


@pytest.mark.parametrize(
    ("pieces", "option", "concept", "open_text"),
    [
        (["I", " love", " dogs", " because", " they", " are", " loyal", "."], "dog", (2, 3), "because they are loyal."),
        ([" Dog", "s", " are", " fun", "."], "dog", (0, 2), "are fun."),
        (["D", "ogs", " rule"], "dog", (0, 2), "rule"),
        ([" c", "at", "s", " nap"], "cat", (0, 3), "nap"),
        (["Cats"], "cat", (0, 1), ""),
        (["I", " like", " CATS", " a lot"], "cat", (2, 3), "a lot"),
        (["I", " pick", " cat", "alog", "s"], None, (5, 5), ""),
        (["not", " dogs", ",", " I", " love", " cats", " more"], "dog", (1, 2), ", I love cats more"),
        ([" ki", "tt", "ens"], None, (3, 3), ""),
        (["dogs", " and", " cats", " nap"], "dog", (0, 1), "and cats nap"),
        ([" dog", ","], "dog", (0, 1), ","),
        (["hot", "dog", " and", " cat", "9"], None, (5, 5), ""),
    ],
)
def test_golden_rows(pieces: list[str], option: str | None, concept: tuple[int, int], open_text: str) -> None:
    blocks = split(*pieces)
    assert (blocks.option, blocks.concept, blocks.open_text) == (option, concept, open_text)
    assert blocks.length == len(pieces) + 1  # its end token was sampled, the padding behind it was not
    letters = sum(map(str.isalpha, open_text))
    assert blocks.reason == ("no_concept" if option is None else "" if letters >= 3 else "empty_open")


def test_a_completion_that_was_cut_off_is_told_apart() -> None:
    assert split("a", " cat", end=False).reason == "truncated"
    assert split("a", " cat", " nap", "s", end=False).reason == ""
    assert split("a", " cat", end=False).length == 2


def test_the_stop_string_ends_the_text_and_its_token_was_sampled() -> None:
    blocks = split(" cats", " nap", " a lot.\n", " dogs", " bark")
    assert (blocks.text, blocks.open, blocks.length) == (" cats nap a lot.", (1, 2), 3)
    assert split(" cats", " nap", ".\n", "\n", " dogs", stop=(".\n\n", "\n")).text == " cats nap."
    assert split(" cats", " nap", "\n", " x").open == (1, 2)
    assert split("\n", " cats", " nap").reason == "no_concept"
    both = split(" cats", " are", ".", "\n", "\n", " x", stop=(".\n\n",))
    assert (both.text, both.open, both.length) == (" cats are", (1, 2), 5)


def test_characters_of_several_tokens() -> None:
    e = "é€😀".encode()
    pieces = [b" caf", *(e[i : i + 1] for i in range(len(e))), b" dogs", b" run", b" far"]
    blocks = split(*pieces)
    assert blocks.option == "dog"
    assert blocks.concept == (10, 11)
    assert blocks.open_text == "run far"


def test_synonyms_plurals_and_case() -> None:
    animal = read_concept("animal")
    assert [*forms("fox"), *forms("puppy"), *forms("day")] == ["fox", "foxes", "puppy", "puppies", "day", "days"]
    for text, option in (("Puppies run", "dog"), ("a KITTEN!", "cat"), ("the doggy", "dog"), ("pupil", None)):
        mention = animal.find(text)
        assert (mention.option if mention else None) == option, text
    fox = read_concept("animal", options=["cat", "fox"])
    assert fox.find("dogs and foxes").option == "fox"


@pytest.mark.parametrize(
    ("pieces", "options", "spans", "open_text"),
    [
        (["I", " love", " dogs", " in", " spring", " a", " lot"], ["dog", "spring"], [(2, 3), (4, 5)], "a lot"),
        ([" spring", " dogs", " and", " cats", " nap"], ["dog", "spring"], [(1, 2), (0, 1)], "and cats nap"),
        (["I", " love", " dogs", " a", " lot"], None, [], ""),  # no season
        ([" autumn", " is", " here"], None, [], ""),  # no animal
        ([" a", " sp", "ring", " cat", " spring", " nap"], ["cat", "spring"], [(3, 4), (1, 3)], "spring nap"),
    ],
)
def test_several_concepts_count_once_each(pieces, options, spans, open_text) -> None:
    season = Concept("season", {"spring": [], "autumn": []})
    ids = range(1, len(pieces) + 1)
    blocks = RawTextProcessor(Pieces(pieces), ANIMAL, further=[season]).split([*ids, 0])
    if options is None:
        assert (blocks.option, blocks.further, blocks.reason) == (None, (), "no_concept")
        return
    assert [blocks.option, *(option for option, _ in blocks.further)] == options
    assert [blocks.concept, *(span for _, span in blocks.further)] == spans
    assert (blocks.open_text, blocks.reason) == (open_text, "")
    assert blocks.prefix == (0, min(spans)[0])
    assert blocks.open == (max(spans)[1], len(pieces))


def test_a_word_within_another_ones_mention_is_not_another() -> None:
    food = Concept("food", {"hot dog": [], "cake": []})
    processor = RawTextProcessor(Pieces([]), food, further=[ANIMAL])
    assert processor.mentions("a hot dog") == []
    assert [one.start for one in processor.mentions("a hot dog, a dog")] == [2, 13]


def test_concepts_that_do_not_go_together(tmp_path) -> None:
    file = tmp_path / "c.json"
    file.write_text(
        '{"animal": {"cat": [], "dog": []}, "pet": {"dogs": [], "fox": []}, "size": {"big": [], "tiny": []}}'
    )
    assert [one.name for one in read_concepts("animal", str(file), None, ["size"])] == ["animal", "size"]
    for further, expected in (
        (["sizes"], "further_concepts=sizes is not in .*did you mean 'size'"),
        (["size", "size"], "further_concepts names size twice"),
        (["animal"], "further_concepts names animal twice, or it is concept_name"),
        (["pet"], "the word 'dogs' names an option of animal and of pet"),
    ):
        with pytest.raises(UsageError, match=expected):
            read_concepts("animal", str(file), None, further)


@pytest.mark.parametrize(
    ("text", "span"), [("I love cat\u017f", (7, 11)), ("K\u0130TTEN", (0, 6)), ("a k\u0131tten", (2, 8))]
)
def test_letters_that_are_others_in_another_case_are_read(text: str, span: tuple[int, int]) -> None:
    mention = read_concept("animal").find(text)
    assert mention is not None
    assert (mention.option, mention.start, mention.end) == ("cat", *span)


def test_spans_are_ordered_cover_the_text_and_hold_the_mention() -> None:
    draw = random.Random(0)
    words = [
        " cat",
        "s",
        "dog",
        " D",
        "ogs",
        " the",
        ",",
        "é",
        "€".encode()[:1],
        "€".encode()[1:],
        "\n",
        " kitten",
        " x",
    ]
    concept = read_concept("animal")
    for _ in range(400):
        pieces = [draw.choice(words) for _ in range(draw.randint(0, 9))]
        blocks = split(*pieces, concept=concept, end=draw.random() < 0.5)
        processor = RawTextProcessor(Pieces(pieces), concept)
        (low, a), (b, c), (d, high) = blocks.prefix, blocks.concept, blocks.open
        assert (low, a, c) == (0, b, d)
        assert a <= c <= high <= blocks.length <= len(pieces) + 1
        if blocks.option is not None:
            mention = concept.find(processor.decode(range(b + 1, c + 1)))
            assert mention is not None
            assert mention.option == blocks.option
        assert processor.split(range(1, high + 1)).option == blocks.option  # what was cut off says nothing


@pytest.mark.parametrize(
    ("name", "file", "options", "expected"),
    [
        ("animals", None, None, "concept_name=animals is not in config/concepts.json: did you mean 'animal'"),
        ("animal", "gone.json", None, "concept_file=gone.json cannot be read"),
        ("animal", "list.json", None, "expected concept -> option -> list of synonyms"),
        ("animal", None, ["cat"], "concept_options: concept animal needs two options or more, got cat"),
        ("animal", "twice.json", None, "the word 'pet' means cat and dog"),
        ("animal", "plural.json", None, "the word 'dogs' means cat and dog"),
        ("animal", "again.json", None, "concept_file=again.json has the key 'cat' twice"),
    ],
)
def test_unusable_concepts(tmp_path, monkeypatch, name, file, options, expected) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('{"animal": ["cat"]}')
    (tmp_path / "plural.json").write_text('{"animal": {"cat": ["dogs"], "dog": []}}')
    (tmp_path / "again.json").write_text('{"animal": {"cat": ["pet"], "dog": [], "cat": []}}')
    (tmp_path / "twice.json").write_text('{"animal": {"cat": ["pet"], "dog": ["Pet"]}}')
    with pytest.raises(UsageError) as error:
        read_concept(name, file, options)
    assert expected in str(error.value)
