"""Corpora without a download: the standard library's sources and docstrings, arithmetic word problems, copies, pets.

Some stand in for public corpora that are not available (see dataset/text/named.py). Every function writes files into an
empty folder and returns entries for the card; the same Python version writes the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import string
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset.text.pets import pets
from engine.distributed import keyed_numpy
from engine.io import UsageError

STDLIB_BYTES = 1_200_000
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "ensurepip"}
PRINTABLE = (string.ascii_letters + string.digits + string.punctuation + " \t\n").encode()


def stdlib_files() -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the standard library's plain ASCII sources, in the order of the sha256 of their names.

    That order mixes the packages, so that a size limit or a held-out tail does not select by the alphabet.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        known = relative.parts[0].removesuffix(".py") in sys.stdlib_module_names
        # _sysconfigdata… depends on the machine that compiled Python
        if known and not LEFT_OUT & set(relative.parts) and not relative.name.startswith("_sysconfigdata"):
            names.append(relative.as_posix())
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        data = (root / name).read_bytes().replace(b"\r\n", b"\n")
        if data and not data.translate(None, PRINTABLE):
            yield name, data
    if not names:
        raise UsageError(f"{root} holds no sources of the standard library (a Python without .py files?)")


def stdlib_sources(folder: Path) -> dict[str, Any]:
    """Write one text of whole source files, about 1.2 MB."""
    size, count = 0, 0
    with open(folder / "input.txt", "wb") as out:
        for _, data in stdlib_files():
            if size + len(data) <= STDLIB_BYTES:
                out.write(data)
                size, count = size + len(data), count + 1
    return {"generator": f"{count} sources of Python {platform.python_version()}'s standard library, ASCII only"}


def stdlib_docstrings(folder: Path) -> dict[str, Any]:
    """Write the docstrings of the standard library's modules, classes and functions, each below its name."""
    texts = []
    for name, data in stdlib_files():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(data)
        except SyntaxError:
            continue  # templates named .py
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 80:
                    title = name if isinstance(node, ast.Module) else f"{name} {node.name}"
                    texts.append(f"= {title} =\n\n{text}\n\n")
    cut = len(texts) * 9 // 10
    for split, part in (("train", texts[:cut]), ("valid", texts[cut:])):
        (folder / f"{split}.txt").write_text("".join(part), encoding="utf-8")
    return {"generator": f"{len(texts)} docstrings of Python {platform.python_version()}'s standard library"}


NAMES = ("Ana", "Ben", "Chen", "Dara", "Emil", "Fay", "Goran", "Hana", "Ivo", "Jun", "Kira", "Leo", "Mona", "Nils")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "tickets")
TRAIN_PROBLEMS, TEST_PROBLEMS = 7473, 1319


def word_problem(random: np.random.Generator) -> dict[str, str]:
    """A problem of two to four steps in GSM8K's format: calculator annotations, the result after `####`."""
    who, other = random.choice(NAMES, 2, replace=False)
    thing = random.choice(THINGS)
    have = int(random.integers(4, 60))
    question = [f"{who} has {have} {thing}."]
    answer = []
    for _ in range(int(random.integers(2, 5))):
        amount = int(random.integers(2, 20))
        shares = [part for part in range(2, 13) if have % part == 0 and have > part]
        kind = int(random.integers(4))
        if kind == 1 and have > amount:
            question.append(f"Then {who} loses {amount} of them.")
            now, sign = have - amount, "-"
        elif kind == 2 and have < 200:
            amount = amount % 4 + 2
            question.append(f"A week later {who} has {amount} times as many.")
            now, sign = have * amount, "*"
        elif kind == 3 and shares:
            amount = int(random.choice(shares))
            question.append(f"{who} puts them into {amount} equal boxes and keeps one box.")
            now, sign = have // amount, "/"
        else:
            question.append(f"{other} gives {who} {amount} more.")
            now, sign = have + amount, "+"
        answer.append(f"{who} now has {have}{sign}{amount} = <<{have}{sign}{amount}={now}>>{now} {thing}.")
        have = now
    question.append(f"How many {thing} does {who} have now?")
    return {"question": " ".join(question), "answer": "\n".join([*answer, f"#### {have}"])}


def arithmetic(folder: Path) -> dict[str, Any]:
    """Write as many word problems as GSM8K has; no test question is a training question."""
    seen: set[str] = set()
    for split, count in (("train", TRAIN_PROBLEMS), ("test", TEST_PROBLEMS)):
        random = keyed_numpy(0, f"text/arithmetic/{split}")
        lines: list[str] = []
        while len(lines) < count:
            problem = word_problem(random)
            if problem["question"] not in seen:
                seen.add(problem["question"])
                lines.append(json.dumps(problem))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"generator": f"{TRAIN_PROBLEMS} + {TEST_PROBLEMS} word problems from templates, seed 0"}


LETTERS, HALF = "abcdefgh", 32
TRAIN_COPIES, VALID_COPIES = 20_000, 1_024


def pairings(count: int) -> list[list[int]]:
    """count - 1 permutations of `count` (even) items, each its own inverse, no two of which agree anywhere.

    They are the rounds of a round-robin tournament: in round r the last item meets r, and r + i meets r - i.
    """
    rounds = []
    for r in range(count - 1):
        partner = [0] * count
        pairs = [(count - 1, r), *(((r + i) % (count - 1), (r - i) % (count - 1)) for i in range(1, count // 2))]
        for a, b in pairs:
            partner[a], partner[b] = b, a
        rounds.append(partner)
    return rounds


def copies(folder: Path, *, permuted: bool = False) -> dict[str, Any]:
    """Write lines of 32 random letters and their copy; `permuted`: under one of seven permutations, which is not given.

    No two permutations map a letter to the same one, so a guess that ignores a line's permutation is right once in
    seven times. Line i has the same first half in both corpora.
    """
    rounds = pairings(len(LETTERS))
    for split, count in (("train", TRAIN_COPIES), ("valid", VALID_COPIES)):
        random = keyed_numpy(0, f"text/copies/{split}")
        first = random.integers(len(LETTERS), size=(count, HALF))
        chosen = random.integers(len(rounds), size=count)
        second = np.asarray(rounds)[chosen[:, None], first] if permuted else first
        lines = ("".join(LETTERS[letter] for letter in row) for row in np.concatenate([first, second], axis=1))
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    what = f"under one of {len(rounds)} hidden permutations" if permuted else "as it is"
    return {"generator": f"{TRAIN_COPIES} + {VALID_COPIES} lines of {HALF} letters and their copy {what}, seed 0"}


def permuted_copies(folder: Path) -> dict[str, Any]:
    """`copies` whose second halves are permuted."""
    return copies(folder, permuted=True)


GENERATED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "stdlib_char": stdlib_sources,
    "stdlib_docstrings": stdlib_docstrings,
    "arithmetic": arithmetic,
    "copies": copies,
    "permuted_copies": permuted_copies,
    "pets": pets,
}
