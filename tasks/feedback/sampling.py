"""Sample text from a run of a feedback script, for scripts/sample.py."""

from __future__ import annotations

import argparse

import torch

from engine.errors import UsageError
from engine.io import print_rank0
from reports.cost.batch_size import usual_limit
from tasks.feedback.generation import Sampling, base_passes, fill, predictor
from tasks.feedback.loading import FeedbackRun, load_feedback_run
from tasks.language_model.generation import SCORES, truncate
from tasks.language_model.report import encode_prompt, start_text
from tasks.loading import TEXT, refuse_arguments, with_defaults

UNSUPPORTED = ("top_k", "min_p", "dataset")
"""Arguments of scripts/sample.py that do not apply to these models."""


def sample_run(args: argparse.Namespace) -> None:
    """Load the run that `args` names and print its samples. Raises: UsageError."""
    refuse_arguments(args, UNSUPPORTED, "a model that fills in masked text")
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
    check_memory(args.num_samples, (len(start) + count) * run.shape.words)
    row = torch.cat((start, torch.full((count,), run.shape.mask_id)))
    base = run.base.model if run.base is not None else None
    filled = fill(
        predictor(run.model, base),
        row.repeat(args.num_samples, 1).to(run.runtime.device),
        run.shape,
        sampling,
        causal=run.causal,
    )
    cost = f"{filled.evaluations} evaluations"
    if base is not None:
        cost += f" ({filled.renewals} with new deltas, {base_passes(filled, run.model, base)} passes of the base)"
    for number, tokens in enumerate(filled.tokens.cpu()):
        text = torch.cat((tokens[: len(start)], truncate(tokens[len(start) :], run.tokenizer.eot)))
        print(f"--- step {run.step} {cost} sample {number}")
        print(run.tokenizer.decode(text.tolist()))


def check_memory(samples: int, scores: int) -> None:
    """Raise UsageError if the logits of all samples, `scores` each, exceed the free memory."""
    size, limit = SCORES * 4 * samples * scores, usual_limit()
    if size > limit:
        raise UsageError(
            f"--num-samples {samples:,} at once need {size >> 20:,} MiB, {limit >> 20:,} are free: lower it"
        )


def new_tokens(run: FeedbackRun, before: int, count: int) -> int:
    """`count` new tokens after `before` tokens, or as many as fit. Raises: UsageError if none fits."""
    room = run.config.dataset.block_size - before
    if room < 1:
        raise UsageError(
            f"--prompt: {before} tokens leave no room in the {before + room} that the model was trained on"
        )
    if count > room:
        print_rank0(f"note: {room} new tokens fit behind the prompt, not {count}")
    return min(count, room)
