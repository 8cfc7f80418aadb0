"""Named text data sets: the origin of the text, its tokenizer and splits, and its stand-in offline."""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dataset.text.build import TextBuild, build, describe_text
from dataset.text.formats import JSON_SUFFIXES
from dataset.text.generated import GENERATED
from dataset.text.meta import load_tokenizer
from dataset.text.stream import TokenStream
from engine.io import UsageError, did_you_mean, print_rank0, sha256_file

BUILDER = "python -m dataset.build_text_dataset"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass(frozen=True, kw_only=True)
class NamedText:
    """The defaults of a named data set."""

    source: str
    local: str = ""
    """Path of the files within a folder of several corpora given as --input."""
    url: str | None = None
    sha256: tuple[str, ...] = ()
    """Hashes of the published files; the first is that of `url`."""
    hub: str | None = None
    """`repository` or `repository:configuration` on the Hugging Face Hub."""
    hub_text: bool = False
    """Rows of the Hub data set are lines of one text, not documents."""
    tokenizer: str = "bpe"
    train_split: str | None = None
    val_split: str | None = None
    keys: tuple[str, ...] = ("text",)
    template: str = ""
    lines: bool = False
    """Each line is a document."""
    generated: str | None = None
    """Key of GENERATED, if the text is generated."""
    offline: str | None = None
    """Key of GENERATED that stands in for text that is not available (docs/decisions/0007-stand-in-data.md)."""


_TINY = NamedText(
    source="tiny-shakespeare",
    local="tinyshakespeare/input.txt",
    url=SHAKESPEARE,
    sha256=("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
    tokenizer="char",
    offline="stdlib_char",
)
_GSM8K = NamedText(
    source="GSM8K",
    local="gsm8k",
    sha256=(  # train.jsonl and test.jsonl of openai/grade-school-math
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    ),
    hub="openai/gsm8k:main",
    train_split="train",
    val_split="test",
    keys=("question", "answer"),
    offline="arithmetic",
)
_WIKITEXT = NamedText(
    source="WikiText-2",
    local="wikitext-2",
    hub="Salesforce/wikitext:wikitext-2-raw-v1",
    hub_text=True,
    train_split="train",
    val_split="valid",
    offline="stdlib_docstrings",
)
# As documents, for the feedback models: a problem with its solution, or a line of an article.
_PROBLEMS = replace(_GSM8K, tokenizer="byte", template="Question: {question}\nAnswer: {answer}")
_LINES = replace(_WIKITEXT, tokenizer="byte", lines=True)
NAMED = {
    "shakespeare_char": _TINY,
    "shakespeare_class": replace(_TINY, tokenizer="char_class"),
    "shakespeare": replace(_TINY, tokenizer="gpt2", offline=None),
    "gsm8k": _GSM8K,
    "gsm8k_byte": _PROBLEMS,
    "gsm8k_gpt2": replace(_PROBLEMS, tokenizer="gpt2", offline=None),
    "wikitext": _WIKITEXT,
    "wikitext_byte": _LINES,
    "wikitext_gpt2": replace(_LINES, tokenizer="gpt2", offline=None),
    "stdlib_char": NamedText(source="Python standard library", tokenizer="char", generated="stdlib_char"),
    "stdlib_class": NamedText(source="Python standard library", tokenizer="char_class", generated="stdlib_char"),
    "stdlib_docstrings": NamedText(source="Python standard library docstrings", generated="stdlib_docstrings"),
    "arithmetic": NamedText(source="arithmetic word problems", keys=("question", "answer"), generated="arithmetic"),
    "copies_byte": NamedText(source="letters and their copy", tokenizer="byte", lines=True, generated="copies"),
    "permuted_copies_byte": NamedText(
        source="letters and their permuted copy", tokenizer="byte", lines=True, generated="permuted_copies"
    ),
    "pets": NamedText(source="sentences about dogs and cats", lines=True, generated="pets"),
}
# (train, val) splits of the generated corpora.
_SPLITS = {
    "stdlib_char": (None, None),
    "stdlib_docstrings": ("train", "valid"),
    "arithmetic": ("train", "test"),
    **dict.fromkeys(("copies", "permuted_copies", "pets"), ("train", "valid")),
}


def build_command(path: str | Path) -> str:
    """The command that builds the text data set at `path`."""
    root = Path(path)
    entry = NAMED.get(root.name)
    where = "" if root == Path("data") / root.name else f" --output-dir {shlex.quote(str(path))}"
    if entry is None:
        return f"{BUILDER} {shlex.quote(root.name)} --input FILE{where}"
    return f"{BUILDER} {root.name}{'' if entry.generated else ' --download'}{where}"


@contextlib.contextmanager
def generated_files(key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a generated corpus in a folder that is removed at the end, and entries for the card."""
    with tempfile.TemporaryDirectory(prefix="loopforge-text-") as folder:
        yield Path(folder), GENERATED[key](Path(folder))


def build_generated(plan: TextBuild, key: str) -> dict[str, Any]:
    """Build `plan` from the generated corpus `key`, whose splits and fields replace those of the plan."""
    train, val = _SPLITS[key]
    with generated_files(key) as (folder, lines):
        files = (folder,) if train else tuple(sorted(folder.iterdir()))
        keys = ("question", "answer") if key == "arithmetic" else ("text",)
        changed = replace(plan, inputs=files, train_split=train, val_split=val, keys=keys, published=())
        return build(replace(changed, card={**plan.card, **lines}))


def build_stand_in(plan: TextBuild, name: str) -> dict[str, Any]:
    """Build the stand-in of the named data set `name` and mark its card. Raises: UsageError if it has none."""
    key = NAMED[name].offline if name in NAMED else None
    if key is None:
        raise UsageError(f"{name} has no stand-in: " + did_you_mean(name, [n for n, e in NAMED.items() if e.offline]))
    source = f"{key}, generated, in place of {NAMED[name].source}"
    return build_generated(replace(plan, source=source, card={"stand_in": True, "stand_in_for": name}), key)


def download(name: str, hub: str | None, folder: Path) -> str:
    """Fetch the files of a named data set, or every split of a Hub data set, into `folder`; returns their origin.

    Raises: UsageError if that fails.
    """
    entry, flag = NAMED.get(name), "--hub" if hub else "--download"
    if hub is None and entry is not None and entry.url is not None:
        _fetch(entry, folder)
        return entry.url
    repository = hub or (entry.hub if entry else None)
    if repository is None:
        known = ", ".join(n for n, e in NAMED.items() if e.url or e.hub)
        raise UsageError(f"--download knows {known}; name another Hub data set with --hub REPOSITORY[:CONFIGURATION]")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(f"{flag} needs the datasets library: pip install 'loopforge[lm]'; or give --input") from None
    try:
        splits = load_dataset(*repository.split(":", 1))
    except Exception as error:  # any failure of the library is reported by its first line
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{flag} of {repository} failed: {first}; give the files as --input") from None
    for split, rows in splits.items():
        lines = bool(entry and entry.hub_text)
        with open(folder / f"{split}{'.txt' if lines else JSON_SUFFIXES[0]}", "w", encoding="utf-8") as out:
            for row in rows:
                out.write(row["text"] if lines else json.dumps(row, default=str) + "\n")
    return f"Hugging Face Hub, {repository}"


def _fetch(entry: NamedText, folder: Path) -> None:
    import shutil
    import urllib.error
    import urllib.request

    target = folder / str(entry.url).rpartition("/")[2]
    try:
        with urllib.request.urlopen(str(entry.url), timeout=60) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(f"--download of {entry.url} failed: {reason}; give the file as --input") from None
    if sha256_file(target) != entry.sha256[0]:
        raise UsageError(f"{entry.url} is not the known {entry.source} (sha256 differs): give --input to use it")


def ensure_text(path: str | Path, *, offline: Literal["stand_in", "error"] = "stand_in") -> dict[str, Any]:
    """Check the text data set at `path` and return its card (with `path`); build it first if it is missing and can be.

    Generated data sets are built. A missing public one is an error, unless its entry has a stand-in and `offline`
    allows it: then the stand-in is built in its place, one line reports it now and at every later use, and its card has
    `stand_in: true`. Several ranks may call this at once: the first builds, the others wait.

    Raises: UsageError for a damaged data set, a missing one that cannot be built here (with the command), and for a
    stand-in with `offline="error"`.
    """
    root = Path(path)
    if not root.exists():
        require_text(root, offline=offline)
        _build_missing(root)
    card = describe_text(root)
    for split in ("train", "val"):
        TokenStream(root, split)
    if (root / "tokenizer.json").exists():
        load_tokenizer(root)
    if card.get("stand_in"):
        if offline == "error":
            raise UsageError(
                f"{root} is a stand-in ({card['source']}) and offline=error forbids those: "
                f"{build_command(root)} --overwrite"
            )
        print_rank0(
            f"STAND-IN DATA: {root} is {card['source']}; figures are not comparable (stand_in: true). "
            f"The real data: {build_command(root)} --overwrite"
        )
    return card


def require_text(path: str | Path, *, offline: Literal["stand_in", "error"] = "stand_in") -> None:
    """Raise UsageError, with the build command, if a text data set is missing and cannot be built here."""
    root = Path(path)
    entry = NAMED.get(root.name)
    if root.exists():
        return
    if entry is None:
        raise UsageError(f"data set {root} does not exist: {build_command(root)}; or " + did_you_mean(root.name, NAMED))
    if not entry.generated and (entry.offline is None or offline == "error"):
        why = f"; its stand-in {entry.offline} is forbidden by offline=error" if entry.offline else ""
        raise UsageError(f"data set {root} does not exist{why}: {build_command(root)} (or --input FILE instead)")


def _build_missing(root: Path) -> None:
    entry = NAMED[root.name]
    stand_in = None if entry.generated else entry.offline
    print_rank0(
        f"{root} is missing: building {f'its stand-in {stand_in}' if stand_in else 'it'} now ({entry.tokenizer} tokens)"
    )
    plan = TextBuild(
        output_dir=root,
        inputs=(),
        source=entry.source,
        tokenizer=entry.tokenizer,
        template=entry.template,
        lines=entry.lines,
    )
    try:
        if stand_in:
            build_stand_in(plan, root.name)
        else:
            build_generated(plan, str(entry.generated))
    except UsageError:
        # Another rank or run held the lock and has built it: the result is the same, bit for bit.
        if not root.exists():
            raise
