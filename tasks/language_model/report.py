"""The files that train.py writes after each evaluation, besides metrics: the best loss, and samples of text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.text.corpus import HALF
from dataset.text.formats import read_text
from dataset.text.loading import short_names
from dataset.text.meta import load_tokenizer
from dataset.text.tokenizer import Tokenizer
from dataset.text.vocabulary import FILE, to_text, vocabularies_of
from engine.io import print_rank0
from engine.signals import StopSignal
from engine.task import Evaluation, UsageError
from models.language_models.gpt import GPT
from tasks.language_model.generation import check_memory, generate, truncate

BEST = "best_val_loss_and_iter.txt"
PROMPT = "sample_start_tokens"


class LanguageReport:
    """Callable: evaluation -> {file name: text}, for files of the run directory.

    Args:
        config: of `train.py`, with the sampling keys.
        folders: data sets, in the order of the model's vocabularies.

    Raises: UsageError for a prompt that cannot be read, or that a vocabulary cannot encode.
    """

    def __init__(self, config: Any, model: GPT, folders: Sequence[Path]) -> None:
        self.config, self.model, self.folders = config, model, list(folders)
        self.names = short_names(self.folders)
        self._kept = False
        if config.max_sample_tokens is not None:
            check_memory(model, config.num_samples, config.max_sample_tokens)
            self.tokenizers = [load_tokenizer(folder) for folder in self.folders]
            self.sizes = [each.size for each in vocabularies_of(self.folders)]
            self.start = start_text(config.sample_start_tokens)
            own = config.multidataset_wte and config.training_mode != "multicontext"
            for tokenizer in self.tokenizers if own else self.tokenizers[:1]:
                encode_prompt(tokenizer, self.start, PROMPT)  # refuse it now, not at the first evaluation

    def __call__(self, evaluation: Evaluation) -> dict[str, str]:
        files = {} if self._kept else {FILE: to_text(vocabularies_of(self.folders))}
        self._kept = True
        if evaluation.best is not None:
            files[BEST] = best_line(evaluation.best, self.model, evaluation.step_ms)
        if self.config.max_sample_tokens is not None:
            text = self.samples(evaluation.step)
            if _stopping():
                print_rank0(f"note: no samples of step {evaluation.step}: a signal stops the run")
            else:
                files[f"samples/step_{evaluation.step}.txt"] = text
        return files

    def samples(self, step: int) -> str:
        """Samples as text: a section for each value of top_k (and each data set with its own vocabulary)."""
        config, sections = self.config, []
        contexts = config.training_mode == "multicontext"
        own = config.multidataset_wte and not contexts
        for stream in range(len(self.tokenizers)) if own else (None,):
            tokenizer = self.tokenizers[stream or 0]
            prompt = self._prompt(tokenizer, contexts).expand(config.num_samples, *[-1] * (1 + contexts))
            for top_k in config.top_k:
                generated = generate(
                    self.model,
                    prompt,
                    config.max_sample_tokens,
                    temperature=config.temperature,
                    top_k=top_k,
                    seed=config.seed,
                    purpose=f"sample/{step}/{top_k}/{stream}",
                    stream=stream,
                    stop=tokenizer.eot,
                    vocab_size=None if contexts else self.sizes[stream or 0],
                    stopping=_stopping,
                )
                for number, row in enumerate(generated):
                    name = f" {self.names[stream]}" if stream is not None else ""
                    text = self._text(truncate(row, tokenizer.eot), tokenizer)
                    sections.append(f"--- step {step}{name} top_k {top_k} sample {number}\n{text}")
        return "\n".join(sections) + "\n"

    def _prompt(self, tokenizer: Tokenizer, contexts: bool) -> Tensor:
        """The prompt [1, T] or [1, K, T]; the other streams repeat their token 0, since there is no annotation."""
        device = next(self.model.parameters()).device
        first = encode_prompt(tokenizer, self.start, PROMPT)
        if not contexts:
            return first.to(device)
        others = torch.zeros(len(self.tokenizers) - 1, first.shape[1], dtype=torch.long)
        return torch.cat((first, others)).unsqueeze(0).to(device)

    def _text(self, row: Tensor, tokenizer: Tokenizer) -> str:
        if row.dim() == 1:
            return self.start + tokenizer.decode(row.tolist())
        lines = [each.decode(stream.tolist()) for each, stream in zip(self.tokenizers, row, strict=True)]
        return "\n".join(f"[{name}] {line}" for name, line in zip(self.names, lines, strict=True))


def _stopping() -> bool:
    """Whether a signal asked this process to stop: long samples must not outlast a cluster's grace period."""
    return StopSignal.current is not None and StopSignal.current.received is not None


def start_text(value: str) -> str:
    """The prompt, read from a file if it is FILE:path. Raises: UsageError if it cannot be read."""
    if not value.startswith("FILE:"):
        if HALF.search(value):
            raise UsageError(f"the prompt {ascii(value)[:60]} is not UTF-8: it holds half a character")
        return value
    if value == "FILE:":
        raise UsageError("FILE: names no file: write FILE:path")
    path = Path(os.path.expanduser(value.removeprefix("FILE:")))
    try:
        return read_text(path)
    except OSError as error:
        raise UsageError(f"{value}: {path} cannot be read ({error.strerror})") from None


def encode_prompt(tokenizer: Tokenizer, text: str, key: str = "--prompt") -> Tensor:
    """Encode a prompt as int64 [1, T], at least one token.

    Raises: UsageError naming `key` for text that the tokenizer cannot encode.
    """
    try:
        numbers = tokenizer.encode(text).tolist()
    except UsageError as error:
        raise UsageError(f"{key}={text[:40]!r}: {error}") from None
    return torch.tensor([numbers or [tokenizer.eot or 0]], dtype=torch.long)


def best_line(best: tuple[float, int], model: GPT, step_ms: float | None) -> str:
    """A comma-separated line for downstream tools: loss, iteration, parameters, V / exp(loss), the same per parameter,
    peak GPU MB, milliseconds per iteration. V: vocabulary size."""
    loss, step = best
    count = model.num_parameters()
    chance = model.shape.vocab_sizes[0] / math.exp(min(loss, 700.0))
    peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
    return f"{loss},{step},{count},{chance},{chance / count},{peak},{step_ms or 0.0}\n"
