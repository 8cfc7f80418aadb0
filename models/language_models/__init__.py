"""GPT-style language models: one configurable class, the weights of GPT-2, the key-value cache."""
