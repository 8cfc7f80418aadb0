"""A language model of transformers with LoRA adapters of peft."""
