"""GPT-style language models: one configurable class, GPT-2 weights, KV cache."""
