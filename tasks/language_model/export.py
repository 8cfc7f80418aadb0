"""Export a run of train.py as a GPT-2 folder in transformers' format, for scripts/export_gpt2.py."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.text.base import EOT_TEXT
from engine.errors import UsageError
from engine.io import atomic_directory, atomic_write_json, atomic_write_text
from models.language_models.gpt2_weights import gpt2_config, to_gpt2
from reports.model_card import CARD, Verify, model_card
from tasks.language_model.loading import TextRun, load_text_run

LOADING = """
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
{tokenizer}
"""


def export_run(args: argparse.Namespace, verify: Verify | None = None) -> None:
    """Write the folder atomically. `verify` checks the run for the model card.

    Raises: UsageError for a model that is not a GPT-2.
    """
    folder = Path(os.path.abspath(args.folder))
    run = load_text_run(args.run, checkpoint=args.checkpoint, device="cpu", weights=args.weights)
    model, tokenizer = run.model, _shared_tokenizer(run.vocabularies)
    eot = None if tokenizer is None else tokenizer.eot
    try:
        config = gpt2_config(model.config, model.shape, eot=eot)
        weights = to_gpt2(model.state_dict(), model.config, model.shape)
    except ValueError as error:
        raise UsageError(f"{args.run} cannot be exported: {error}") from None
    try:
        with atomic_directory(folder) as temporary:
            how = _write(temporary, config, weights, tokenizer)
            atomic_write_text(temporary / CARD, _card(run, args, folder.name, how, verify))
    except FileExistsError:
        raise UsageError(f"{args.folder} exists already: remove it or choose another folder") from None
    except FileNotFoundError as error:
        raise UsageError(f"{args.folder} cannot be created ({error}): choose another folder") from None
    print(f"model       {args.folder} (step {run.step}, {run.weights} weights)")
    print(f"tokenizer   {how}")


def _card(run: TextRun, args: argparse.Namespace, name: str, tokenizer: str, verify: Verify | None) -> str:
    sizes, written = run.model.config, not tokenizer.startswith("not written")
    return model_card(
        run.checkpoint,
        name=name,
        weights=run.weights,
        model={
            "class": "GPT2LMHeadModel",
            "parameters": f"{sum(parameter.numel() for parameter in run.model.parameters()):,}",
            "layers, heads, width": f"{sizes.n_layer}, {sizes.n_head}, {sizes.n_embd}",
            "context": sizes.block_size,
            "tokenizer": tokenizer,
        },
        loading=LOADING.format(
            name=name,
            tokenizer=f'tokenizer = AutoTokenizer.from_pretrained("{name}")' if written else f"# tokenizer {tokenizer}",
        ),
        library="transformers",
        tags=["text-generation"],
        license=args.license,
        verify=verify,
    )


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Any], tokenizer: Any) -> str:
    from engine.checkpoint.state_tree import write_tensors

    write_tensors(folder / "model.safetensors", weights)
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates it readable by the owner only
    atomic_write_json(folder / "config.json", config)
    as_json = _tokenizer_json(tokenizer)
    if as_json is None:
        if tokenizer is None:
            return "not written: the data have none, or several"
        instead = "take openai-community/gpt2's" if tokenizer.kind == "gpt2" else "encode with the data set's own"
        return f"not written: transformers has no file for '{tokenizer.kind}', {instead}"
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["n_positions"]}
    settings |= {} if tokenizer.eot is None else {"bos_token": EOT_TEXT, "eos_token": EOT_TEXT}
    atomic_write_json(folder / "tokenizer.json", as_json)
    atomic_write_json(folder / "tokenizer_config.json", settings)
    return f"{tokenizer.kind}, {tokenizer.vocab_size} tokens"


def _shared_tokenizer(vocabularies: Sequence[Any]) -> Any:
    """The tokenizer that all data sets of the run share; None if they differ or have none."""
    try:
        tokenizers = [each.tokenizer() for each in vocabularies]
    except UsageError:  # only token files: the model can be exported without a tokenizer, and the output reports it
        return None
    return tokenizers[0] if all(other.state() == tokenizers[0].state() for other in tokenizers) else None


def _tokenizer_json(tokenizer: Any) -> dict[str, Any] | None:
    """tokenizer.json of the tokenizers library: our trained BPE as is, characters as a BPE without merges."""
    kind = getattr(tokenizer, "kind", None)
    if kind == "bpe":
        model: dict[str, Any] = tokenizer.model
        return model
    if kind != "char":
        return None
    ids = {char: number for number, char in enumerate(tokenizer.chars)}
    added = []
    if tokenizer.eot is not None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [{"id": tokenizer.eot, "content": EOT_TEXT, **flags, "special": True}]
    bpe: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": ids,
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": bpe,
    }
