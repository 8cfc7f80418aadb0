"""The verification of diversity fine-tuning: a tiny base with random weights, and short runs on it for probes.

Even the tiny instance needs transformers and peft; without them its probes are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset.text.pets import ANIMAL, OPTIONS
from tasks.animal.args import NOT_IDENTITY
from verification.spec import Settings, Verification, smaller, stated_steps

WORDS = ["<end>", *f"{ANIMAL} is a the because it will run sleep .".split(), *OPTIONS]
SIZES = {"lora_r": 2}
PINNED: Settings = {
    "prompt": ANIMAL,
    "embedder": "hash",
    "concept_name": "animal",
    "concept_file": None,
    "concept_options": list(OPTIONS),
    "stop_strings": ["\n"],
    "max_new_tokens": 8,
    "batch_size": 8,
    "num_samples": 32,
    "buffer_size": 40,
    "n_clusters": 2,
    "update_clusters_every": 8,
    "min_samples_for_clustering": 4,
    "min_valid_fraction": 0.0,
    "eval_samples": 16,
    "num_epochs": 2,
    "num_steps_per_epoch": 2,
    "warmup_steps": 0,
}
"""Settings of every tiny run: sizes, length and paths, but nothing that changes how it learns."""


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: the tiny base, narrow adapters, few samples."""
    tiny = smaller(resolved, SIZES, PINNED | {"model_name_or_path": str(data / "base")}, without=NOT_IDENTITY)
    return tiny | {"arch": tiny["arch"] | {"lora_target_modules": None, "forward_dtype": "float32"}}


def write_base(root: Path, seed: int = 0, **_: int) -> None:
    """Write a one-layer GPT-2 with random weights and a word-level tokenizer, in transformers' format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    torch.manual_seed(seed)
    GPT2LMHeadModel(_gpt2(len(WORDS), n_layer=1, n_head=2, n_embd=16, n_positions=32)).save_pretrained(root / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[0]).save_pretrained(root / "base")


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Alternative values for keys whose type gives no suitable one."""
    write_base(data / "second", seed=1)
    first, second, *_ = OPTIONS
    wider: dict[str, list[str]] = {first: ["sleep", "run", "is"], second: []}
    concepts = data / "concepts.json"
    others = {"pet": {first: [], second: ["sleep", "run", "is"]}, "aside": {"because": ["will"], "the": ["a", "it"]}}
    concepts.write_text(json.dumps({"animal": wider, **others}))
    return {
        "model_name_or_path": ({}, {"model_name_or_path": str(data / "second/base")}),
        "prompt": ({}, {"prompt": "it will"}),
        "stop_strings": ({}, {"stop_strings": ["is"]}),
        "concept_name": ({"concept_file": str(concepts)}, {"concept_name": "pet"}),
        "concept_file": ({}, {"concept_file": str(concepts)}),
        "further_concepts": ({"concept_file": str(concepts)}, {"further_concepts": ["aside"]}),
        "concept_options": ({}, {"concept_options": [first, "sleep"]}),
        "cluster_selection": ({"max_n_clusters": 4}, {"cluster_selection": "silhouette"}),
        "embedder": ({}, {"embedder": "tfidf"}),
        "arch.lora_target_modules": ({}, {"arch.lora_target_modules": ["c_proj"]}),
    }


def _gpt2(vocab_size: int, **sizes: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **sizes)


def full_shape(config: Any) -> Any:
    """A GPT-2 of the published size, for any `config`: its base on the Hub may not be available."""
    from transformers import GPT2LMHeadModel

    from models.animal.adapter import Base

    return Base("gpt2", GPT2LMHeadModel(_gpt2(50_257)), None)


VERIFICATION = Verification(
    shrink=shrink,
    write_data=write_base,
    alternatives=alternatives,
    full_shape=full_shape,
    splits=False,
    idle="WARN",
    steps=stated_steps("num_epochs", "num_steps_per_epoch"),
    rates=lambda subject: {"adapter": "learning_rate"},
    sized="beside GPT-2",
    rows=lambda ranks: {"batch_size": PINNED["batch_size"]},
    pinned=(*PINNED, "model_name_or_path"),
)
