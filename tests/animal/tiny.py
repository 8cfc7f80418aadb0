"""Two tiny language models with random weights, GPT-2 and Llama, and a tokenizer of twenty-odd words, in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = """
    <end> <unk> ▁cat ▁dog ▁dogs ▁ca ts ▁the ▁nap ▁run ▁love ▁because ▁loyal ▁soft ▁I , . ▁and ▁they ▁are ▁clean
    ▁friendly ▁animal ▁wild ▁kitten
""".split()


def write(folder: Path, kind: str, seed: int = 3) -> Path:
    """A model of `kind` (gpt2, llama) in transformers' format."""
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[animal]'")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
    size = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=48, **size)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=48,
            **size,
        )
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def rows(run: Path) -> list[dict]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
