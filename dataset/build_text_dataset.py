"""Build a text data set: token files, tokenizer and card in data/NAME, readable by train.py and by nanoGPT.

    python -m dataset.build_text_dataset shakespeare_char --download
    python -m dataset.build_text_dataset wikitext --input wikitext-2/ --train-split valid --val-split test
    python -m dataset.build_text_dataset mine --input book.txt --tokenizer byte
    python -m dataset.build_text_dataset mine --input docs.jsonl --json-key title body --tokenizer bpe --vocab-size 8192
    python -m dataset.build_text_dataset stdlib_char

Named data sets (NAMES) know their files, tokenizer and splits; every flag overrides them. Texts are fetched by
--download and --hub only; tiktoken fetches a table that it lacks. card.json in the output folder names its source.
"""

from __future__ import annotations

from engine.io import begin, execute

if __name__ == "__main__":
    begin()

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # `python dataset/build_text_dataset.py`: import from the repository, not from dataset/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataset.arguments import BuilderParser, run_builder
from dataset.text.build import TextBuild, build, refuse_existing
from dataset.text.named import NAMED, NamedText, build_generated, build_stand_in, download
from dataset.text.tokenizer import TOKENIZERS
from engine.io import UsageError, did_you_mean, print_rank0


def _name(text: str) -> str:
    """NAME, also as data/NAME, which train.py's --dataset accepts. Raises: UsageError for any other path."""
    name = text.removeprefix("./").removeprefix("data/").rstrip("/")
    if not name or "/" in name or name in (".", ".."):
        raise UsageError(f"NAME is the name of a data set, not a path ({text}): --output-dir says what to create")
    return name


def parser() -> argparse.ArgumentParser:
    """The command line; every flag is also accepted with underscores."""
    out = BuilderParser("build_text_dataset", (__doc__ or "").replace("NAMES", ", ".join(NAMED)))
    out.add_argument("name", metavar="NAME", type=_name, help="a named data set, or any name for the text of --input")
    out.add_argument("--input", type=Path, nargs="+", metavar="PATH", help="text or JSONL files, or a folder of them")
    out.add_argument("--download", action="store_true", help="fetch the text of a named data set (needs a network)")
    out.add_argument("--hub", metavar="REPOSITORY[:CONFIG]", help="fetch any text data set of the Hugging Face Hub")
    out.add_argument("--stand-in", action="store_true", help="build the offline stand-in for NAME; its card is marked")
    out.add_argument("--output-dir", type=Path, help="folder to create (default: data/NAME)")
    out.add_argument("--tokenizer", metavar="T", help=f"{', '.join(TOKENIZERS)} (default: by NAME, else bpe)")
    out.add_argument("--vocab-size", type=int, metavar="N", help="size for bpe and sentencepiece (default: 4096)")
    out.add_argument("--tokenizer-from", type=Path, metavar="FOLDER", help="use the tokenizer of this data set")
    out.add_argument(
        "--json-key", nargs="+", metavar="KEY", help="fields of a JSONL line that are its text, one per line"
    )
    out.add_argument(
        "--template", metavar="T", help="a document with {field} for each of them, such as 'Question: {question}'"
    )
    out.add_argument("--lines", action="store_true", help="each line of a plain text is a document")
    out.add_argument(
        "--train-split", metavar="S", help="file of the input folder to train on, such as train (by its name)"
    )
    out.add_argument("--val-split", metavar="S", help="file of the input folder to validate on, such as valid or test")
    out.add_argument(
        "--val-fraction", type=float, metavar="F", help="share held out where there is no such file (default: 0.1)"
    )
    out.add_argument("--seed", type=int, help="chooses the documents of a JSONL file that are held out (default: 1337)")
    out.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: by cores and work); never changes the data"
    )
    out.add_argument("--overwrite", action="store_true", help="replace the output folder if it is a text data set")
    return out


def _plan(arguments: argparse.Namespace, entry: NamedText | None) -> TextBuild:
    """The build that the flags describe, without its input."""
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError(f"--workers {arguments.workers} must be >= 1")
    kind = arguments.tokenizer or (entry.tokenizer if entry else "bpe")
    if arguments.tokenizer and arguments.tokenizer_from:
        raise UsageError("--tokenizer and --tokenizer-from exclude each other")
    if kind not in TOKENIZERS:
        raise UsageError(f"--tokenizer {kind}: {did_you_mean(kind, TOKENIZERS)}")
    keys = arguments.json_key or (entry.keys if entry else ("text",))
    return TextBuild(
        output_dir=arguments.output_dir or Path("data") / arguments.name,
        inputs=(),
        source=entry.source if entry else arguments.hub or "local files",
        published=entry.sha256 if entry else (),
        tokenizer=kind,
        vocab_size=arguments.vocab_size,
        tokenizer_from=arguments.tokenizer_from,
        train_split=arguments.train_split or (entry.train_split if entry else None),
        val_split=arguments.val_split or (entry.val_split if entry else None),
        val_fraction=0.1 if arguments.val_fraction is None else arguments.val_fraction,
        keys=tuple(keys),
        template=arguments.template if arguments.template is not None else entry.template if entry else "",
        lines=arguments.lines or (entry.lines if entry else False),
        seed=1337 if arguments.seed is None else arguments.seed,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build what the parsed flags describe and return the card. Raises: UsageError."""
    name, entry = arguments.name, NAMED.get(arguments.name)
    fetch = arguments.download or arguments.hub is not None
    if bool(arguments.input) + fetch + arguments.stand_in > 1:
        raise UsageError(
            "--input, --download (or --hub) and --stand-in exclude each other: each says where the text is"
        )
    plan = _plan(arguments, entry)
    refuse_existing(plan.output_dir, overwrite=plan.overwrite)
    if arguments.stand_in:
        return build_stand_in(plan, name)
    if arguments.input:
        inputs = [_corpus_folder(path, entry) for path in arguments.input]
        return build(_with_inputs(plan, inputs, {"input": [str(path) for path in inputs]}, entry))
    if fetch:
        with tempfile.TemporaryDirectory(prefix="loopforge-text-") as folder:
            origin = download(name, arguments.hub, Path(folder))
            files = sorted(Path(folder).iterdir())
            plan = replace(plan, published=())  # the Hub gives rows, not the published files with these hashes
            return build(_with_inputs(plan, files if len(files) == 1 else [Path(folder)], {"origin": origin}, entry))
    if entry is not None and entry.generated:
        return build_generated(plan, entry.generated)
    if entry is None:
        raise UsageError(
            f"{name} is not a named data set ({did_you_mean(name, NAMED)}): give its text with --input or --hub"
        )
    offline = f", or --stand-in for {entry.offline} in its place" if entry.offline else ""
    raise UsageError(f"{name} needs its text: --input FILE|FOLDER, or --download where there is a network{offline}")


def _corpus_folder(path: Path, entry: NamedText | None) -> Path:
    """`path`, or the named data set's place in it if `path` is a folder of several corpora."""
    inner = path / entry.local if entry and entry.local else path
    return inner if inner.exists() else path


def _with_inputs(plan: TextBuild, inputs: Sequence[Path], card: dict[str, Any], entry: NamedText | None) -> TextBuild:
    values = {**vars(plan), "inputs": tuple(inputs), "card": card}
    named = (entry.train_split, entry.val_split) if entry else (None, None)
    if inputs[0].is_file() and (plan.train_split, plan.val_split) == named:
        values |= {"train_split": None, "val_split": None}  # the user's own files are split by --val-fraction
    return TextBuild(**values)


def _build(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    card = run(arguments)
    counts, tokenizer = card["counts"], card["tokenizer"]
    print_rank0(
        f"built {arguments.output_dir or Path('data') / arguments.name} ({card['source']}) in {card['seconds']:.1f} s: "
        f"train {counts['train']['tokens']:,} tokens, val {counts['val']['tokens']:,}; {tokenizer['type']} with "
        f"{tokenizer['vocab_size']:,} ({card['dtype']}), {card['bytes_per_token']['train']:g} bytes per token; "
        f"split: {_describe_split(card['split'])}; sha256 {card['content_hash'][:16]}"
        + ("; STAND-IN DATA" if card["stand_in"] else "")
    )
    for line in _without_effect(arguments, card):
        print_rank0(f"warning: {line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Build, print what was built, return the exit code."""
    return run_builder(lambda: _build(argv))


def _without_effect(arguments: argparse.Namespace, card: dict[str, Any]) -> list[str]:
    """Flags that had no effect and why, one line each."""
    documents, by_file = "documents" in card["counts"]["train"], card["split"]["rule"] == "that of the files"
    reasons = {
        "seed": "validation files are given" if by_file else "" if documents else "the end of a plain text is held out",
        "val_fraction": "validation files are given" if by_file else "",
        "json_key": "" if documents else "the input is plain text, not JSONL",
    }
    unused = [(name, why) for name, why in reasons.items() if why and getattr(arguments, name) is not None]
    return [f"--{name.replace('_', '-')} had no effect: {why}" for name, why in unused]


def _describe_split(split: dict[str, str]) -> str:
    return f"train on {split['train']}, validate on {split['val']}" if "train" in split else split["rule"]


if __name__ == "__main__":
    execute(main)
