"""Write text with a run of a feedback script, for scripts/sample.py."""

from __future__ import annotations

import argparse

import torch

from engine.errors import UsageError
from engine.io import print_rank0
from reports.cost.batch_size import usual_limit
from tasks.feedback.generation import Sampling, base_passes, fill, predictor
from tasks.feedback.loading import FeedbackRun, load_feedback_run
from tasks.language_model.generation import SCORES, until
from tasks.language_model.report import encode_prompt, start_text
from tasks.loading import TEXT, with_defaults

WITHOUT = ("top_k", "min_p", "dataset")
"""Arguments that mean nothing here."""


def sample_run(args: argparse.Namespace) -> None:
    """Load the run that `args` names and print its samples. Raises: UsageError."""
    for name in WITHOUT:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for a model that fills in masked text")
    args = with_defaults(args, TEXT)
    if len(args.prompt) > 1:
        raise UsageError(f"--prompt: {len(args.prompt)} were given, expected one")
    prompt = start_text(args.prompt[0])
    run = load_feedback_run(args.run, checkpoint=args.checkpoint, device=args.device, weights=args.weights)
    if args.feedback_every is not None and run.base is None:
        raise UsageError(f"--feedback-every: {args.run} is a run of a base, which has no deltas to keep: leave it out")
    sampling = Sampling(
        steps=args.steps or run.config.generation_steps,
        temperature=args.temperature,
        block_length=args.block_length,
        schedule=run.config.generation_schedule,
        feedback_every=args.feedback_every or getattr(run.config, "feedback_every", 1),
        seed=args.seed,
    )
    start = encode_prompt(run.tokenizer, prompt)[0]
    count = new_tokens(run, len(start), args.max_new_tokens)
    check_room(args.num_samples, (len(start) + count) * run.shape.words)
    row = torch.cat((start, torch.full((count,), run.shape.mask_id)))
    base = run.base.model if run.base is not None else None
    made = fill(
        predictor(run.model, base),
        row.repeat(args.num_samples, 1).to(run.runtime.device),
        run.shape,
        sampling,
        causal=run.causal,
    )
    cost = f"{made.evaluations} evaluations"
    if base is not None:
        cost += f" ({made.renewals} with new deltas, {base_passes(made, run.model, base)} passes of the base)"
    for number, tokens in enumerate(made.tokens.cpu()):
        text = torch.cat((tokens[: len(start)], until(tokens[len(start) :], run.tokenizer.eot)))
        print(f"--- step {run.step} {cost} sample {number}")
        print(run.tokenizer.decode(text.tolist()))


def check_room(samples: int, scores: int) -> None:
    """Raises UsageError where the scores of all places of the samples exceed the memory that is free."""
    size, room = SCORES * 4 * samples * scores, usual_limit()
    if size > room:
        raise UsageError(
            f"--num-samples {samples:,} at once need {size >> 20:,} MiB, {room >> 20:,} are free: lower it"
        )


def new_tokens(run: FeedbackRun, before: int, asked: int) -> int:
    """As many as were asked for, or as many as fit. Raises: UsageError where none fits."""
    room = run.config.dataset.block_size - before
    if room < 1:
        raise UsageError(
            f"--prompt: {before} tokens leave no room in the {before + room} that the model was trained on"
        )
    if asked > room:
        print_rank0(f"note: {room} new tokens fit behind the prompt, not {asked}")
    return min(asked, room)
