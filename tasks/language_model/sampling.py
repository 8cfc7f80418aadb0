"""Sample text from a run of train.py, for scripts/sample.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from engine.errors import UsageError
from tasks.language_model.generation import generate, truncate
from tasks.language_model.loading import load_text_run
from tasks.language_model.report import encode_prompt, start_text
from tasks.loading import TEXT, refuse_arguments, with_defaults

UNSUPPORTED = ("steps", "feedback_every", "block_length")
"""Arguments of scripts/sample.py that do not apply to these models."""


def sample_run(args: argparse.Namespace) -> None:
    """Load the run that `args` names and print its samples. Raises: UsageError."""
    refuse_arguments(args, UNSUPPORTED, "a model that writes from left to right")
    args = with_defaults(args, TEXT)
    prompts = [start_text(text) for text in args.prompt]
    run = load_text_run(args.run, checkpoint=args.checkpoint, device=args.device, weights=args.weights)
    print_samples(run, prompts, args)


def print_samples(run: Any, prompts: list[str], args: argparse.Namespace) -> None:
    """Sample from a loaded run and print each sample. Raises: UsageError."""
    known = run.vocabularies
    contexts = run.config.training_mode == "multicontext"
    stream = vocabulary_index(known, args.dataset) if run.config.multidataset_wte else None
    if args.dataset and stream is None:
        raise UsageError(f"--dataset {args.dataset}: this model has one vocabulary; leave it out")
    if len(prompts) != (expected := len(known) if contexts else 1) and len(prompts) != 1:
        raise UsageError(f"--prompt: {len(prompts)} were given, expected {expected}: one for each of its streams")
    tokenizers = [each.tokenizer() for each in (known if contexts else [known[stream or 0]])]
    encoded = [encode_prompt(tokenizer, text) for tokenizer, text in zip(tokenizers, prompts, strict=False)]
    # streams without a prompt repeat their token 0, since there is no annotation
    if missing := [each.name for each in known[len(encoded) :] if contexts]:
        names = ", ".join(missing)
        sys.stderr.write(f"note: no --prompt for {names}: its first token stands at each place of the prompt\n")
    encoded += [torch.zeros_like(encoded[0]) for _ in tokenizers[len(encoded) :]]
    if len({row.shape[1] for row in encoded}) > 1:
        sizes = ", ".join(str(row.shape[1]) for row in encoded)
        raise UsageError(f"--prompt: the streams' prompts have {sizes} tokens; they annotate the same positions")
    start = (torch.stack(encoded, dim=1) if contexts else encoded[0]).to(run.runtime.device)
    for top_k in args.top_k:
        generated = generate(
            run.model,
            start.expand(args.num_samples, *start.shape[1:]),
            args.max_new_tokens,
            temperature=args.temperature,
            top_k=top_k,
            min_p=args.min_p,
            seed=args.seed,
            purpose=f"sample/{top_k}",
            stream=stream,
            stop=tokenizers[0].eot,
            vocab_size=None if contexts else known[stream or 0].size,
        )
        for number, row in enumerate(generated):
            print(f"--- step {run.step} top_k {top_k} sample {number}")
            text = truncate(row, tokenizers[0].eot)
            rows = text if contexts else text.unsqueeze(0)
            for place, (tokenizer, tokens) in enumerate(zip(tokenizers, rows, strict=True)):
                name = f"[{known[place].name}] " if contexts else ""
                prompt = prompts[place] if place < len(prompts) else ""
                print(name + prompt + tokenizer.decode(tokens.tolist()))


def vocabulary_index(known: Sequence[Any], name: str | None) -> int:
    """Index of the vocabulary called `name`; 0 for None. Raises: UsageError for an unknown name."""
    names = [each.name for each in known]
    if name is not None and name not in names:
        raise UsageError(f"--dataset {name}: choose one of {', '.join(names)}")
    return names.index(name) if name is not None else 0
