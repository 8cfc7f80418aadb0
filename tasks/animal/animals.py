"""Names of animals, to count how many a set of texts mentions, whether or not they are options of the concept."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LIST = """
alligator ant antelope badger bat bear beaver bee beetle bird bison boar buffalo bull butterfly camel cat
caterpillar chicken chimpanzee cobra cow coyote crab crane cricket crocodile crow deer dog dolphin donkey dove
dragonfly duck eagle eel elephant elk falcon ferret finch fish flamingo fly fox frog gazelle gecko giraffe goat
goose gorilla grasshopper hamster hare hawk hedgehog hen heron hippopotamus horse hummingbird hyena iguana jackal
jaguar jellyfish kangaroo kitten koala ladybug lamb leopard lion lizard llama lobster lynx mole monkey moose
mosquito moth mouse mule newt nightingale octopus orangutan ostrich otter owl ox panda panther parrot peacock
pelican penguin pig pigeon pony porcupine puppy rabbit raccoon ram raven reindeer rhinoceros robin rooster
salamander salmon seal shark sheep shrimp skunk sloth snail snake sparrow spider squid squirrel stork swallow swan
tiger toad trout turkey turtle vulture walrus wasp weasel whale wolf wolverine woodpecker worm yak zebra
"""
NAMES = frozenset(_LIST.split())
_IRREGULAR = {"mice": "mouse", "wolves": "wolf", "geese": "goose", "oxen": "ox", "calves": "cow", "flies": "fly"}


def animals_in(texts: Iterable[str]) -> set[str]:
    """The animals that occur in the texts, in the singular or plural."""
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return {name for word in words if (name := _singular(word)) in NAMES}


def _singular(word: str) -> str:
    if word in NAMES:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    stems = (word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return next((stem for stem in stems if stem in NAMES and stem != word), word)
