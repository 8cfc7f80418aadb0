"""Concepts and their options, found in text by whole words: animal = cat or dog, a kitten is a cat.

A concept file (the default is config/concepts.json) lists the words for each option:

    {"animal": {"cat": ["kitten", "kitty"], "dog": ["puppy"]}}         concept -> option -> synonyms

If a completion must name several concepts, each counts once, at its first mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.reading import Unreadable, read_json, reason_of
from engine.registry import ROOT

SHIPPED = ROOT / "config" / "concepts.json"


@dataclass(frozen=True)
class Mention:
    """text[start:end] names `option`."""

    option: str
    start: int
    end: int


@dataclass(frozen=True)
class Concept:
    """`options`: option -> synonyms. Whole words match, in any case, singular or plural."""

    name: str
    options: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for option, synonyms in self.options.items():
            for word in (option, *synonyms):
                if not word.strip():
                    raise ValueError(f"concept {self.name}: the word '{word}' is empty")
                for form in forms(word.lower()):
                    if (other := seen.setdefault(form, option)) != option:
                        raise ValueError(f"concept {self.name}: the word '{form}' means {other} and {option}")
        if len(self.options) < 2:
            raise ValueError(f"concept {self.name} needs two options or more, got {', '.join(self.options) or 'none'}")

    def find(self, text: str, taken: Sequence[Mention] = ()) -> Mention | None:
        """The first mention of an option that does not overlap `taken`; None without one. The longest word at a
        position wins."""
        places = self._pattern.finditer(text)
        free = (m for m in places if all(m.end() <= other.start or other.end <= m.start() for other in taken))
        if (match := next(free, None)) is None:
            return None
        word = match[0].lower()
        if word not in self._meaning:  # case-insensitive matching also takes a long s (U+017F) for an s
            word = next(form for form in self._meaning if re.fullmatch(re.escape(form), match[0], re.IGNORECASE))
        return Mention(self._meaning[word], match.start(), match.end())

    @property
    def words(self) -> Iterable[str]:
        """Every form of every word, in lower case."""
        return self._meaning.keys()

    @cached_property
    def _meaning(self) -> dict[str, str]:
        words = ((option, word) for option, others in self.options.items() for word in (option, *others))
        return {form: option for option, word in words for form in forms(word.lower())}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._meaning, key=len, reverse=True)
        # [^\W_] is a letter or a digit
        return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])", re.IGNORECASE)


def forms(word: str) -> Iterator[str]:
    """A noun and its regular plural: cat, cats; fox, foxes; puppy, puppies."""
    yield word
    if re.search(r"[^aeiou]y$", word):
        yield word[:-1] + "ies"
    else:
        yield word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def read_concept(
    name: str, file: str | None = None, options: Sequence[str] | None = None, *, key: str = "concept_name"
) -> Concept:
    """The concept `name` of `file` (None: the default file), with all its options or only `options`, which may be new.

    Raises: UsageError for no such file or concept, or an unusable one.
    """
    path = SHIPPED if file is None else user_path(file)
    shown = f"concept_file={file}" if file is not None else "config/concepts.json"
    try:
        known = read_json(path, unique=True)
    except (OSError, Unreadable) as error:
        raise UsageError(f"{shown} {reason_of(error)}") from None
    if not _is_table(known):
        raise UsageError(f"{shown}: expected concept -> option -> list of synonyms")
    if name not in known:
        raise UsageError(f"{key}={name} is not in {shown}: {did_you_mean(name, known)}; concept_file adds others")
    entry: dict[str, list[str]] = known[name]
    try:
        return Concept(name, entry if options is None else {option: entry.get(option, []) for option in options})
    except ValueError as error:
        raise UsageError(f"{shown}: {error}" if options is None else f"concept_options: {error}") from None


def read_concepts(
    name: str, file: str | None = None, options: Sequence[str] | None = None, further: Sequence[str] = ()
) -> tuple[Concept, ...]:
    """The concept `name` (see `read_concept`) and the `further` ones of the file. Raises: UsageError."""
    concepts = [read_concept(name, file, options)]
    for other in further:
        if other in (concept.name for concept in concepts):
            raise UsageError(f"further_concepts names {other} twice, or it is concept_name: each concept counts once")
        concepts.append(read_concept(other, file, key="further_concepts"))
    owners: dict[str, str] = {}
    for concept in concepts:
        for form in concept.words:
            if (owner := owners.setdefault(form, concept.name)) != concept.name:
                raise UsageError(
                    f"further_concepts: the word '{form}' names an option of {owner} and of {concept.name}: "
                    "choose concepts without words in common"
                )
    return tuple(concepts)


def _is_table(known: object) -> bool:
    return isinstance(known, dict) and all(
        isinstance(options, dict)
        and all(isinstance(words, list) and all(isinstance(w, str) for w in words) for words in options.values())
        for options in known.values()
    )
