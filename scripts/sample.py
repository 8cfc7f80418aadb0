"""Write text with a model of train.py.

    python scripts/sample.py out/shakespeare                                  # one sample from a newline
    python scripts/sample.py out/shakespeare --prompt "ROMEO:" --max-new-tokens 300 --top-k 1 5 200
    python scripts/sample.py out/shakespeare --prompt FILE:start.txt --temperature 0.7 --min-p 0.05 --num-samples 3

It takes the best checkpoint of a run (--checkpoint latest: the newest) and its averaged weights where there are such.
Several values of --top-k give a sample each; the same --seed gives the same text on every machine.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin(output_is_all=True)

from dataset.arguments import OneLineParser, positive
from engine.errors import UsageError
from scripts._opening import run_command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one exits 2."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = OneLineParser(
        prog="sample.py", description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run directory of train.py, or one of its checkpoints")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best (default), latest or step_N")
    parser.add_argument(
        "--prompt", nargs="+", default=["\n"],
        help='text, or FILE:path; one for each stream of a multicontext model; default: a newline',
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=positive, default=500, metavar="N", help="length of a sample; default: 500"
    )
    parser.add_argument(
        "--num-samples", type=positive, default=1, metavar="N", help="samples for each --top-k; default: 1"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token; default: 0.8"
    )
    parser.add_argument(
        "--top-k",
        type=positive,
        nargs="+",
        default=[200],
        metavar="K",
        help="draw from the K likeliest tokens; default: 200",
    )
    parser.add_argument("--min-p", type=float, metavar="P", help="only tokens of at least P x the best's probability")
    parser.add_argument("--dataset", metavar="NAME", help="which vocabulary, for a multidataset_wte model")
    parser.add_argument("--seed", type=int, default=1337, metavar="N", help="of the random draws; default: 1337")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (if there are any) or raw")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: auto")
    args = parser.parse_args(argv)
    if not 0 <= args.temperature < math.inf:
        parser.error(f"argument --temperature: {args.temperature} is no finite number of at least 0")
    if args.min_p is not None and not 0 <= args.min_p <= 1:
        parser.error(f"argument --min-p: {args.min_p} is not between 0 and 1")
    return args


def sample(args: argparse.Namespace) -> None:
    """Print the samples."""
    from scripts._text_run import open_text_run

    prompts = [read_prompt(text) for text in args.prompt]
    write(open_text_run(args.run, checkpoint=args.checkpoint, device=args.device, weights=args.weights), prompts, args)


def read_prompt(text: str) -> str:
    """A prompt, read from a file where it says FILE:path."""
    from tasks.language_model.report import start_text

    return start_text(text)


def write(run: Any, prompts: list[str], args: argparse.Namespace) -> None:
    """Sample from an opened run, one block of text after the other."""
    import torch

    from tasks.language_model.generation import generate, until
    from tasks.language_model.report import encode_prompt

    known = run.vocabularies
    contexts = run.config.training_mode == "multicontext"
    stream = which(known, args.dataset) if run.config.multidataset_wte else None
    if args.dataset and stream is None:
        raise UsageError(f"--dataset {args.dataset}: this model has one vocabulary; leave it out")
    if len(prompts) != (wanted := len(known) if contexts else 1) and len(prompts) != 1:
        raise UsageError(f"--prompt: {len(prompts)} were given, expected {wanted}: one for each of its streams")
    tokenizers = [each.tokenizer() for each in (known if contexts else [known[stream or 0]])]
    encoded = [encode_prompt(tokenizer, text) for tokenizer, text in zip(tokenizers, prompts, strict=False)]
    # streams without a prompt begin with their first token, for want of an annotation
    encoded += [torch.zeros_like(encoded[0]) for _ in tokenizers[len(encoded) :]]
    if len({row.shape[1] for row in encoded}) > 1:
        sizes = ", ".join(str(row.shape[1]) for row in encoded)
        raise UsageError(f"--prompt: the streams' prompts have {sizes} tokens; they annotate the same positions")
    start = (torch.stack(encoded, dim=1) if contexts else encoded[0]).to(run.runtime.device)
    for top_k in args.top_k:
        made = generate(
            run.model, start.expand(args.num_samples, *start.shape[1:]), args.max_new_tokens,
            temperature=args.temperature, top_k=top_k, min_p=args.min_p, seed=args.seed, purpose=f"sample/{top_k}",
            stream=stream, stop=tokenizers[0].eot,
        )  # fmt: skip
        for number, row in enumerate(made):
            print(f"--- step {run.step} top_k {top_k} sample {number}")
            text = until(row, tokenizers[0].eot)
            rows = text if contexts else text.unsqueeze(0)
            for place, (tokenizer, tokens) in enumerate(zip(tokenizers, rows, strict=True)):
                name = f"[{known[place].name}] " if contexts else ""
                given = prompts[place] if place < len(prompts) else ""
                print(name + given + tokenizer.decode(tokens.tolist()))


def which(known: Sequence[Any], name: str | None) -> int:
    """Number of the vocabulary called `name`; the first one where none is named."""
    names = [each.name for each in known]
    if name is not None and name not in names:
        raise UsageError(f"--dataset {name}: choose one of {', '.join(names)}")
    return names.index(name) if name is not None else 0


def main() -> int:
    args = parse()
    return run_command(lambda: sample(args))


if __name__ == "__main__":
    execute(main)
